"""The sources of a command: arguments, settings file, environment; and several at once."""

import asyncio
import json
import time

import httpx
import pytest

from autoplay_rag.cli.app import run
from autoplay_rag.cli.config import Config
from autoplay_rag.cli.sources import sources_of
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import ActionsPayload, SlimAction

STREAM = "https://connector.example/stream/acme"
PULL = "https://mcp.example"
TABLE = f"""
[[pulls]]
url = "{PULL}"
product_id = "prod_x"
token = {{ env = "THE_KEY" }}
users = ["u1", "u2"]
interval = 5
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("AUTOPLAY_APP_UNKEY_TOKEN", "AUTOPLAY_RAG_PULL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AUTOPLAY_RAG_PULL_PRODUCT", "from-env")


def test_arguments(monkeypatch):
    monkeypatch.setenv("AUTOPLAY_RAG_PULL_USERS", "a, b ,")
    found = sources_of([STREAM, f"pull:{PULL}", "webhook:posthog"], [], Config())
    assert [client.url for client in found.streams] == [STREAM]
    (pull,) = found.pulls
    assert (pull.url, pull.product_id) == (f"{PULL}/", "from-env")
    assert pull._audience._users == ("a", "b")
    assert found.tools == {"posthog"}
    assert found.running == [*found.streams, pull]
    assert "posthog and the stream describe the same clicks" in found.warning
    assert not sources_of(["webhook:posthog"], [], Config()).warning
    assert not sources_of([STREAM], [], Config()).warning


async def test_a_server_asks_sources_that_refuse_again():
    async with LocalConnector(token="uk_live_right") as connector:
        sources = [connector.url, f"pull:{connector.pull_url}"]
        for wanted in (True, False):
            found = sources_of(sources, [], Config(), retry_refusals=wanted)
            (stream,) = found.streams
            (pull,) = found.pulls
            assert (stream._stream._retry_refusals, pull._retry_refusals) == (wanted, wanted)
            task = stream.run_in_background()
            while stream.refusal is None:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)
            if not wanted:
                await asyncio.wait([task])
            assert (stream.state == "failed") is not wanted
            stream.stop()
            await asyncio.wait([task])
            assert task.exception() is None or not wanted


def test_a_file_names_everything(monkeypatch):
    monkeypatch.setenv("THE_KEY", "secret-key")
    text = f'url = "{STREAM}"\nwebhooks = ["segment"]\n{TABLE}'
    found = sources_of([], [], Config(None, text))
    assert [client.url for client in found.streams] == [STREAM]
    (pull,) = found.pulls
    assert (pull.product_id, pull._interval, pull._audience._users) == ("prod_x", 5, ("u1", "u2"))
    assert found.tools == {"segment"}
    assert "secret-key" not in repr(found) + repr(Config(None, text).pulls())
    # An argument replaces all of the file, except what the file says of the same URL.
    only = sources_of([f"pull:{PULL}"], [], Config(None, text))
    assert (only.streams, only.tools, only.pulls[0].product_id) == ([], frozenset(), "prod_x")
    assert not sources_of([], [], Config())


def test_nobody_named_means_whoever_asks():
    (pull,) = sources_of([f"pull:{PULL}"], [], Config()).pulls
    assert pull._audience.is_asked


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[pulls]\nurl = 'x'", "line 1: write [[pulls]] above each pull"),
        ("[[pulls]]\nproduct_id = 'x'", "line 1: a pull needs a url"),
        ("[[pulls]]\nurl = 'x'\nusers = 'ann'", 'line 3: users must be "asked" or a list of texts'),
        ("[[pulls]]\nurl = 'x'\nusers = [3]", "line 3: users must be"),
        ("[[pulls]]\nurl = 'x'\nintervall = 3", "did you mean interval?"),
        ("webhooks = 'posthog'", "line 1: webhooks must be a list of texts"),
        ("webhooks = ['mixpanel']", "webhook:mixpanel is not known"),
        ("[[pulls]]\nurl = 'nonsense'", "line 2: the url of the pull endpoint"),
        ("[[pulls]]\nurl = 'https://a'\ninterval = 0", "line 2: interval must be"),
        ("[[pulls]]\nurl = 'https://a'\n[[pulls]]\nurl = 'https://a'", "a URL is given twice"),
    ],
)
def test_errors(text, says):
    with pytest.raises(ConfigurationError) as caught:
        sources_of([], [], Config("mine.toml", text))
    assert says in str(caught.value)


def test_a_pull_needs_its_product(monkeypatch):
    monkeypatch.delenv("AUTOPLAY_RAG_PULL_PRODUCT")
    with pytest.raises(ConfigurationError, match="set AUTOPLAY_RAG_PULL_PRODUCT"):
        sources_of([f"pull:{PULL}"], [], Config())


def test_ingest_takes_no_webhook(capsys):
    assert run(["ingest", "webhook:posthog"]) == 2
    assert "use `autoplay-rag serve`" in capsys.readouterr().err


async def test_serve_takes_a_stream_a_pull_and_a_webhook_at_once(started):
    def visit(user, session, *titles):
        actions = [
            SlimAction(
                t, f"User clicked {t}", "https://a.test/p", n, "click", 1000.0 + n, 1000.0 + n
            )
            for n, t in enumerate(titles)
        ]
        return ActionsPayload("acme", session, user, actions=actions)

    admin = "an-admin-key-of-tests"
    async with (
        LocalConnector([visit("ann", "ps_1", "Home")], token="key") as streaming,
        LocalConnector([], product_id="acme", token="pull-key") as pulling,
    ):
        await pulling.send(visit("ann", "ps_1", "Home"))
        await pulling.send(visit("bob", "ps_2", "Export"))
        sources = (f"stream:{streaming.url}", f"pull:{pulling.pull_url}", "webhook:posthog")
        secrets = {
            "AUTOPLAY_RAG_ADMIN_KEY": admin,
            "AUTOPLAY_APP_UNKEY_TOKEN": "key",
            "AUTOPLAY_RAG_PULL_TOKEN": "pull-key",
            "AUTOPLAY_RAG_PULL_PRODUCT": "acme",
            "AUTOPLAY_RAG_PULL_USERS": "ann,bob",
        }
        async with started("serve", *sources, "--port", "0", **secrets) as running:
            url = (await running.line("serving ")).removeprefix("serving ")
            assert "/v1/webhooks/PRODUCT/posthog" in await running.line("posts to", "stderr")
            assert "in other words" in await running.line("warning", "stderr")
            headers = {"authorization": f"Bearer {admin}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
                async with asyncio.timeout(30):
                    while (await http.get("/v1/ledger")).json()["received"] < 2:  # noqa: ASYNC110 - another process
                        await asyncio.sleep(0.05)
                lines = (await http.get("/v1/actions")).text.splitlines()
                found = [json.loads(line).get("title") for line in lines]
            running.interrupt()
            code, _, err = await running.end()
    assert code == 0, err
    assert sorted(filter(None, found)) == ["Export", "Home"]
    assert "pull-key" not in err


async def test_serve_pulls_the_user_who_is_asked_about_though_nobody_is_watched(started):
    now, key = time.time(), "a-read-key-of-tests-only"
    click = SlimAction("Export", "User clicked Export", "https://a.test/p", 0, "click", now, now)
    async with LocalConnector([], product_id="acme", token="pull-key") as connector:
        await connector.send(ActionsPayload("acme", "ps_1", "ann", actions=[click]))
        secrets = {
            "AUTOPLAY_RAG_ADMIN_KEY": key,
            "AUTOPLAY_RAG_PULL_TOKEN": "pull-key",
            "AUTOPLAY_RAG_PULL_PRODUCT": "acme",
        }
        command = ("serve", f"pull:{connector.pull_url}", "--port", "0")
        async with started(*command, **secrets) as running:
            url = (await running.line("serving ")).removeprefix("serving ")
            headers = {"authorization": f"Bearer {key}"}
            text = ""
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
                async with asyncio.timeout(30):
                    while "Export" not in text:  # a busy machine may need longer than the limit
                        asked = {"user_id": "ann", "seconds": 3600}
                        text = (await http.post("/v1/context", json=asked)).json()["text"]
            running.interrupt()
            code, _, err = await running.end()
    assert code == 0, err


async def test_ingest_reads_a_pull_until_it_is_idle(started, tmp_path):
    async with LocalConnector(token="pull-key") as connector:
        secrets = {
            "AUTOPLAY_RAG_PULL_TOKEN": "pull-key",
            "AUTOPLAY_RAG_PULL_PRODUCT": connector.product_id,
            "AUTOPLAY_RAG_PULL_USERS": "u_001,u_002",
        }
        command = ("ingest", f"pull:{connector.pull_url}", "--idle-seconds", "4")
        async with started(*command, **secrets) as running:
            code, out, err = await running.end()
        assert code == 0, err
        assert "stored 4" in out  # two sessions of each: 15 minutes are no gap


async def test_a_refused_pull_is_an_error(started):
    async with LocalConnector(token="pull-key") as connector:
        secrets = {
            "AUTOPLAY_RAG_PULL_TOKEN": "wrong",
            "AUTOPLAY_RAG_PULL_PRODUCT": connector.product_id,
            "AUTOPLAY_RAG_PULL_USERS": "u_001",
        }
        async with started("ingest", f"pull:{connector.pull_url}", **secrets) as running:
            code, _, err = await running.end()
    assert code == 1
    assert "401 from" in err
    assert "u_001" not in err
