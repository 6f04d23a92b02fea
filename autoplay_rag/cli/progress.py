"""The progress of an ingest: a live display on a terminal, elsewhere one log line per minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from autoplay_rag.cli.console import clean, err, progress
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.sources.activity import LiveActivitySource

__all__ = ["Meter", "counts", "showing_progress"]

_REFRESH_S = 0.2
_BAR_WIDTH = 60
_PLAIN_EVERY_S = 60.0


class Meter:
    """Measures the recent growth rate of a count. Pure: time is an argument.

    Args:
        span: Seconds over which to measure; longer if `rate` is called less often.

    Example:
        >>> meter = Meter(5.0)
        >>> [meter.rate(now, count) for now, count in ((0.0, 0), (1.0, 50), (2.0, 200))]
        [0.0, 50.0, 100.0]
    """

    def __init__(self, span: float = 5.0) -> None:
        self._span = span
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, now: float, count: int) -> float:
        """Record the count at a time, and return its growth per second."""
        self._seen.append((now, count))
        # Keep one entry that is a whole span old: otherwise rare calls would leave only this one.
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._span:
            self._seen.popleft()
        since, before = self._seen[0]
        return (count - before) / (now - since) if now > since else 0.0


def counts(ledger: Ledger) -> str:
    """Return a ledger in one line, without rare counts that are zero.

    Example:
        >>> counts(Ledger(received=1200, stored=1199, duplicate=1))
        'received 1,200 · pending 0 · stored 1,199 · duplicate 1'
    """
    usual = ["received", "pending", "stored"]
    unusual = ["duplicate", "filtered", "dead", "discarded", "refused", "overflow", "recovered"]
    shown = usual + [name for name in unusual if getattr(ledger, name)]
    return " · ".join(f"{name} {getattr(ledger, name):,}" for name in shown)


@asynccontextmanager
async def showing_progress(
    pipeline: IngestPipeline,
    clients: Sequence[AsyncConnectorClient | LiveActivitySource],
    *,
    total: int | None = None,
    doing: Callable[[], str] | None = None,
) -> AsyncIterator[None]:
    """Show the progress inside the block. With `total`, the expected payloads, also show a bar.

    Args:
        pipeline: The pipeline.
        clients: What it reads.
        total: The expected payloads.
        doing: Says what is being done; by default the state of the clients.
    """
    doing = doing or partial(state, clients)
    meter = Meter()

    def line() -> str:
        ledger = pipeline.ledger
        rate = meter.rate(time.monotonic(), ledger.received)
        return f"{counts(ledger)} · {rate:,.0f} events/s · lag {pipeline.lag:.1f} s"

    if err.is_terminal:
        watching = asyncio.create_task(_draw(pipeline, doing, line, total))
    else:
        watching = asyncio.create_task(_print(lambda: f"{doing()} · {line()}"))
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _draw(
    pipeline: IngestPipeline,
    doing: Callable[[], str],
    line: Callable[[], str],
    total: int | None,
) -> None:
    spinner = Spinner("dots", style="cyan")

    def drawn() -> Table:
        spinner.update(text=Text(doing()))
        lines = Table.grid()
        lines.add_row(spinner)
        if total is not None:
            lines.add_row(ProgressBar(total, pipeline.ledger.stored, width=_BAR_WIDTH))
        lines.add_row(Text(line(), "bold"))
        for reason in pipeline.health.reasons:
            lines.add_row(Text(clean(reason), "yellow"))
        return lines

    with Live(drawn(), console=err, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(_REFRESH_S)
            live.update(drawn(), refresh=True)


def state(clients: Sequence[AsyncConnectorClient | LiveActivitySource]) -> str:
    """Return the state of all clients in a few words."""
    states: list[str] = [client.state for client in clients]
    if all(each in ("stopping", "stopped") for each in states):
        return "storing the received payloads"
    if len(states) == 1:
        return states[0]
    only_streams = not any(isinstance(client, LiveActivitySource) for client in clients)
    what = "streams" if only_streams else "sources"
    return f"{states.count('connected')} of {len(states)} {what} connected"


async def _print(line: Callable[[], str]) -> None:
    while True:
        await asyncio.sleep(_PLAIN_EVERY_S)
        progress(line())
