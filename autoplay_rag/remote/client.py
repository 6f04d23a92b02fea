"""`ServeClient`: the reading methods of a pipeline that another process serves over HTTP."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from autoplay_rag._checks import check_above
from autoplay_rag._secrets import secret_from
from autoplay_rag.content.filters import Filter, Moment, moment
from autoplay_rag.content.passages import storable
from autoplay_rag.errors import ConfigurationError, ServerUnavailableError
from autoplay_rag.journal.base import Health
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.live.sessions import LiveSession
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.remote.answers import (
    NotFoundError,
    decoded,
    health_of,
    hits_of,
    live_session_of,
    session_hits_of,
    session_of,
    sessions_of,
)
from autoplay_rag.remote.connections import Asked, Connections
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.prompt import pulled_text
from autoplay_rag.search.searcher import MOST_RERANKED, Rerank, filter_of, reranked
from autoplay_rag.search.timeline import (
    Actions,
    SessionEvent,
    Sessions,
    WholeSession,
    joined_parts,
)

__all__ = ["ServeClient"]

T = TypeVar("T")

_NO_RECENT: Final = 0.001
"""The least age of recent activity, in seconds: nothing is as recent."""
_URL: Final = "AUTOPLAY_RAG_URL"
_KEY: Final = "AUTOPLAY_RAG_KEY"
_SECONDS: Final = 30.0
_FORGETTING_SECONDS: Final = 600.0
_MOST_HITS: Final = 100
_SESSION_EVENTS: Final = 5_000
"""The events of one request for a session; as much as a server answers at once."""
"""The most hits of one answer of the server."""


class ServeClient:
    """Reads a pipeline that `autoplay-rag serve` runs in another process or on another machine.

    It has the reading methods of `IngestPipeline`, with the same arguments and results. Whatever
    takes a pipeline to read takes a `ServeClient`, too. Use it from any thread and any event loop;
    connections are kept and shared. Close it with `aclose`, `close`, `async with` or `with`.

    Two things differ from a pipeline. An id that occurs in several products is refused until
    `product_id` is given. With a token that is bound to one person or session, the server returns
    that data only.

    Args:
        url: The server, such as "http://127.0.0.1:8760"; by default `AUTOPLAY_RAG_URL`.
        key: A read key, an admin key or a token; by default `AUTOPLAY_RAG_KEY`, or the content of
            the file that `AUTOPLAY_RAG_KEY_FILE` names.
        timeout: Seconds for an answer. `forget` has at least ten minutes.
        transport: Sends the requests, for example in tests; None for a pool of connections. The
            client closes it.

    Raises:
        ConfigurationError: If there is no URL, or an argument is invalid.

    All methods raise:
        ServerUnavailableError: If the server is stopped or overloaded, or does not answer in time.
        ServerAccessError: If the key does not allow it.
        ServerError: If the answer cannot be used. This is the base of the other two.
        ConfigurationError: If an argument is invalid.
        ClientStateError: If the client is closed.

    Example:
        >>> with ServeClient("http://127.0.0.1:9", key="read-key") as client:
        ...     try:
        ...         client.search_sync("who exported?")
        ...     except ServerUnavailableError:
        ...         print("the server is not there")
        the server is not there
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = _SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        check_above("timeout", timeout)
        self._url = _checked_url(url or os.environ.get(_URL))
        self._timeout = timeout
        found = key if key is not None else secret_from(_KEY)
        self._connections = Connections(self._url, _checked_key(found), transport)

    def __repr__(self) -> str:
        return f"<ServeClient of {self._url}>"

    @property
    def timeout(self) -> float:
        """Seconds for an answer."""
        return self._timeout

    def with_timeout(self, seconds: float) -> Self:
        """Return a client with another timeout. It shares the connections, and is closed with them.

        Raises:
            ConfigurationError: If `seconds` is not above 0.
        """
        check_above("timeout", seconds)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _timeout=seconds)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The copy shares the connections.
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def aclose(self) -> None:
        """Close the connections; requests that are under way fail. May be called repeatedly."""
        await self._connections.aclose()

    def close(self) -> None:
        """Like `aclose`, for any thread."""
        self._connections.close()

    # -- ranked -------------------------------------------------------------------------------

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
        """Return the chunks that answer a question best; see `IngestPipeline.search`.

        Args:
            query: As there.
            k: As there, at most 100.
            mode: As there.
            user_id: As there.
            session_id: As there.
            product_id: As there.
            conversation_id: As there.
            kind: As there.
            since: As there; an age such as "7d" counts from this machine's time.
            until: As there.
            filter: As there.
            collapse: As there.
            rerank: As there; it runs in this process.
        """
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
        body = {**_question(query, k, mode, wanted, rerank), "collapse": collapse}
        found = hits_of(await self._ask(Asked("POST", "/v1/search", body=body)))
        if rerank is not None:
            found[:] = (await reranked(rerank, query.strip(), found))[:k]
        return found

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
        """Return the sessions that answer a question best; see `IngestPipeline.search_sessions`.

        Arguments as in `search`. `rerank` receives the best hit of each session.
        """
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
        body = _question(query, k, mode, wanted, rerank)
        found = session_hits_of(await self._ask(Asked("POST", "/v1/search/sessions", body=body)))
        if rerank is not None:
            session_of = {session.best.id: session for session in found}
            order = await reranked(rerank, query.strip(), [session.best for session in found])
            found[:] = [session_of[hit.id] for hit in order][:k]
        return found

    # -- lists --------------------------------------------------------------------------------

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
        """List sessions, latest first; see `IngestPipeline.sessions`. `limit` is at most 500."""
        params = {
            "user_id": user_id,
            "product_id": product_id,
            **_times(since, until),
            "matching": matching,
            "without": without,
            "page": page,
            "session_id": session_id,
            "shared": None if shared else "false",
            "limit": limit,
            "cursor": cursor,
            "count": None if count else "false",
        }
        return sessions_of(await self._ask(Asked("GET", "/v1/sessions", params)))

    async def session(
        self, session_id: str, product_id: str | None = None, *, user_id: str | None = None
    ) -> WholeSession | None:
        """Return one complete session, in order; see `IngestPipeline.session`.

        It is read in parts. What is accepted meanwhile belongs to the last one.
        """
        # Dots as well: "." and ".." would be removed from the path.
        path = f"/v1/sessions/{quote(storable(session_id), safe='').replace('.', '%2E')}"
        params = {"product_id": product_id, "user_id": user_id, "limit": _SESSION_EVENTS}
        parts: list[WholeSession] = []
        cursor: str | None = None
        while cursor is not None or not parts:
            asked = Asked("GET", path, params | {"cursor": cursor})
            try:
                part, cursor = session_of(await self._ask(asked))
            except NotFoundError:
                return None  # unknown, or forgotten since the part before
            parts.append(part)
        return joined_parts(parts)

    async def products(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        conversation_id: str | None = None,
    ) -> list[str]:
        """Return the products in which ids occur; see `IngestPipeline.products`. Needs a key."""
        params = {
            "user_id": user_id,
            "session_id": session_id,
            "conversation_id": conversation_id,
        }
        found = decoded(await self._ask(Asked("GET", "/v1/products", params)), _Products)
        return found.products

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
        """Iterate over the actions of all sessions; see `IngestPipeline.actions`. Needs a key.

        They arrive while they are read. If the connection ends early, the iterator raises
        ServerUnavailableError.
        """
        params = {
            **_times(since, until),
            "user_id": user_id,
            "session_id": session_id,
            "product_id": product_id,
            "matching": matching,
            "without": without,
            "page": page,
        }
        return Actions(self._pages(Asked("GET", "/v1/actions", params)))

    async def _pages(self, asked: Asked) -> AsyncGenerator[list[SessionEvent | int], None]:
        async with aclosing(self._connections.lines(asked, self._timeout)) as answer:
            async for lines in answer:
                page: list[SessionEvent | int] = []
                for line in lines:
                    if line.startswith(b'{"missing":'):
                        page.append(decoded(line, _Missing).missing)
                        yield page
                        return
                    page.append(decoded(line, SessionEvent))
                yield page
        raise ServerUnavailableError("the server ended before all actions had arrived")

    # -- now ----------------------------------------------------------------------------------

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
        """Return context about a user for a language model; see `IngestPipeline.context`."""
        body = {
            "query": query,
            **_given(
                user_id=user_id,
                session_id=session_id,
                product_id=product_id,
                conversation_id=conversation_id,
            ),
            "since_turn": since_turn,
            "seconds": seconds,
            "max_actions": max_actions,
            "max_chars": max_chars,
        }
        return decoded(await self._ask(Asked("POST", "/v1/context", body=body)), _Context).text

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
        """Return what was pulled, and below it what the server has of the past.

        See `IngestPipeline.context_with`. The server does not know what was pulled: a line may appear
        in both parts.
        """
        recent = pulled_text(pulled, seconds=seconds, max_actions=max_actions, max_chars=max_chars)
        left = max_chars - len(recent) - 1 if recent else max_chars
        if left <= 0:
            return recent
        text = await self.context(
            query,
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
            since_turn=since_turn and not recent,
            # What the server has of the last minutes is older than what was pulled.
            seconds=_NO_RECENT if recent else seconds,
            max_actions=max_actions,
            max_chars=left,
        )
        return "\n".join(part for part in (recent, text) if part)

    async def live_session(
        self,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        conversation_id: str | None = None,
        product_id: str | None = None,
    ) -> LiveSession | None:
        """Return the live session that all given ids belong to, as `IngestPipeline.live.get`."""
        params = {
            "session_id": session_id,
            "user_id": user_id,
            "conversation_id": conversation_id,
            "product_id": product_id,
        }
        return live_session_of(await self._ask(Asked("GET", "/v1/live", params)))

    # -- state --------------------------------------------------------------------------------

    async def ledger(self) -> Ledger:
        """Return the counts of payloads, as `IngestPipeline.ledger`. Needs a key."""
        return decoded(await self._ask(Asked("GET", "/v1/ledger")), Ledger)

    async def health(self) -> Health:
        """Return whether payloads reach the store, as `IngestPipeline.health`.

        Without a key that may read, there are no reasons. "failed" also if the server answers but
        its pipeline does not run.
        """
        return health_of(await self._ask(Asked("GET", "/readyz", answered_with=(503,))))

    # -- forgetting ---------------------------------------------------------------------------

    async def forget(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
        until: Moment | None = None,
        dry_run: bool = False,
        block: bool = False,
    ) -> Receipt:
        """Forget what ids select; see `IngestPipeline.forget`. Needs an admin key.

        If no answer arrives, the server may have forgotten all the same: call it again.
        """
        body = {
            **_given(
                user_id=user_id,
                session_id=session_id,
                product_id=product_id,
                conversation_id=conversation_id,
            ),
            **_times(None, until),
            "dry_run": dry_run,
            "block": block,
        }
        asked = Asked("POST", "/v1/forget", body=body, repeatable=dry_run)
        seconds = max(self._timeout, _FORGETTING_SECONDS)
        return decoded(await self._connections.send(asked, seconds), Receipt)

    async def receipt(self, number: int) -> Receipt:
        """Return the receipt of a request to forget, as of now. Needs an admin key.

        Raises:
            ConfigurationError: If there is no request of this number.
        """
        try:
            return decoded(await self._ask(Asked("GET", f"/v1/forget/{number:d}")), Receipt)
        except NotFoundError:
            raise ConfigurationError(f"there is no request to forget of number {number}") from None

    async def export(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield everything that is held about ids; see `IngestPipeline.export`.

        Needs an admin key.
        """
        body = _given(
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
        )
        asked = Asked("POST", "/v1/export", body=body)
        async with aclosing(self._connections.lines(asked, self._timeout)) as answer:
            async for lines in answer:
                for line in lines:
                    yield decoded(line, dict)

    # -- for any thread -----------------------------------------------------------------------

    def search_sync(self, query: str, k: int = 5, **options: Any) -> Hits[Hit]:
        """Like `search`, for any thread. Inside a running event loop it blocks the loop."""
        return self._run_sync(self.search(query, k, **options))

    def search_sessions_sync(self, query: str, k: int = 5, **options: Any) -> Hits[SessionHit]:
        """Like `search_sessions`, for any thread; see `search_sync`."""
        return self._run_sync(self.search_sessions(query, k, **options))

    def sessions_sync(self, user_id: str | None = None, **options: Any) -> Sessions:
        """Like `sessions`, for any thread; see `search_sync`."""
        return self._run_sync(self.sessions(user_id, **options))

    def session_sync(self, session_id: str, **options: Any) -> WholeSession | None:
        """Like `session`, for any thread; see `search_sync`."""
        return self._run_sync(self.session(session_id, **options))

    def products_sync(self, **ids: str | None) -> list[str]:
        """Like `products`, for any thread; see `search_sync`."""
        return self._run_sync(self.products(**ids))

    def context_sync(self, query: str | None = None, **options: Any) -> str:
        """Like `context`, for any thread; see `search_sync`."""
        return self._run_sync(self.context(query, **options))

    def context_with_sync(
        self, pulled: LiveSession | None, query: str | None = None, **options: Any
    ) -> str:
        """Like `context_with`, for any thread; see `search_sync`."""
        return self._run_sync(self.context_with(pulled, query, **options))

    def live_session_sync(self, **ids: str | None) -> LiveSession | None:
        """Like `live_session`, for any thread; see `search_sync`."""
        return self._run_sync(self.live_session(**ids))

    def ledger_sync(self) -> Ledger:
        """Like `ledger`, for any thread; see `search_sync`."""
        return self._run_sync(self.ledger())

    def health_sync(self) -> Health:
        """Like `health`, for any thread; see `search_sync`."""
        return self._run_sync(self.health())

    def forget_sync(self, **options: Any) -> Receipt:
        """Like `forget`, for any thread; see `search_sync`."""
        return self._run_sync(self.forget(**options))

    def receipt_sync(self, number: int) -> Receipt:
        """Like `receipt`, for any thread; see `search_sync`."""
        return self._run_sync(self.receipt(number))

    # -- requests -----------------------------------------------------------------------------

    async def _ask(self, asked: Asked) -> bytes:
        return await self._connections.send(asked, self._timeout)

    def _run_sync(self, work: Coroutine[Any, Any, T]) -> T:
        return self._connections.run_sync(work)


class _Products(msgspec.Struct):
    products: list[str]


class _Missing(msgspec.Struct):
    missing: int


class _Context(msgspec.Struct):
    text: str


def _question(
    query: str, k: int, mode: Mode, wanted: Filter, rerank: Rerank | None
) -> Mapping[str, Any]:
    conditions = {
        name: getattr(wanted, name)
        for name in ("user_id", "session_id", "product_id", "conversation_id", "kind")
    }
    return {
        "query": query,
        "k": k if rerank is None else max(k, MOST_RERANKED),
        "mode": mode,
        **_given(**conditions),
        **_times(wanted.since, wanted.until),
    }


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _times(since: Moment | None, until: Moment | None) -> dict[str, float]:
    times = {"since": since, "until": until}
    return {name: moment(name, at) for name, at in times.items() if at is not None}


def _checked_url(url: str | None) -> httpx.URL:
    form = "it has the form http://127.0.0.1:8760"
    if not url:
        raise ConfigurationError(f"ServeClient needs a URL: pass it, or set {_URL}; {form}")
    try:
        found = httpx.URL(url.rstrip("/"))
    except (httpx.InvalidURL, TypeError, AttributeError):
        # `from None`: httpx's message may quote the URL, which may hold a secret.
        raise ConfigurationError(f"the URL of the server is not valid; {form}") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise ConfigurationError(
            f"the URL of the server must start with http:// or https://; {form}"
        )
    if found.userinfo or found.query or found.fragment:
        raise ConfigurationError(
            f"the URL of the server has a user, a query or a fragment; {form}; pass the key as key=..."
        )
    return found


def _checked_key(key: str | None) -> str | None:
    if key is None:
        return None
    if not key or not all("!" <= character <= "~" for character in key):
        raise ConfigurationError(
            "the key for the server is empty, or has characters that no key has"
        )
    return key
