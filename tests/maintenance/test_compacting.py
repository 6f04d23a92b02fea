"""The pipeline lets its store give back space, and reports what keeps it from that."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.maintenance.compacting import Compactor
from autoplay_rag.stores import MemoryStore


class Compacting(MemoryStore):
    """Fails as often as it is told to. Each call waits until it is allowed."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.left = failures
        self.allowed = asyncio.Semaphore(0)
        self.calls: asyncio.Queue[int] = asyncio.Queue()

    async def compact(self) -> bool:
        await self.allowed.acquire()
        self.calls.put_nowait(self.left)
        if self.left:
            self.left -= 1
            raise StoreUnavailableError(f"the disk is full: {self.left}")
        return True

    async def call(self) -> int:
        """Allow a call, and return how many failures were left."""
        self.allowed.release()
        async with asyncio.timeout(30):
            return await self.calls.get()


@pytest.mark.parametrize("failures", [0, 3])
async def test_it_repeats_failures_and_then_goes_on(failures):
    store = Compacting(failures)
    compactor = Compactor(store, first=0.0, every=0.0, repeat=0.001)
    running = asyncio.create_task(compactor.run())
    for left in range(failures, 0, -1):
        assert await store.call() == left
        (problem,) = compactor.problems
        assert problem.startswith("the store cannot be written anew without its deleted chunks: ")
        assert problem.endswith(f"StoreUnavailableError: the disk is full: {left - 1}")
    for _ in range(3):
        assert await store.call() == 0
        assert compactor.problems == []
    running.cancel()
    await asyncio.wait([running])


async def test_the_pauses_after_failures_grow_up_to_an_hour():
    pauses = [Compactor(MemoryStore())._pause(failures) for failures in range(20)]
    assert pauses[0] == 600
    assert 7.5 <= pauses[1] <= 10
    assert 15 <= pauses[2] <= 20
    assert 2700 <= pauses[19] <= 3600


async def test_a_pipeline_runs_it_and_its_health_shows_failures(monkeypatch):
    monkeypatch.setitem(Compactor.__init__.__kwdefaults__, "first", 0.0)
    store = Compacting(failures=1)
    async with IngestPipeline(store) as pipeline:
        await store.call()
        assert pipeline.health.state == "degraded"
        assert "the disk is full" in pipeline.health.reasons[0]
