"""Push mode over real HTTP: a payload is acknowledged if and only if it is kept."""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import sqlite3
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import IngestPipeline
from autoplay_rag.connector.webhook import WebhookReceiver, webhook_app
from autoplay_rag.devserver.serving import ConnectorServer
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import (
    AutoplayError,
    BodyTooLargeError,
    ConfigurationError,
    DecodeError,
    SignatureError,
)
from autoplay_rag.journal.bodies import unpack
from autoplay_rag.payloads import ActionsPayload, SummaryPayload
from autoplay_rag.stores import MemoryStore

SECRET = "whsec_test"
ACTIONS = b'{"type":"actions","session_id":"s1","actions":[{"title":"Export"}],"forwarded_at":1.0}'
SUMMARY = b'{"type":"summary","session_id":"s1","summary":"Exported a report."}'
# printf ... | openssl dgst -sha256 -hmac whsec_test
SUMMARY_SIGNATURE = "sha256=a33c67858becb5e3fb50452d8933f3c75e720d330155d15e86df1889f8c966ef"
RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "webhook.md"


def sign(body, secret=SECRET):
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def summary(n, text="Exported a report."):
    return json.dumps({"type": "summary", "session_id": f"s{n}", "summary": text}).encode()


class GatedEmbedder(Embedder):
    """Embeds while `open` is set."""

    model = "gated"

    def __init__(self):
        self.open = asyncio.Event()
        self.open.set()

    async def embed(self, texts):
        await self.open.wait()
        return [[1.0, float(len(text))] for text in texts]


@pytest.fixture
async def embedder():
    return GatedEmbedder()


@pytest.fixture
async def make_pipeline(tmp_path, embedder):
    """Make pipelines that are not started; check their ledgers at the end."""
    made = []

    def make(**options):
        options = {"journal": tmp_path / "journal.db", "batch_window": 0} | options
        pipeline = IngestPipeline(MemoryStore(), embedder, **options)
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        await pipeline.aclose()
        assert pipeline.ledger.balanced, pipeline.ledger


@pytest.fixture
async def pipeline(make_pipeline):
    pipeline = make_pipeline()
    await pipeline.start()
    return pipeline


@asynccontextmanager
async def serving(app, lifespan="off"):
    """Serve with uvicorn; yield an HTTP client for it."""
    server = ConnectorServer(app)
    server.config.lifespan = lifespan
    port = await server.listen("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield http
    finally:
        await server.aclose()


async def post(http, body, signature=None, path="/"):
    headers = {"X-Connector-Signature": sign(body) if signature is None else signature}
    return await http.post(path, content=body, headers=headers)


# -- the receiver -----------------------------------------------------------------------------


def test_a_signature_made_by_another_tool_is_right():
    assert WebhookReceiver(SECRET).verify(SUMMARY, SUMMARY_SIGNATURE)
    assert WebhookReceiver(SECRET.encode()).verify(SUMMARY, SUMMARY_SIGNATURE.encode())


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        "sha256",
        SUMMARY_SIGNATURE.removeprefix("sha256="),
        SUMMARY_SIGNATURE.upper(),
        "sha256=" + SUMMARY_SIGNATURE.removeprefix("sha256=").upper(),
        SUMMARY_SIGNATURE.replace("sha256", "sha1"),
        SUMMARY_SIGNATURE[:-1],
        SUMMARY_SIGNATURE + "0",
        " " + SUMMARY_SIGNATURE,
        SUMMARY_SIGNATURE + "\n",
        SUMMARY_SIGNATURE.replace("a", "а"),  # noqa: RUF001 - a Cyrillic letter
        "sha256=é",
        "sha256=\ud800",
        b"sha256=\xff",
    ],
)
def test_any_other_header_is_wrong(header):
    assert WebhookReceiver(SECRET).verify(SUMMARY, header) is False


@given(
    secret=st.text(min_size=1).filter(lambda s: s.isascii()), body=st.binary(), at=st.integers(0)
)
def test_what_is_signed_verifies_and_one_changed_bit_does_not(secret, body, at):
    receiver = WebhookReceiver(secret)
    header = sign(body, secret)
    assert receiver.verify(body, header)
    assert not receiver.verify(body + b" ", header)
    if body:
        changed = bytearray(body)
        changed[at % len(body)] ^= 1
        assert not receiver.verify(bytes(changed), header)
    assert not WebhookReceiver(secret + "x").verify(body, header)


