"""Every page in light and dark, wide and narrow: accessible, nothing in the console, no sideways scroll."""

import pytest
from checks import scrolls_sideways, violations
from playwright.async_api import expect
from served import KEYS

from autoplay_rag.serve.inspector.pages import _PAGES

pytestmark = pytest.mark.browser

QUESTION = "Whose promo code had expired when they upgraded to the yearly Business plan?"
FOUND = "ps_99b4cf1c49fe"
ADDRESSES = [
    *(f"/{path}" for path, _ in _PAGES),
    f"/search?q={QUESTION.replace(' ', '+')}",
    "/search?q=promo&user_id=nobody",
    "/sessions?user_id=u_030",
    "/sessions?user_id=nobody",
    f"/sessions/{FOUND}?product_id=northwind",
    "/people?user_id=u_030",
    "/people?user_id=nobody",
    "/dead-letters?after=9000",
]
ERRORS = ["/sessions/not-there", "/dead-letters?after=x"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_each_page(shown, opened, scheme, width):
    found = []
    async with opened(shown.url, width=width, scheme=scheme) as page:
        for address in ADDRESSES:
            answer = await page.goto(address)
            assert answer.status == 200, address
            nav = page.get_by_role("navigation")
            await expect(nav).to_have_count(1)
            await expect(nav.get_by_role("link")).to_have_count(len(_PAGES))
            await expect(page.locator("input[type=search]")).to_be_visible()
            await expect(page.get_by_role("heading", level=1)).to_have_count(1)
            # Once the stream is open, what moves is there, too.
            await expect(page.locator("#live .word")).to_have_text("Live")
            assert not await scrolls_sideways(page), address
            found += await violations(page)
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_pages_of_errors_and_of_signing_in(shown, opened, scheme, width):
    # A browser says in the console that an answer was an error.
    found = []
    async with opened(shown.url, width=width, scheme=scheme, may_fail=True) as page:
        for address in ERRORS:
            assert (await page.goto(address)).status >= 400
            assert not await scrolls_sideways(page)
            found += await violations(page)
    async with opened(shown.url, None, width=width, scheme=scheme, may_fail=True) as page:
        assert (await page.goto("/people?user_id=u_030")).status == 401
        assert not await scrolls_sideways(page)
        found += await violations(page)
        await page.get_by_label("Key or token").fill("wrong key of nobody")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("not valid")
        found += await violations(page)
    assert found == []


async def test_the_plots_are_drawn(shown, opened):
    async with opened(shown.url) as page:
        for plot in ("#plot-lag", "#plot-rate"):
            await expect(page.locator(f"{plot} canvas")).to_be_visible()


async def test_without_scripts_all_that_does_not_move_works(shown, opened):
    async with opened(shown.url, javascript=False) as page:
        for path, name in _PAGES:
            await page.get_by_role("navigation").get_by_role("link", name=name).click()
            await expect(page.get_by_role("heading", level=1)).to_have_text(name)
            assert page.url == f"{shown.url}/{path}"
        await page.locator("input[type=search]").fill(QUESTION)
        await page.locator("input[type=search]").press("Enter")
        await page.get_by_role("link", name=FOUND).first.click()
        await expect(page.get_by_text("SPRING25").first).to_be_visible()
        await page.get_by_role("link", name="u_030").first.click()
        await expect(page.get_by_role("heading", name="Sessions of u_030")).to_be_visible()
        await page.get_by_role("button", name="Count what would be forgotten").click()
        await expect(page.get_by_role("button", name="Forget u_030")).to_be_visible()


async def test_signing_out_without_scripts(shown, opened):
    async with opened(shown.url, javascript=False, may_fail=True) as page:
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        await page.goto("/sessions")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


async def test_a_read_key_sees_no_button_that_changes_something(shown, opened):
    async with opened(shown.url, KEYS.read) as page:
        await page.goto("/dead-letters")
        await expect(page.get_by_text("need an admin key")).to_be_visible()
        await expect(page.get_by_role("button", name="Retry chosen")).to_have_count(0)
        await page.goto("/people?user_id=u_030")
        await expect(page.get_by_role("button", name="Count what would be")).to_be_disabled()
