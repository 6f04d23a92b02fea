"""The page: sign-in, what it shows to whom, and hostile texts."""

import re

import httpx
import pytest
from pipelines import make_actions
from serve_server import KEYS, SECRET_WORD, fill, token

from autoplay_rag.live import LiveEvent, LiveSession
from autoplay_rag.search.hits import Hit, SessionHit
from autoplay_rag.search.lexical import Matched
from autoplay_rag.serve.auth import Authenticator
from autoplay_rag.serve.browsers import COOKIE, Browsers
from autoplay_rag.serve.page_html import page_html, sign_in_html

HTML = {"accept": "text/html"}
HOSTILE = "</p><script>alert(1)</script><img src=x onerror='alert(2)'>\" autofocus onfocus=\"x"


def browser(running):
    """A client with a cookie jar, which asks for HTML as a browser does."""
    return httpx.AsyncClient(base_url=running.server.url, headers=HTML, timeout=30)


async def signed_in(running, client, credential):
    answer = await client.post(
        "/sign-in", data={"key": credential}, headers={"origin": running.server.url}
    )
    assert answer.status_code == 303
    return answer


# -- sign in ----------------------------------------------------------------------------------


async def test_without_a_key_there_is_a_form(running):
    async with browser(running) as client:
        answer = await client.get("/")
        assert answer.status_code == 401
        assert 'type="password" name="key"' in answer.text
        assert "ann" not in answer.text
        # A browser that gets "no-referrer" would send the form with `Origin: null`.
        assert answer.headers["referrer-policy"] == "same-origin"


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


async def test_the_key_itself_is_not_a_cookie(running):
    async with browser(running) as client:
        client.cookies.set(COOKIE, KEYS.read)
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


async def test_a_form_is_taken_by_the_page_alone(running):
    async with running.client(KEYS.admin) as client:
        answer = await client.post("/v1/forget", data={"user_id": "ann"})
        assert answer.status_code == 415


async def test_signing_out_ends_it_for_every_copy_of_the_cookie(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.read)
        copy = client.cookies[COOKIE]
        assert (
            await client.post("/sign-out", headers={"origin": running.server.url})
        ).has_redirect_location
        assert COOKIE not in client.cookies
        client.cookies.set(COOKIE, copy)
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


# -- what it shows ----------------------------------------------------------------------------


async def test_a_read_key_sees_counts_live_sessions_and_finds(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.read)
        page = (await client.get("/", params={"q": "exported"})).text
        assert f"<dt>received</dt><dd>{running.pipeline.ledger.received}</dd>" in page
        assert "<dt>state</dt><dd>ok</dd>" in page
        assert "Live sessions" in page
        # Newest first.
        live = page[page.index("Live sessions") :]
        assert live.index("umbrella") < live.index("s4") < live.index("s3")
        found = page[: page.index("Counts")]
        assert "<mark>export" in found.lower()
        assert 'value="exported"' in page
        narrowed = await client.get("/", params={"q": "opened", "user_id": "bob"})
        found = narrowed.text.split("Counts")[0]
        assert "opened" in found
        assert "ann" not in found


async def test_an_id_of_two_products_is_said_on_the_page(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.read)
        answer = await client.get("/", params={"q": "opened", "user_id": "ann"})
        assert answer.status_code == 409
        assert "2 products" in answer.text
        assert "Live sessions" in answer.text


@pytest.mark.parametrize("bound", [{"user_id": "ann"}, {"session_id": "s1"}])
async def test_a_bound_token_sees_its_own_data_alone(running, bound):
    async with browser(running) as client:
        await signed_in(running, client, token(**bound))
        answer = await client.get("/", params={"q": "opened exported paid"})
        assert answer.status_code == 200
        assert "exported" in answer.text
        for foreign in ("bob", SECRET_WORD, "umbrella", "Counts", "received", "user_id"):
            assert foreign not in answer.text
        refused = await client.get("/", params={"q": "opened", "user_id": "bob"})
        assert refused.status_code == 403
        assert "opened" not in refused.text.replace('value="opened"', "")[:2000]


async def test_each_look_is_in_the_audit_log(running):
    async with running.client(token(user_id="ann")) as client:
        await client.get("/", params={"q": "exported"})
    line = running.audit[-1]
    assert '"route":"GET /"' in line
    assert '"user_id":"ann"' in line
    assert "exported" not in line


async def test_the_page_asks_nothing_of_the_store_without_a_question(serve, monkeypatch, tmp_path):
    async with serve(journal=tmp_path / "journal.db") as started:
        await fill(started.pipeline)

        async def forbidden(*_, **__):
            raise AssertionError("the page must not read this")

        for name in ("search", "search_sessions", "sessions", "session", "products"):
            monkeypatch.setattr(started.pipeline, name, forbidden)
        async with started.client(KEYS.read) as client:
            assert (await client.get("/")).status_code == 200


# -- hostile texts ----------------------------------------------------------------------------


def tags(html):
    return sorted(set(re.findall(r"<([a-z][a-z0-9]*)", html)))


def test_every_text_is_escaped():
    def page(text):
        hit = Hit("id", text, text, 1.0, matched=Matched(text, [(2, 5)]))
        plain = Hit("id", text, text, 1.0)
        events = (LiveEvent(1.0, "actions", text, text),)
        return page_html(
            counts={text: text},
            live=[LiveSession(text, text, text, text, events, 2.0)],
            question=text,
            user_id=text,
            found=[
                SessionHit(text, text, text, 1.0, 2.0, 1.0, [one], text) for one in (hit, plain)
            ],
            problem=text,
            may_choose=True,
        ) + sign_in_html(text)

    harmless, hostile = page("harmless text"), page(HOSTILE)
    assert tags(hostile) == tags(harmless)
    assert hostile.count("<") == harmless.count("<")
    assert hostile.count('"') == harmless.count('"')
    assert "'alert" not in hostile


async def test_hostile_texts_of_the_web_app_stay_text(serve):
    async with serve() as started:
        payload = make_actions(HOSTILE, HOSTILE, user=HOSTILE)
        await started.pipeline.accept(payload)
        await started.pipeline.drain()
        async with started.client(KEYS.read) as client:
            for q in ("alert", HOSTILE):
                answer = await client.get("/", params={"q": q, "user_id": HOSTILE})
                assert answer.status_code == 200
                assert "1 session found" in answer.text
                assert "<script" not in answer.text
                assert "<img" not in answer.text


async def test_the_page_loads_nothing_from_elsewhere(running):
    async with running.client(KEYS.read) as client:
        page = await client.get("/")
        style = await client.get("/page.css")
    assert set(re.findall(r'(?:href|src|action)="([^"]*)"', page.text)) == {
        "data:,", "./page.css", "./", "./sign-out",
    }  # fmt: skip
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "url(" not in style.text
    assert style.headers["content-type"].startswith("text/css")
    assert " style=" not in page.text
