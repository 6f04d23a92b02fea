"""What a pipeline answers: the half of `IngestPipeline` that reads."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, TypeVar

from autoplay_rag._checks import check_above
from autoplay_rag._loop_thread import LoopClosedError, LoopThread
from autoplay_rag.content.filters import Filter, Moment
from autoplay_rag.errors import ConfigurationError, PipelineClosedError
from autoplay_rag.ingest.running import RunningPipeline
from autoplay_rag.live import LiveSessions
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.prompt import Asker, context_text
from autoplay_rag.search.searcher import Rerank, filter_of
from autoplay_rag.search.timeline import (
    Actions,
    Sessions,
    WholeSession,
    list_sessions,
    read_session,
    wanted_of,
)

__all__ = ["Questions"]

T = TypeVar("T")


class Questions(ABC):
    """Searches what a pipeline stored and what it just received.

    Attributes:
        live: What each session did just now.
    """

    live: LiveSessions

    def __init__(self) -> None:
        self._search_thread: LoopThread | None = None
        self._search_lock = threading.Lock()

    @abstractmethod
    def _open_run(self) -> RunningPipeline:
        """The run that is open.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """

    async def search(
        self,
        query: str,
        k: int = 5,
        *,
        mode: Mode = "hybrid",
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
        kind: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        filter: Filter | None = None,
        collapse: bool = False,
        rerank: Rerank | None = None,
    ) -> Hits[Hit]:
        """The chunks that answer a question best, those just received included.

        Args:
            query: The question: a person's words, a code, an address, in any script.
            k: How many hits at most.
            mode: "hybrid" adds both sides; "dense" compares meaning alone, "text" words alone.
            user_id: Only chunks of this person.
            session_id: Only chunks of this session.
            product_id: Only chunks of this product.
            conversation_id: Only chunks of this chat thread.
            kind: Only "actions", "summary" or "chat".
            since: Only chunks that ended then or later: Unix seconds, a `datetime` with a time
                zone, a `date`, an ISO text of either, or how long ago, such as "7d".
            until: Only chunks that started then or earlier; otherwise as `since`.
            filter: All of these as one `Filter`, in their place.
            collapse: Give equal texts once: the latest, with how many sessions have it.
            rerank: An async function of the question and up to 50 hits that returns them in
                another order: your own cross-encoder, for example.

        Returns:
            Hits, best first. Those that the embedder has not seen yet have `embedded=False`.

        Raises:
            ConfigurationError: If the question is empty, `k` is below 1, a time cannot be used, or
                both `filter` and another condition are given.
            UnsupportedFilterError: If the store cannot translate the filter.
            EmbedderError: If the question cannot be embedded. During an outage only in "dense" mode:
                "hybrid" then answers by words alone, and `Hits.problem` says so.
            StoreError: If the store cannot be searched; otherwise as `EmbedderError`.
            PipelineClosedError: If the pipeline is not running.
        """
        searcher = self._open_run().searcher
        wanted = filter_of(
            filter,
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
            kind=kind,
            since=since,
            until=until,
        )
        return await searcher.search(query, k, wanted, mode=mode, collapse=collapse, rerank=rerank)

    async def search_sessions(
        self,
        query: str,
        k: int = 5,
        *,
        mode: Mode = "hybrid",
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
        kind: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        filter: Filter | None = None,
        rerank: Rerank | None = None,
    ) -> Hits[SessionHit]:
        """The sessions that answer a question best, each with its best hits and its whole text.

        Arguments and errors are those of `search`; `rerank` is given the best hit of each session.

        Returns:
            Sessions, best first. A chunk without a session is a session of its own.
        """
        searcher = self._open_run().searcher
        wanted = filter_of(
            filter,
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
            kind=kind,
            since=since,
            until=until,
        )
        return await searcher.search_sessions(query, k, wanted, mode=mode, rerank=rerank)

    async def sessions(
        self,
        user_id: str | None = None,
        product_id: str | None = None,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        matching: str | None = None,
        without: str | None = None,
        page: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Sessions:
        """All sessions that fit, the latest first: a list, not a ranking.

        A payload counts from the moment it is accepted. Payloads without a session are in no list.

        Args:
            user_id: Only sessions that this person used.
            product_id: Only sessions of this product.
            since: Only sessions that ended then or later: Unix seconds, a `datetime` with a time
                zone, a `date`, an ISO text of either, or how long ago, such as "7d".
            until: Only sessions that started then or earlier; otherwise as `since`.
            matching: Only sessions that have all words of this text, anywhere. Any text is plain
                text: no quote or operator has a meaning.
            without: Only sessions that `matching` would not give for this text.
            page: Only sessions that visited a URL with this in it, in any case.
            limit: The most sessions of a page.
            cursor: `next` of the page before.

        Returns:
            A page, with `total` and `next`. Over all pages each session comes once. One that goes
            on meanwhile moves to the front, and is then not on a later page.

        Raises:
            ConfigurationError: If a time, the limit or the cursor cannot be used, or a text is
                blank.
            PipelineClosedError: If the pipeline is not running.
        """
        wanted = wanted_of(
            user_id=user_id,
            product_id=product_id,
            since=since,
            until=until,
            matching=matching,
            without=without,
            page=page,
        )
        return await list_sessions(self._open_run().timeline, wanted, limit, cursor)

    async def session(
        self, session_id: str, product_id: str | None = None, *, user_id: str | None = None
    ) -> WholeSession | None:
        """One session whole and in order.

        Args:
            session_id: The session.
            product_id: Its product; needed where several products have this id.
            user_id: Give only what belongs to this person: for a tool whose user is known.

        Returns:
            The session, with `ambiguous` where several people used it; None if it is not known, or
            if `user_id` is given and the session does not name that person.

        Raises:
            ConfigurationError: If several products have a session of this id.
            PipelineClosedError: If the pipeline is not running.
        """
        return await read_session(self._open_run().timeline, session_id, product_id, user_id)

    def actions(
        self,
        since: Moment | None = None,
        until: Moment | None = None,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        matching: str | None = None,
        without: str | None = None,
        page: str | None = None,
    ) -> Actions:
        """Single actions over all sessions, in the order in which they were accepted.

        They are read some hundred payloads at a time. It ends with what was accepted before the
        first one was asked for.

        Args:
            since: Only actions that ended then or later; as in `sessions`. An action without a
                time has that of its payload.
            until: Only actions that started then or earlier.
            user_id: Only actions of this person: one that names nobody belongs to the only person
                of its session.
            session_id: Only actions of this session.
            product_id: Only actions of this product.
            matching: Only sessions that have these words; as in `sessions`.
            without: Only sessions that do not.
            page: Only sessions that visited a URL with this in it.

        Returns:
            An asynchronous iterator. Its `missing` counts the payloads that had to be left out
            because their bodies were not kept; if any were, the end logs a warning.

        Raises:
            JournalError: At the first item, if payloads fit and none of their bodies was kept:
                with `keep_payloads=False`, or without a journal file, only what is not stored yet
                can be read.
            ConfigurationError: If a time cannot be used, or a text is blank.
            PipelineClosedError: If the pipeline is not running.

        Example:
            >>> async def count_clicks(pipeline):
            ...     actions = pipeline.actions(since="7d", user_id="u1")
            ...     return sum([action.type == "click" async for action in actions])
        """
        wanted = wanted_of(
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            since=since,
            until=until,
            matching=matching,
            without=without,
            page=page,
        )
        return Actions(self._open_run().timeline, wanted)

    async def context(
        self,
        query: str | None = None,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
        since_turn: bool = False,
        seconds: float = 600.0,
        max_actions: int | None = None,
        max_chars: int = 4000,
    ) -> str:
        """What a language model needs to know about a user: the last minutes and the best of the past.

        The recent part is the session in `live` that all given ids belong to, without chat turns,
        which the conversation contains already. With a query, the sessions that answer it best
        follow: those of the user, or of the session and thread alone if no `user_id` is given.
        Equal texts and what the recent part shows are left out. Each line begins with its time
        and zone, session and page.

        Text of pages and people is untrusted. It is in an element that nothing in it can close,
        marked as data, without invisible characters. Take the ids from your login, never from a
        model or a browser.

        Args:
            query: The question; None or blank gives only the recent part.
            user_id: The person.
            session_id: The visit.
            product_id: The product; None for any.
            conversation_id: The chat thread.
            since_turn: Start the recent part after the session's last chat turn, if it has one.
            seconds: The maximum age of what counts as recent, otherwise.
            max_actions: The most actions of the recent part, the newest; None for no limit.
            max_chars: The most characters of all.

        Returns:
            The text; "" if nothing is known, or nothing fits. If the embedder or the store does
            not answer, the past is searched by words alone, which is logged.

        Raises:
            ConfigurationError: If there is neither a query nor a person, visit or thread, or a
                number is not above 0. A query alone searches everybody's past.
            PipelineClosedError: If the pipeline is not running.
        """
        check_above("seconds", seconds)
        check_above("max_chars", max_chars, whole=True)
        if max_actions is not None:
            check_above("max_actions", max_actions, whole=True)
        asker = Asker(user_id, session_id, product_id, conversation_id)
        if not asker.is_known and not (query and query.strip()):
            raise ConfigurationError(
                "context() needs a query, a user_id, a session_id or a conversation_id"
            )
        return await context_text(
            self.live,
            self._open_run().searcher,
            query,
            asker,
            since_turn=since_turn,
            seconds=seconds,
            max_actions=max_actions,
            max_chars=max_chars,
        )

    def sessions_sync(self, user_id: str | None = None, **options: Any) -> Sessions:
        """As `sessions`, from any thread; otherwise as `search_sync`."""
        return self._run_sync(self.sessions(user_id, **options))

    def session_sync(self, session_id: str, **options: Any) -> WholeSession | None:
        """As `session`, from any thread; otherwise as `search_sync`."""
        return self._run_sync(self.session(session_id, **options))

    def context_sync(self, query: str | None = None, **options: Any) -> str:
        """As `context`, from any thread; otherwise as `search_sync`."""
        return self._run_sync(self.context(query, **options))

    def search_sync(self, query: str, k: int = 5, **options: Any) -> Hits[Hit]:
        """As `search`, from any thread; also inside a running loop, which it blocks meanwhile."""
        return self._run_sync(self.search(query, k, **options))

    def search_sessions_sync(self, query: str, k: int = 5, **options: Any) -> Hits[SessionHit]:
        """As `search_sessions`, from any thread; otherwise as `search_sync`."""
        return self._run_sync(self.search_sessions(query, k, **options))

    def _run_sync(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            with self._search_lock:
                self._open_run()
                if self._search_thread is None:
                    self._search_thread = LoopThread("autoplay-search")
                thread = self._search_thread
        except BaseException:
            work.close()
            raise
        try:
            return thread.run(work)
        except LoopClosedError:
            raise PipelineClosedError("the pipeline was closed during the search") from None

    async def _close_questions(self) -> None:
        with self._search_lock:
            thread, self._search_thread = self._search_thread, None
        if thread:
            await asyncio.to_thread(thread.close)
