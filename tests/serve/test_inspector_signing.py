"""Signing in to the inspector, and out: a key is swapped for a cookie that does not hold it."""

import httpx
import pytest
from page_reader import browser, signed_in, submit
from serve_server import KEYS, token

from autoplay_rag.serve.auth import Authenticator
from autoplay_rag.serve.browsers import Browsers, cookie_name


async def test_without_a_key_there_is_a_form(running):
    async with browser(running) as client:
        for path in ("/", "/sessions", "/sessions/s1", "/search?q=ann", "/people", "/settings"):
            answer = await client.get(path)
            assert answer.status_code == 401
            assert 'type="password" name="key"' in answer.text
            assert "<nav" not in answer.text
            assert "exported" not in answer.text
            # A browser that gets "no-referrer" would send the form with `Origin: null`.
            assert answer.headers["referrer-policy"] == "same-origin"


async def test_a_program_without_a_key_gets_a_problem_and_no_page(running):
    async with running.client() as client:
        for path in ("/", "/sessions", "/events"):
            answer = await client.get(path)
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("way", ["form", "address"])
async def test_a_key_is_swapped_for_a_cookie_that_does_not_hold_it(running, way):
    async with browser(running) as client:
        if way == "form":
            swapped = await signed_in(running, client, KEYS.read)
        else:
            swapped = await client.get("/", params={"key": KEYS.read})
        assert swapped.status_code == 303
        cookie = swapped.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert KEYS.read not in cookie
        page = await client.get(swapped.headers["location"])
        assert page.status_code == 200
        assert KEYS.read not in page.text
        assert (await client.get("/v1/ledger")).status_code == 200
        refused = await client.get("/v1/ledger", headers={"origin": "https://evil.example.com"})
        assert refused.status_code == 403


async def test_one_comes_back_to_the_page_one_wanted(running):
    async with browser(running) as client:
        form = (await client.get("/sessions/s1?product_id=acme")).text
        assert 'action="../sign-in"' in form
        assert 'name="to" value="sessions/s1?product_id=acme"' in form
        swapped = await signed_in(running, client, KEYS.read, to="sessions/s1?product_id=acme")
        assert swapped.headers["location"] == "./sessions/s1?product_id=acme"
        assert (await client.get(swapped.headers["location"])).status_code == 200


@pytest.mark.parametrize(
    "to",
    ["//evil.example.com", "https://evil.example.com", "..//evil.example.com", "\\evil", "v1/jobs",
     "sessions\r\nset-cookie: x=y", "sessionsx"],
)  # fmt: skip
async def test_signing_in_leads_nowhere_else(running, to):
    async with browser(running) as client:
        assert (await signed_in(running, client, KEYS.read, to=to)).headers["location"] == "./"


def cookie_of(running):
    return cookie_name(httpx.URL(running.server.url).netloc.decode())


async def test_two_servers_on_one_machine_do_not_share_a_cookie(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.read)
        assert list(client.cookies) == [f"autoplay_rag_session_{running.server.port}"]


async def test_the_key_itself_is_not_a_cookie(running):
    async with browser(running) as client:
        client.cookies.set(cookie_of(running), KEYS.read)
        assert (await client.get("/v1/ledger")).status_code == 401
        assert (await client.get("/")).status_code == 401


@pytest.mark.parametrize("given", ["", "wrong-key-of-tests", KEYS.ingest, "x" * 5000, "\x00é"])
async def test_a_wrong_key_signs_nobody_in(running, given):
    async with browser(running) as client:
        answer = await client.post("/sign-in", data={"key": given})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "not valid" in answer.text
        assert (await client.get("/", params={"key": given})).status_code == 401


async def test_another_site_cannot_sign_a_browser_in(running):
    async with browser(running) as client:
        for origin in ("https://evil.example.com", "null"):
            answer = await client.post(
                "/sign-in", data={"key": KEYS.read}, headers={"origin": origin}
            )
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers


async def test_signing_out_ends_it_for_every_copy_of_the_cookie(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.read)
        name = cookie_of(running)
        copy = client.cookies[name]
        assert (await submit(running, client, "/sign-out", {})).has_redirect_location
        assert name not in client.cookies
        client.cookies.set(name, copy)
        assert (await client.get("/v1/ledger")).status_code == 401


def test_browsers_are_bounded_and_expire():
    now = [0.0]
    browsers = Browsers(Authenticator(KEYS, None), lambda: now[0])
    first = browsers.sign_in(KEYS.read)
    assert browsers.credential(first) == KEYS.read
    later = [browsers.sign_in(KEYS.read) for _ in range(1_000)]
    assert browsers.credential(first) is None
    assert browsers.credential(later[0]) == KEYS.read
    now[0] = 12 * 3600.0
    assert browsers.credential(later[0]) is None
    assert len({first, *later}) == 1_001


async def test_an_expired_token_leads_back_to_the_form(running):
    async with browser(running) as client:
        await signed_in(running, client, token(user_id="ann", ttl=1))
        while (answer := await client.get("/")).status_code == 200:
            pass
        assert answer.status_code == 401
        assert 'name="key"' in answer.text
