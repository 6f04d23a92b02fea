"""Host, origin, rate and body; and what every answer has."""

import asyncio
import socket

import pytest
from serve_server import KEYS

from autoplay_rag.serve.rates import Rates

ADMIN = {"authorization": f"Bearer {KEYS.admin}"}


async def test_an_unknown_host_is_refused(serve):
    async with serve(hosts=["Search.Example.com"]) as running:
        port = running.server.port
        async with running.client(KEYS.admin) as client:
            for host, status in (
                (f"localhost:{port}", 200),
                (f"127.0.0.1:{port}", 200),
                ("[::1]:1", 200),
                ("search.example.com", 200),
                ("SEARCH.example.com:443", 200),
                ("evil.example.com", 421),
                ("localhost.evil.example.com", 421),
                ("", 421),
            ):
                answer = await client.get("/v1/ledger", headers={"host": host})
                assert answer.status_code == status, host
            assert (await client.get("/healthz", headers={"host": "10.0.0.7"})).status_code == 200


async def test_foreign_origins_and_sites_are_refused(serve):
    async with serve(cors_origins=["https://app.example.com"]) as running:
        own = running.server.url
        async with running.client(KEYS.admin) as client:
            for headers, status in (
                ({"origin": own}, 200),
                ({"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}, 200),
                ({"origin": "https://evil.example.com"}, 403),
                ({"origin": "null"}, 403),
                ({"origin": "http://127.0.0.1:1"}, 403),
                ({"sec-fetch-site": "cross-site"}, 403),
                ({"sec-fetch-site": "same-site"}, 403),
                ({"sec-fetch-site": "same-origin"}, 200),
                ({"sec-fetch-site": "none"}, 200),
            ):
                answer = await client.get("/v1/ledger", headers=headers)
                assert answer.status_code == status, headers
            asked = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
            allowed = await client.options("/v1/search", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"


async def test_no_cors_unless_asked_for(running):
    async with running.client(KEYS.admin) as client:
        answer = await client.options(
            "/v1/search",
            headers={"origin": running.server.url, "access-control-request-method": "POST"},
        )
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_bodies_must_be_json(running):
    async with running.client(KEYS.admin) as client:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            None,
        ):
            headers = {"content-type": kind} if kind else {}
            answer = await client.post("/v1/search", content=b'{"query": "x"}', headers=headers)
            assert answer.status_code == 415, kind
        json = {"content-type": "application/json; charset=utf-8"}
        answer = await client.post("/v1/search", content=b'{"query": "x"}', headers=json)
        assert answer.status_code == 200
        for wrong in (b"", b"{", b"[]", b'"x"', b'{"query": "x", "unknown": 1}', b"\xff"):
            answer = await client.post("/v1/search", content=wrong, headers=json)
            assert answer.status_code in (400, 422), wrong
            assert answer.headers["content-type"] == "application/problem+json"


async def test_bodies_are_bounded_with_and_without_a_length(serve):
    async def chunks():
        for _ in range(100):
            yield b"x" * 1000

    async with serve(max_body_bytes=5000) as running, running.client(KEYS.admin) as client:
        for content in (b"x" * 5001, chunks()):
            answer = await client.post(
                "/v1/search", content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 413
        answer = await client.post("/v1/search", json={"query": "x" * 4000})
        assert answer.status_code == 200


async def test_a_body_that_never_comes_is_given_up(serve, monkeypatch):
    monkeypatch.setattr("autoplay_rag.serve.guard._BODY_SECONDS", 0.05)
    async with serve() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        writer.write(
            b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\nauthorization: Bearer " + KEYS.admin.encode() + b"\r\n\r\n{"
        )
        status = await asyncio.wait_for(reader.readline(), 30)
        writer.close()
        await writer.wait_closed()
    assert b"408" in status


async def test_requests_are_limited_for_each_key(serve):
    async with serve(rate=5) as running:
        async with running.client(KEYS.read) as client:
            answers = [await client.get("/v1/ledger") for _ in range(20)]
        async with running.client(KEYS.ingest) as client:
            summary = {"type": "summary", "summary": "x"}
            pushed = {
                (await client.post("/v1/webhooks/acme", json=summary)).status_code
                for _ in range(20)
            }
        async with running.client(KEYS.admin) as client:
            other = await client.get("/v1/ledger")
    refused = [one for one in answers if one.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert other.status_code == 200
    assert pushed == {200}


async def test_guesses_of_keys_are_limited(serve):
    async with serve(rate=5) as running:

        async def guess(number):
            async with running.client(f"guess-{number}") as client:
                return (await client.get("/v1/ledger")).status_code

        # At once: on a slow machine, the rate would recover between guesses one by one.
        statuses = await asyncio.gather(*map(guess, range(20)))
    assert set(statuses) == {401, 429}


def test_the_rate_recovers_and_buckets_are_bounded():
    now = 0.0
    rates = Rates(2, clock=lambda: now)
    assert [rates.wait("a") > 0 for _ in range(3)] == [False, False, True]
    now = 0.5
    assert [rates.wait("a") > 0 for _ in range(2)] == [False, True]
    for number in range(20_000):
        rates.wait(str(number))
    assert len(rates._buckets) == 10_000


@pytest.mark.parametrize("path", ["/v1/ledger", "/nowhere", "/v1/search", "/healthz"])
async def test_every_answer_has_the_security_headers(running, path):
    async with running.client(KEYS.admin) as client:
        headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


async def test_a_failure_is_a_problem_without_its_text(running, monkeypatch, caplog):
    async def fail(*_, **__):
        raise RuntimeError("a secret of the database")

    monkeypatch.setattr(running.pipeline, "search", fail)
    monkeypatch.setattr(running.pipeline, "session_part", fail)
    async with running.client(KEYS.admin) as client:
        answer = await client.post("/v1/search", json={"query": "x"})
        await client.get("/v1/sessions/of-somebody")
    assert answer.status_code == 500
    assert answer.json()["title"] == "Internal Server Error"
    assert "secret" not in answer.text
    assert "POST /v1/search failed" in caplog.text
    assert "GET /v1/sessions/{session_id} failed" in caplog.text
    assert not any("of-somebody" in message for message in caplog.messages)


async def test_a_problem_does_not_repeat_what_was_sent(running):
    async with running.client(KEYS.admin) as client:
        answer = await client.post("/v1/search", json={"query": {"ann@example.com": "x"}, "k": 0})
    assert answer.status_code == 422
    assert {one["in"] for one in answer.json()["errors"]} == {"body.query", "body.k"}
    assert "ann@example.com" not in answer.text


async def test_answers_come_without_delay_on_the_socket(running):
    """A socket of another kind would answer each request after 44 ms."""
    for sock in running.server.servers[0].sockets:
        assert sock.proto == socket.IPPROTO_TCP
