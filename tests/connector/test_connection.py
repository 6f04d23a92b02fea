"""Statuses, headers, redirects and invalid bodies: everything before the first event."""

import asyncio
import logging

import httpx
import pytest

from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.connection import Endpoint, Token, display
from autoplay_rag.errors import (
    ConfigurationError,
    ConnectorStatusError,
    NotAnEventStreamError,
    ProductNotFoundError,
    RedirectError,
)


def test_a_token_shows_itself_nowhere():
    token = Token(" uk_live_secret\n")
    assert "secret" not in repr(token)
    assert "secret" not in f"{token}"
    request = httpx.Request("GET", "http://a.test/")
    token.authorize(request)
    assert request.headers["Authorization"] == "Bearer uk_live_secret"
    assert "secret" not in repr(request.headers)


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "nul\0", "ключ"])
def test_a_token_no_header_can_carry_is_refused_without_being_quoted(value):
    with pytest.raises(ConfigurationError) as caught:
        Token(value)
    assert value not in str(caught.value)


@pytest.mark.parametrize("value", ["Bearer uk_live_secret", " bearer\tuk_live_secret", "Bearer "])
def test_a_token_that_starts_with_bearer_is_refused(value):
    with pytest.raises(ConfigurationError, match="Bearer; give it without") as caught:
        Token(value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("connector.test/stream/acme", "'connector.test/stream/acme'"),
        ("localhost:8000/stream/acme?key=secret", "'localhost:8000/stream/acme'"),
        ("user:secret@connector.test/stream/acme#secret", "'connector.test/stream/acme'"),
        ("ftp://user:secret@connector.test/a?key=secret", "ftp://connector.test/a"),
        (
            "user:se?cret@connector.test/stream/acme",
            "a text of 39 characters, not shown: it may be a token",
        ),
        ("uk_live_secret", "a text of 14 characters, not shown: it may be a token"),
        ("", "''"),
    ],
)
def test_a_url_without_its_scheme_is_shown_without_its_secrets(url, shown):
    with pytest.raises(ConfigurationError, match=r"https://host/stream/\{product_id\}") as caught:
        AsyncConnectorClient(url)
    assert str(caught.value).endswith(f"given was {shown}")


async def test_a_404_says_which_path_is_right(server, connect):
    server.script(server.status(404, body=b""))
    with pytest.raises(ProductNotFoundError, match=r"/stream/\{product_id\}"):
        await connect().run()


def test_a_url_is_shown_without_its_secrets():
    assert display(httpx.URL("https://u:p@a.test:8443/s/x?k=v#f")) == "https://a.test:8443/s/x"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/event-stream",
        "text/event-stream;",
        "text/event-stream; charset=windows-1252",
        "Text/Event-Stream;x=y",
    ],
)
async def test_event_streams_are_known_by_their_media_type(scripted, event, content_type):
    http = scripted([event("ä")], headers={"Content-Type": content_type})
    client = AsyncConnectorClient("http://a.test/stream/a", http_client=http)
    payloads = [payload async for payload in client.stream(limit=1)]
    assert payloads[0].session_id == "ä"  # UTF-8, whatever the charset of the header


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "application/json", "text/event-stream-x", "x/text/event-stream", ""],
)
async def test_a_200_that_is_no_event_stream_is_a_clear_error(server, connect, content_type):
    header = [f"Content-Type: {content_type}"] if content_type else []
    server.script(server.status(200, *header, body=b"<html>data: {}\n\n</html>"))
    with pytest.raises(NotAnEventStreamError, match=content_type or "no content type"):
        await connect().run()
    assert len(server.peers) == 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
async def test_a_body_encoded_unasked_is_an_error_before_a_byte_of_it_is_read(
    server, connect, encoding
):
    header = f"Content-Encoding: {encoding}\r\n".encode()
    server.script(server.stream(b"\x1f\x8b" + b"\0" * 1000, headers=header))
    with pytest.raises(NotAnEventStreamError, match="encoded"):
        await connect().run()


async def test_content_encoding_identity_is_accepted(server, connect, event):
    server.script(server.stream(event("s1"), headers=b"Content-Encoding: Identity\r\n"))
    assert [p.session_id async for p in connect().stream(limit=1)] == ["s1"]


@pytest.mark.parametrize("status", [204, 405, 410])
async def test_other_answers_that_no_retry_changes_raise(server, connect, status):
    server.script(server.status(status, body=b""))
    with pytest.raises(ConnectorStatusError) as caught:
        await connect().run()
    assert caught.value.status_code == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_origin_is_followed_with_the_token(
    server, connect, event, status
):
    server.script(server.status(status, "Location: /elsewhere"), server.stream(event("s1")))
    assert [p.session_id async for p in connect().stream(limit=1)] == ["s1"]
    assert server.peers[1].head == "GET /elsewhere HTTP/1.1"
    assert server.peers[1].headers["authorization"] == "Bearer uk_live_secret"


