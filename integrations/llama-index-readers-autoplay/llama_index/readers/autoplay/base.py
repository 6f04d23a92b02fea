"""AutoplayReader: a connector's stream, or a recording of one, as LlamaIndex documents."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, aclosing, closing
from typing import Any, Self

from autoplay_rag import Payload, Render
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import (
    CLIENT_OPTIONS,
    Counted,
    GivenSource,
    Limits,
    LiveSource,
    LoadedText,
    PayloadLoader,
    RecordingSource,
    refuse_unknown,
    shown_progress,
)
from autoplay_rag.sources import Source
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.readers.base import BasePydanticReader
from llama_index.core.schema import Document

from llama_index.readers.autoplay.nodes import make_document

__all__ = ["AutoplayReader"]

_SERIALISED = ("is_remote", "source_options", "left_out")
"""Fields that are set from arguments; `from_dict` returns them."""


class AutoplayReader(BasePydanticReader):
    """Read what users of a web app are doing, as documents.

    A live stream never ends. The lazy methods yield documents as they arrive, forever if there is no
    limit; `load_data` and `aload_data` need a limit, here or as an argument. The connector sends no
    history, only what users do while you listen.

    A document's id is derived from its content: the same payloads give the same id, so that docstores
    recognise them. The metadata is flat (`session_id`, `user_id`, `product_id`, `kind`, `started_at`,
    ...) and is for filters. It is not embedded and not shown to a model, unless you change
    `excluded_embed_metadata_keys` or `excluded_llm_metadata_keys` of a document.

    Arguments cannot be changed later: make another reader. `to_dict()` contains neither the token nor
    functions. `from_dict()` takes the token from the environment or as an argument, and needs the
    functions again, so that redacted data stays redacted.

    Args:
        url: The full address of the stream, `https://.../stream/{product_id}`.
        token: The product's token; by default the value of `AUTOPLAY_APP_UNKEY_TOKEN`.
        recording: A JSON Lines file to read instead of a stream; see `from_recording`.
        source: Any other source instead of a stream; see `from_source`.
        max_documents: End after this number of documents.
        max_seconds: End after this number of seconds.
        idle_seconds: End after this number of seconds without an event.
        group_by: "payload" yields each payload at once. "session" yields the payloads of a session as
            one document: on its summary, when it is idle, or at the end.
        session_idle_seconds: Seconds without an event after which a session is yielded.
        include: The kinds of payload to read: "actions", "summary", "chat".
        max_chars: The maximum length of a document; longer texts are split.
        redact: Returns a changed copy of a payload, without what must not be kept.
        render: Makes the text from payloads of one session; None uses the text of the pipeline.
        include_email: Whether the metadata contains email addresses.
        progress: Whether `load_data()` and `aload_data()` show the number of documents on standard
            error. None shows it in a terminal and in a notebook only.
        source_options: For a stream: `max_pending`, the maximum number of payloads that wait for a
            slow consumer (10,000; beyond it the oldest are dropped and counted in `dropped`),
            `on_drop`, called with each dropped payload and the total, and other arguments of
            `AsyncConnectorClient`.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> reader = AutoplayReader("https://connector.example/stream/acme", "uk_live_...")
        >>> reader
        AutoplayReader('https://connector.example/stream/acme')
        >>> "token" in reader.to_dict()
        False
    """

    model_config = ConfigDict(frozen=True)

    is_remote: bool = Field(
        default=True, description="Whether the data comes from a connector, not from a file."
    )
    url: str | None = Field(default=None, description="The stream's address.")
    recording: str | None = Field(default=None, description="A file to read instead of a stream.")
    max_documents: int | None = Field(default=None, description="Documents to give.")
    max_seconds: float | None = Field(default=None, description="Seconds to listen.")
    idle_seconds: float | None = Field(default=None, description="Seconds without an event.")
    group_by: str = Field(default="payload", description='"payload" or "session".')
    session_idle_seconds: float = Field(default=60.0, description="When a session is given.")
    include: tuple[str, ...] = Field(default=(), description="The kinds of payload to give.")
    max_chars: int = Field(default=2000, description="The most characters of one document.")
    include_email: bool = Field(default=False, description="Whether metadata has addresses.")
    progress: bool | None = Field(default=None, description="Whether loads say how far they are.")
    source_options: dict[str, Any] = Field(
        default_factory=dict, description="What else a connector's client was told."
    )
    left_out: tuple[str, ...] = Field(
        default=(), description="Arguments that cannot be serialised, to be given again."
    )

    _redact: Callable[[Any], Payload] | None = PrivateAttr()
    _render: Render | None = PrivateAttr()
    _source: LiveSource | RecordingSource | GivenSource = PrivateAttr()
    _given: Source | None = PrivateAttr()
    _loader: PayloadLoader = PrivateAttr()
    _texts: Counted[LoadedText] = PrivateAttr()

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        recording: str | os.PathLike[str] | None = None,
        source: Source | None = None,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
        group_by: str = "payload",
        session_idle_seconds: float = 60.0,
        include: Collection[str] = ("actions", "summary"),
        max_chars: int = 2000,
        redact: Callable[[Any], Payload] | None = None,
        render: Render | None = None,
        include_email: bool = False,
        progress: bool | None = None,
        **source_options: Any,
    ) -> None:
        serialised = {name: source_options.pop(name, None) for name in _SERIALISED}
        source_options |= serialised["source_options"] or {}
        given = {"redact": redact, "render": render, "source": source, **source_options}
        left_out = tuple(
            name for name, value in given.items() if not isinstance(value, str | int | float | None)
        )
        for name in serialised["left_out"] or ():
            if name not in left_out:
                raise ConfigurationError(
                    f"this AutoplayReader was made with `{name}`, which cannot be serialised: "
                    f"give it again, AutoplayReader.from_dict(data, {name}=...)"
                )
        kinds = (include,) if isinstance(include, str) else tuple(sorted(include))
        if sum(one is not None for one in (url, recording, source)) != 1:
            raise ConfigurationError(
                "an AutoplayReader needs a url or a recording, or a source, and only one of them"
            )
        refuse_unknown(type(self), source_options, frozenset() if url is None else CLIENT_OPTIONS)
        read: LiveSource | RecordingSource | GivenSource
        if url is not None:
            read = LiveSource(url, token, **source_options)
        elif recording is not None:
            read = RecordingSource(recording)
        else:
            assert source is not None
            read = GivenSource(source)
        limits = Limits(
            max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
        )
        texts = Counted(LoadedText)
        loader = PayloadLoader(
            read,
            limits=limits,
            group_by=group_by,  # type: ignore[arg-type]  # it checks this itself
            session_idle_seconds=session_idle_seconds,
            include=kinds,
            max_chars=max_chars,
            redact=redact,
            render=render,
            include_email=include_email,
            make=texts,
        )
        fields: dict[str, Any] = {
            "url": url,
            "recording": None if recording is None else os.fspath(recording),
            "is_remote": read.live,
            "max_documents": max_documents,
            "max_seconds": max_seconds,
            "idle_seconds": idle_seconds,
            "group_by": group_by,
            "session_idle_seconds": session_idle_seconds,
            "include": kinds,
            "max_chars": max_chars,
            "include_email": include_email,
            "progress": progress,
            "source_options": {n: v for n, v in source_options.items() if n not in left_out},
            "left_out": left_out,
        }
        super().__init__(**fields)
        self._redact = redact
        self._render = render
        self._source = read
        self._given = source
        self._loader = loader
        self._texts = texts

    @classmethod
    def from_recording(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Make a reader of a JSON Lines file, with one event per line.

        Args:
            path: The file.
            options: The arguments of the class, except url and token.
        """
        return cls(recording=path, **options)

    @classmethod
    def from_source(cls, source: Source, **options: Any) -> Self:
        """Make a reader of any source, such as an `autoplay_rag.sources.LiveActivitySource`.

        `to_dict()` does not contain the source: `from_dict()` needs it again.

        Args:
            source: The source. One load at a time. It is not closed.
            options: The arguments of the class, except url and token.
        """
        return cls(source=source, **options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises this class."""
        return "AutoplayReader"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source.name!r})"

    __str__ = __repr__

    def __reduce__(self) -> Any:
        # Functions are pickled by name; a function without a name is an error.
        functions: dict[str, Any] = {"redact": self._redact, "render": self._render}
        if self._given is not None:
            functions["source"] = self._given  # a source with connections cannot be pickled
        return _restore, (type(self), self.to_dict(), functions)

    @property
    def dropped(self) -> int:
        """The number of payloads dropped because a consumer was slow."""
        return self._loader.dropped

    @property
    def source(self) -> LiveSource | RecordingSource | GivenSource:
        """Where the payloads come from."""
        return self._source

    def pipeline_options(self) -> dict[str, Any]:
        """Return the arguments of this reader as arguments of `IngestPipeline`."""
        options: dict[str, Any] = {
            "select": self._wants,
            "redact": self._redact,
            "render": self._render,
            "include_email": self.include_email,
        }
        return options

    def _wants(self, payload: Payload) -> bool:
        return payload.kind in self.include

    def lazy_load_data(self, *args: Any, **limits: Any) -> Iterator[Document]:
        """Yield documents as they arrive; forever if there is no limit.

        It works in any thread, inside a running event loop or not. The connection closes when the
        iterator ends, is closed or is garbage collected.

        Args:
            args: Not accepted; the signature is that of LlamaIndex.
            limits: `max_documents`, `max_seconds` or `idle_seconds`, instead of the reader's.

        Yields:
            Documents, in the order of their payloads.

        Raises:
            ConnectorError: A subclass of it, if the connector refuses permanently.
            OSError: If a recording cannot be read.
        """
        with closing(self._loader.iterate(self._limits(*args, **limits))) as texts:
            for text in texts:
                yield _document(text)

    async def alazy_load_data(  # type: ignore[override]  # the base awaits an iterable, readers give a generator
        self,
        *args: Any,
        **limits: Any,
    ) -> AsyncGenerator[Document, None]:
        """Yield documents as `lazy_load_data` does, as an async generator.

        If you leave the loop early, the connection closes when the generator is closed.
        `contextlib.aclosing` closes it at once.
        """
        async with aclosing(self._loader.stream(self._limits(*args, **limits))) as texts:
            async for text in texts:
                yield _document(text)

    def load_data(
        self,
        *args: Any,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
    ) -> list[Document]:
        """Return all documents until a limit is reached.

        Args:
            args: Not accepted; the signature is that of LlamaIndex.
            max_documents: Instead of the reader's.
            max_seconds: Instead of the reader's.
            idle_seconds: Instead of the reader's.

        Raises:
            ConfigurationError: If the reader is live and there is no limit.
            ConnectorError: A subclass of it, if the connector refuses permanently.
            OSError: If a recording cannot be read.
        """
        limits = self._limits(
            *args, max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
        )
        with self._progress(limits):
            return [_document(text) for text in self._loader.load(limits, stacklevel=2)]

    async def aload_data(
        self,
        *args: Any,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
    ) -> list[Document]:
        """Return all documents, as `load_data` does."""
        limits = self._limits(
            *args, max_documents=max_documents, max_seconds=max_seconds, idle_seconds=idle_seconds
        )
        with self._progress(limits):
            return [_document(text) for text in await self._loader.aload(limits, stacklevel=2)]

    def _progress(self, limits: Limits) -> AbstractContextManager[None]:
        return shown_progress(
            self.progress,
            type(self).__name__,
            self._texts,
            max_documents=limits.max_documents,
            max_seconds=limits.max_seconds,
        )

    def _limits(
        self,
        *args: Any,
        max_documents: int | None = None,
        max_seconds: float | None = None,
        idle_seconds: float | None = None,
    ) -> Limits:
        if args:
            raise TypeError(
                f"the load methods of {type(self).__name__} take only limits, by name: "
                "max_documents=3"
            )
        return Limits(
            max_documents=self.max_documents if max_documents is None else max_documents,
            max_seconds=self.max_seconds if max_seconds is None else max_seconds,
            idle_seconds=self.idle_seconds if idle_seconds is None else idle_seconds,
        )


def _document(text: LoadedText) -> Document:
    return make_document(text.id, text.text, text.metadata)


def _restore(
    cls: type[AutoplayReader], data: dict[str, Any], functions: dict[str, Any]
) -> AutoplayReader:
    return cls.from_dict(data, **functions)
