"""The search box: what it finds, by mouse and by keyboard alone; and what a newcomer sees."""

import asyncio
import os
import re
import signal
import sys
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from checks import violations
from playwright.async_api import expect

from autoplay_rag.devserver import questions

pytestmark = pytest.mark.browser

PROMO = next(one for one in questions() if "promo code" in one.question)


async def test_the_box_on_every_page_finds_the_right_session(shown, opened):
    async with opened(shown.url) as page:
        await page.goto("/settings")
        await page.locator("input[type=search]").fill(PROMO.question)
        await page.locator("input[type=search]").press("Enter")
        first = page.locator("main ol > li").first
        await expect(first.get_by_role("link").first).to_have_text(PROMO.session_id)
        await expect(first.locator("mark").first).to_be_visible()
        # The question stays in the box, and in an address that can be sent to others.
        await expect(page.locator("input[type=search]")).to_have_value(PROMO.question)
        assert parse_qs(urlsplit(page.url).query)["q"] == [PROMO.question]
        await page.get_by_label("Person").fill("u_001")
        await page.get_by_role("button", name="Search").last.click()
        await expect(page.get_by_role("link", name="u_030")).to_have_count(0)
        assert parse_qs(urlsplit(page.url).query)["user_id"] == ["u_001"]
        await page.go_back()
        await expect(first.get_by_role("link").first).to_have_text(PROMO.session_id)


@pytest.mark.parametrize("width", [1280, 390])
async def test_by_keyboard_alone(shown, opened, width):
    async with opened(shown.url, width=width) as page:
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        box = page.locator("input[type=search]")
        await _tab_to(page, box)
        assert await _outlined(box)
        await page.keyboard.type(PROMO.question)
        await page.keyboard.press("Enter")
        link = page.get_by_role("link", name=PROMO.session_id).first
        await expect(link).to_be_visible()
        await _tab_to(page, link)
        assert await _outlined(link)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("SPRING25").first).to_be_visible()
        assert PROMO.session_id in page.url


async def _tab_to(page, locator):
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await locator.evaluate("one => one === document.activeElement"):
            return
    raise AssertionError(f"no way by keyboard to {locator}")


async def _outlined(locator):
    """Whether one sees that it has the focus: an outline or a shadow."""
    return await locator.evaluate(
        """one => [one, one.parentElement].some((it) => {
            const style = getComputedStyle(it);
            return (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
                || style.boxShadow !== "none";
        })"""
    )


@pytest.mark.timeout(180)
async def test_a_newcomer_finds_the_right_session_within_a_minute(browser, tmp_path):
    """`autoplay-rag serve --samples` on a terminal: open the printed address, and ask."""
    began = time.monotonic()
    main, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "autoplay_rag", "serve", "--samples", "--port", "0",
        cwd=tmp_path,
        env={n: v for n, v in os.environ.items() if not n.startswith("AUTOPLAY_")}
        | {"TMPDIR": str(tmp_path), "COLUMNS": "200"},
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        address = await asyncio.to_thread(_printed_address, main)
        page = await browser.new_page()
        await page.goto(address)
        assert "key=" not in page.url
        box = page.locator("input[type=search]")
        first = page.locator("main ol > li").first.get_by_role("link").first
        while True:
            await box.fill(PROMO.question)
            await box.press("Enter")
            await page.wait_for_url("**/search?*")
            if await first.count() and (await first.text_content()) == PROMO.session_id:
                break
        assert time.monotonic() - began < 60
        # It goes on: new visits of the same people come in.
        await page.get_by_role("link", name="Overview").click()
        await expect(page.locator("#live-sessions a[href*='-1']").first).to_be_visible(
            timeout=60_000
        )
        assert await violations(page) == []
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            rest, code = await asyncio.gather(asyncio.to_thread(_rest, main), process.wait())
        assert code == 0, rest
        assert "Traceback" not in rest
        assert not list(tmp_path.iterdir())
    finally:
        os.close(main)
        if process.returncode is None:
            process.kill()
            await process.wait()


def _printed_address(terminal):
    shown = b""
    while not (found := re.search(rb"open (http://\S+\?key=\S+)\r", shown)):
        shown += os.read(terminal, 65536)
    return found[1].decode()


def _rest(terminal):
    shown = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            read = b""
        if not read:
            return shown.decode()
        shown += read
