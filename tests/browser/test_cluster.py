"""The first page of a server that shares its journal, and reads a topic: who has what."""

import pytest
from checks import scrolls_sideways, violations
from playwright.async_api import expect

from autoplay_rag.journal.inflow import TopicPart, TopicStatus
from autoplay_rag.journal.ownership import Replica, Replicas

pytestmark = pytest.mark.browser

NAMES = [f"autoplay-rag-7d9c5b6f4-{letter}x2{letter}k.example.com:4194304" for letter in "abc"]
REPLICAS = Replicas(
    (
        Replica(
            NAMES[0], 1.76e9, True, tuple(range(21)), ("https://a.test/stream/acme",), 3.0, True
        ),
        Replica(NAMES[1], 1.76e9, True, tuple(range(21, 42)), (), 0.0, False),
        Replica(NAMES[2], 1.76e9, False, (), (), 0.0, False),
    ),
    tuple(range(42, 64)),
    75.0,
)
TOPIC = TopicStatus(
    "events",
    "autoplay-rag",
    (
        TopicPart(0, NAMES[0], 1_234_567_890, 1_234_567_990, 0),
        TopicPart(1, NAMES[1], None, None, 0),
        TopicPart(2, None, 12, 4000, 1_000_000),
    ),
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_who_has_what(server, opened, scheme, width):
    with server() as served:
        condition = served.pipeline._run.condition
        condition.replicas, condition.topic = REPLICAS, TOPIC
        async with opened(served.url, width=width, scheme=scheme) as page:
            await page.goto("/")
            await expect(page.locator("#live .word")).to_have_text("Live")
            topic = page.get_by_role("table", name="Partitions of the topic")
            await expect(topic.get_by_role("row")).to_have_count(4)
            await expect(topic.get_by_role("row").last).to_contain_text("nobody")
            await expect(page.get_by_text("Partitions that no process reads: 2.")).to_be_visible()
            replicas = page.get_by_role("table", name="Processes of the journal")
            await expect(replicas.get_by_role("row")).to_have_count(4)
            assert not await scrolls_sideways(page)
            assert await violations(page) == []
            # It moves without being loaded again.
            condition.topic = TopicStatus(
                "events", "autoplay-rag", (TopicPart(0, NAMES[1], 5, 5, 0),)
            )
            await expect(topic.get_by_role("row")).to_have_count(2)
            await expect(topic).to_contain_text(NAMES[1])
