"""What `ServeClient` does if the server is stopped, stalled, refusing or another program."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager

import httpx
import pytest
from bad_servers import answering, http, problem, stalled, stopped
from serve_server import KEYS, token

from autoplay_rag import ServeClient
from autoplay_rag.errors import (
    ClientStateError,
    ConfigurationError,
    ServerAccessError,
    ServerError,
    ServerUnavailableError,
)

KEY = "secret-key-of-tests"
PERSON = "ann@example.com"


async def error_of(url, **options):
    """The error of a search, after a check that it has neither key nor person."""
    async with ServeClient(url, KEY, **options) as client:
        with pytest.raises(ServerError) as caught:
            await client.search("what did she do?", user_id=PERSON)
        shown, error = repr(client), caught.value
        while error is not None:
            shown += f"{error} {error!r} {vars(error)}"
            assert not hasattr(error, "request")
            error = error.__context__
    assert KEY not in shown
    assert PERSON not in shown
    return caught.value


async def test_stopped():
    with stopped() as url:
        error = await error_of(url)
        assert type(error) is ServerUnavailableError
        assert "is `autoplay-rag serve` running there?" in str(error)


async def test_stalled():
    with stalled() as url:
        began = time.monotonic()
        error = await error_of(url, timeout=0.3)
    assert type(error) is ServerUnavailableError
    assert "did not answer within 0.3 seconds" in str(error)
    assert time.monotonic() - began < 10


async def drops():
    """An answer, a byte at a time, that never ends."""
    yield http(200, b"x" * 10_000, "content-type: application/json")[:-9_999]
    for _ in range(5_000):
        await asyncio.sleep(0.01)
        yield b"x"


async def test_the_timeout_is_for_the_whole_answer():
    async with answering(drops()) as (url, _):
        began = time.monotonic()
        error = await error_of(url, timeout=0.5)
    assert type(error) is ServerUnavailableError
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (problem(503, "The journal cannot be used now.", "retry-after: 2"), 503, "The journal"),
        (http(503, b"<html>", "content-type: text/html"), 503, "503"),
        (problem(500, "The request failed."), 503, "500"),
        (problem(429, "Too many requests."), 503, "429"),
        (http(502), 503, "502"),
        (problem(401, "The key or token is not valid."), 401, "check the key"),
        (http(401), 401, "check the key"),
        (problem(403, "This needs a read key."), 401, "This needs a read key"),
        (http(404, b"no"), None, "check the URL"),
        (problem(501, "the store cannot"), None, "cannot"),
        (http(307, b"", "location: https://elsewhere.test/"), None, "a redirect"),
        (http(200, b"<html>hello"), None, "not as expected"),
        (http(200, b'{"hits": 5}'), None, "not as expected"),
        (http(200, b'{"hits": [], "watermark": "ann@example.com"}'), None, "not as expected"),
        (http(422, b"[", "content-type: application/problem+json"), None, "422"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", 503, "cannot be reached"),
        (b"not http\r\n\r\n", 503, "cannot be reached"),
        (b"", 503, "cannot be reached"),
    ],
)
async def test_refusing_and_other_servers(answer, kind, said):
    kinds = {503: ServerUnavailableError, 401: ServerAccessError, None: ServerError}
    async with answering(answer) as (url, _):
        error = await error_of(url)
    assert type(error) is kinds[kind]
    assert said in str(error)
    if b"retry-after" in answer:
        assert error.retry_after == 2


async def test_invalid_arguments_are_configuration_errors(serve):
    async with serve() as running, ServeClient(running.server.url, KEYS.admin) as client:
        for call in (
            client.search(""),
            client.search("x", k=0),
            client.search("x", mode="other"),
            client.search("x", since="never"),
            client.sessions(matching=" "),
            client.sessions(cursor="?"),
            client.sessions(limit=0),
            client.context(),
            client.context("x", max_chars=0),
            client.forget(),
            client.receipt(99),
            client.live_session(),
        ):
            with pytest.raises(ConfigurationError) as caught:
                await call
            assert "server" not in str(caught.value)


async def test_an_id_of_two_products_needs_its_product(running):
    async with ServeClient(running.server.url, KEYS.read) as client:
        with pytest.raises(ConfigurationError, match="give product_id"):
            await client.context("export", user_id="ann")


async def test_a_connection_that_was_closed_meanwhile_is_replaced():
    answer = http(200, b'{"text": "found"}', "content-type: application/json")
    async with answering(b"", answer) as (url, requests), ServeClient(url, KEY) as client:
        assert await client.context("x") == "found"
        assert len(requests) == 2


async def test_forgetting_is_not_sent_twice():
    async with answering(b"") as (url, requests), ServeClient(url, KEY) as client:
        with pytest.raises(ServerUnavailableError):
            await client.forget(user_id=PERSON)
        assert len(requests) == 1


async def test_actions_without_their_end_are_an_error():
    event = (
        b'{"session_id":"s","product_id":"p","user_id":null,"kind":"actions","started_at":1.0,'
        b'"ended_at":1.0,"page":"","type":"","title":"","description":"x","seq":1,"index":0}\n'
    )
    async with answering(http(200, event)) as (url, _), ServeClient(url, KEY) as client:
        actions = client.actions()
        seen = (await anext(actions)).description
        with pytest.raises(ServerUnavailableError, match="before all actions"):
            await anext(actions)
    assert seen == "x"


@asynccontextmanager
async def silent():
    """A URL where requests are read and not answered, and a function that waits for requests."""
    ended = asyncio.Event()

    async def nothing():
        await ended.wait()
        yield b""

    async with answering(*(nothing() for _ in range(9))) as (url, requests):

        async def arrived(count):
            while len(requests) < count:  # noqa: ASYNC110 - a list
                await asyncio.sleep(0.01)

        try:
            yield url, arrived
        finally:
            ended.set()


async def test_closing_ends_requests_and_later_ones_are_refused():
    async with silent() as (url, arrived):
        client = ServeClient(url, KEY)
        waiting = [asyncio.create_task(client.search("x")) for _ in range(2)]
        waiting.append(asyncio.create_task(asyncio.to_thread(client.search_sync, "x")))
        await arrived(3)
        await client.aclose()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in ended} == {ClientStateError}
        with pytest.raises(ClientStateError, match="was closed"):
            await client.search("x")
        with pytest.raises(ClientStateError, match="was closed"):
            client.search_sync("x")
        client.close()


async def test_a_cancelled_call_is_cancelled():
    async with silent() as (url, arrived), ServeClient(url, KEY) as client:
        waiting = asyncio.create_task(client.search("x"))
        await arrived(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_no_log_line_has_a_person(running, caplog):
    caplog.set_level(logging.INFO)
    async with ServeClient(running.server.url, KEYS.read) as client:
        await client.sessions("person-of-tests", "acme")
        await client.session("person-of-tests")
        await client.live_session(user_id="person-of-tests")
    assert "person-of-tests" not in "".join(
        line for line in caplog.messages if not line.startswith("127.0.0.1")
    )


async def test_a_token_reads_its_person_alone(running):
    async with ServeClient(running.server.url, token(user_id="ann")) as client:
        assert {hit.user_id for hit in await client.search("bob ann", k=50)} == {"ann"}
        assert await client.session("s2") is None
        assert await client.session("never-seen") is None
        assert (await client.session("s1")).user_id == "ann"
        for refused in (client.search("x", user_id="bob"), client.products(), client.ledger()):
            with pytest.raises(ServerAccessError):
                await refused
        with pytest.raises(ServerAccessError):
            await anext(client.actions())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "AUTOPLAY_RAG_URL"),
        ("", "AUTOPLAY_RAG_URL"),
        ("127.0.0.1:8760", "must start with http"),
        ("ftp://a.test", "must start with http"),
        (f"http://user:{KEY}@a.test", "pass the key as key="),
        (f"http://a.test/?key={KEY}", "pass the key as key="),
        (f"http://a.test:{KEY}", "not valid"),
    ],
)
def test_a_url_that_cannot_work(url, said, monkeypatch):
    monkeypatch.delenv("AUTOPLAY_RAG_URL", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        ServeClient(url)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "a\r\nb: c", "schlüssel"])
def test_a_key_that_cannot_work(key):
    with pytest.raises(ConfigurationError, match="the key for the server"):
        ServeClient("http://a.test", key)


async def test_url_and_key_from_the_environment(running, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOPLAY_RAG_URL", running.server.url + "/")
    file = tmp_path / "key"
    file.write_text(f"{KEYS.read}\n")
    monkeypatch.setenv("AUTOPLAY_RAG_KEY_FILE", str(file))
    async with ServeClient() as client:
        assert await client.search("export")


async def test_a_transport_of_your_own():
    requests = []

    def answer(request):
        requests.append(request)
        return httpx.Response(200, json={"text": "found"})

    async with ServeClient(
        "https://a.test/below/", KEY, transport=httpx.MockTransport(answer)
    ) as client:
        assert await client.context("x") == "found"
    (request,) = requests
    assert request.url == "https://a.test/below/v1/context"
    assert request.headers["authorization"] == f"Bearer {KEY}"
