"""stream_into: a live stream into an IngestionPipeline or a VectorStoreIndex, without loss."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from autoplay_rag import (
    AsyncConnectorClient,
    Filter,
    Hit,
    IngestPipeline,
    Ledger,
    LiveSessions,
    Payload,
)
from autoplay_rag.errors import AutoplayError, ConfigurationError
from autoplay_rag.loading import Limits
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline

from llama_index.readers.autoplay.base import AutoplayReader
from llama_index.readers.autoplay.target_store import TargetStore
from llama_index.readers.autoplay.targets import target_of

if TYPE_CHECKING:
    from autoplay_rag import DeadLetters, Health

__all__ = ["LiveIngestion", "stream_into"]

_log = logging.getLogger(__name__)
_BATCH = 256
"""Payloads passed to the journal before waiting for it."""
_PART = 4096
"""Payloads of a recording that are stored before more are read."""
_NEVER = 86_400.0
"""The batches of a recording end with its parts, not by the clock."""


def stream_into(
    target: IngestionPipeline | VectorStoreIndex,
    source: AutoplayReader | AsyncConnectorClient,
    *,
    journal: str | os.PathLike[str] | None = None,
    use_async: bool | None = None,
    **options: Any,
) -> LiveIngestion:
    """Feed a stream to LlamaIndex; no payload is lost or stored twice.

    Payloads pass through the journal, batching and retries of `IngestPipeline` and become documents.
    The target's transformations split and embed them. Then:

    - Old nodes are deleted after the new ones have their embeddings.
    - Failures are retried until the payload is stored or a dead letter.
    - A node's id is derived from its document's id: a stream that is ingested twice is stored once.
    - Only the documents of a batch are changed, whatever the pipeline's `docstore_strategy`. Its cache
      is not used.

    While the stream runs, do not write to the same stores from elsewhere.

    Args:
        target: Where documents go. A pipeline needs a vector store and, among its
            transformations, an embedding model.
        source: A client, which is started and stopped; or an `AutoplayReader`, live or of a
            recording, whose limits of time, `include`, `redact`, `render` and `include_email`
            hold here too; one told how to shape its own documents is refused. What a live reader gives up because the journal is too slow for the stream it counts in `dropped`.
        journal: A file that remembers what was received over restarts and crashes. None keeps
            that in memory.
        use_async: As in `LlamaIndexStore`.
        options: What else `IngestPipeline` takes: `batch_window`, `redact`, `select`,
            `max_attempts`, `durability`, ...

    Returns:
        The running ingestion, if awaited (`live = await stream_into(...)`) or entered
        (`async with stream_into(...) as live`).

    Raises:
        ConfigurationError: If target, source or an option can never work.

    Example:
        >>> import asyncio
        >>> from autoplay_rag.devserver import samples
        >>> from llama_index.core import MockEmbedding, VectorStoreIndex
        >>> async def main():
        ...     index = VectorStoreIndex([], embed_model=MockEmbedding(embed_dim=8))
        ...     async with stream_into(index, AutoplayReader.from_recording(samples())) as live:
        ...         await live.wait()
        ...         await live.drain()
        ...         return live.ledger.pending, live.ledger.dead
        >>> asyncio.run(main())
        (0, 0)
    """
    if isinstance(source, AutoplayReader):
        _refuse_what_shapes_documents(source)
        options = source.pipeline_options() | options
        if not source.is_remote:
            options.setdefault("batch_window", _NEVER)
    elif not callable(getattr(source, "run_in_background", None)):
        raise ConfigurationError(
            f"stream_into() reads from an AsyncConnectorClient or an AutoplayReader, "
            f"not from {type(source).__name__}"
        )
    store = TargetStore(target_of(target, use_async=use_async))
    pipeline = IngestPipeline(
        store, journal=None if journal is None else os.fspath(journal), **options
    )
    return LiveIngestion(pipeline, source)


def _refuse_what_shapes_documents(reader: AutoplayReader) -> None:
    """Refuse arguments of a reader that have no effect on a stream."""
    for names, instead in (
        (("max_documents",), "limit it by max_seconds or idle_seconds"),
        (("group_by", "session_idle_seconds"), "batch_window says what becomes one document"),
        (("max_chars",), "a splitter among the target's transformations says how long a node is"),
    ):
        for name in names:
            if getattr(reader, name) != type(reader).model_fields[name].default:
                raise ConfigurationError(
                    f"{name} of an AutoplayReader is for its own documents, not for those of a "
                    f"stream_into(): remove it; {instead}"
                )


class LiveIngestion:
    """A running ingestion into LlamaIndex; made by `stream_into`.

    Attributes:
        pipeline: The pipeline that it uses.
    """

    def __init__(
        self, pipeline: IngestPipeline, source: AutoplayReader | AsyncConnectorClient
    ) -> None:
        self.pipeline = pipeline
        self._source = source
        self._task: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Continue with what is in the journal, and start to read.

        Raises:
            PipelineError: If it is already running.
            JournalError: A subclass of it, if the journal cannot be used.
        """
        await self.pipeline.start()
        try:
            if isinstance(self._source, AutoplayReader):
                reading = self._read(self._source)
                self._task = asyncio.create_task(reading, name="autoplay-stream-into")
                self._task.add_done_callback(_report)
            else:
                self._task = self.pipeline.attach(self._source).run_in_background()
        except BaseException:
            await self.pipeline.aclose()
            raise

    async def wait(self) -> None:
        """Wait until the source ends: a recording is stored, a client is stopped.

        Raises:
            ConnectorError: The error that ended the source. Payloads received before it are kept.
        """
        if self._task is not None:
            await asyncio.wait([self._task])  # a cancelled wait does not stop the stream
            if not self._task.cancelled():
                self._task.result()

    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as IngestPipeline.drain
        """Wait until all payloads received so far are stored or dead.

        Args:
            timeout: Seconds to wait; None waits without a limit.

        Raises:
            DrainTimeoutError: On timeout; the message says what is left and why.
            PipelineClosedError: If it is not running.
        """
        await self.pipeline.drain(timeout)

    async def search(
        self, text: str, k: int = 5, *, filter: Filter | None = None, **conditions: Any
    ) -> list[Hit]:
        """Search what was stored; see `IngestPipeline.search`."""
        return await self.pipeline.search(text, k, filter=filter, **conditions)

    async def aclose(self) -> None:
        """Stop reading, finish open batches and close the journal. Repeated calls are allowed."""
        if self._task is not None:
            if isinstance(self._source, AutoplayReader):
                self._task.cancel()
            else:
                self._source.stop()
            await asyncio.wait([self._task])
        await self.pipeline.aclose()

    @property
    def ledger(self) -> Ledger:
        """The counts of payloads by state, as of the last commit."""
        return self.pipeline.ledger

    @property
    def dead_letters(self) -> DeadLetters:
        """The payloads that could not be stored: list, retry or discard them."""
        return self.pipeline.dead_letters

    @property
    def live(self) -> LiveSessions:
        """The latest activity of each session, for a `SessionContextBlock`."""
        return self.pipeline.live

    @property
    def running(self) -> bool:
        """True while the source is read: it has not ended, failed or been closed."""
        return self._task is not None and not self._task.done()

    @property
    def health(self) -> Health:
        """The pipeline's health; "failed", with the reason, after the stream ended with an error."""
        health = self.pipeline.health
        task = self._task
        if task is None or not task.done() or task.cancelled() or not task.exception():
            return health
        ended = f"the stream has ended: {_said(task.exception())}"
        return replace(health, state="failed", reasons=(ended, *health.reasons))

    async def _read(self, reader: AutoplayReader) -> None:
        limits = Limits(max_seconds=reader.max_seconds, idle_seconds=reader.idle_seconds)
        payloads: AsyncGenerator[Payload, None] = reader.source.stream(limits)
        batch: list[asyncio.Future[Any]] = []
        count = 0
        async with aclosing(payloads):
            async for payload in payloads:
                batch.append(self.pipeline.accept(payload))
                count += 1
                if reader.is_remote or len(batch) == _BATCH:
                    await asyncio.gather(*batch)
                    batch.clear()
                if not reader.is_remote and count % _PART == 0:
                    await self.pipeline.drain()
            await asyncio.gather(*batch)
        if not reader.is_remote:
            await self.pipeline.drain()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("the stream into LlamaIndex ended: %s", _said(error))


def _said(error: BaseException | None) -> str:
    """Return an error as one line; messages of other packages may contain secrets."""
    name = type(error).__name__
    ours = isinstance(error, AutoplayError | OSError)
    return f"{name}: {' '.join(str(error).split())}" if ours else name
