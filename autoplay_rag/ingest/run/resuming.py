"""Resumes the work that an earlier run left in the journal."""

from __future__ import annotations

import asyncio
from array import array
from typing import Final

from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.watermark import Watermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.base import Queue

__all__ = ["resume_queue"]

_PAGE: Final = 100_000


async def resume_queue(
    queue: Queue, worker: Worker, batcher: Batcher, watermark: Watermark
) -> None:
    """Resume the plans of a journal that no other process uses, and batch what has no plan.

    Args:
        queue: Has the plans, and the payloads that wait.
        worker: Replays the plans.
        batcher: Gathers the rest. No window stays open.
        watermark: Gets to know all numbers that are not settled.
    """
    plans = await queue.plans()
    await worker.resume(plans)
    planned = {seq for plan in plans for seq in plan.seqs}
    now = asyncio.get_running_loop().time()
    waiting = array("q")  # there may be millions
    letters: set[int] = set()
    page = await queue.waiting(0, _PAGE)
    while page:
        for seq, lane, retried in page:
            waiting.append(seq)
            if retried:
                letters.add(seq)
            if seq not in planned:
                batcher.add(lane, seq, now)
        page = await queue.waiting(page[-1][0], _PAGE)
    watermark.resume((seq, seq in letters) for seq in waiting)
    batcher.close_windows(now)
