"""A headless Chromium, and servers with something to see. `make test-browser` runs these tests."""

import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not add folders to the path
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from chromium import ARGUMENTS, MISSING, find_chromium
from pipelines import ScriptedEmbedder, make_actions
from served import KEYS, serving

from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples
from autoplay_rag.devserver.live_samples import Visits
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.stores import MemoryStore

_PATIENCE_MS = 20_000
expect.set_options(timeout=_PATIENCE_MS)  # the timeout of a window is not that of assertions


@pytest.fixture(scope="session")
def chromium():
    found = find_chromium()
    if found is None:
        pytest.fail(MISSING, pytrace=False)  # not skipped: that would look like a pass
    return found


@pytest.fixture
async def browser(chromium):
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def opened(browser):
    """Open a browser window that is signed in. Its console must be empty at the end."""

    @asynccontextmanager
    async def open_window(
        url, key=KEYS.admin, *, width=1280, scheme="light", javascript=True, may_fail=False
    ):
        context = await browser.new_context(
            base_url=url,
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
            java_script_enabled=javascript,
            reduced_motion="reduce",
        )
        context.set_default_timeout(_PATIENCE_MS)
        said = []
        context.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda error: said.append(str(error.error)))
        page = await context.new_page()
        if key is not None:
            await page.goto(f"/?key={key}")
        yield page
        await context.close()
        assert may_fail or said == []

    return open_window


@pytest.fixture
def server(tmp_path):
    """Start a server with Ann's session, Bob's, and a dead letter. `port` keeps its address."""

    @contextmanager
    def start(port=0, select=refuses_dead):
        with serving(
            MemoryStore, ScriptedEmbedder, tmp_path / "journal.db", select=select, port=port
        ) as served:
            yield served

    return start


async def fill(pipeline):
    now = time.time()
    for payload in (
        make_actions("s-ann", "Opened reports", "Exported revenue", user="ann", at=now - 90),
        make_actions("s-bob", "Entered a promo code", user="bob", at=now - 60),
        make_actions("dead", "Paid an invoice", user="eve", at=now - 30),
    ):
        await pipeline.accept(payload)
    await pipeline.drain()


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """A server with the samples, as visits that ended just now."""
    recorded = list(read_recording(samples()))
    first, last = recorded[0].forwarded_at, recorded[-1].forwarded_at
    visits = Visits(first, time.time() - (last - first))
    journal = tmp_path_factory.mktemp("shown") / "journal.db"
    with serving(MemoryStore, LocalEmbedder, journal, select=refuses_dead) as served:

        async def replay():
            for payload in recorded:
                await served.pipeline.accept(visits.moved(payload))
            await served.pipeline.accept(make_actions("dead", "Paid", at=time.time()))
            await served.pipeline.drain()

        served.run(replay())
        yield served


def refuses_dead(payload):
    """A rule with a bug: what it raises for becomes a dead letter."""
    if payload.session_id == "dead":
        raise RuntimeError("a bug in the user's own rule")
    return True