@given(header=st.text() | st.binary())
def test_no_header_makes_verify_fail(header):
    right = header in (SUMMARY_SIGNATURE, SUMMARY_SIGNATURE.encode())
    assert WebhookReceiver(SECRET).verify(SUMMARY, header) is right


def test_an_empty_secret_is_refused_unless_asked_for():
    for secret in ("", b""):
        with pytest.raises(ConfigurationError, match="allow_unsigned"):
            WebhookReceiver(secret)
        with pytest.raises(ConfigurationError, match="allow_unsigned"):
            webhook_app(None, secret)
    unsigned = WebhookReceiver("", allow_unsigned=True)
    assert unsigned.handle_sync(SUMMARY).summary == "Exported a report."
    # With a secret, `allow_unsigned` has no effect.
    with pytest.raises(SignatureError):
        WebhookReceiver(SECRET, allow_unsigned=True).handle_sync(SUMMARY)


@pytest.mark.parametrize("options", [{"max_body_bytes": 0}, {"max_body_bytes": -1}])
def test_limits_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigurationError, match="max_body_bytes"):
        WebhookReceiver(SECRET, **options)
    with pytest.raises(ConfigurationError, match="timeout"):
        webhook_app(None, SECRET, timeout=0)


def test_the_secret_is_in_no_repr_and_no_error():
    receiver = WebhookReceiver(SECRET)
    with pytest.raises(SignatureError) as caught:
        receiver.handle_sync(SUMMARY, "sha256=00")
    app = webhook_app(None, SECRET)
    for text in (repr(receiver), repr(app), str(caught.value)):
        assert SECRET not in text
        assert SUMMARY_SIGNATURE not in text
    assert repr(receiver) == "WebhookReceiver(signed)"


def test_each_kind_goes_to_its_callbacks():
    seen = []
    receiver = WebhookReceiver(SECRET, lambda p: seen.append(("first", p)))
    assert receiver.on_actions(lambda p: seen.append(("second", p))) is receiver
    assert receiver.on_summary(lambda p: seen.append(("summary", p))) is receiver
    actions = receiver.handle_sync(ACTIONS, sign(ACTIONS))
    assert type(actions) is ActionsPayload
    told = receiver.handle_sync(SUMMARY, sign(SUMMARY))
    assert type(told) is SummaryPayload
    assert seen == [("first", actions), ("second", actions), ("summary", told)]


async def test_handle_awaits_coroutines_and_calls_plain_functions_elsewhere():
    seen = []
    loop = asyncio.get_running_loop()

    async def from_the_loop(payload):
        assert asyncio.get_running_loop() is loop
        seen.append(payload)

    def from_a_thread(payload):
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        seen.append(payload)

    receiver = WebhookReceiver(SECRET, from_the_loop).on_actions(from_a_thread)
    payload = await receiver.handle(ACTIONS, sign(ACTIONS))
    assert seen == [payload, payload]


async def test_an_invalid_request_raises_an_error_of_the_package_and_runs_no_callback():
    seen = []
    receiver = WebhookReceiver(SECRET, seen.append, seen.append, max_body_bytes=100)
    for body, header, error in [
        (ACTIONS, sign(ACTIONS + b" "), SignatureError),
        (ACTIONS, None, SignatureError),
        (b"{", sign(b"{"), DecodeError),
        (b"[1]", sign(b"[1]"), DecodeError),
        (b"\xff\x00", sign(b"\xff\x00"), DecodeError),
        (b"[" * 101, sign(b"[" * 101), BodyTooLargeError),
    ]:
        with pytest.raises(error):
            receiver.handle_sync(body, header)
        with pytest.raises(error):
            await receiver.handle(body, header)
        assert issubclass(error, AutoplayError)
        assert issubclass(error, ValueError)  # as in other clients
    assert seen == []


def test_unsigned_rubbish_is_never_parsed():
    with pytest.raises(SignatureError):
        WebhookReceiver(SECRET).handle_sync(b"{", "sha256=00")


def test_an_unknown_type_is_none(caplog):
    body = b'{"type":"usertour_trigger"}'
    with caplog.at_level(logging.DEBUG, "autoplay_rag.connector.webhook"):
        assert WebhookReceiver(SECRET).handle_sync(body, sign(body)) is None
    assert "usertour_trigger" in caplog.text


async def test_what_a_callback_raises_reaches_the_caller():
    def broken(payload):
        raise LookupError("no such table")

    receiver = WebhookReceiver(SECRET, broken)
    with pytest.raises(LookupError):
        receiver.handle_sync(ACTIONS, sign(ACTIONS))
    with pytest.raises(LookupError):
        await receiver.handle(ACTIONS, sign(ACTIONS))


