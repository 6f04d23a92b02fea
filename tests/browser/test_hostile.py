"""Texts that pages and people chose: they run nothing, and break no layout. And: the checks find what they are for."""

import time

import pytest
from checks import scrolls_sideways, violations
from playwright.async_api import expect

from autoplay_rag import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

pytestmark = pytest.mark.browser

LONG = "x" * 900
SCRIPT = (
    "<script>document.title = 'taken'</script><img src=/x onerror=\"document.title = 'taken'\">"
)
RIGHT_TO_LEFT = "\u202egnp.exe\u202c \u0645\u0631\u062d\u0628\u0627"
PRODUCT = 'acme"><b>' + "p" * 200
USER = "u'&\"<i>" + "u" * 300
SESSION = "s/%2F?#&<b>" + "s" * 300


def hostile():
    now = time.time()
    for n, text in enumerate((LONG, SCRIPT, RIGHT_TO_LEFT, f"export {SCRIPT} {LONG}")):
        url = f"https://app.test/{LONG}?q={SCRIPT}"
        action = SlimAction(text, text, url, n, "click" + LONG[:50], now + n, now + n, url)
        yield ActionsPayload(PRODUCT, SESSION, USER, None, [action], 1, now + n)
    yield SummaryPayload(PRODUCT, SESSION, f"export {SCRIPT} {LONG}", 0, now + 9)
    yield ChatTurn(PRODUCT, SESSION, USER, "c", SCRIPT, LONG, [], now + 10)
    dead = SlimAction(SCRIPT, LONG, "", 0, "click", now, now)
    yield ActionsPayload("acme", "dead", USER, None, [dead], 1, now)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [1280, 390])
async def test_they_run_nothing_and_break_no_layout(server, opened, width):
    with server() as served:

        async def fill():
            for payload in hostile():
                await served.pipeline.accept(payload)
            await served.pipeline.drain()

        async with opened(served.url, width=width) as page:
            await expect(page.locator("#live .word")).to_have_text("Live")
            served.run(fill())
            live = page.locator("#live-sessions").get_by_role("link").last
            await expect(live).to_be_visible()
            found = await violations(page)
            sideways = [page.url] * await scrolls_sideways(page)
            await live.click()
            await expect(page.get_by_role("heading", level=1)).to_have_text("Session")
            await expect(page.locator(".timeline")).to_contain_text("<script>")
            here = page.url
            for address in ("/sessions", "/search?q=export", "/people", "/dead-letters"):
                await page.goto(address)
                await expect(page.locator("#live .word")).to_have_text("Live")
                assert "taken" not in await page.title()
                sideways += [address] * await scrolls_sideways(page)
                found += await violations(page)
            await page.goto(here)
            assert "taken" not in await page.title()
            sideways += ["the session"] * await scrolls_sideways(page)
            found += await violations(page)
            await page.locator("main a[href*='people?user_id=']").first.click()
            await expect(page.get_by_role("heading", name="Forget this person")).to_be_visible()
            sideways += ["the person"] * await scrolls_sideways(page)
            found += await violations(page)
            await page.get_by_role("button", name="Count what would be forgotten").click()
            await expect(page.get_by_role("button", name="Forget u")).to_be_visible()
            sideways += ["the receipt"] * await scrolls_sideways(page)
        assert sideways == []
        assert found == []


async def test_the_checks_see_what_they_are_for(shown, opened):
    with pytest.raises(AssertionError, match="from the page"):
        await _break_a_page(shown, opened)


async def _break_a_page(shown, opened):
    async with opened(shown.url, width=390) as page:
        assert await violations(page) == []
        assert not await scrolls_sideways(page)
        await page.evaluate(
            """() => {
                const broken = document.createElement("img");
                broken.style.minWidth = "900px";
                document.querySelector("main").append(broken);
                console.log("from the page");
            }"""
        )
        found = await violations(page)
        assert any("image-alt" in one for one in found), found
        assert await scrolls_sideways(page)
