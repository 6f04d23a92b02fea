"""PayloadLoader: turns a stream or a recording into texts with ids and metadata."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import AsyncGenerator, Collection, Generator, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypeAlias, get_args

from autoplay_rag._bridge import iterate
from autoplay_rag._checks import check_above, check_choice
from autoplay_rag.content.chunks import is_empty
from autoplay_rag.content.keys import payload_key
from autoplay_rag.content.redaction import Redact, RedactionError, redacted, redaction_rule
from autoplay_rag.content.render import Render
from autoplay_rag.content.render import render as default_render
from autoplay_rag.content.times import own_time
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading.clock import RecordingClock
from autoplay_rag.loading.grouping import SessionGroups
from autoplay_rag.loading.limits import Limits
from autoplay_rag.loading.pauses import with_pauses
from autoplay_rag.loading.sources import Source
from autoplay_rag.loading.texts import Keyed, LoadedText, Make, TextMaker
from autoplay_rag.payloads import Payload

__all__ = ["GroupBy", "PayloadLoader"]

_log = logging.getLogger(__name__)

GroupBy: TypeAlias = Literal["payload", "session"]
"""Whether one text is made from a payload or from a session."""

_KINDS = frozenset(("actions", "summary", "chat"))


class PayloadLoader:
    """Yields the payloads of a stream or a recording as texts with ids and metadata.

    A loader may be used several times, also concurrently. Each use has its own connection. The
    stream is read at network speed even if the consumer is slow. The buffer is bounded; payloads
    dropped from it are counted in `dropped`.

    Args:
        source: A `LiveSource`, a `RecordingSource` or a `GivenSource`.
        limits: When a load ends; by default never.
        group_by: "payload" yields each payload at once. "session" yields a session's payloads as
            one text: on its summary, when it is idle, or at the end.
        session_idle_seconds: Seconds without a payload after which a session is emitted. In a
            recording the session's own times count, in seconds or milliseconds.
            A session without times is emitted on its summary or at the end.
        include: The kinds of payload to include: "actions", "summary", "chat".
        max_chars: The most characters of one text. Longer texts are split.
        redact: Returns a redacted copy of a payload. If it raises, the payload is left out and an
            error is logged. "pii" and sequences as for `IngestPipeline`.
        render: Makes the text from payloads of one session. None uses the pipeline's default.
        include_email: Whether the metadata includes email addresses.
        make: Makes a library's document from id, text and metadata. It is yielded instead of a
            `LoadedText`.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> from autoplay_rag.devserver import samples
        >>> from autoplay_rag.loading import RecordingSource
        >>> loader = PayloadLoader(RecordingSource(samples()), limits=Limits(max_documents=2))
        >>> [text.metadata["kind"] for text in loader.iterate()]
        ['actions', 'actions']
    """

    def __init__(
        self,
        source: Source,
        *,
        limits: Limits | None = None,
        group_by: GroupBy = "payload",
        session_idle_seconds: float = 60.0,
        include: Collection[str] = ("actions", "summary"),
        max_chars: int = 2000,
        redact: Redact | Sequence[Redact] | None = None,
        render: Render | None = None,
        include_email: bool = False,
        make: Make = LoadedText,
    ) -> None:
        check_choice("group_by", group_by, get_args(GroupBy))
        check_above("session_idle_seconds", session_idle_seconds)
        check_above("max_chars", max_chars, whole=True)
        kinds = frozenset((include,) if isinstance(include, str) else include)
        if not kinds or not kinds <= _KINDS:
            raise ConfigurationError(
                f"include takes one or more of {sorted(_KINDS)}, not {sorted(kinds)}"
            )
        self._source = source
        self._limits = limits or Limits()
        self._group_by = group_by
        self._session_idle = session_idle_seconds
        self._include = kinds
        self._redact = redaction_rule(redact)
        self._maker = TextMaker(
            render or default_render, max_chars, include_email, source.name, make
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source!r})"

    @property
    def dropped(self) -> int:
        """The number of payloads dropped because a consumer was slow."""
        return self._source.dropped

    async def stream(self, limits: Limits | None = None) -> AsyncGenerator[Any, None]:
        """Yield the texts as they arrive; forever if there is no limit.

        If the loop is left early, the connection stays open until the generator is closed. Use
        `contextlib.aclosing` to close it at once.

        Args:
            limits: Replace the loader's own limits.

        Raises:
            ConnectorError: A subclass of it, if the connector refuses permanently.
            OSError: If a recording cannot be read.
        """
        limits = limits or self._limits
        left = limits.max_documents
        async with aclosing(self._source.stream(limits)) as payloads:
            # Ungrouped payloads skip the extra generator: this is the hot path.
            by_session = self._group_by == "session"
            found: AsyncGenerator[Any, None] = self._sessions(payloads) if by_session else payloads
            texts_of = self._texts if by_session else self._texts_of_one
            async with aclosing(found):
                async for group in found:
                    for text in texts_of(group):
                        yield text
                        if left is not None:
                            left -= 1
                            if not left:
                                return

    def iterate(self, limits: Limits | None = None) -> Generator[Any, None, None]:
        """Like `stream`, for synchronous code. Works in any thread, also in a running event loop.

        Its thread and connection are closed when the iterator ends, is closed or is garbage
        collected.
        """
        return iterate(lambda: self.stream(limits), "autoplay-loader")

    def load(self, limits: Limits | None = None, *, stacklevel: int = 1) -> list[Any]:
        """Return all texts until a limit is reached.

        Args:
            limits: Replace the loader's own limits.
            stacklevel: The `stacklevel` of the warning about an empty load.

        Raises:
            ConfigurationError: If the source is live and there is no limit.
            ConnectorError: See `stream`.
        """
        self._require_end(limits)
        started = time.monotonic()
        found = list(self.iterate(limits))
        self._warn_if_empty(found, started, stacklevel + 1)
        return found

    async def aload(self, limits: Limits | None = None, *, stacklevel: int = 1) -> list[Any]:
        """Like `load`, for asynchronous code."""
        self._require_end(limits)
        started = time.monotonic()
        async with aclosing(self.stream(limits)) as texts:
            found = [text async for text in texts]
        self._warn_if_empty(found, started, stacklevel + 1)
        return found

    def _require_end(self, limits: Limits | None) -> None:
        if self._source.live and not (limits or self._limits):
            raise ConfigurationError(
                "a live stream never ends, so this would never return: give max_documents, "
                "max_seconds or idle_seconds, or take documents as they come with the lazy methods"
            )

    def _warn_if_empty(self, found: Sequence[object], started: float, stacklevel: int) -> None:
        if found:
            return
        kinds = " or ".join(sorted(self._include))
        name = self._source.name
        listened = f"listened to {name} for {time.monotonic() - started:.1f} s"
        if not self._source.live:
            message = f"{name} holds no {kinds} payload with something in it"
        elif self._source.last_failure:
            message = f"{listened}, but it could not be reached: {self._source.last_failure}"
        else:
            message = (
                f"{listened} and got no {kinds} payload. The connector sends no history, only "
                "what users do while somebody listens: listen for longer, or use the product "
                "meanwhile"
            )
        warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)

    async def _sessions(
        self, payloads: AsyncGenerator[Payload, None]
    ) -> AsyncGenerator[Sequence[Keyed], None]:
        live = self._source.live
        loop = asyncio.get_running_loop()
        groups = SessionGroups(self._session_idle)
        clock = RecordingClock()
        timed: AsyncGenerator[Payload | None, None] = (
            with_pauses(payloads, groups.next_due) if live else payloads
        )
        async with aclosing(timed):
            async for payload in timed:
                if live or payload is None:
                    at = now = loop.time()
                else:
                    at = own_time(payload.forwarded_at)
                    now = clock.tell((payload.product_id, payload.session_id), at)
                for group in groups.due(now):
                    yield group
                if payload is not None:
                    for group in groups.add(payload, self._kept(payload), at):
                        yield group
        for group in groups.rest():
            yield group

    def _texts_of_one(self, payload: Payload) -> Sequence[Any]:
        kept = self._kept(payload)
        return self._texts([kept]) if kept else ()

    def _texts(self, group: Sequence[Keyed]) -> Sequence[Any]:
        try:
            return self._maker.texts(group)
        except Exception as error:  # noqa: BLE001 - `render` is the user's own code
            _log.error("render failed (%s); a text was left out", type(error).__name__)
            return ()

    def _kept(self, payload: Payload) -> Keyed | None:
        """Return the redacted payload with its key; None if it is left out."""
        if payload.kind not in self._include or is_empty(payload):
            return None
        key = payload_key(payload)
        try:
            return key, redacted(payload, self._redact)
        except RedactionError as error:
            _log.error("redact failed (%s); a payload was left out", error)
            return None
