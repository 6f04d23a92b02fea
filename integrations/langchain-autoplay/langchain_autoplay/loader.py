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
    GroupBy,
    Limits,
    LiveSource,
    PayloadLoader,
    RecordingSource,
    refuse_unknown,
)
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from pydantic import SecretStr

from langchain_autoplay.progress import Counted, shown_progress

__all__ = ["AutoplayLoader"]


class AutoplayLoader(BaseLoader):
    """Loads what users do as documents, while they do it.

    A live stream has no end and no history: `alazy_load()` and `lazy_load()` give documents as
    they come, for ever where no limit is set; `load()` and `aload()` need a limit. The sync
    methods work in any thread and inside a running loop, such as a notebook's.

    The stream is read at network speed however slow the consumer is. What waits for the consumer
    is bounded by `max_pending`; beyond it the oldest is given up and counted in `dropped`.

    Args:
        url: The whole address of the stream, `https://.../stream/{product_id}`.
        token: The product's token; by default what `AUTOPLAY_APP_UNKEY_TOKEN` holds. It stands in
            no repr and no pickle: a loader that was unpickled takes it from the environment.
        max_documents: End after so many documents.
        max_seconds: End after so many seconds.
        idle_seconds: End when so many seconds brought no event.
        group_by: "payload" gives each payload at once. "session" gives a session's payloads as
            one text: on its summary, when it is idle, or at the end.
        session_idle_seconds: Seconds of silence after which a session is given.
        include: The kinds of payload to load: "actions", "summary", and "chat" from recordings.
        max_chars: The most characters of a document; longer texts come in pieces.
        redact: Gives a payload as it may be kept, a changed copy. If it raises, the payload is
            left out and that is logged.
        render: Makes a document's text from payloads of one session; the pipeline's own if None.
        include_email: Whether addresses stand in the metadata.
        max_pending: The most payloads that wait for a slow consumer.
        progress: Whether `load()` and `aload()` say on standard error how many documents have come.
            None says it in a terminal and in a notebook only.
        client_options: What else `autoplay_rag.AsyncConnectorClient` takes, such as
            `max_retries`.

    Raises:
        ConfigurationError: If an argument can never work.

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
        """A loader of a file of JSON Lines, as `autoplay-rag tail --jsonl` writes it.

        Args:
            path: The file. Lines that cannot be read are logged and skipped.
            max_documents: As above.
            max_seconds: As above.
            idle_seconds: Taken for the sake of equal arguments: a file is never idle.
            progress: As above.
            options: `group_by`, `session_idle_seconds` (by the recording's own times),
                `include`, `max_chars`, `redact`, `render` and `include_email`, as above.

        Raises:
            ConfigurationError: If an argument can never work.
        """
        refuse_unknown(cls, options, LOADER_OPTIONS)
        limits = Limits(
            max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
        )
        source = RecordingSource(path)
        loader = cls.__new__(cls)
        loader._watch(progress, max_documents, max_seconds)  # noqa: SLF001 - one of its own
        make = loader._documents  # noqa: SLF001 - as above
        loader._loader = PayloadLoader(source, limits=limits, make=make, **options)  # noqa: SLF001 - as above
        return loader

    def __repr__(self) -> str:
        return repr(self._loader).replace("PayloadLoader", type(self).__name__, 1)

    @property
    def dropped(self) -> int:
        """How many payloads were given up because a consumer was slow."""
        return self._loader.dropped

    def lazy_load(self) -> Generator[Document, None, None]:
        """Documents as they come.

        The thread and the connection behind it are gone when the iterator ends, is closed or is
        no longer referred to: leaving a `for` loop early is enough.

        Raises:
            ConnectorError: One of its kinds, if the connector refuses for good.
            OSError: If a recording cannot be read.
        """
        return self._loader.iterate()

    def alazy_load(self) -> AsyncGenerator[Document, None]:
        """Documents as they come.

        Leaving `async for` early closes the connection when the generator is closed, which
        Python does some time later; `contextlib.aclosing` does it at once.

        Raises:
            ConnectorError: One of its kinds, if the connector refuses for good.
            OSError: If a recording cannot be read.
        """
        return self._loader.stream()

    def load(self) -> list[Document]:
        """All documents until a limit is reached; warns if there was none.

        Raises:
            ConfigurationError: At once, if a live stream has no limit.
            ConnectorError: One of its kinds, if the connector refuses for good.
            OSError: If a recording cannot be read.
        """
        with self._progress():
            return self._loader.load(stacklevel=2)

    async def aload(self) -> list[Document]:
        """As `load`."""
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
