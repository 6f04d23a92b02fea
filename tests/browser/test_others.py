"""Other readers and other places: a token, an empty server, and a proxy that serves it below a path."""

import asyncio
import time
from contextlib import asynccontextmanager, nullcontext

import httpx
import pytest
import uvicorn
from checks import scrolls_sideways, violations
from conftest import fill
from pipelines import make_actions
from playwright.async_api import expect
from served import KEYS
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from autoplay_rag.serve import SigningKeys, mint_token
from autoplay_rag.serve.inspector.pages import _PAGES

pytestmark = pytest.mark.browser

SIGNING = "s" * 32


@pytest.mark.parametrize("width", [1280, 390])
async def test_a_token_shows_one_persons_data_alone(server, opened, monkeypatch, width):
    monkeypatch.setenv("AUTOPLAY_RAG_SIGNING_KEY", SIGNING)
    token = mint_token("acme", user_id="ann", keys=SigningKeys(SIGNING))
    found = []
    with server() as served:
        served.run(fill(served.pipeline))

        async def both_come_back():
            for user in ("bob", "ann"):
                came = make_actions(f"s-{user}-2", f"{user} came back", user=user, at=time.time())
                await served.pipeline.accept(came)

        # A page that a token may not see is an error, which the browser notes in the console.
        async with opened(served.url, token, width=width, may_fail=True) as page:
            await expect(page.locator("#live .word")).to_have_text("Live")
            served.run(both_come_back())
            await expect(page.locator("main").get_by_text("ann came back")).to_be_visible()
            await expect(page.get_by_text("bob")).to_have_count(0)
            for path in ("/", "/sessions", "/search?q=promo", "/people", "/dead-letters"):
                await page.goto(path)
                await expect(page.locator("input[type=search]")).to_be_visible()
                await expect(page.get_by_text("bob")).to_have_count(0)
                found += await violations(page)
                assert not await scrolls_sideways(page)
    assert found == []


@pytest.mark.parametrize("width", [1280, 390])
async def test_an_empty_server_says_what_to_do(server, opened, width):
    found = []
    with server() as served:
        async with opened(served.url, width=width) as page:
            for path, name in _PAGES:
                await page.goto(f"/{path}")
                await expect(page.get_by_role("heading", level=1)).to_have_text(name)
                if name != "Settings":
                    await expect(page.locator("main .empty").first).to_be_visible()
                found += await violations(page)
                assert not await scrolls_sideways(page)
    assert found == []


@asynccontextmanager
async def proxy(url):
    """A reverse proxy that serves all of a server below `/inner/rag`, as many companies do."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:

        async def forward(request):
            path = request.url.path.removeprefix("/inner/rag")
            asked = client.build_request(
                request.method,
                f"{path}?{request.url.query}",
                headers=request.headers.raw,
                content=await request.body(),
            )
            answer = await client.send(asked, stream=True)
            kept = {n: v for n, v in answer.headers.items() if n != "transfer-encoding"}

            async def body():
                try:
                    async for piece in answer.aiter_raw():
                        yield piece
                finally:
                    await answer.aclose()

            return StreamingResponse(body(), answer.status_code, kept)

        app = Starlette(routes=[Route("/inner/rag{rest:path}", forward, methods=["GET", "POST"])])
        config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
        front = uvicorn.Server(config)
        front.capture_signals = nullcontext  # the signals are pytest's
        task = asyncio.create_task(front.serve())
        while not front.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{front.servers[0].sockets[0].getsockname()[1]}"
        finally:
            front.should_exit = True
            await task


async def test_it_works_below_a_path(server, opened):
    with server() as served:
        served.run(fill(served.pipeline))
        async with proxy(served.url) as url, opened(url, None) as page:
            await page.goto(f"/inner/rag/?key={KEYS.admin}")
            for path, name in _PAGES:
                await page.get_by_role("navigation").get_by_role("link", name=name).click()
                await expect(page.get_by_role("heading", level=1)).to_have_text(name)
                assert page.url == f"{url}/inner/rag/{path}"
                await expect(page.locator("#live .word")).to_have_text("Live")
            await page.locator("input[type=search]").fill("exported")
            await page.locator("input[type=search]").press("Enter")
            await page.get_by_role("link", name="s-ann").first.click()
            await expect(page.locator(".timeline")).to_contain_text("Exported revenue")
            assert page.url.startswith(f"{url}/inner/rag/sessions/s-ann")
            await page.get_by_role("link", name="ann", exact=True).first.click()
            await page.get_by_role("button", name="Count what would be forgotten").click()
            await page.get_by_role("button", name="Forget ann").click()
            await expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
