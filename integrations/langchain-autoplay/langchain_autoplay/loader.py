"""AutoplayLoader: a connector's stream, or a recording of one, as LangChain documents."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from autoplay_rag import Payload
from autoplay_rag.loading import (
    CLIENT_OPTIONS,
    LOADER_OPTIONS,
    Counted,
    GivenSource,
    GroupBy,
    Limits,
    LiveSource,
    PayloadLoader,
    RecordingSource,
    refuse_unknown,
    shown_progress,
)
from autoplay_rag.sources import Source
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from pydantic import SecretStr

__all__ = ["AutoplayLoader"]


class AutoplayLoader(BaseLoader):
    """Load what users do as documents, while they do it.

    A live stream has no end and no history. `alazy_load()` and `lazy_load()` yield documents as they
    arrive, forever if there is no limit; `load()` and `aload()` need a limit. The sync methods work
    in any thread and inside a running loop, for example in a notebook.

    The stream is read at network speed, even if the consumer is slow. At most `max_pending` payloads
    wait for the consumer; beyond that the oldest are dropped and counted in `dropped`.

    Args:
        url: The full address of the stream, `https://.../stream/{product_id}`.
        token: The product's token; by default the value of `AUTOPLAY_APP_UNKEY_TOKEN`. It is in no
            repr and no pickle: an unpickled loader takes it from the environment.
        max_documents: End after this number of documents.
        max_seconds: End after this number of seconds.
        idle_seconds: End after this number of seconds without an event.
        group_by: "payload" yields each payload at once. "session" yields the payloads of a session as
            one text: on its summary, when it is idle, or at the end.
        session_idle_seconds: Seconds without an event after which a session is yielded.
        include: The kinds of payload to load: "actions", "summary", and "chat" from recordings.
        max_chars: The maximum length of a document; longer texts are split.
        redact: Returns a changed copy of a payload, without what must not be kept. If it raises, the
            payload is skipped and the error is logged.
        render: Makes the text of a document from payloads of one session; None uses the text of the
            pipeline.
        include_email: Whether the metadata contains email addresses.
        max_pending: The maximum number of payloads that wait for a slow consumer.
        progress: Whether `load()` and `aload()` show the number of documents on standard error. None
            shows it in a terminal and in a notebook only.
        client_options: Other arguments of `autoplay_rag.AsyncConnectorClient`, such as
            `max_retries`.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> from autoplay_rag.devserver import samples
        >>> loader = AutoplayLoader.from_recording(samples(), max_documents=1)
        >>> sorted(loader.load()[0].metadata)[:4]
        ['action_count', 'chunk_id', 'ended_at', 'forwarded_at']
    """

    def __init__(
        self,
        url: str,
        token: str | SecretStr | None = None,
        *,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
        group_by: GroupBy = "payload",
        session_idle_seconds: float = 60.0,
        include: Collection[str] = ("actions", "summary"),
        max_chars: int = 2000,
        redact: Callable[[Any], Payload] | None = None,
        render: Callable[[Sequence[Payload]], str] | None = None,
        include_email: bool = False,
        max_pending: int = 10_000,
        progress: bool | None = None,
        **client_options: Any,
    ) -> None:
        refuse_unknown(type(self), client_options, CLIENT_OPTIONS)
        if isinstance(token, SecretStr):
            token = token.get_secret_value()
        self._watch(progress, max_documents, max_seconds)
        self._loader = PayloadLoader(
            LiveSource(url, token, max_pending=max_pending, **client_options),
            limits=Limits(
                max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
            ),
            group_by=group_by,
            session_idle_seconds=session_idle_seconds,
            include=include,
            max_chars=max_chars,
            redact=redact,
            render=render,
            include_email=include_email,
            make=self._documents,
        )

    @classmethod
    def from_recording(
        cls,
        path: str | os.PathLike[str],
        *,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Self:
        """Make a loader of a JSON Lines file that `autoplay-rag tail --jsonl` wrote.

        Args:
            path: The file. Unreadable lines are logged and skipped.
            max_documents: See the class.
            max_seconds: See the class.
            idle_seconds: Has no effect: a file is never idle.
            progress: See the class.
            options: `group_by`, `session_idle_seconds` (measured by the times in the recording),
                `include`, `max_chars`, `redact`, `render` and `include_email`; see the class.

        Raises:
            ConfigurationError: If an argument is invalid.
        """
        limits = Limits(
            max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
        )
        return cls._of(RecordingSource(path), limits, progress, options)

    @classmethod
    def from_source(
        cls,
        source: Source,
        *,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Self:
        """Make a loader of any source, such as an `autoplay_rag.sources.LiveActivitySource`.

        Args:
            source: The source. One load at a time. It is not closed.
            max_documents: See the class.
            max_seconds: See the class.
            idle_seconds: See the class.
            progress: See the class.
            options: As for `from_recording`.

        Raises:
            ConfigurationError: If an argument is invalid.
        """
        limits = Limits(
            max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
        )
        return cls._of(GivenSource(source), limits, progress, options)

    @classmethod
    def _of(
        cls,
        source: GivenSource | RecordingSource,
        limits: Limits,
        progress: bool | None,
        options: dict[str, Any],
    ) -> Self:
        refuse_unknown(cls, options, LOADER_OPTIONS)
        loader = cls.__new__(cls)
        loader._load_from(source, limits, progress, options)  # noqa: SLF001 - one of its own
        return loader

    def _load_from(
        self,
        source: GivenSource | RecordingSource,
        limits: Limits,
        progress: bool | None,
        options: dict[str, Any],
    ) -> None:
        self._watch(progress, limits.max_documents, limits.max_seconds)
        self._loader = PayloadLoader(source, limits=limits, make=self._documents, **options)

    def __repr__(self) -> str:
        return repr(self._loader).replace("PayloadLoader", type(self).__name__, 1)

    @property
    def dropped(self) -> int:
        """The number of payloads dropped because a consumer was slow."""
        return self._loader.dropped

    def lazy_load(self) -> Generator[Document, None, None]:
        """Yield documents as they arrive.

        The thread and the connection end when the iterator ends, is closed or is garbage collected:
        leaving a `for` loop early is enough.

        Raises:
            ConnectorError: A subclass of it, if the connector refuses permanently.
            OSError: If a recording cannot be read.
        """
        return self._loader.iterate()

    def alazy_load(self) -> AsyncGenerator[Document, None]:
        """Yield documents as they arrive.

        If you leave `async for` early, the connection closes when Python closes the generator, which
        may be later. `contextlib.aclosing` closes it at once.

        Raises:
            ConnectorError: A subclass of it, if the connector refuses permanently.
            OSError: If a recording cannot be read.
        """
        return self._loader.stream()

    def load(self) -> list[Document]:
        """Return all documents until a limit is reached; warn if there are none.

        Raises:
            ConfigurationError: If a live stream has no limit.
            ConnectorError: A subclass of it, if the connector refuses permanently.
            OSError: If a recording cannot be read.
        """
        with self._progress():
            return self._loader.load(stacklevel=2)

    async def aload(self) -> list[Document]:
        """Return all documents, as `load` does."""
        with self._progress():
            return await self._loader.aload(stacklevel=2)

    def _watch(
        self, progress: bool | None, max_documents: int | None, max_seconds: float | None
    ) -> None:
        self._documents = Counted(_document)
        self._shown = progress
        self._shown_limits: dict[str, Any] = {
            "max_documents": max_documents,
            "max_seconds": max_seconds,
        }

    def _progress(self) -> AbstractContextManager[None]:
        return shown_progress(
            self._shown, type(self).__name__, self._documents, **self._shown_limits
        )


def _document(name: str, text: str, metadata: dict[str, Any]) -> Document:
    return Document(text, id=name, metadata=metadata)