@pytest.mark.parametrize("given", [True, False])
async def test_a_redirect_to_another_origin_is_not_followed(server, connect, given):
    asked = []

    async def other(reader, writer):
        asked.append(await reader.read(1000))
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        server.script(server.status(302, f"Location: http://127.0.0.1:{port}/stream/acme"))
        # Even if the user's own client follows redirects.
        http = httpx.AsyncClient(follow_redirects=True) if given else None
        with pytest.raises(RedirectError, match=str(port)):
            await connect(http_client=http).run()
        if http:
            await http.aclose()
    assert asked == []


@pytest.mark.parametrize("headers", [[], ["Location: http://[bad/"], ["Location: ftp://a.test/"]])
async def test_a_redirect_to_nowhere_is_an_error(server, connect, headers):
    server.script(server.status(302, *headers))
    with pytest.raises(RedirectError):
        await connect().run()


async def test_redirects_do_not_go_round_for_ever(server, connect):
    server.script(server.status(302, "Location: /again"))
    with pytest.raises(RedirectError, match="more than 5"):
        await connect().run()
    assert len(server.peers) == 6


async def test_a_client_of_the_users_is_used_and_not_closed(server, connect, event):
    server.script(server.stream(event("s1")))
    async with httpx.AsyncClient(headers={"X-Mine": "1"}, auth=("user", "word")) as http:
        client = connect(http_client=http)
        assert [p.session_id async for p in client.stream(limit=1)] == ["s1"]
        assert not http.is_closed
    assert server.peers[0].headers["x-mine"] == "1"
    assert server.peers[0].headers["authorization"] == "Bearer uk_live_secret"


@pytest.mark.parametrize(
    ("event_id", "sent"),
    [
        ("7", "7"),
        ("é", "é"),
        ("é…", "é…"),
        ("a b", "a b"),
        (" padded", "padded"),  # the first space belongs to the field, so the id is "padded"
        ("  padded", None),
        ("bell\a", None),
        ("x" * 1025, None),
    ],
)
async def test_only_an_id_that_fits_a_header_is_sent_back(server, connect, event, event_id, sent):
    server.script(
        server.stream(f"id:{event_id}\ndata: {{}}\n\n".encode(), then="close"),
        server.stream(event("s1")),
    )
    # Read up to the second connection's payload: httpx reads the request's headers again after it.
    assert [p.session_id async for p in connect().stream(limit=1)] == ["s1"]
    assert server.peers[1].headers.get("last-event-id") == sent


BASIC = "Basic dXNlcjpwQHNz"  # user:p@ss


@pytest.mark.parametrize(
    ("token", "own", "sent"),
    [
        ("", {}, BASIC),
        ("uk_live_secret", {}, "Bearer uk_live_secret"),
        ("", {"Authorization": "Mine"}, "Mine"),
    ],
)
async def test_userinfo_is_sent_as_a_header_and_logged_nowhere(  # noqa: PLR0917
    server, event, monkeypatch, caplog, token, own, sent
):
    monkeypatch.delenv("AUTOPLAY_APP_UNKEY_TOKEN", raising=False)
    caplog.set_level(logging.DEBUG)
    server.script(server.status(302, "Location: /elsewhere"), server.stream(event("s1")))
    url = server.url.replace("//", "//user:p%40ss@")
    async with httpx.AsyncClient(headers=own) as http:
        client = AsyncConnectorClient(url, token, http_client=http)
        assert [p.session_id async for p in client.stream(limit=1)] == ["s1"]
    assert [peer.headers["authorization"] for peer in server.peers] == [sent] * 2
    assert "HTTP Request: GET" in caplog.text  # logged by httpx
    assert "p%40ss" not in caplog.text
    assert "p@ss" not in caplog.text


async def test_a_redirect_with_userinfo_is_logged_without_it(server, connect, event, caplog):
    caplog.set_level(logging.INFO)
    target = server.url.replace("//", "//user:secret@")
    server.script(server.status(302, f"Location: {target}"), server.stream(event("s1")))
    # At DEBUG, httpcore logs the headers of every answer: the server's own text.
    assert [p.session_id async for p in connect().stream(limit=1)] == ["s1"]
    assert "secret@" not in caplog.text


async def test_an_endpoint_with_tls_checks_certificates():
    endpoint = Endpoint("https://a.test/s/x", "", connect_timeout=1, read_timeout=1)
    async with await endpoint.http_client() as http:
        pool = http._transport._pool
        assert pool._ssl_context.check_hostname
        assert pool._ssl_context.cert_store_stats()["x509_ca"] > 0
