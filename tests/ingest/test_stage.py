"""One step of the way: what goes together, and what follows when a request fails."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplay_rag.ingest import stage as stages
from autoplay_rag.ingest.failures import Pause
from autoplay_rag.ingest.stage import Limits, Stage

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The same waits, a hundred times shorter."""
    monkeypatch.setattr(stages, "_LONE_RETRY_SECONDS", 0.002)
    monkeypatch.setattr(stages, "_LONGEST_LONE_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(stages, "Pause", lambda: Pause(0.005, 0.05))


class Service:
    """Takes pieces (strings); says which requests it had, and fails as it is told."""

    def __init__(self, **options):
        self.requests = []
        self.done = []
        self.dead = []
        self.at_once = 0
        self.most_at_once = 0
        self.fail = lambda pieces: None
        self.healthy = lambda: None
        self.probes = 0
        self.divide = lambda piece: False
        self.settled = asyncio.Condition()
        given = {
            "cost": len,
            "limits": Limits(4, 100),
            "concurrency": 1,
            "max_attempts": 3,
            "probe": self.probe,
            **options,
        }
        self.stage = Stage(
            "service",
            self.request,
            on_done=lambda piece, result: self._note(self.done, (piece, result)),
            on_dead=lambda piece, error: self._note(self.dead, (piece, error)),
            divide=lambda piece: self.divide(piece),  # noqa: PLW0108 - tests replace it
            **given,
        )

    async def request(self, pieces):
        self.requests.append(list(pieces))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await asyncio.sleep(0)
            failure = self.fail(pieces)
            if asyncio.iscoroutine(failure):
                failure = await failure
            if failure:
                raise failure
            return [piece.upper() for piece in pieces]
        finally:
            self.at_once -= 1

    async def probe(self):
        self.probes += 1
        if failure := self.healthy():
            raise failure
        return True

    def _note(self, kept, what):
        kept.append(what)
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self):
        async with self.settled:
            self.settled.notify_all()

    async def ended(self, count):
        """Until so many pieces are done or dead."""
        async with self.settled:
            await self.settled.wait_for(lambda: len(self.done) + len(self.dead) >= count)

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.stage.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()


def poison(*names):
    """Fails every request that holds one of these."""
    return lambda pieces: ValueError("poison") if set(names) & set(pieces) else None


async def test_requests_are_filled_to_their_limits():
    service = Service(limits=Limits(3, 10))
    service.stage.put(["aaaa", "bbbb", "cccc", "d", "e", "f", "g", "x" * 50])
    async with service.running():
        await service.ended(8)
    assert service.requests == [["aaaa", "bbbb"], ["cccc", "d", "e"], ["f", "g"], ["x" * 50]]
    assert dict(service.done)["g"] == "G"


async def test_several_requests_are_in_flight_but_no_more_than_allowed():
    service = Service(concurrency=3, limits=Limits(1, 100))
    service.fail = lambda pieces: asyncio.sleep(0.005)
    service.stage.put("abcdefghi")
    async with service.running():
        await service.ended(9)
    assert service.most_at_once == 3


async def test_an_outage_keeps_everything_and_stands_still_together(eventually):
    service = Service(concurrency=3, limits=Limits(1, 100))
    failures = iter(range(8))
    service.fail = lambda pieces: ConnectionError("down") if next(failures, None) is not None else 0
    service.stage.put("abcdef")
    async with service.running():
        await eventually(lambda: service.stage.trouble)
        assert service.stage.trouble == "ConnectionError: down"
        await service.ended(6)
        assert service.stage.trouble is None
    assert sorted(piece for piece, _ in service.done) == list("abcdef")
    assert service.dead == []
    assert service.stage.retries == 8
    # Three were under way when it went out; then one at a time asked whether it was back.
    assert len(service.requests) == 8 + 6


async def test_in_an_outage_nothing_dies_however_long_it_lasts(eventually):
    service = Service(max_attempts=1)
    down = True
    service.fail = lambda pieces: TimeoutError() if down else None
    service.stage.put("abcdefghij")
    async with service.running():
        await eventually(lambda: len(service.requests) >= 15)
        assert service.done == service.dead == []
        down = False
        await service.ended(10)
    assert [piece for piece, _ in service.done] == list("abcdefghij")  # still in order


async def test_a_poisoned_piece_dies_alone_and_its_neighbours_are_done():
    service = Service(limits=Limits(8, 100))
    service.fail = poison("c", "f")
    service.stage.put("abcdefgh")
    async with service.running():
        await service.ended(8)
    assert sorted(piece for piece, _ in service.done) == list("abdegh")
    assert sorted(service.dead) == [
        ("c", "service: ValueError: poison"),
        ("f", "service: ValueError: poison"),
    ]
    for name in "cf":
        assert service.requests.count([name]) == 3


