from __future__ import annotations

import asyncio
import threading

import pytest

from autoplay_rag._serial import SerialThread


async def test_work_keeps_its_order_and_leaves_the_loop_free():
    thread, done, hold = SerialThread("t"), [], threading.Event()
    first = asyncio.create_task(thread.run(hold.wait))
    rest = [asyncio.create_task(thread.run(done.append, number)) for number in range(5)]
    await asyncio.sleep(0)
    assert done == []
    hold.set()
    await asyncio.gather(first, *rest)
    assert done == [0, 1, 2, 3, 4]


async def test_errors_reach_the_caller():
    with pytest.raises(ZeroDivisionError):
        await SerialThread("t").run(divmod, 1, 0)


async def test_cancelled_work_is_dropped_unless_it_has_to_be_finished():
    thread, done, hold = SerialThread("t"), [], threading.Event()
    first = asyncio.create_task(thread.run(hold.wait))
    dropped = asyncio.create_task(thread.run(done.append, "dropped"))
    finished = asyncio.create_task(thread.finish(done.append, "finished"))
    await asyncio.sleep(0)
    for task in (dropped, finished):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    hold.set()
    await first
    await thread.run(done.append, "last")
    assert done == ["finished", "last"]


def test_any_number_of_loops_may_use_it():
    thread = SerialThread("t")
    assert asyncio.run(thread.run(threading.get_ident)) == asyncio.run(
        thread.run(threading.get_ident)
    )
