"""What moves while one looks: sessions, counts, the connection; and the switch that pauses it."""

import time

import pytest
from checks import violations
from conftest import fill
from pipelines import make_actions
from playwright.async_api import expect
from served import KEYS

pytestmark = pytest.mark.browser


def visit(session, *titles):
    return make_actions(session, *titles, user="zoe", at=time.time())


def arrives(served, payload):
    async def accept():
        await served.pipeline.accept(payload)

    served.run(accept())


@pytest.mark.parametrize("path", ["/", "/sessions"])
async def test_a_session_appears_while_one_looks(server, opened, path):
    with server() as served:
        served.run(fill(served.pipeline))
        async with opened(served.url) as page:
            await page.goto(path)
            live = page.locator("#live-sessions")
            await expect(live.get_by_role("link", name="s-ann")).to_be_visible()
            await expect(page.locator("#live .word")).to_have_text("Live")
            arrives(served, visit("s-new", "Invited a colleague"))
            await expect(live.get_by_text("Invited a colleague")).to_be_visible()
            # The newest is on top.
            await expect(live.get_by_role("link", name="s-").first).to_have_text("s-new")
            assert await violations(page) == []


async def test_the_counts_move(server, opened):
    with server() as served:
        async with opened(served.url) as page:
            received = page.locator("#counts").get_by_text("received").locator("..")
            await expect(received).to_contain_text("0")
            for n in range(7):
                arrives(served, visit(f"s{n}", "Clicked"))
            await expect(received).to_contain_text("7")


async def test_an_open_session_says_that_there_is_more(server, opened):
    with server() as served:
        arrives(served, visit("s1", "Opened reports"))
        async with opened(served.url) as page:
            await page.goto("/sessions/s1?product_id=acme")
            await expect(page.locator("#live .word")).to_have_text("Live")
            arrives(served, visit("s1", "Exported revenue"))
            await expect(page.locator("#newer")).to_contain_text("Exported revenue")


async def test_it_pauses_and_continues(server, opened):
    with server() as served:
        async with opened(served.url) as page:
            live = page.locator("#live-sessions")
            pause = page.locator("#live")
            await expect(pause.locator(".word")).to_have_text("Live")
            await pause.click()
            await expect(pause).to_have_attribute("aria-pressed", "true")
            await expect(pause.locator(".word")).to_have_text("Paused")
            arrives(served, visit("s1", "Invited a colleague"))
            await page.wait_for_timeout(2_500)  # two steps of the stream: nothing may come
            await expect(live.get_by_text("Invited a colleague")).to_have_count(0)
            await pause.click()
            await expect(live.get_by_text("Invited a colleague")).to_be_visible()
            await expect(pause.locator(".word")).to_have_text("Live")


async def test_a_lost_connection_is_shown_and_recovers(server, opened):
    with server() as served:
        async with opened(served.url, may_fail=True) as page:
            word = page.locator("#live .word")
            await expect(word).to_have_text("Live")
            await page.context.set_offline(True)
            await served_streams_end(served)
            await expect(word).to_have_text("Reconnecting")
            await expect(page.get_by_role("status").first).to_contain_text("does not answer")
            assert await violations(page) == []
            await page.context.set_offline(False)
            await expect(word).to_have_text("Live")
            await expect(page.get_by_text("does not answer")).to_have_count(0)
            arrives(served, visit("s1", "Invited a colleague"))
            await expect(page.locator("#live-sessions").get_by_text("Invited")).to_be_visible()


async def served_streams_end(served):
    """Cut the open streams: a browser that goes offline keeps those that it has."""

    async def cut():
        for stream in list(served.server._serving.streams):
            stream.end()

    served.run(cut())


async def test_a_server_that_stops_and_is_back(server, opened):
    """The page says so; then that one has to sign in again, and leads back to where one was."""
    with server() as served:
        served.run(fill(served.pipeline))
        port = served.server.port
        window = opened(served.url, may_fail=True)
        page = await window.__aenter__()
        await page.goto("/sessions")
        await expect(page.locator("#live .word")).to_have_text("Live")
    await expect(page.locator("#live .word")).to_have_text("Reconnecting")
    await expect(page.get_by_role("status").first).to_contain_text("does not answer")
    with server(port):
        await expect(page.locator("#live .word")).to_have_text("Signed out")
        await page.get_by_role("link", name="Sign in again").click()
        await page.get_by_label("Key or token").fill(KEYS.read)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sessions")
        await expect(page.get_by_role("link", name="s-ann").first).to_be_visible()
        await expect(page.locator("#live .word")).to_have_text("Live")
        await window.__aexit__(None, None, None)
