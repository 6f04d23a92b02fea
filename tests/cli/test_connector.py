"""`autoplay-rag connector`."""

import signal

import httpx
import pytest
from serve_server import WEBHOOK_SECRET, serve  # noqa: F401 - a fixture

from autoplay_rag.devserver import LocalConnector, samples


async def test_it_serves_the_samples_until_ctrl_c(started):
    async with started("connector", "--port", "0") as running:
        url = (await running.line("serving")).removeprefix("serving ")
        async with httpx.AsyncClient() as http, http.stream("GET", url) as response:
            first = await anext(response.aiter_lines())
            assert first.removeprefix("data: ").encode() == samples().read_bytes().splitlines()[0]
            running.interrupt()
            code, _, err = await running.end()
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_recording_a_token_and_other_signals(started, tmp_path, number):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"type":"summary","product_id":"mine","summary":"x"}\n')
    options = ["--recording", path, "--token", "uk_secret", "--port", "0"]
    async with started("connector", *options) as running:
        line = await running.line("serving")
        assert line.endswith("/stream/mine")
        assert "uk_secret" not in line
        async with httpx.AsyncClient() as http:
            assert (await http.get(line.removeprefix("serving "))).status_code == 401
        running.interrupt(number)
        code, out, err = await running.end()
    assert code == 0
    assert "uk_secret" not in out + err


async def test_started_with_nohup_it_survives_a_hangup(started):
    async with started("connector", "--port", "0", hangup="SIG_IGN") as running:
        await running.line("serving")
        running.interrupt(signal.SIGHUP)
        running.interrupt()
        code, _, err = await running.end()
    # If the hangup counted, the Ctrl-C would be the second signal, which exits with 1.
    assert code == 0
    assert "exited at once" not in err


async def test_a_port_in_use_is_said_in_one_line(ended):
    async with LocalConnector([]) as connector:
        port = httpx.URL(connector.url).port
        code, out, err = await ended("connector", "--port", port)
    assert (code, out) == (1, "")
    assert err == f"error: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


@pytest.mark.parametrize("option", ["--rate", "--loop"])
async def test_options_are_known(started, option):
    value = ["50"] if option == "--rate" else []
    async with started("connector", "--port", "0", option, *value) as running:
        assert "/stream/northwind" in await running.line("serving")


async def test_a_recording_is_looked_through_before_it_is_served(started, ended, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"type":"summary","summary":"x"}\n{"type":"sum\n\n')
    async with started("connector", "--recording", path, "--port", "0") as running:
        await running.line("serving")
        running.interrupt()
        code, _, err = await running.end()
    assert code == 0
    assert "1 events; unreadable lines: 1" in err
    for content in (b"", b"no recording\nat all\n"):
        path.write_bytes(content)
        code, out, err = await ended("connector", "--recording", path, "--port", "0")
        assert (code, out) == (2, "")
        assert "mine.jsonl has no events" in err
        assert len(err.splitlines()) == 1


async def test_it_posts_to_a_webhook(started, serve, tmp_path):  # noqa: F811
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"".join(samples().read_bytes().splitlines(keepends=True)[:3]))
    options = ["connector", "--recording", path, "--port", "0", "--post"]
    async with serve() as running:
        url = f"{running.server.url}/v1/webhooks/northwind/posthog"
        secret = {"AUTOPLAY_RAG_WEBHOOK_SECRET": WEBHOOK_SECRET}
        async with started(*options, f"posthog={url}", **secret) as command:
            assert await command.line("posted") == "posted 4 events"
            command.interrupt()
            code, _, err = await command.end()
        assert running.pipeline.ledger.received == 4
        async with started(*options, f"segment={url}") as command:
            refused, _, why = await command.end()
    assert (code, refused) == (0, 1)
    assert "answered 401" in why
    assert "Traceback" not in err + why


@pytest.mark.parametrize("post", ["http://a.test", "mixpanel=http://a.test", "posthog=a.test"])
def test_where_to_post_is_checked(cli, post):
    ended = cli("connector", "--post", post)
    assert ended.returncode == 2
    assert "TOOL=URL" in ended.stderr