async def test_a_lone_piece_dies_only_while_the_service_is_proven_well(eventually):
    service = Service()
    service.fail = poison("a")
    service.healthy = lambda: ValueError("NaN for everything")
    service.stage.put("a")
    async with service.running():
        await eventually(lambda: service.probes >= 5)
        assert service.dead == []
        assert service.requests == [["a"]]
        assert service.stage.trouble == "ValueError: NaN for everything"
        service.healthy = lambda: None
        await service.ended(1)
    assert service.dead == [("a", "service: ValueError: poison")]
    assert service.requests == [["a"]] * 3


async def test_without_a_probe_only_anothers_success_condemns(eventually, caplog):
    async def nothing_to_ask():
        return False

    service = Service(probe=nothing_to_ask, limits=Limits(1, 100))
    service.fail = poison("a")
    service.stage.put("a")
    async with service.running():
        await eventually(lambda: len(service.requests) >= 6)
        assert service.stage.trouble == "ValueError: poison"  # it may be everything
        assert caplog.text.count("has taken nothing since (ValueError: poison)") == 1
        service.stage.put("b")
        await service.ended(1)
        assert service.stage.trouble is None
        await eventually(lambda: len(service.requests) >= 12)
        assert service.dead == []  # refused once before and many times after: that counts as two
        service.stage.put("c")
        await service.ended(3)
    assert [piece for piece, _ in service.dead] == ["a"]


async def test_an_outage_between_attempts_counts_against_nobody():
    service = Service(max_attempts=2)
    answers = iter([ValueError("no"), ConnectionError(), ConnectionError(), TimeoutError(), None])
    service.fail = lambda pieces: next(answers)
    service.stage.put("a")
    async with service.running():
        await service.ended(1)
    assert service.done == [("a", "A")]


async def test_a_piece_that_can_be_divided_is_taken_back():
    service = Service()
    service.fail = poison("a+b")
    taken = []

    def divide(piece):
        if "+" in piece:
            taken.append(piece)
            service.stage.put(piece.split("+"))
            return True
        return False

    service.divide = divide
    service.stage.put(["a+b", "c"])
    async with service.running():
        await service.ended(3)
    assert taken == ["a+b"]
    assert sorted(piece for piece, _ in service.done) == ["a", "b", "c"]


async def test_a_request_whose_own_work_was_cancelled_is_an_outage():
    service = Service()
    failures = iter([asyncio.CancelledError()])

    def fail(_pieces):
        if failure := next(failures, None):
            raise failure

    service.fail = fail
    service.stage.put("ab")
    async with service.running():
        await service.ended(2)
    assert sorted(piece for piece, _ in service.done) == ["a", "b"]


async def test_cancelling_ends_it_in_the_middle_of_a_request_and_of_a_pause(eventually):
    for fail in (lambda pieces: asyncio.Event().wait(), lambda pieces: ConnectionError()):
        service = Service(concurrency=2)
        service.fail = fail
        service.stage.put("abcdefgh")
        async with service.running():
            await eventually(lambda service=service: service.requests)


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.integers(0, 9), min_size=1, max_size=25),
    poisoned=st.sets(st.integers(0, 9), max_size=4),
    outages=st.lists(st.integers(0, 30), max_size=6),
    concurrency=st.integers(1, 3),
    count=st.integers(1, 8),
)
def test_every_piece_ends_once_and_only_the_poisoned_die(
    pieces, poisoned, outages, concurrency, count
):
    names = [f"{kind}.{n}" for n, kind in enumerate(pieces)]
    bad = {name for name, kind in zip(names, pieces, strict=True) if kind in poisoned}

    async def run():
        service = Service(concurrency=concurrency, limits=Limits(count, 1000))
        down = set(outages)

        def fail(given):
            if len(service.requests) in down:
                return ConnectionError("down")
            return ValueError("poison") if bad & set(given) else None

        service.fail = fail
        service.stage.put(names)
        async with asyncio.timeout(10), service.running():
            await service.ended(len(names))
        assert sorted(piece for piece, _ in service.done) == sorted(set(names) - bad)
        assert sorted(piece for piece, _ in service.dead) == sorted(bad)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "_LONE_RETRY_SECONDS", 0.0005)
        patched.setattr(stages, "Pause", lambda: Pause(0.0005, 0.001))
        asyncio.run(run())
