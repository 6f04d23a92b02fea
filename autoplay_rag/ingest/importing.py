"""Puts a file of events, or a recording, into a pipeline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, TypeAlias

import msgspec

from autoplay_rag.decoding import decode
from autoplay_rag.errors import (
    DecodeError,
    DrainTimeoutError,
    UnknownPayloadError,
)
from autoplay_rag.ingest.events import EventIntake
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.payloads import Payload
from autoplay_rag.sources.analytics import Event, Events
from autoplay_rag.sources.specs import ANALYTICS_TOOLS, AnalyticsTool
from autoplay_rag.sources.tools import READERS

__all__ = ["FORMATS", "Format", "Imported", "import_records"]

_log = logging.getLogger(__name__)

Format: TypeAlias = Literal["posthog", "amplitude", "segment", "jsonl"]
FORMATS: Final[tuple[Format, ...]] = (*ANALYTICS_TOOLS, "jsonl")
"""What files can hold: the events of an analytics tool, or payloads (a recording)."""

_LOT: Final = 500
_MOST_PENDING: Final = 5_000
"""Payloads that wait. A file is read faster than its content can be embedded."""
_DRAIN_SECONDS: Final = 30.0


@dataclass(slots=True)
class Imported:
    """What became of the content of files.

    Attributes:
        outcomes: How many payloads had each outcome of `IngestPipeline.accept`.
        skipped: Events that were not actions.
        repeated: Events with the id of another one near them in the file.
        bad: Values that could not be read.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    repeated: int = 0
    bad: int = 0

    @property
    def read(self) -> int:
        """How many values were read, of whatever outcome."""
        return self.outcomes.total() + self.skipped + self.repeated + self.bad


async def import_records(
    pipeline: IngestPipeline,
    records: Iterator[bytes],
    format: Format,
    *,
    product_id: str = "",
    imported: Imported | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Imported:
    """Put the values of a file into a pipeline. Can be repeated: then all are duplicates.

    Memory stays bounded: reading waits while too many payloads wait to be stored.

    Args:
        pipeline: A running pipeline.
        records: The values as JSON, as `read_records` gives them. Read in a thread.
        format: What they are.
        product_id: The product of events, and of payloads that name none.
        imported: Counts what is read; by default a new one.
        stopped: Says whether to stop reading.

    Returns:
        The counts.

    Raises:
        DrainTimeoutError: If nothing can be stored for half a minute. Import again later.
        PipelineClosedError: If the pipeline is not running.
        JournalError: If the journal cannot be written.
        Exception: What `records` raises if the file is broken. What comes before is in the pipeline.
    """
    counts = Imported() if imported is None else imported
    intake = EventIntake(pipeline)
    while not stopped():
        lot, error = await asyncio.to_thread(_take, records)
        if format == "jsonl":
            payloads = await asyncio.to_thread(_payloads, lot, product_id, counts)
            counts.outcomes.update(await asyncio.gather(*map(pipeline.accept, payloads)))
        else:
            events = await asyncio.to_thread(_events, lot, format, counts)
            counts.outcomes.update(await intake.take(events, product_id))
        if error is not None:
            raise error
        if not lot:
            break
        while pipeline.ledger.pending > _MOST_PENDING:
            await _drain(pipeline)
    return counts


def _take(records: Iterator[bytes]) -> tuple[list[bytes], Exception | None]:
    """The next records. If the file is broken after them, also the error."""
    lot: list[bytes] = []
    try:
        for record in islice(records, _LOT):
            lot.append(record)  # noqa: PERF402 - what was read before an error is kept
    except Exception as error:  # noqa: BLE001 - raised once the lot is in the pipeline
        return lot, error
    return lot, None


def _events(records: Iterable[bytes], tool: AnalyticsTool, counts: Imported) -> list[Event]:
    """The events of records, by time."""
    events: list[Event] = []
    for found in _read(records, tool):
        counts.skipped += found.skipped
        counts.repeated += found.repeated
        counts.bad += found.bad
        events += found.events
    return sorted(events, key=lambda event: event.at)


def _read(records: Iterable[bytes], tool: AnalyticsTool) -> Iterator[Events]:
    now = time.time()
    for record in records:
        try:
            yield READERS[tool](record, now=now)
        except DecodeError as error:
            _log.debug("a value could not be read: %s", error)
            yield Events(bad=1)


def _payloads(records: Iterable[bytes], product_id: str, counts: Imported) -> list[Payload]:
    """The payloads of records."""
    payloads: list[Payload] = []
    for record in records:
        try:
            payload = decode(record)
        except UnknownPayloadError:
            counts.skipped += 1
        except DecodeError as error:
            counts.bad += 1
            _log.debug("a value could not be read: %s", error)
        else:
            if product_id and not payload.product_id:
                payload = msgspec.structs.replace(payload, product_id=product_id)
            payloads.append(payload)
    return payloads


async def _drain(pipeline: IngestPipeline) -> None:
    """Wait until the pending payloads are stored, for as long as some are."""
    before = pipeline.ledger
    try:
        await pipeline.drain(_DRAIN_SECONDS)
    except DrainTimeoutError:
        now = pipeline.ledger
        if (now.stored, now.dead) == (before.stored, before.dead):
            raise