def test_handle_sync_refuses_a_coroutine():
    async def wanted(payload):
        raise AssertionError("never run")

    with pytest.raises(ConfigurationError, match="async"):
        WebhookReceiver(SECRET, wanted).handle_sync(ACTIONS, sign(ACTIONS))


async def test_a_receiver_can_be_attached_to_a_pipeline(pipeline):
    receiver = pipeline.attach(WebhookReceiver(SECRET))
    await receiver.handle(ACTIONS, sign(ACTIONS))
    await receiver.handle(SUMMARY, sign(SUMMARY))
    assert pipeline.ledger.received == 2


# -- the application --------------------------------------------------------------------------


async def test_what_is_posted_is_stored_once(pipeline):
    async with serving(webhook_app(pipeline, SECRET)) as http:
        answers = [await post(http, body) for body in (ACTIONS, SUMMARY, ACTIONS)]
        assert [(a.status_code, a.json()["detail"]) for a in answers] == [
            (200, "accepted"),
            (200, "accepted"),
            (200, "duplicate"),
        ]
    await pipeline.drain()
    assert (pipeline.ledger.stored, pipeline.ledger.duplicate) == (2, 1)


async def test_200_means_that_the_journal_has_committed(pipeline, tmp_path, embedder):
    embedder.open.clear()
    async with serving(webhook_app(pipeline, SECRET)) as http:
        assert (await post(http, SUMMARY)).status_code == 200
        with sqlite3.connect(f"file:{tmp_path}/journal.db?mode=ro", uri=True) as reader:
            (body,) = reader.execute("SELECT body FROM payload").fetchone()
        reader.close()
    assert json.loads(unpack(body))["summary"] == "Exported a report."
    embedder.open.set()


@pytest.mark.parametrize(
    ("body", "header", "status"),
    [
        (ACTIONS + b" ", sign(ACTIONS), 401),
        (ACTIONS, "", 401),
        (ACTIONS, sign(ACTIONS, "another"), 401),
        (ACTIONS, sign(ACTIONS).upper(), 401),
        (ACTIONS, sign(ACTIONS)[:20], 401),
        (b"{", "sha256=00", 401),
        (b"{", None, 400),
        (b"", None, 400),
        (b"[]", None, 400),
        (b"x" * 1001, None, 413),
        (b"x" * 1001, "sha256=00", 413),
        (b'{"type":"usertour_trigger"}', None, 200),
        (b'{"type":"actions","actions":[]}', None, 200),
    ],
)
async def test_answers(pipeline, body, header, status, caplog):
    async with serving(webhook_app(pipeline, SECRET, max_body_bytes=1000)) as http:
        answer = await post(http, body, header)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert SECRET not in caplog.text
    logged = [r for r in caplog.records if r.name == "autoplay_rag.connector.webhook"]
    assert bool(logged) == (status != 200)
    assert pipeline.ledger.received == pipeline.ledger.filtered


async def test_a_request_without_the_header_is_401(pipeline):
    async with serving(webhook_app(pipeline, SECRET)) as http:
        assert (await http.post("/", content=ACTIONS)).status_code == 401
        raw = [(b"X-Connector-Signature", b"sha256=\xe9\xff")]
        assert (await http.post("/", content=ACTIONS, headers=raw)).status_code == 401


async def test_only_post_is_served(pipeline):
    async with serving(webhook_app(pipeline, SECRET)) as http:
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
            answer = await http.request(method, "/")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("pieces", [3, 3000])
async def test_a_body_without_a_length_is_limited_too(pipeline, pieces):
    async def upload():
        for _ in range(pieces):
            yield b"x" * 600

    async with serving(webhook_app(pipeline, SECRET, max_body_bytes=1000)) as http:
        assert (await http.post("/", content=upload())).status_code == 413
        assert (await post(http, SUMMARY)).status_code == 200  # the connection is still usable


async def test_a_chunked_body_within_the_limit_is_verified_whole(pipeline):
    async def upload():
        for at in range(0, len(ACTIONS), 7):
            yield ACTIONS[at : at + 7]

    async with serving(webhook_app(pipeline, SECRET, max_body_bytes=len(ACTIONS))) as http:
        headers = {"X-Connector-Signature": sign(ACTIONS)}
        assert (await http.post("/", content=upload(), headers=headers)).status_code == 200


