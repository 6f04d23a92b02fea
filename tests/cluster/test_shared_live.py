"""Live sessions and subscribers of several processes on one journal."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag import LiveSessions
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.ingest.run import replica as replica_module
from autoplay_rag.payloads import ChatTurn
from autoplay_rag.sources.activity import LiveActivitySource

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def replica(make_pipeline, make_pg_store, postgres, scripted_embedder):
    """Make pipelines that share one journal and one store."""
    schema = make_pg_store().schema

    def make(**options):
        store = make_pg_store(schema=schema)
        return make_pipeline(store, journal=postgres.dsn, embedder=scripted_embedder(), **options)

    return make


async def taken(subscription, count: int) -> list:
    """Wait for a number of events of a subscriber."""
    found: list = []
    async with asyncio.timeout(30):
        while len(found) < count:
            await subscription.wait()
            missed, events = subscription.take()
            assert not missed
            found += events
    return found


def events_of(pipeline, session: str) -> list[str]:
    found = pipeline.live.get(session_id=session)
    return [] if found is None else [event.text for event in found.events]


async def test_each_process_shows_what_any_accepted(replica, make_actions, eventually):
    async with replica() as one, replica(takes_work=False) as two:
        with one.feed.subscribe() as first, two.feed.subscribe() as second:
            for number in range(30):
                pipeline = (one, two)[number % 2]
                await pipeline.on_actions(make_actions(f"s{number % 3}", f"t{number}", user="ann"))
            await two.on_chat(ChatTurn("acme", "s0", "ann", question="why?", answer="so"))
            seen = [await taken(subscription, 31) for subscription in (first, second)]
        orders = [[event.seq for event in events] for events in seen]
        assert orders[0] == orders[1] == sorted(orders[0])
        for pipeline in (one, two):
            assert len(pipeline.live) == 3
            assert len(events_of(pipeline, "s0")) == 11
            assert pipeline.live.get(user_id="ann").session_id == "s0"
    async with replica(live=LiveSessions(max_sessions=2)) as three:
        assert len(three.live) == 2
        assert events_of(three, "s0")[-1].startswith("asked: why?")


async def test_one_process_alone_shows_at_once(replica, make_actions):
    async with replica() as one:
        for number in range(3):
            await one.on_actions(make_actions("s1", f"t{number}"))
            assert len(events_of(one, "s1")) == number + 1


async def test_what_is_forgotten_is_forgotten_everywhere(
    replica, make_actions, eventually, monkeypatch
):
    emptied = []
    monkeypatch.setattr(replica_module, "forget_texts", lambda: emptied.append("texts"))
    async with replica() as one, replica() as two:
        with two.feed.subscribe() as seen:
            await one.on_actions(make_actions("s1", "t1", user="ann"))
            await one.on_actions(make_actions("s2", "t2", user="bob"))
            assert len(await taken(seen, 2)) == 2
        assert events_of(two, "s1")
        await one.forget(user_id="ann")
        await eventually(lambda: not events_of(two, "s1"))
        await eventually(lambda: emptied)
        assert events_of(two, "s2")
        again = two.feed.subscribe(after=0)
        assert [event.payload.session_id for event in again.take()[1]] == ["s2"]
        again.close()
        # It goes on, and nothing is shown twice.
        await one.on_actions(make_actions("s2", "t3", user="bob"))
        await eventually(lambda: len(events_of(two, "s2")) == 2)


async def test_what_was_read_before_it_was_forgotten_is_not_shown(
    replica, make_actions, monkeypatch
):
    """A look that has read a payload when a request to forget it begins."""
    async with replica() as one, replica() as two:
        read, go_on = asyncio.Event(), asyncio.Event()
        accepted = one._run.membership.accepted

        async def slow(after, limit):
            found = await accepted(after, limit)
            if found.rows and not read.is_set():
                read.set()
                await go_on.wait()
            return found

        monkeypatch.setattr(one._run.membership, "accepted", slow)
        await two.on_actions(make_actions("s1", "t1", user="ann"))
        await read.wait()
        await one.forget(user_id="ann")
        looked = one._run.membership.accepted
        again = asyncio.Event()

        async def noted(after, limit):
            again.set()
            return await looked(after, limit)

        monkeypatch.setattr(one._run.membership, "accepted", noted)
        go_on.set()
        await again.wait()
        assert events_of(one, "s1") == []


async def test_a_process_that_takes_no_work_leaves_it(replica, make_actions, eventually):
    async with replica(takes_work=False) as one:
        await one.on_actions(make_actions("s1", "t1"))
        await eventually(lambda: one.replicas is not None)
        (found,) = one.replicas.replicas
        assert (found.partitions, found.takes_work, found.is_this) == ((), False, True)
        assert len(one.replicas.unowned) == 64
        async with replica() as two:
            await two.drain()
            assert two.ledger.stored == 1
            await eventually(lambda: not one.replicas.unowned)
            shares = [len(each.partitions) for each in one.replicas.replicas]
            assert shares == [0, 64]
        assert (await one.search("t1", k=1))[0].session_id == "s1"


def test_without_a_shared_journal_somebody_has_to_work(make_pipeline, tmp_path):
    with pytest.raises(ConfigurationError, match="takes_work=False needs a journal in PostgreSQL"):
        make_pipeline(journal=tmp_path / "j.db", takes_work=False)


async def test_pulled_actions_of_another_process_are_known(replica, make_actions, eventually):
    """What one process pulled is a duplicate in the stream that another one reads."""

    def source():
        return LiveActivitySource("http://127.0.0.1:9", "acme", "key", users=())

    one, two = replica(), replica()
    one.attach(source())
    two.attach(source())
    async with one, two:
        pulled = make_actions("", "t1", at=1000.0, user="ann")
        assert await one._run.pulled.take(pulled) == 1
        await eventually(lambda: len(two.live) == 1)
        assert await two.accept(make_actions("s1", "t1", at=1000.0, user="ann")) == "duplicate"
        assert await two.accept(make_actions("s1", "t2", at=1001.0, user="ann")) == "accepted"


async def test_who_asked_at_another_process_is_pulled(replica, eventually):
    source = LiveActivitySource("http://127.0.0.1:9", "acme", "key", users="asked")
    one, two = replica(), replica(takes_work=False)
    one.attach(source)
    async with one, two:
        await two.context("what now?", user_id="ann", product_id="acme")
        await two.context("what now?", user_id="bob", product_id="other")
        await two.context("what now?", user_id="cy")
        await eventually(lambda: {"ann", "cy"} <= set(source._audience._asked))
        assert "bob" not in source._audience._asked
