"""Compare the client with others on a live stream: CPU per event, and the time until the callback.

    python -m benchmarks.live [--events 4000] [--rounds 3]

A server in its own process writes 200 events a second, one to a write, then the same events at once
in writes of 4 KiB. Four clients, each in a new process, read them in turn: ours, the public SDK's,
httpx-sse with msgspec, and httpx with a search for line ends, which is the limit. `forwarded_at`
carries the moment of the write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import httpx

from benchmarks.streams import events
from benchmarks.table import Figure, percentile, show

RATE = 200.0
READ = 4_096
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
CLIENTS = ("ours", "sdk", "httpx-sse", "httpx")


def _frame(event: dict) -> bytes:
    event["forwarded_at"] = time.perf_counter()
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


async def _serve(count: int) -> None:
    """Serve `/stream/live`, an event in 5 ms, and `/stream/bulk`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        if b"/stream/live" in request:
            began = time.perf_counter()
            for number, event in enumerate(events(count, 1_000)):
                await asyncio.sleep(began + number / RATE - time.perf_counter())
                writer.write(_frame(event))
        else:
            body = b"".join(map(_frame, events(5 * count, 1_000)))
            for start in range(0, len(body), READ):
                writer.write(body[start : start + READ])
                await writer.drain()
        await writer.drain()
        await reader.read()  # until the client closes
        writer.close()

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    async with await asyncio.start_server(answer, sock=bound) as server:
        print(f"http://127.0.0.1:{bound.getsockname()[1]}/stream", flush=True)
        await server.serve_forever()


@contextmanager
def _served(count: int):
    command = [sys.executable, "-m", "benchmarks.live", "--serve", str(count)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


class _Seen:
    """Counts events, and notes the delays and the processor time between the first and the last."""

    def __init__(self, wanted: int) -> None:
        self.done = asyncio.Event()
        self.delays: list[float] = []
        self._wanted = wanted
        self._began = 0.0
        self.cpu = 0.0

    def take(self, written_at: float) -> None:
        self.delays.append(time.perf_counter() - written_at)
        if len(self.delays) == 1:
            self._began = time.process_time()
        elif len(self.delays) == self._wanted:
            self.cpu = (time.process_time() - self._began) / (self._wanted - 1)
            self.done.set()


async def _read_client(which: str, url: str, seen: _Seen) -> None:
    if which == "ours":
        from autoplay_rag import AsyncConnectorClient
    else:
        from autoplay_sdk import AsyncConnectorClient

    async def on_actions(payload) -> None:
        seen.take(payload.forwarded_at)

    client = AsyncConnectorClient(url, token="bench")
    client.on_actions(on_actions)
    await client.run()


async def _read_httpx_sse(url: str, seen: _Seen) -> None:
    import msgspec
    from httpx_sse import aconnect_sse

    from autoplay_rag.payloads import ActionsPayload

    decoder = msgspec.json.Decoder(ActionsPayload)
    async with (
        httpx.AsyncClient(timeout=None) as http,
        aconnect_sse(http, "GET", url) as source,
    ):
        async for event in source.aiter_sse():
            seen.take(decoder.decode(event.data).forwarded_at)


async def _read_httpx(url: str, seen: _Seen) -> None:
    tail = b""
    mark = b'"forwarded_at":'
    async with httpx.AsyncClient(timeout=None) as http, http.stream("GET", url) as answer:
        async for chunk in answer.aiter_raw():
            *whole, tail = (tail + chunk).split(b"\n\n")
            for event in whole:
                seen.take(float(event[event.rindex(mark) + len(mark) : -1]))


async def _measure(which: str, url: str, wanted: int) -> dict[str, float]:
    seen = _Seen(wanted)
    readers: dict[str, Callable] = {"httpx-sse": _read_httpx_sse, "httpx": _read_httpx}
    made = readers[which](url, seen) if which in readers else _read_client(which, url, seen)
    reading = asyncio.create_task(made)
    await asyncio.wait(
        [reading, asyncio.create_task(seen.done.wait())], return_when="FIRST_COMPLETED"
    )
    reading.cancel()
    await asyncio.wait([reading])
    return {"cpu": seen.cpu * 1e6, "p50": percentile(seen.delays, 0.5) * 1e3}


def _run(which: str, url: str, wanted: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.live", "--client", which, url, str(wanted)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("--events", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv or [])
    found: dict[tuple[str, str, str], list[float]] = {}
    with _served(options.events) as url:
        for _ in range(options.rounds):
            for path, wanted in (("live", options.events), ("bulk", 5 * options.events)):
                for which in CLIENTS:
                    for name, value in _run(which, f"{url}/{path}", wanted).items():
                        found.setdefault((path, which, name), []).append(value)
    middle = {key: statistics.median(values) for key, values in found.items()}

    def figure(measured: tuple[str, str], unit: str, what: str, beside: str, most: float) -> Figure:
        path, name = measured
        values = {which: middle[path, which, name] for which in CLIENTS}
        ratio = values["ours"] / values[beside]
        others = ", ".join(f"{which} {values[which]:.3g}" for which in CLIENTS[1:])
        return Figure(
            what, f"{values['ours']:.3g} {unit} = {ratio:.2f} of {beside}",
            f"{others} {unit}", f"at most {most:g}", ratio <= most,
        )  # fmt: skip

    return [
        figure(
            ("live", "cpu"), "µs", "client, 200 events/s, one a write: CPU per event", "sdk", 0.85
        ),
        figure(("live", "p50"), "ms", "the same: from the write to the callback, p50", "sdk", 1.0),
        figure(
            ("bulk", "cpu"), "µs", "the client on a backlog in writes of 4 KiB: CPU per event",
            "httpx-sse", 1.1,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(_serve(int(sys.argv[2])))
    elif sys.argv[1:2] == ["--client"]:
        print(json.dumps(asyncio.run(_measure(*sys.argv[2:4], int(sys.argv[4])))))
    else:
        figures = main(sys.argv[1:])
        show(figures)
        sys.exit(0 if all(figure.met for figure in figures) else 1)
