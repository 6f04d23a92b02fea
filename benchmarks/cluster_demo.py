"""Show a cluster: three replicas on one PostgreSQL, of which one is killed.

    python -m benchmarks.cluster_demo

It starts a PostgreSQL server with pgvector from the package index and three processes with a pipeline
each, and streams events to them. Then it kills one, which shows where its partitions go. At the end it
checks in the database that nothing is missing. Everything is in a temporary folder.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from contextlib import suppress

import psycopg

from benchmarks.replica import Options, title_of
from benchmarks.replicas import Replica, Replicas, Server
from benchmarks.replicas_outcome import read_outcome, send

SCHEMA = "autoplay"
PARTITIONS = 64
SESSIONS = 40
EVENTS = 50
"""Events of each session."""
SECONDS = 30.0
"""How long the stream takes."""
KILL_AFTER = 8.0


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Display:
    """Prints a line whenever something changed, at most one a second.

    Args:
        replicas: The replicas.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._names: dict[int, str] = {}
        self._began = time.monotonic()

    def name(self, replica: Replica) -> None:
        """Give a replica a letter."""
        self._names[replica.process.pid] = "ABCDEFGH"[len(self._names)]

    def say(self, text: str) -> None:
        """Print a remark with the time."""
        _say(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def name_of(self, replica: Replica) -> str:
        """Return the letter of a replica."""
        return self._names[replica.process.pid]

    async def run(self) -> None:
        """Print until cancelled."""
        while True:
            with suppress(psycopg.Error):
                self.say(await asyncio.to_thread(self._line))
            await asyncio.sleep(1)

    def _line(self) -> str:
        shares = self._replicas.shares()
        live = {one.process.pid for one in self._replicas.live}
        parts = [
            f"{letter} {len(shares.get(pid, [])):2} partitions{'' if pid in live else ' (killed)'}"
            for pid, letter in self._names.items()
            if pid in live or pid in shares
        ]
        free = PARTITIONS - sum(map(len, shares.values()))
        if free:
            parts.append(f"free {free:2}")
        rows = self._replicas.server.run(f"SELECT received, stored, pending FROM {SCHEMA}.counts")
        received, stored, pending = rows[0]
        return (
            f"{' | '.join(parts)} | received {received:,}, stored {stored:,}, waiting {pending:,}"
        )


async def _show(server: Server) -> bool:
    # Two requests to the embedder at once, of 50 ms each, so that something is always under way.
    async with Replicas(server, Options(SCHEMA)) as replicas:
        display = Display(replicas)
        _say("three replicas start, and divide 64 partitions among them")
        for _ in range(3):
            replica = await replicas.add()
            await replica.started
            display.name(replica)
        await replicas.until_shared()
        showing = asyncio.create_task(display.run())
        try:
            sending = asyncio.gather(
                *(
                    send(replicas, f"s{one}", EVENTS, SECONDS / EVENTS, random.Random(one))
                    for one in range(SESSIONS)
                )
            )
            await asyncio.sleep(KILL_AFTER)
            victim = replicas.live[1]
            had = len((await asyncio.to_thread(replicas.shares)).get(victim.process.pid, []))
            killed, letter = time.monotonic(), display.name_of(victim)
            await replicas.kill(victim)
            display.say(f"replica {letter} is killed (SIGKILL). It had {had} partitions")
            display.say("its lease ends after 10 s; what is pushed meanwhile goes to the others")
            await replicas.until_shared()
            display.say(
                f"all partitions have moved on, {time.monotonic() - killed:.1f} s after the kill"
            )
            fresh = await replicas.add()
            await fresh.started
            display.name(fresh)
            display.say(f"replica {display.name_of(fresh)} joins, and is given its share")
            await replicas.until_shared()
            await sending
            display.say("the stream has ended; waiting until everything is stored")
            answer = await replicas.live[0].ask(do="drain", timeout=120.0)
        finally:
            showing.cancel()
            await asyncio.wait([showing])
    outcome = await asyncio.to_thread(read_outcome, server, SCHEMA)
    expected = Counter(
        title_of(f"s{session}", number)
        for session, number in itertools.product(range(SESSIONS), range(EVENTS))
    )
    lost = (expected - outcome.stored).total()
    doubled = (outcome.stored - expected).total()
    balanced = bool(answer) and answer["ledger"]["stored"] == expected.total()
    _say()
    _say(
        f"{expected.total():,} events sent, {outcome.stored.total():,} stored: {lost} missing, {doubled} "
        f"twice, {outcome.out_of_order} of {SESSIONS} sessions out of order; ledger balanced: {balanced}"
    )
    return balanced and not (lost or doubled or outcome.out_of_order)


def main() -> int:
    """Run the demo; the exit code says whether nothing is missing."""
    _say("a PostgreSQL server with pgvector starts, from the package index")
    with Server() as server:
        return 0 if asyncio.run(_show(server)) else 1


if __name__ == "__main__":
    sys.exit(main())