async def test_an_endless_body_is_neither_buffered_nor_read_to_the_end():
    taken = 0
    sent = []

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 2**20, "more_body": True}

    async def send(message):
        sent.append(message)

    app = webhook_app(None, SECRET, max_body_bytes=2**20)
    tracemalloc.start()
    await app({"type": "http", "method": "POST", "headers": []}, receive, send)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sent[0]["status"] == 413
    assert taken < 100
    assert peak < 4 * 2**20


async def test_a_sender_that_goes_away_is_harmless(pipeline, until, caplog):
    caplog.set_level(logging.DEBUG, "autoplay_rag.connector.webhook")
    async with serving(webhook_app(pipeline, SECRET)) as http:
        _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\n" + ACTIONS)
        await writer.drain()
        writer.close()
        await until(lambda: "went away" in caplog.text)
        assert (await post(http, SUMMARY)).status_code == 200
    assert pipeline.ledger.received == 1
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_body_that_never_comes_is_503(pipeline):
    async with serving(webhook_app(pipeline, SECRET, timeout=0.1)) as http:
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
    assert pipeline.ledger.received == 0


# -- when a payload cannot be kept ------------------------------------------------------------


async def test_a_full_journal_is_503_until_there_is_room(make_pipeline, embedder):
    pipeline = make_pipeline(journal_max_bytes=250)
    await pipeline.start()
    embedder.open.clear()
    async with serving(webhook_app(pipeline, SECRET)) as http:
        assert (await post(http, summary(1))).status_code == 200
        assert (await post(http, summary(2, "x" * 100))).status_code == 503
        assert (await post(http, summary(1))).status_code == 200  # a duplicate needs no room
        embedder.open.set()
        await pipeline.drain()
        answer = await post(http, summary(2, "x" * 100))
        assert (answer.status_code, answer.json()["detail"]) == (200, "accepted")
    await pipeline.drain()
    assert (pipeline.ledger.stored, pipeline.ledger.overflow) == (2, 1)


def test_parse_reads_a_body_that_was_checked_elsewhere(caplog):
    receiver = WebhookReceiver(SECRET, on_summary=lambda payload: pytest.fail("called"))
    assert receiver.parse(SUMMARY).kind == "summary"
    assert receiver.parse(b'{"type": "usertour_trigger"}') is None
    assert caplog.text == ""
    assert receiver.parse(b"secret words") is None
    assert "could not be read" in caplog.text
    assert "secret" not in caplog.text


async def test_a_journal_that_fails_is_503_until_it_is_well(pipeline, tmp_path, caplog):
    def rename(old, new):
        connection = sqlite3.connect(tmp_path / "journal.db", timeout=10)
        with connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
        connection.close()

    async with serving(webhook_app(pipeline, SECRET)) as http:
        rename("payload", "gone")
        answer = await post(http, SUMMARY)
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text
        assert "could not be used" in caplog.text
        rename("gone", "payload")
        assert (await post(http, SUMMARY)).json()["detail"] == "accepted"
    # The refused payload counts as overflow: not every sender retries.
    assert (pipeline.ledger.received, pipeline.ledger.overflow) == (2, 1)


async def test_a_journal_that_hangs_is_503_and_nothing_is_doubled(pipeline, tmp_path):
    async with serving(webhook_app(pipeline, SECRET, timeout=0.2)) as http:
        other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert (await post(http, SUMMARY)).status_code == 503
        other.execute("ROLLBACK")
        other.close()
        await pipeline.drain()
        assert (await post(http, SUMMARY)).json()["detail"] == "duplicate"
    assert (pipeline.ledger.stored, pipeline.ledger.duplicate) == (1, 1)


async def test_a_closed_pipeline_is_503(pipeline):
    async with serving(webhook_app(pipeline, SECRET)) as http:
        await pipeline.aclose()
        assert (await post(http, SUMMARY)).status_code == 503
        await pipeline.start()
        assert (await post(http, SUMMARY)).status_code == 200
    assert pipeline.ledger.received == 1


async def test_a_users_rule_that_raises_does_not_cause_a_resend(make_pipeline):
    def broken(payload):
        raise LookupError

    pipeline = make_pipeline(select=broken)
    await pipeline.start()
    async with serving(webhook_app(pipeline, SECRET)) as http:
        answer = await post(http, SUMMARY)
        assert (answer.status_code, answer.json()["detail"]) == (200, "dead")


