"""A process of a cluster. It prints what it owns as JSON lines, until it is stopped by SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

from autoplay_rag.cluster.leases import Leases
from autoplay_rag.cluster.notices import Notices
from autoplay_rag.stores.postgres.dsn import parameters_of
from autoplay_rag.stores.postgres.link import Link


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main(dsn: str, schema: str, name: str, seconds: float) -> None:
    link = Link(parameters_of(dsn), 3, seconds / 3)
    leases = Leases(link, schema, name, seconds=seconds, channel=schema)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def follow() -> None:
        while True:
            change = await leases.next_change()
            leases.give_back(change.leaving)
            say(owned=sorted(leases.partitions))

    async def source() -> None:
        say(reads=True)
        try:
            await asyncio.Event().wait()
        finally:
            say(reads=False)

    tasks = [
        asyncio.create_task(work)
        for work in (
            leases.run(),
            Notices(link, schema, lambda _: leases.wake()).run(),
            follow(),
            leases.while_held("source:acme", source),
        )
    ]
    await stopped.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await leases.close()
    await link.close(_nothing)
    say(stopped=True)


async def _nothing() -> None:
    pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
