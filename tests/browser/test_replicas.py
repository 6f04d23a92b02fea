"""The table of processes, while two servers share a journal in PostgreSQL."""

from functools import partial
from uuid import uuid4

import pytest
from checks import scrolls_sideways, violations
from conftest import fill, refuses_dead
from pipelines import ScriptedEmbedder
from playwright.async_api import expect
from served import serving

from autoplay_rag.stores import PgVectorStore

pytestmark = pytest.mark.browser

_CHANGE_MS = 60_000
"""Partitions move within seconds; a busy machine takes longer."""


@pytest.fixture(scope="module")
def replicas(postgres):
    """Start servers of one database."""
    store = partial(PgVectorStore, postgres.dsn, schema=f"b_{uuid4().hex[:12]}", index="none")
    return partial(serving, store, ScriptedEmbedder, postgres.dsn, select=refuses_dead)


@pytest.fixture(scope="module")
def two(replicas):
    """Two servers, and some sessions."""
    with replicas() as one, replicas() as other:
        one.run(fill(one.pipeline))
        yield one, other


def table(page):
    return page.get_by_role("table", name="Processes of the journal")


async def shows(page, *partitions):
    """Wait until the table has these processes, by their partitions."""
    rows = table(page).get_by_role("row")
    await expect(rows).to_have_count(1 + len(partitions), timeout=_CHANGE_MS)
    for row, count in enumerate(partitions, 1):
        cell = rows.nth(row).get_by_role("cell").nth(2)
        await expect(cell).to_contain_text(str(count), timeout=_CHANGE_MS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_both_processes_are_shown(two, opened, scheme, width):
    found = []
    for server in two:
        async with opened(server.url, width=width, scheme=scheme) as page:
            await shows(page, 32, 32)
            await expect(table(page).get_by_text("this one")).to_have_count(1)
            await expect(page.locator("#live .word")).to_have_text("Live")
            assert not await scrolls_sideways(page)
            found += await violations(page)
    assert found == []


@pytest.mark.timeout(120)
async def test_each_server_finds_what_the_other_took(two, opened):
    for server in two:
        async with opened(server.url) as page:
            await page.locator("input[type=search]").fill("revenue")
            await page.locator("input[type=search]").press("Enter")
            await expect(page.get_by_role("link", name="s-ann").first).to_be_visible()


@pytest.mark.timeout(180)
async def test_a_process_that_joins_and_one_that_leaves_are_shown(two, replicas, opened):
    async with opened(two[0].url, width=390) as page:
        await shows(page, 32, 32)
        with replicas():
            await expect(table(page).get_by_role("row")).to_have_count(4, timeout=_CHANGE_MS)
            assert not await scrolls_sideways(page)
            assert await violations(page) == []
        await shows(page, 32, 32)
        await expect(page.get_by_text("partitions have no process")).to_have_count(0)
