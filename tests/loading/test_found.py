"""What a search found, as documents of other libraries need it."""

import pytest

from autoplay_rag import ActionsPayload, Filter, IngestPipeline, SlimAction
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import Finder, narrowed
from autoplay_rag.stores import MemoryStore

STEPS = [("settings/billing", "typed 4242 into Card number"), ("help/contact", "wrote a message")]


def payload(session, user, at=1000.0):
    actions = [
        SlimAction("", f"User {what}", f"https://a.test/{page}", n, "click", at + n, at + n)
        for n, (page, what) in enumerate(STEPS)
    ]
    return ActionsPayload("acme", session, user, actions=actions)


@pytest.fixture
async def pipeline(embedder):
    async with IngestPipeline(MemoryStore(), embedder, batch_window=0.0) as running:
        for number in range(30):
            await running.on_actions(payload(f"s{number}", f"u{number}", 1000.0 + 100 * number))
        await running.drain()
        yield running


@pytest.mark.parametrize("search", ["sessions", "chunks"])
async def test_the_page_is_where_the_matching_lines_were(pipeline, search):
    finder = Finder(pipeline=pipeline, search=search, mode="text")
    for query, page in [("4242", "settings/billing"), ("wrote a message", "help/contact")]:
        [found] = await finder.find(query, 1, Filter(user_id="u3"))
        assert found.metadata["page"] == f"https://a.test/{page}"
        assert found.metadata["date"] == "1970-01-01T00:21:41+00:00"
        assert found.heading == f"1970-01-01T00:21:41+00:00 https://a.test/{page}"


@pytest.mark.parametrize("search", ["sessions", "chunks"])
async def test_both_ways_find_the_same_and_equal_texts_once(pipeline, search):
    finder = Finder(pipeline=pipeline, search=search)
    found = await finder.find("4242", 3, Filter())
    assert finder.find_sync("4242", 3, Filter()) == found
    assert len(found) == 1
    assert found[0].metadata["sessions"] > 1
    every = Finder(pipeline=pipeline, search=search, collapse=False)
    assert len(await every.find("4242", 3, Filter())) == 3


@pytest.mark.parametrize("wrong", [{"search": "pages"}, {"mode": "fast"}])
def test_what_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="must be"):
        Finder(pipeline=None, **wrong)


def test_a_filter_is_only_ever_narrowed():
    own = Filter(user_id="ann", since=100, until=200)
    assert narrowed(own, since=50, until=300) == own
    assert narrowed(own, since=150, until=180, kind="chat") == Filter(
        user_id="ann", kind="chat", since=150, until=180
    )
    assert narrowed(None, user_id="ann") == Filter(user_id="ann")
    with pytest.raises(ConfigurationError, match="user_id"):
        narrowed(own, user_id="bob")