# -- inside applications ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/autoplay/", "/autoplay/any", "/route"])
async def test_it_fits_into_an_application(pipeline, path):
    endpoint = webhook_app(pipeline, SECRET)
    app = FastAPI()
    app.mount("/autoplay", endpoint)
    app.add_route("/route", endpoint)
    async with serving(app) as http:
        assert (await post(http, SUMMARY, path=path)).status_code == 200
        assert (await post(http, SUMMARY, "sha256=00", path=path)).status_code == 401
        assert (await http.get(path)).status_code == 405
    assert pipeline.ledger.received == 1


async def test_by_itself_it_starts_and_closes_the_pipeline(make_pipeline):
    pipeline = make_pipeline()
    async with serving(webhook_app(pipeline, SECRET), lifespan="on") as http:
        assert (await post(http, SUMMARY)).status_code == 200
    assert pipeline.ledger.stored == 1  # drained
    await pipeline.start()  # closed: it can start again


async def test_a_pipeline_that_runs_is_left_running(pipeline):
    async with serving(webhook_app(pipeline, SECRET), lifespan="on") as http:
        assert (await post(http, SUMMARY)).status_code == 200
    await pipeline.drain()  # raises if closed


async def lifespan(app, *moments):
    """Send lifespan messages; return the answers."""
    messages = [{"type": f"lifespan.{moment}"} for moment in moments]
    answers = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        answers.append(message)

    await app({"type": "lifespan"}, receive, send)
    return answers


async def test_a_pipeline_that_cannot_start_ends_the_server(pipeline, tmp_path, embedder):
    second = IngestPipeline(MemoryStore(), embedder, journal=tmp_path / "journal.db")
    (answer,) = await lifespan(webhook_app(second, SECRET), "startup")
    assert answer["type"] == "lifespan.startup.failed"
    assert "JournalLockedError" in answer["message"]
    assert (await lifespan(webhook_app(pipeline, SECRET), "startup", "shutdown")) == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ]


async def test_a_pipeline_that_cannot_close_is_said(make_pipeline):
    pipeline = make_pipeline()

    async def broken():
        raise OSError("no such device")

    app = webhook_app(pipeline, SECRET)
    close, pipeline._store.aclose = pipeline._store.aclose, broken
    answers = await lifespan(app, "startup", "shutdown")
    assert answers[-1] == {
        "type": "lifespan.shutdown.failed",
        "message": "OSError: no such device",
    }
    pipeline._store.aclose = close


async def test_a_websocket_is_closed_and_the_unknown_refused():
    sent = []

    async def send(message):
        sent.append(message)

    app = webhook_app(None, SECRET)
    await app({"type": "websocket"}, None, send)
    assert sent == [{"type": "websocket.close"}]
    with pytest.raises(ValueError, match="serves HTTP"):
        await app({"type": "carrier-pigeon"}, None, send)


# -- the recipe -------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Run the nth block of the recipe; return its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPLAY_WEBHOOK_SECRET", SECRET)
    blocks = re.findall(r"^```python\n(.*?)^```$", RECIPE.read_text(), re.DOTALL | re.MULTILINE)

    def run(n):
        names = {"__name__": "recipe"}
        exec(compile(blocks[n], f"{RECIPE.name}, block {n}", "exec"), names)
        return names

    assert len(blocks) == 3
    return run


async def test_the_recipe_of_an_application(recipe):
    names = recipe(0)
    async with serving(names["app"], lifespan="on") as http:
        assert (await post(http, SUMMARY, path="/autoplay")).is_redirect  # as the recipe warns
        assert (await post(http, SUMMARY, path="/autoplay/")).status_code == 200
        assert (await post(http, SUMMARY, "sha256=00", path="/autoplay/")).status_code == 401
        await names["pipeline"].drain()
        answer = await http.get("/search", params={"q": "who exported a report?"})
    assert "Exported a report." in answer.json()[0]


async def test_the_recipe_of_an_endpoint_by_itself(recipe):
    names = recipe(1)
    async with serving(names["app"], lifespan="on") as http:
        assert (await post(http, SUMMARY)).status_code == 200
    assert names["pipeline"].ledger.stored == 1


async def test_the_recipe_without_a_pipeline(recipe):
    names = recipe(2)
    async with serving(names["app"]) as http:
        statuses = [
            (await post(http, body, signature, "/autoplay")).status_code
            for body, signature in ((ACTIONS, None), (ACTIONS, "sha256=00"), (b"{", None))
        ]
    assert statuses == [200, 401, 400]
    assert [payload.session_id for payload in names["seen"]] == ["s1"]
