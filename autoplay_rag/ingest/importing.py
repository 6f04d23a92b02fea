"""Puts a file of events, or a recording, into a pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, TypeAlias

import msgspec

from autoplay_rag.decoding import decode
from autoplay_rag.errors import DecodeError, DrainTimeoutError, UnknownPayloadError
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
        RecordingError: If the file cannot be read.
    """
    counts = Imported() if imported is None else imported
    intake = EventIntake(pipeline)
    while not stopped():
        if format == "jsonl":
            payloads = await asyncio.to_thread(_next_payloads, records, product_id, counts)
            if payloads is None:
                break
            counts.outcomes.update(await asyncio.gather(*map(pipeline.accept, payloads)))
        else:
            events = await asyncio.to_thread(_next_events, records, format, counts)
            if events is None:
                break
            counts.outcomes.update(await intake.take(events, product_id))
        while pipeline.ledger.pending > _MOST_PENDING:
            await _drain(pipeline)
    return counts


def _next_events(
    records: Iterator[bytes], tool: AnalyticsTool, counts: Imported
) -> list[Event] | None:
    """The events of the next records, by time; None at the end."""
    events: list[Event] = []
    lot = list(islice(records, _LOT))
    for found in _read(lot, tool):
        counts.skipped += found.skipped
        counts.repeated += found.repeated
        counts.bad += found.bad
        events += found.events
    events.sort(key=lambda event: event.at)
    return events if lot else None


def _read(records: Iterable[bytes], tool: AnalyticsTool) -> Iterator[Events]:
    for record in records:
        try:
            yield READERS[tool](record)
        except DecodeError as error:
            _log.debug("a value could not be read: %s", error)
            yield Events(bad=1)


def _next_payloads(
    records: Iterator[bytes], product_id: str, counts: Imported
) -> list[Payload] | None:
    """The payloads of the next records; None at the end."""
    payloads: list[Payload] = []
    lot = list(islice(records, _LOT))
    for record in lot:
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
    return payloads if lot else None


async def _drain(pipeline: IngestPipeline) -> None:
    """Wait until the pending payloads are stored, for as long as some are."""
    before = pipeline.ledger
    try:
        await pipeline.drain(_DRAIN_SECONDS)
    except DrainTimeoutError:
        now = pipeline.ledger
        if (now.stored, now.dead) == (before.stored, before.dead):
            raise
