"""The local connector posts its recording as an analytics tool would."""

import asyncio

import pytest
from serve_server import WEBHOOK_SECRET, serve  # noqa: F401 - a fixture
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from autoplay_rag import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.devserver.analytics import delivery, events_of
from autoplay_rag.devserver.serving import ConnectorServer
from autoplay_rag.errors import ConfigurationError, ConnectorError, TransientError
from autoplay_rag.sources.tools import READERS

CLICKS = [
    ActionsPayload(
        "acme",
        f"s{n}",
        "ann",
        "ann@acme.test",
        [SlimAction("", 'User clicked the "Say \\ "hi"" button', "", 0, "click", 1772524874.0 + n)],
    )
    for n in range(5)
]


@pytest.fixture
async def webhook():
    """Answers with the given statuses in turn, and then with the last; notes what it was sent."""
    servers = []

    async def start(*statuses):
        left, got = list(statuses), []

        async def answer(request):
            got.append((dict(request.headers), await request.body()))
            status = left.pop(0) if len(left) > 1 else left[0]
            return JSONResponse({"detail": "for a reason"}, status)

        server = ConnectorServer(Starlette(routes=[Route("/hook", answer, methods=["POST"])]))
        servers.append(server)
        return f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}/hook", got

    yield start
    for server in servers:
        await server.aclose()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("tool", READERS)
async def test_what_is_posted_is_accepted(tool, batch, serve):  # noqa: F811
    connector = LocalConnector([*CLICKS, SummaryPayload("acme", "s1", "Clicked."), b"no json"])
    async with serve() as running:
        url = f"{running.server.url}/v1/webhooks/acme/{tool}"
        posted = await connector.post_webhooks(url, tool, secret=WEBHOOK_SECRET, batch=batch)
        again = await connector.post_webhooks(url, tool, secret=WEBHOOK_SECRET)
        sessions = await running.pipeline.sessions("ann")
        assert (running.pipeline.ledger.received, running.pipeline.ledger.duplicate) == (10, 5)
    assert posted == again == 5
    assert len(sessions) == 5


async def test_a_failure_is_repeated_with_the_same_body(webhook):
    url, got = await webhook(503, 429, 200)
    assert await LocalConnector(CLICKS[:1]).post_webhooks(url) == 1
    assert len(got) == 3
    assert len({body for _, body in got}) == 1


async def test_a_refusal_and_an_outage_are_errors(webhook, monkeypatch):
    monkeypatch.setattr("autoplay_rag.devserver.posting._BACKOFF_S", 0.001)
    connector = LocalConnector(CLICKS)
    url, got = await webhook(401)
    with pytest.raises(ConnectorError, match="answered 401: for a reason"):
        await connector.post_webhooks(url, secret="s3cret")
    assert len(got) == 1
    url, got = await webhook(500)
    with pytest.raises(TransientError, match="answered 500, 5 times in a row"):
        await connector.post_webhooks(url)
    assert len(got) == 5
    with pytest.raises(TransientError, match="cannot be reached"):
        await connector.post_webhooks("http://127.0.0.1:1/")


async def test_the_rate_is_kept(webhook):
    url, got = await webhook(200)
    clock = asyncio.get_running_loop().time
    started = clock()
    await LocalConnector(CLICKS).post_webhooks(url, rate=50)
    assert clock() - started >= 4 / 50
    assert len(got) == 5


@pytest.mark.parametrize(
    "options", [{"tool": "mixpanel"}, {"batch": 0}, {"rate": 0}], ids=["tool", "batch", "rate"]
)
async def test_arguments_are_checked(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        await LocalConnector(CLICKS).post_webhooks("http://127.0.0.1:1/", **options)


@pytest.mark.parametrize("tool", READERS)
def test_the_words_survive(tool):
    (payload,) = CLICKS[:1]
    (event,) = READERS[tool](delivery(events_of(payload, tool), tool)).events
    assert event.did.description == payload.actions[0].description
    assert event.email == "ann@acme.test"
