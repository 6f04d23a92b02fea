"""Show a cluster: three replicas on one PostgreSQL, of which one is killed.

    python -m benchmarks.cluster_demo [--queue postgres|kafka]

It starts a PostgreSQL server with pgvector from the package index and three processes with a pipeline
and a page each, and streams events: pushed to the replicas, or through a topic of a broker from the
package index. Then it kills one replica, which shows where its partitions go: here, and on the page of
another replica, whose address is printed. At the end it checks in the database that nothing is missing.
Everything is in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import httpx

from autoplay_rag.kafka.address import TopicAddress
from benchmarks.broker import Broker
from benchmarks.demo_page import Page, Shown
from benchmarks.replica import Options, title_of
from benchmarks.replicas import Replica, Replicas, Server
from benchmarks.replicas_outcome import read_outcome, send
from benchmarks.topic_feeder import Feeder

SCHEMA = "autoplay"
PARTITIONS = 64
SESSIONS = 40
EVENTS = 50
"""Events of each session."""
SECONDS = 30.0
"""How long the stream takes."""
KILL_AFTER = 8.0
TOPIC_PARTITIONS = 6
MOST_SECONDS = 120.0
"""How long a change may take."""


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Display:
    """Prints what the page of a replica shows: a line each second, and its tables when asked.

    Args:
        page: The page.
        replicas: The replicas.
    """

    def __init__(self, page: Page, replicas: Replicas) -> None:
        self._page = page
        self._replicas = replicas
        self._names: dict[int, str] = {}
        self._began = time.monotonic()

    def name(self, replica: Replica) -> str:
        """Give a replica a letter."""
        letter = self._names[replica.process.pid] = "ABCDEFGH"[len(self._names)]
        return letter

    def say(self, text: str) -> None:
        """Print a remark with the time."""
        _say(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def name_of(self, replica: Replica) -> str:
        """Return the letter of a replica."""
        return self._names[replica.process.pid]

    async def run(self) -> None:
        """Print until cancelled."""
        while True:
            with suppress(httpx.HTTPError):
                self.say(self._line(await self._page.shown()))
            await asyncio.sleep(1)

    async def show_page(self) -> None:
        """Print the parts of the page about replicas and topic."""
        _say()
        for line in await self._page.lines():
            _say(f"         | {line}")
        _say()

    async def until(self, condition: Callable[[Shown], bool]) -> None:
        """Wait until the page shows something."""
        async with asyncio.timeout(MOST_SECONDS):
            while True:
                with suppress(httpx.HTTPError):
                    if condition(await self._page.shown()):
                        return
                await asyncio.sleep(0.2)

    def _line(self, shown: Shown) -> str:
        live = {one.process.pid for one in self._replicas.live}
        parts = []
        for pid, letter in self._names.items():
            if pid in live or pid in shown.owned:
                read = sorted(shown.read.get(pid, ()))
                topic = f" and topic {','.join(map(str, read))}" if read else ""
                killed = "" if pid in live else " (killed)"
                parts.append(f"{letter} {shown.owned.get(pid, 0):2}{topic}{killed}")
        if shown.unowned:
            parts.append(f"free {shown.unowned:2}")
        if shown.unread:
            parts.append(f"unread {shown.unread}")
        if shown.lag:
            parts.append(f"in the topic {shown.lag:,}")
        counts = ", ".join(f"{name} {count:,}" for name, count in shown.counts.items())
        return f"{' | '.join(parts)} | {counts}"


async def _start(replicas: Replicas, stack: AsyncExitStack) -> Display:
    """Start three replicas; return what shows the page of the first."""
    for _ in range(3):
        await replicas.add()
    urls = [(await replica.started)["url"] for replica in replicas.live]
    page = await stack.enter_async_context(Page(urls[0], replicas.options.key))
    display = Display(page, replicas)
    for replica in replicas.live:
        display.name(replica)
    _say(f"the page of replica A, on which this can be watched: {page.address}")
    return display


async def _stream(replicas: Replicas, feeder: Feeder | None) -> None:
    """Send all events, and return once the journal has them."""
    if feeder is not None:
        await feeder.run(SESSIONS, EVENTS, SECONDS / EVENTS)
        return
    await asyncio.gather(
        *(
            send(replicas, f"s{one}", EVENTS, SECONDS / EVENTS, random.Random(one))
            for one in range(SESSIONS)
        )
    )


async def _kill_one(replicas: Replicas, display: Display, *, topic: bool) -> None:
    """Kill a replica, and start another one once its partitions have moved on."""
    victim = replicas.live[1]
    had = len((await asyncio.to_thread(replicas.shares)).get(victim.process.pid, []))
    killed, letter = time.monotonic(), display.name_of(victim)
    await replicas.kill(victim)
    display.say(f"replica {letter} is killed (SIGKILL). It had {had} partitions")
    if topic:
        display.say(
            "the broker gives its part of the topic to the others once its session has timed out (6 s)"
        )
    display.say("its lease ends after 10 s; until then the others do what is theirs")
    moved = asyncio.create_task(replicas.until_shared())
    if topic:
        alive = {one.process.pid for one in replicas.live}
        await display.until(
            lambda shown: (
                shown.read.keys() == alive
                and sum(map(len, shown.read.values())) == TOPIC_PARTITIONS
            )
        )
        display.say(f"the topic is read again, {time.monotonic() - killed:.1f} s after the kill")
    await moved
    display.say(f"all partitions have moved on, {time.monotonic() - killed:.1f} s after the kill")
    await display.until(lambda shown: victim.process.pid not in shown.owned and not shown.unowned)
    await display.show_page()
    fresh = await replicas.add()
    await fresh.started
    display.say(f"replica {display.name(fresh)} joins, and is given its share")
    await replicas.until_shared()


async def _show(server: Server, broker: Broker | None) -> bool:
    address = TopicAddress(broker.bootstrap, "events", "demo") if broker else None
    # Two requests to the embedder at once, of 50 ms each, so that something is always under way.
    options = Options(SCHEMA, topic=address.url if address else "", key=secrets.token_urlsafe(16))
    async with AsyncExitStack() as stack:
        feeder = None
        if address is not None:
            feeder = Feeder(server, SCHEMA, address, TOPIC_PARTITIONS)
            await stack.enter_async_context(feeder)
        replicas = await stack.enter_async_context(Replicas(server, options))
        _say("three replicas start, and divide 64 partitions among them")
        display = await _start(replicas, stack)
        await replicas.until_shared()
        if feeder is not None:
            _say(f"they divide the {TOPIC_PARTITIONS} partitions of a topic, too")
            await replicas.until_topic_shared(TOPIC_PARTITIONS)
        showing = asyncio.create_task(display.run())
        streaming = asyncio.create_task(_stream(replicas, feeder))
        try:
            await asyncio.sleep(KILL_AFTER)
            await display.show_page()
            await _kill_one(replicas, display, topic=feeder is not None)
            await streaming
            display.say("the stream has ended; waiting until everything is stored")
            answer = await replicas.live[0].ask(do="drain", timeout=120.0)
            await display.until(lambda shown: not shown.counts["waiting"] and not shown.lag)
        finally:
            for task in (showing, streaming):
                task.cancel()
            await asyncio.wait([showing, streaming])
        await display.show_page()
    outcome = await asyncio.to_thread(read_outcome, server, SCHEMA)
    expected = Counter(
        title_of(f"s{session}", number)
        for session, number in itertools.product(range(SESSIONS), range(EVENTS))
    )
    lost = (expected - outcome.stored).total()
    doubled = (outcome.stored - expected).total()
    balanced = bool(answer) and answer["ledger"]["stored"] == expected.total()
    _say(
        f"{expected.total():,} events sent, {outcome.stored.total():,} stored: {lost} missing, {doubled} "
        f"twice, {outcome.out_of_order} of {SESSIONS} sessions out of order; ledger balanced: {balanced}"
    )
    return balanced and not (lost or doubled or outcome.out_of_order)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; the exit code says whether nothing is missing."""
    parser = argparse.ArgumentParser(description="Show three replicas, of which one is killed.")
    parser.add_argument("--queue", choices=["postgres", "kafka"], default="postgres")
    options = parser.parse_args(argv)
    _say("a PostgreSQL server with pgvector starts, from the package index")
    with Server() as server:
        if options.queue == "postgres":
            return 0 if asyncio.run(_show(server, None)) else 1
        _say("a broker that speaks Kafka's protocol starts, from the package index")
        with Broker() as broker:
            return 0 if asyncio.run(_show(server, broker)) else 1


if __name__ == "__main__":
    sys.exit(main())
