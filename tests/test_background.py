"""Work in the background: woken, repeated after failures, and reported."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag._background import BackgroundWork
from autoplay_rag.errors import JournalError


class Scripted(BackgroundWork):
    """Returns or raises what its script says; waits at its end."""

    _SHORTEST_PAUSE = 0.001

    def __init__(self, *script, **options):
        super().__init__("working failed", longest_pause=0.01, **options)
        self.script = list(script)
        self.runs = 0
        self.seen: list[tuple[list[str], bool]] = []
        self.ended = asyncio.Event()

    async def _work(self):
        self.seen.append((self.problems, self.idle))
        self.runs += 1
        if not self.script:
            self.ended.set()
            await asyncio.Event().wait()
        outcome = self.script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
async def running():
    tasks = []

    def start(work):
        tasks.append(asyncio.create_task(work.run()))
        return work

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_it_runs_when_woken_and_is_idle_afterwards(running):
    work = running(Scripted(None, None))
    assert work.idle
    for runs in (1, 2):
        work.wake()
        assert not work.idle
        await asyncio.wait_for(work.wait(), 30)
        assert (work.runs, work.problems) == (runs, [])


async def test_a_failure_of_the_journal_is_work_that_is_left(running, caplog):
    work = running(Scripted(JournalError("full"), JournalError("full"), None))
    work.wake()
    await asyncio.wait_for(work.wait(), 30)
    assert work.seen == [([], False), *[(["working failed: full"], False)] * 2]
    assert work.problems == []
    assert [record.getMessage() for record in caplog.records] == ["working failed: full"]


async def test_what_the_store_rejects_is_repeated_but_does_not_count_as_left(running):
    work = running(Scripted("refused"))
    work.wake()
    await asyncio.wait_for(work.wait(), 30)
    assert work.problems == ["working failed: refused"]
    await asyncio.wait_for(work.ended.wait(), 30)
    assert work.seen[-1] == (["working failed: refused"], True)


async def test_it_runs_again_after_a_time_without_being_woken(running):
    work = running(Scripted(None, None, every=0.001))
    await asyncio.wait_for(work.ended.wait(), 30)
    assert work.runs == 3
