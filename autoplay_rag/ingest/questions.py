"""The methods of `IngestPipeline` that read."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, TypeVar

from autoplay_rag._checks import check_above
from autoplay_rag._loop_thread import LoopClosedError, LoopThread
from autoplay_rag.content.filters import Filter, Moment
from autoplay_rag.content.passages import storable
from autoplay_rag.errors import ConfigurationError, PipelineClosedError
from autoplay_rag.ingest.run.running import RunningPipeline
from autoplay_rag.live import LiveSession, LiveSessions
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.prompt import Asker, context_text
from autoplay_rag.search.searcher import Rerank, filter_of
from autoplay_rag.search.timeline import (
    Actions,
    Sessions,
    WholeSession,
    list_sessions,
    read_actions,
    read_session,
    wanted_of,
)

__all__ = ["Questions"]

T = TypeVar("T")


class Questions(ABC):
    """Searches and reads the stored and the just received payloads of a pipeline.

    Attributes:
        live: The recent events of each session.
    """

    live: LiveSessions

    def __init__(self) -> None:
        self._search_thread: LoopThread | None = None
        self._search_lock = threading.Lock()

    @abstractmethod
    def _open_run(self) -> RunningPipeline:
        """Return the current run.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """

    @abstractmethod
    def _note_asked(self, user_id: str | None, product_id: str | None) -> None:
        """Note that an assistant asked for somebody, so that they are pulled."""

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
        """Return the chunks that answer a question best, including payloads just received.

        Args:
            query: The question: natural language, a code or an address, in any script.
            k: The most hits.
            mode: "dense" uses embeddings, "text" full-text search, "hybrid" both.
            user_id: Only chunks of this person.
            session_id: Only chunks of this session.
            product_id: Only chunks of this product.
            conversation_id: Only chunks of this chat thread.
            kind: Only "actions", "summary" or "chat".
            since: Only chunks that ended at this time or later: Unix seconds, a `datetime` with a
                time zone, a `date`, an ISO string of either, or an age such as "7d".
            until: Only chunks that started at this time or earlier, in the same forms.
            filter: A `Filter` instead of these conditions.
            collapse: Return one hit for equal texts: the latest, with the number of sessions.
            rerank: An async function of the question and up to 50 hits that returns them in
                another order, for example by your own cross-encoder.

        Returns:
            Hits, best first. Payloads that are not embedded yet have `embedded=False`.

        Raises:
            ConfigurationError: If the question is empty, `k` is below 1, a time is invalid, or
                both `filter` and another condition are given.
            UnsupportedFilterError: If the store cannot translate the filter.
            EmbedderError: If the question cannot be embedded. An outage raises only in "dense"
                mode. In "hybrid" mode full text then answers, and `Hits.problem` has the reason.
            StoreError: If the store cannot be searched. For outages see `EmbedderError`.
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
        """Return the sessions that answer a question best, with their best hits and text.

        Arguments and errors are those of `search`. `rerank` receives the best hit of each session.

        Returns:
            Sessions, best first. A chunk without a session is a separate result.
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
        session_id: str | None = None,
        shared: bool = True,
        limit: int = 50,
        cursor: str | None = None,
        count: bool = True,
    ) -> Sessions:
        """List all sessions that match the conditions, latest first, without a ranking.

        A payload counts as soon as it is accepted. Payloads without a session are not listed.

        Args:
            user_id: Only sessions that this person used.
            product_id: Only sessions of this product.
            since: Only sessions that ended at this time or later: Unix seconds, a `datetime` with
                a time zone, a `date`, an ISO string of either, or an age such as "7d".
            until: Only sessions that started at this time or earlier, in the same forms.
            matching: Only sessions that contain all words of this text. The text is plain text:
                quotes and operators have no meaning.
            without: Only sessions that `matching` would not return for this text.
            page: Only sessions that visited a URL with this part; case-insensitive.
            session_id: Only sessions of this id.
            shared: False leaves out sessions that several people used. Counts, times, `matching` and
                `page` are about the whole session, so only without these are they about the
                person of `user_id` alone.
            limit: The most sessions of a page.
            cursor: `next` of the previous page.
            count: Whether to count the sessions on all pages. That takes longer the more there
                are; without it, `total` is 0.

        Returns:
            A page, with `total` and `next`. Each session is on one page only. A session that
            continues between two pages moves to the front, and is then not on a later page.

        Raises:
            ConfigurationError: If a time, the limit or the cursor is invalid, or a text is blank.
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
            session_id=session_id,
            shared=shared,
        )
        timeline = self._open_run().timeline
        return await list_sessions(timeline, wanted, limit, cursor, count=count)

    async def session(
        self, session_id: str, product_id: str | None = None, *, user_id: str | None = None
    ) -> WholeSession | None:
        """Return one complete session, in order.

        Args:
            session_id: The session.
            product_id: Its product; required if several products have a session of this id.
            user_id: Return only data of this person, for example for a tool that acts for one
                user.

        Returns:
            The session, with `ambiguous` set if several people used it. None if it is unknown, or
            if `user_id` is given and the session does not name that person.

        Raises:
            ConfigurationError: If several products have a session of this id.
            PipelineClosedError: If the pipeline is not running.
        """
        return await read_session(self._open_run().timeline, session_id, product_id, user_id)

    async def products(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        conversation_id: str | None = None,
    ) -> list[str]:
        """Return the products in which ids occur. Equal ids of two products are different people.

        Args:
            user_id: The person.
            session_id: The session.
            conversation_id: The chat thread.

        Returns:
            The products with sessions that all given ids belong to, in order; empty if there are
            none. Without ids, all products.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return await self._open_run().timeline.products(
            *map(_storable, (user_id, session_id, conversation_id))
        )

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
        """Iterate over the actions of all sessions, in the order of acceptance.

        They are read page by page. The iterator includes only actions that were accepted before
        the first item was requested.

        Args:
            since: Only actions that ended at this time or later; as in `sessions`. An action
                without a time has the time of its payload.
            until: Only actions that started at this time or earlier.
            user_id: Only actions of this person. An action that names nobody belongs to the person
                of its session, if there is only one.
            session_id: Only actions of this session.
            product_id: Only actions of this product.
            matching: Only sessions with these words; as in `sessions`.
            without: Only sessions without these words; as in `sessions`.
            page: Only sessions that visited a URL with this part.

        Returns:
            An asynchronous iterator. Its `missing` counts payloads that were left out because
            their bodies were not kept. If there were any, a warning is logged at the end.

        Raises:
            JournalError: At the first item, if payloads match and none of their bodies was kept.
                With `keep_payloads=False`, or without a journal file, only payloads that are not
                stored yet can be read.
            ConfigurationError: If a time is invalid or a text is blank.
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
        return Actions(read_actions(self._open_run().timeline, wanted))

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
        """Return context about a user for a language model: recent activity and matching sessions.

        The recent part is the session in `live` that all given ids belong to, without chat turns,
        which the conversation already contains. With a query, the sessions that answer it best
        follow: those of the user, or only of the session and thread if no `user_id` is given.
        Equal texts appear once, and lines of the recent part are not repeated. Each line begins
        with its time and zone, session and page.

        Text from pages and people is untrusted. It is marked as data in an element that the text
        cannot close, without invisible characters. Take the ids from your login, never from a
        model or a browser.

        Args:
            query: The question; None or blank returns only the recent part.
            user_id: The person.
            session_id: The session.
            product_id: The product; None for any.
            conversation_id: The chat thread.
            since_turn: Start the recent part after the session's last chat turn, if there is one.
            seconds: The maximum age of recent activity, if it does not start after a turn.
            max_actions: The most actions of the recent part; the newest are kept. None for no
                limit.
            max_chars: The most characters of the text.

        Returns:
            The text; "" if nothing is known or nothing fits. If the embedder or the store is
            unavailable, the past is searched with full text only, and a warning is logged.

        Raises:
            ConfigurationError: If there is no query, person, session or thread, or a number is not
                above 0. A query without ids searches the past of all people.
            PipelineClosedError: If the pipeline is not running.
        """
        return await self.context_with(
            None,
            query,
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
            since_turn=since_turn,
            seconds=seconds,
            max_actions=max_actions,
            max_chars=max_chars,
        )

    async def context_with(
        self,
        pulled: LiveSession | None,
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
        """Like `context`, with a session that was pulled just now.

        Args:
            pulled: If it has recent actions, they are the recent part instead of those in `live`.
            query: This and the others are as for `context`.
            user_id: The person.
            session_id: The session.
            product_id: The product.
            conversation_id: The chat thread.
            since_turn: Start after the last chat turn.
            seconds: The maximum age of recent activity.
            max_actions: The most actions of the recent part.
            max_chars: The most characters of the text.
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
        self._note_asked(user_id, product_id)
        return await context_text(
            self.live,
            self._open_run().searcher,
            query,
            asker,
            since_turn=since_turn,
            seconds=seconds,
            max_actions=max_actions,
            max_chars=max_chars,
            pulled=pulled,
        )

    def sessions_sync(self, user_id: str | None = None, **options: Any) -> Sessions:
        """Like `sessions`, for any thread; see `search_sync`."""
        return self._run_sync(self.sessions(user_id, **options))

    def session_sync(self, session_id: str, **options: Any) -> WholeSession | None:
        """Like `session`, for any thread; see `search_sync`."""
        return self._run_sync(self.session(session_id, **options))

    def context_sync(self, query: str | None = None, **options: Any) -> str:
        """Like `context`, for any thread; see `search_sync`."""
        return self._run_sync(self.context(query, **options))

    def context_with_sync(
        self, pulled: LiveSession | None, query: str | None = None, **options: Any
    ) -> str:
        """Like `context_with`, for any thread; see `search_sync`."""
        return self._run_sync(self.context_with(pulled, query, **options))

    def search_sync(self, query: str, k: int = 5, **options: Any) -> Hits[Hit]:
        """Like `search`, for any thread. Inside a running event loop it blocks the loop."""
        return self._run_sync(self.search(query, k, **options))

    def search_sessions_sync(self, query: str, k: int = 5, **options: Any) -> Hits[SessionHit]:
        """Like `search_sessions`, for any thread; see `search_sync`."""
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


def _storable(value: str | None) -> str | None:
    return None if value is None else storable(value)
