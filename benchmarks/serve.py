"""Run `autoplay-rag serve` under load, then stop it with SIGTERM while the load goes on.

    python -m benchmarks.serve [--minutes 1] [--rate 200] [--subscribers 90] [--stalled 10]
    python -m benchmarks.serve --before 120000       begins where ten minutes of load end

A connector sends `--rate` events a second. The embedder is a service on loopback that waits 50 ms.
5 unfiltered and 15 user-filtered searches a second are made, each measured from the moment it was
due. Subscribers read everything that comes in; the stalled ones never read. Store and journal are a
Chroma folder and a file. Each of these has its own process. The bar is ten minutes on two cores;
the load average tells whether the machine did something else meanwhile.

With `--before`, journal and store hold so many events already, each in a chunk of its own. They are
kept in `.benchmarks/` for the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit
from zlib import crc32

import httpx

from autoplay_rag import IngestPipeline
from autoplay_rag.decoding import decode
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.journal.schema import SCHEMA
from autoplay_rag.stores import ChromaStore
from benchmarks.soak import resident_mb
from benchmarks.streams import events, served
from benchmarks.table import Figure, percentile, show

CACHE = Path(".benchmarks")
SESSIONS = 2_000
LATENCY = 0.05
DIMENSION = 384
SEARCHES_PER_SECOND = 20
UNFILTERED = 4
"""One in four searches is for everyone's sessions."""
DRAIN_SECONDS = 30.0
QUESTIONS = (
    "Who opened billing?",
    "item 17 on reports",
    "exports",
    "team page after dashboards",
    "integrations",
)


@dataclass
class Outcome:
    """What was measured.

    Memory (in MB) is sampled each minute, and processor time (in seconds) at the end, of the server
    and of Chroma's worker. `parts` are the mean milliseconds of the parts of searches.
    """

    sent: int = 0
    seconds: float = 0.0
    unfiltered: list[float] = field(default_factory=list)
    filtered: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    ledger: dict = field(default_factory=dict)
    stopped_in: float = 0.0
    exit_code: int | None = None
    subscribers: dict = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    cpu: tuple[float, float] = (0.0, 0.0)
    parts: dict[str, float] = field(default_factory=dict)


# -- the embedding service, in its own process ----------------------------------------------------


async def serve_embedder() -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def embeddings(request):
        body = await request.json()
        await asyncio.sleep(LATENCY)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(text)}
            for index, text in enumerate(body["input"])
        ]
        tokens = 8 * len(data)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": body["model"], "usage": usage}
        return JSONResponse(answer)

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", flush=True)
    app = Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
    await uvicorn.Server(config).serve([bound])


