"""What the routes of one application share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from fastapi import Request
from starlette.types import Receive, Scope, Send

from autoplay_rag.ingest.events import EventIntake, TakesEvents
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.journal.base import Health
from autoplay_rag.payloads import Payload
from autoplay_rag.serve.browsers import Browsers
from autoplay_rag.serve.history import History
from autoplay_rag.serve.jobs import JobKind, Jobs
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.pulling import AskedPulls
from autoplay_rag.serve.settings import Settings
from autoplay_rag.sources.specs import AnalyticsTool

__all__ = ["Endpoint", "Intake", "Receiving", "Serving", "receiving_of", "serving_of"]

_MOST_STREAMS: Final = 500
_MOST_OF_TOKEN: Final = 10


class OpenStream(Protocol):
    """A stream that can be asked to end."""

    def end(self) -> None:
        """Tell the client that the server stops, and end soon."""


class Endpoint(Protocol):
    """A part of the application that answers requests by itself while the lifespan runs."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Answer inside the block."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


class Intake(TakesEvents, Protocol):
    """What takes payloads: an `IngestPipeline`, or something that passes them on."""

    def accept(self, payload: Payload, /) -> Awaitable[str]:
        """Take a payload, and return what became of it."""

    @property
    def health(self) -> Health:
        """Whether payloads get where they belong."""

    @property
    def is_running(self) -> bool:
        """Whether payloads are taken."""

    @property
    def is_available(self) -> bool:
        """Whether what has to take them answers: the database of a journal, or a broker."""


@dataclass(slots=True, kw_only=True)
class Receiving:
    """What the routes share that take payloads, or say how the process is.

    Attributes:
        intake: Takes payloads.
        settings: What is let through.
        events: Takes the events of analytics tools.
        streams: The open streams, with the names of their principals.
        event_counts: How many events of each tool had each outcome.
    """

    intake: Intake
    settings: Settings
    events: EventIntake
    streams: dict[OpenStream, str] = field(default_factory=dict)
    event_counts: Counter[tuple[AnalyticsTool, str]] = field(default_factory=Counter)
    _closing: bool = False
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def add_stream(self, stream: OpenStream, name: str) -> None:
        """Note an open stream.

        Raises:
            ProblemError: If the server stops, or there are too many.
        """
        if self._closing:
            raise ProblemError(503, "The server is stopping.", {"retry-after": "5"})
        of_token = name.startswith("token ")
        same = sum(other == name for other in self.streams.values()) if of_token else 0
        if len(self.streams) >= _MOST_STREAMS or same >= _MOST_OF_TOKEN:
            raise ProblemError(429, "Too many open streams.", {"retry-after": "5"})
        self.streams[stream] = name

    def remove_stream(self, stream: OpenStream) -> None:
        """Note that a stream ended."""
        self.streams.pop(stream, None)
        if not self.streams:
            self._ended.set()

    def end_streams(self) -> None:
        """Tell all subscribers that the server stops, and refuse new ones."""
        self._closing = True
        for stream in list(self.streams):
            stream.end()

    async def streams_ended(self) -> None:
        """Wait until the last stream ended."""
        while self.streams:
            self._ended.clear()
            await self._ended.wait()


@dataclass(slots=True, kw_only=True)
class Serving(Receiving):
    """What the routes of a pipeline share.

    Attributes:
        pipeline: Takes and finds everything.
        jobs: Long work.
        job_kinds: Kinds of jobs besides those of the package, by name.
        browsers: Who signed in on the page.
        history: The last hour of the pipeline.
        pulls: Pulls the users whom requests ask about.
        mcp: Answers MCP; None without the extra `mcp`.
        fragments: The parts of pages that look the same to all readers, by name: what they show,
            and their HTML. They are rendered once for all open pages.
    """

    pipeline: IngestPipeline
    jobs: Jobs
    job_kinds: Mapping[str, JobKind]
    browsers: Browsers
    history: History
    pulls: AskedPulls
    mcp: Endpoint | None = None
    fragments: dict[tuple[str, ...], tuple[object, bytes]] = field(default_factory=dict)


def receiving_of(request: Request) -> Receiving:
    """Return what the application of a request shares."""
    receiving = request.app.state.serving
    assert isinstance(receiving, Receiving)
    return receiving


def serving_of(request: Request) -> Serving:
    """Return what the application of a request shares, if it has a pipeline."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving
