"""`autoplay-rag tail`."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from autoplay_rag.cli.tail import lines
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import LocalConnector, samples
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

ACTION = SlimAction("Export", "Clicked\x1b]0;owned\x07 Export\nnow", "https://a.test/r", 0, "click")


async def test_what_it_prints_as_jsonl_is_the_recording_that_was_served(ended):
    recording = samples().read_text()
    count = len(recording.splitlines())
    async with LocalConnector() as connector:
        code, out, err = await ended("tail", connector.url, "--jsonl", "--limit", count)
    assert code == 0
    assert out == recording
    assert err == f"{count} payloads\n"


async def test_without_a_terminal_it_prints_plain_lines(ended):
    payload = ActionsPayload("acme", "s1", actions=[ACTION, SlimAction("Home")], count=2)
    async with LocalConnector([payload, SummaryPayload("acme", "s1", "Exported.")]) as connector:
        code, out, _ = await ended("tail", connector.url, "--limit", "2", TZ="UTC")
    assert code == 0
    first, second, third = out.splitlines()
    assert first.split() == [
        "00:00:00", "s1", "click", "Clicked�]0;owned�", "Export", "now", "https://a.test/r",
    ]  # fmt: skip
    assert "Home" in second
    assert third.endswith("summary  Exported.")


async def test_ctrl_c_ends_it_well(started):
    async with LocalConnector() as connector, started("tail", connector.url) as running:
        await running.line("Sign in")
        running.interrupt()
        code, _, err = await running.end()
    assert code == 0
    assert err.endswith("payloads\n")


async def test_the_reader_of_its_output_may_leave(started):
    async with LocalConnector(loop=True) as connector, started("tail", connector.url) as running:
        await running.line("Sign in")
        # As `| head -1` does.
        running.process._transport.get_pipe_transport(1).close()
        async with asyncio.timeout(30):
            err = await running.process.stderr.read()
            assert await running.process.wait() == 0
    assert b"rror" not in err


async def test_a_refusal_is_one_line_and_names_no_token(ended):
    async with LocalConnector([], token="uk_right") as connector:
        code, out, err = await ended("tail", connector.url, "--token", "uk_wrong")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("error: 401")
    assert "uk_" not in err


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9", "http://127.0.0.1:9/stream/acme"),
        ("HTTPS_PROXY", "http://[::1", "https://127.0.0.1:9/stream/acme"),
        ("SSL_CERT_FILE", "absent.pem", "https://127.0.0.1:9/stream/acme"),
        ("SSLKEYLOGFILE", "absent/keys", "https://127.0.0.1:9/stream/acme"),
    ],
)
async def test_an_environment_that_cannot_work_is_one_line(ended, variable, value, url):
    code, out, err = await ended("tail", url, NO_PROXY="", **{variable: value})
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert variable in err


async def test_the_token_may_come_from_the_environment(ended):
    async with LocalConnector([SummaryPayload("acme", "s1")], token="uk_right") as connector:
        args = ("tail", connector.url, "--limit", "1")
        code, _, _ = await ended(*args, AUTOPLAY_APP_UNKEY_TOKEN="uk_right")
    assert code == 0


async def test_a_connector_that_never_answered_is_an_error(ended, silent_port):
    url = f"http://127.0.0.1:{silent_port}/stream/x"
    secret = "?key=uk_secret"
    code, out, err = await ended("tail", url + secret, "--idle-seconds", "3")
    assert (code, out) == (1, "")
    error = err.splitlines()[-1]
    assert error.startswith(f"error: could not connect to a stream at {url}: the last error was ")
    assert "ConnectError" in error
    assert "uk_" not in err


async def test_a_connector_that_only_listens_is_an_error_unless_the_user_left(started):
    async with listening() as url, started("tail", url, "--idle-seconds", "0.2") as running:
        code, _, err = await running.end()
    assert (code, err.count("\n")) == (1, 1)
    assert "no attempt to connect finished in time" in err

    came = asyncio.Event()
    async with listening(came) as url, started("tail", url) as running:
        async with asyncio.timeout(30):
            await came.wait()
        running.interrupt()
        assert await running.end() == (0, "", "0 payloads\n")


@asynccontextmanager
async def listening(came=None):
    """A server that accepts connections and never sends anything."""

    async def take(reader, writer):
        if came:
            came.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream/x"


def test_every_payload_can_be_shown():
    shown = [line for payload in read_recording(samples()) for line in lines(payload)]
    assert len(shown) > 600
    assert all(part.isprintable() for line in shown for part in line)
    assert next(lines(ChatTurn(question="Where?")))[2:4] == ("chat", "Where?")
    assert next(lines(SummaryPayload(forwarded_at=1e300)))[0] == "--:--:--"
    assert next(lines(SummaryPayload()))[1].strip() == "anonymous"