def _encoded(text: str) -> str:
    """A vector of small numbers that depends on the text, as base64."""
    from array import array

    drawn = blake2b(text.encode(), digest_size=64).digest() * (DIMENSION // 64)
    return base64.b64encode(array("f", [byte / 128 - 1 for byte in drawn]).tobytes()).decode()


# -- what came before the load --------------------------------------------------------------------


async def fill(folder: str, count: int, actions: int) -> None:
    """Store the first events of the stream, each in a chunk of its own, as under load."""
    place = Path(folder)
    async with IngestPipeline(
        ChromaStore(place / "chroma"),
        make_embedder("openai:bench"),
        journal=place / "chroma-journal.db",
        max_batch_actions=actions,
        drain_timeout=3600,
    ) as pipeline:
        for event in events(count, SESSIONS, actions):
            await pipeline.on_actions(decode(json.dumps(event).encode()))


def copy_filled(folder: str, options: argparse.Namespace, env: dict[str, str]) -> None:
    """Put journal and store with the events of `--before` into a folder; make them if needed."""
    kept = CACHE / f"serve-{options.before}-{options.actions}-{crc32(SCHEMA.encode()):08x}"
    if not kept.exists():
        made = kept.with_name(f"{kept.name}-unfinished")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        given = (str(made), str(options.before), str(options.actions))
        with started("--fill", *given, env=env) as (process, _):
            if process.wait():
                raise RuntimeError(f"the process that fills {made} ended with {process.returncode}")
        made.rename(kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)


# -- the subscribers, in their own process --------------------------------------------------------


class Subscriber(asyncio.Protocol):
    """Counts the events of one stream. A stalled one never reads."""

    def __init__(self, request: bytes, *, stalled: bool) -> None:
        self._request = request
        self._stalled = stalled
        self._tail = b""
        self.events = 0
        self.gaps = 0
        self.told = False
        self.ended = asyncio.Event()

    def connection_made(self, transport) -> None:
        transport.write(self._request)
        if self._stalled:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        at = data.rfind(b"\n") + 1
        lines, self._tail = data[:at], data[at:]
        self.events += lines.count(b"\nid: ")
        self.gaps += lines.count(b"event: gap")
        self.told = self.told or b"event: end" in lines
        # So that an id at the start of the next part has its line break.
        self._tail = b"\n" + self._tail if lines else self._tail

    def connection_lost(self, error) -> None:  # noqa: ARG002 - as the base class has it
        self.ended.set()


async def subscribe(url: str, reading: int, stalled: int) -> None:
    """Open the streams, print a line, and at their end what they got."""
    loop = asyncio.get_running_loop()
    host, port = urlsplit(url).hostname, urlsplit(url).port
    key = os.environ["AUTOPLAY_RAG_READ_KEY"]
    request = (
        f"GET /v1/stream HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n\r\n"
    ).encode()
    made = []
    for number in range(reading + stalled):
        _, protocol = await loop.create_connection(
            lambda number=number: Subscriber(request, stalled=number >= reading), host, port
        )
        made.append(protocol)
    print("subscribed", flush=True)
    readers = made[:reading]
    await asyncio.gather(*(one.ended.wait() for one in readers))
    summary = {
        "told": sum(one.told for one in readers),
        "gaps": sum(one.gaps for one in readers),
        "fewest": min((one.events for one in readers), default=0),
        "most": max((one.events for one in readers), default=0),
    }
    print(json.dumps(summary), flush=True)


# -- the load -------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: str, env: dict[str, str]):
    """Run this module in another process; yield it and the first line that it prints."""
    command = [sys.executable, "-m", "benchmarks.serve", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@asynccontextmanager
async def searching(url: str, key: str, outcome: Outcome):
    """Search inside the block."""
    limits = httpx.Limits(max_connections=100)
    headers = {"authorization": f"Bearer {key}"}

    async def ask(client, number: int, due: float) -> None:
        body = {"query": QUESTIONS[number % len(QUESTIONS)], "k": 5}
        if is_filtered := number % UNFILTERED != 0:
            body["user_id"] = f"user-{number % 997}"
        try:
            answer = await client.post("/v1/search/sessions", json=body)
            problem = answer.json().get("problem")
            if answer.status_code != 200 or problem:
                outcome.failed.append(problem or str(answer.status_code))
        except httpx.HTTPError as error:
            outcome.failed.append(type(error).__name__)
        taken = time.perf_counter() - due
        (outcome.filtered if is_filtered else outcome.unfiltered).append(taken)

    async def ask_all(client) -> None:
        began, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while True:
                number += 1
                due = began + number / SEARCHES_PER_SECOND
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(ask(client, number, due))

    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=30
    ) as client:
        task = asyncio.create_task(ask_all(client))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def run_load(options: argparse.Namespace, folder: str) -> Outcome:
    outcome = Outcome(sent=options.before + int(options.rate * options.minutes * 60))
    stream = islice(events(outcome.sent, SESSIONS, options.actions), options.before, None)
    keys = {name: secrets.token_hex(16) for name in ("ADMIN", "READ")}
    env = os.environ | {f"AUTOPLAY_RAG_{name}_KEY": key for name, key in keys.items()}
    with (
        started("--serve-embedder", env=env) as (_, embedder_url),
        served(stream, options.rate) as connector_url,
    ):
        env |= {"OPENAI_BASE_URL": embedder_url, "OPENAI_API_KEY": "bench", "PYTHONUNBUFFERED": "1"}
        if options.before:
            await asyncio.to_thread(copy_filled, folder, options, env)
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "autoplay_rag", "serve", connector_url, "--port", "0",
            "--embedder", "openai:bench", "--audit-log", "audit.log",
            cwd=folder, env=env, stdout=asyncio.subprocess.PIPE,
            stderr=(Path(folder) / "stderr").open("wb"),
        )  # fmt: skip
        try:
            line = (await asyncio.wait_for(server.stdout.readline(), 60)).decode()
            await _load(options, outcome, server, line.removeprefix("serving ").strip(), env)
        except Exception:
            print(f"the server: exit code {server.returncode}", file=sys.stderr)
            print((Path(folder) / "stderr").read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            if server.returncode is None:
                server.kill()
                await server.wait()
    return outcome


def read_ledger(folder: str) -> dict:
    """The counts of a journal that no process has open."""
    status = subprocess.run(
        [sys.executable, "-m", "autoplay_rag", "status", "--json", "chroma-journal.db"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return json.loads(status.stdout)


async def _load(options, outcome: Outcome, server, url: str, env: dict[str, str]) -> None:
    key = env["AUTOPLAY_RAG_READ_KEY"]
    counts = (str(options.subscribers), str(options.stalled))
    with started("--subscribe", url, *counts, env=env) as (subscribers, _):
        started_at = time.monotonic()
        async with searching(url, key, outcome):
            await _wait_until_received(outcome, server.pid, url, key, options.minutes)
            outcome.seconds = time.monotonic() - started_at
            measured = len(outcome.filtered), len(outcome.unfiltered), len(outcome.failed)
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            outcome.exit_code = await asyncio.wait_for(server.wait(), 120)
            outcome.stopped_in = time.monotonic() - began
        # Searches during the stop are load, not figures.
        for values, count in zip(
            (outcome.filtered, outcome.unfiltered, outcome.failed), measured, strict=True
        ):
            del values[count:]
        line = await asyncio.to_thread(subscribers.stdout.readline)
        outcome.subscribers = json.loads(line)


async def _wait_until_received(outcome, pid: int, url: str, key: str, minutes: float) -> None:
    """Wait for the last event, and measure each minute."""
    began = time.monotonic()
    filtered = unfiltered = 0
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        while True:
            await asyncio.sleep(1.0)
            try:
                received = (await client.get("/v1/ledger")).json()["received"]
            except httpx.TransportError as error:
                outcome.failed.append(f"ledger: {type(error).__name__}")
                if minute_of(began) > 2 * minutes + 1:
                    raise
                continue
            minute = minute_of(began)
            if minute >= len(outcome.memory) + 1 or received >= outcome.sent:
                sample = resident_mb(pid), sum(map(resident_mb, _children(pid)))
                outcome.memory.append(sample)
                outcome.load.append(os.getloadavg()[0])
                searches = outcome.filtered[filtered:] + outcome.unfiltered[unfiltered:]
                filtered, unfiltered = len(outcome.filtered), len(outcome.unfiltered)
                print(
                    f"{minute:.1f} min: {received:,} received, searches p99 "
                    f"{percentile(searches, 0.99) * 1e3:.0f} ms, server {sample[0]:.0f} MB, Chroma "
                    f"{sample[1]:.0f} MB, load average {outcome.load[-1]:.1f}",
                    file=sys.stderr,
                )
            if received >= outcome.sent:
                outcome.cpu = processor_seconds(pid), sum(map(processor_seconds, _children(pid)))
                outcome.parts = mean_parts((await client.get("/metrics")).text)
                return
            if minute > 2 * minutes + 1:
                raise TimeoutError(f"only {received:,} of {outcome.sent:,} events were received")


def minute_of(began: float) -> float:
    return (time.monotonic() - began) / 60


def processor_seconds(pid: int) -> float:
    """The processor time of a process. Linux only."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def mean_parts(metrics: str) -> dict[str, float]:
    """The mean milliseconds of the parts of searches, from the server's own metrics."""
    pattern = r'autoplay_rag_search(?:_part)?_seconds_{}{{(?:part|answer)="(\w+)"}} (\S+)'
    sums, counts = (dict(re.findall(pattern.format(name), metrics)) for name in ("sum", "count"))
    return {name: 1e3 * float(sums[name]) / float(counts[name]) for name in sums}


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--actions", type=int, default=3)
    parser.add_argument("--subscribers", type=int, default=90)
    parser.add_argument("--stalled", type=int, default=10)
    parser.add_argument("--before", type=int, default=0)
    options = parser.parse_args(argv or [])
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run_load(options, folder))
        found.ledger = read_ledger(folder)
    return _figures(found, options)


def _figures(found: Outcome, options: argparse.Namespace) -> list[Figure]:
    ledger = found.ledger.get("ledger", found.ledger)
    settled = sum(ledger[name] for name in ("stored", "duplicate", "filtered", "refused"))
    lost = ledger["received"] - settled - ledger["pending"] - ledger["dead"] - ledger["discarded"]
    balanced = lost == ledger["overflow"]
    told = found.subscribers
    load = ", ".join(f"{one:.1f}" for one in found.load)
    loaded = (
        f"`serve` at {options.rate:g} events/s, 20 searches/s, {options.subscribers} subscribers "
        f"and {options.stalled} stalled ones, {found.seconds:.0f} s"
        + (f", after {options.before:,} events" if options.before else "")
    )
    ours_cpu, chromas_cpu = (seconds / found.seconds for seconds in found.cpu)
    parts = ", ".join(f"{name} {mean:.0f}" for name, mean in found.parts.items())
    every = found.filtered + found.unfiltered
    failures = "".join(f", {count} with {what}" for what, count in Counter(found.failed).items())
    p99 = percentile(every, 0.99)
    grown = found.memory[-1][0] - found.memory[0][0]
    ours = ", ".join(f"{server:.0f}" for server, _ in found.memory)
    chromas = ", ".join(f"{chroma:.0f}" for _, chroma in found.memory)
    return [
        Figure(
            f"{loaded}: events sent that are not stored after SIGTERM",
            f"{found.sent - ledger['stored']:,} of {found.sent:,}; pending {ledger['pending']:,}, "
            f"dead {ledger['dead']:,}, overflow {ledger['overflow']:,}, balanced: {balanced}",
            f"load average each minute: {load}; cores used: the server {ours_cpu:.2f}, Chroma "
            f"{chromas_cpu:.2f}",
            "0, balanced", ledger["stored"] == found.sent and balanced,
        ),
        Figure(
            "the same: searches, p50 and p99 over HTTP",
            f"user-filtered {percentile(found.filtered, 0.5) * 1e3:.0f} and "
            f"{percentile(found.filtered, 0.99) * 1e3:.0f} ms, unfiltered "
            f"{percentile(found.unfiltered, 0.5) * 1e3:.0f} and "
            f"{percentile(found.unfiltered, 0.99) * 1e3:.0f} ms; {len(found.failed)} failed{failures}",
            f"the means of the parts: {parts} (ms); the embedder waits {LATENCY * 1e3:.0f} ms",
            "p99 under 500 ms", p99 < 0.5 and not found.failed,
        ),
        Figure(
            "the same: memory of the server at each minute",
            f"{ours} MB", f"Chroma's worker, which holds the vectors: {chromas} MB",
            "flat within 20 MB", grown < 20,
        ),
        Figure(
            "the same: SIGTERM until the exit, and subscribers that were told",
            f"{found.stopped_in:.1f} s, exit code {found.exit_code}; {told['told']} of "
            f"{options.subscribers} told",
            f"each got {told['fewest']:,} to {told['most']:,} events, {told['gaps']} gaps",
            f"under {DRAIN_SECONDS:.0f} s, all", found.exit_code == 0
            and found.stopped_in < DRAIN_SECONDS and told["told"] == options.subscribers,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve-embedder"]:
        asyncio.run(serve_embedder())
    elif sys.argv[1:2] == ["--fill"]:
        asyncio.run(fill(sys.argv[2], *map(int, sys.argv[3:5])))
    elif sys.argv[1:2] == ["--subscribe"]:
        asyncio.run(subscribe(sys.argv[2], *map(int, sys.argv[3:5])))
    else:
        figures = main(sys.argv[1:])
        show(figures)
        sys.exit(0 if all(figure.met for figure in figures) else 1)
