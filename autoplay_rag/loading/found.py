"""Searches a pipeline for the retrievers of other libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args
from urllib.parse import urlsplit

from autoplay_rag._checks import check_above
from autoplay_rag.content.filters import Filter, Moment
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading.reading import Reader
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.searcher import Rerank

__all__ = ["Finder", "FoundText", "SearchBy", "narrowed", "page_of"]

SearchBy: TypeAlias = Literal["sessions", "chunks"]
"""The kind of the results."""

_MORE: Final = 4
"""The search requests this many times `k` sessions, so that enough remain after collapsing."""
_MOST: Final = 50


class FoundText(NamedTuple):
    """One result of a search.

    Attributes:
        id: The chunk's id; for a session its product and id.
        text: The chunk's text; for a session its text from the start, truncated.
        score: The score for the ranking.
        metadata: Always `date` (ISO, UTC), `page`, `user_id`, `session_id`, `score`, `dense_score`,
            `text_score`, `matched` (the lines that answer the question), `sessions` (the number of
            sessions with the same text) and `chunk_id`; None if unknown. Also the metadata of the
            chunk.
    """

    id: str
    text: str
    score: float
    metadata: dict[str, str | int | float | None]

    @property
    def heading(self) -> str:
        """Date and page in one line; "" if both are unknown.

        Example:
            >>> FoundText("1", "", 1.0, {"date": "2026-03-03T08:07:04+00:00", "page": None}).heading
            '2026-03-03T08:07:04+00:00'
        """
        return " ".join(str(self.metadata[key]) for key in ("date", "page") if self.metadata[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """Searches a pipeline for sessions or chunks.

    Attributes:
        pipeline: The pipeline to search; it must be running. Or a `ServeClient`.
        search: "sessions" or "chunks".
        mode: As in `IngestPipeline.search`.
        collapse: Return one result for equal texts: the latest.
        rerank: As in `IngestPipeline.search`.
    """

    pipeline: Reader
    search: SearchBy = "sessions"
    mode: Mode = "hybrid"
    collapse: bool = True
    rerank: Rerank | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (("search", self.search, SearchBy), ("mode", self.mode, Mode)):
            if value not in get_args(kind):
                allowed = " or ".join(repr(each) for each in get_args(kind))
                raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")

    async def find(self, query: str, k: int, filter: Filter) -> list[FoundText]:
        """Return the `k` best results for a question, best first.

        Raises:
            AutoplayError: See `IngestPipeline.search`.
        """
        if self.search == "chunks":
            return _of_chunks(await self.pipeline.search(query, k, **self._options(filter)))
        wanted = self._wanted(k)
        hits = await self.pipeline.search_sessions(query, wanted, **self._options(filter))
        return self._of_sessions(hits, k)

    def find_sync(self, query: str, k: int, filter: Filter) -> list[FoundText]:
        """Like `find`, for any thread. Inside a running event loop it blocks the loop."""
        if self.search == "chunks":
            return _of_chunks(self.pipeline.search_sync(query, k, **self._options(filter)))
        wanted = self._wanted(k)
        hits = self.pipeline.search_sessions_sync(query, wanted, **self._options(filter))
        return self._of_sessions(hits, k)

    def _options(self, filter: Filter) -> dict[str, Any]:
        options: dict[str, Any] = {"mode": self.mode, "filter": filter, "rerank": self.rerank}
        return options if self.search == "sessions" else {**options, "collapse": self.collapse}

    def _wanted(self, k: int) -> int:
        check_above("k", k, whole=True)
        return max(k, min(_MORE * k, _MOST)) if self.collapse else k

    def _of_sessions(self, hits: Hits[SessionHit], k: int) -> list[FoundText]:
        same: dict[object, list[SessionHit]] = {}
        for hit in hits:
            same.setdefault(hit.text if self.collapse else id(hit), []).append(hit)
        return [_of_session(some) for some in same.values()][:k]


def narrowed(
    filter: Filter | None,
    *,
    kind: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    **ids: str | None,
) -> Filter:
    """Return a filter with additional conditions. Its own conditions still hold.

    Raises:
        ConfigurationError: If it has another value for the same name, or a time is invalid.

    Example:
        >>> narrowed(Filter(since=100), since=50, user_id="u1").conditions()
        [('user_id', '==', 'u1'), ('ended_at', '>=', 100.0)]
    """
    base = filter or Filter()
    given = {name: value for name, value in {**ids, "kind": kind}.items() if value is not None}
    for name, value in given.items():
        if getattr(base, name) not in (None, value):
            raise ConfigurationError(f"{name} is in the filter already, with another value")
    call = Filter(since=since, until=until)
    begins = [each for each in (base.since, call.since) if each is not None]
    ends = [each for each in (base.until, call.until) if each is not None]
    times = {
        "since": max(begins, key=_seconds, default=None),
        "until": min(ends, key=_seconds, default=None),
    }
    return replace(base, **given, **times)  # type: ignore[arg-type]


def _seconds(at: Moment) -> float:
    return float(at)  # type: ignore[arg-type]  # a Filter keeps its times as Unix seconds


def _of_chunks(hits: Iterable[Hit]) -> list[FoundText]:
    return [
        FoundText(hit.id, hit.text, hit.score, {**hit.metadata, **_said(hit), "page": _page([hit])})
        for hit in hits
    ]


def _of_session(same: list[SessionHit]) -> FoundText:
    """One result for sessions with equal text: the latest session, with the best score."""
    latest = max(same, key=lambda hit: hit.ended_at or 0.0)
    best = latest.best
    score = same[0].score
    metadata: dict[str, str | int | float | None] = {
        **{
            name: best.metadata[name]
            for name in ("product_id", "conversation_id", "kind")
            if name in best.metadata
        },
        **_said(best),
        "user_id": latest.user_id,
        "score": score,
        "sessions": len(same),
        "page": _page([best, *reversed(latest.hits)]),
        "started_at": latest.started_at,
        "ended_at": latest.ended_at,
    }
    session = latest.session_id
    name = best.id if session is None else f"{latest.product_id}/{session}"
    return FoundText(name, latest.text, score, metadata)


def _said(hit: Hit) -> dict[str, str | int | float | None]:
    return {
        "chunk_id": hit.id,
        "session_id": hit.session_id,
        "user_id": hit.user_id,
        "date": _date(hit.metadata.get("ended_at")),
        "score": hit.score,
        "dense_score": hit.dense_score,
        "text_score": hit.text_score,
        "matched": hit.matched.text or hit.text,
        "sessions": hit.sessions,
    }


def _date(seconds: object) -> str | None:
    if not isinstance(seconds, int | float) or not seconds:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None


def _page(hits: Iterable[Hit]) -> str | None:
    """The page of the first hit that has one."""
    return next((page for hit in hits if (page := page_of(hit))), None)


def page_of(hit: Hit) -> str | None:
    r"""The page of a hit's matched lines; its last page if the text does not show it.

    Example:
        >>> from autoplay_rag.search.hits import Matched
        >>> pages = "https://a.test/billing https://a.test/help"
        >>> text = "a.test\non billing,\npaid,\non help,\nread"
        >>> page_of(Hit("1", None, text, 1.0, {"urls": pages}, matched=Matched("paid")))
        'https://a.test/billing'
    """
    urls = str(hit.metadata.get("urls", "")).split()
    if not urls:
        return None
    end = hit.text.find(hit.matched.text) + len(hit.matched.text) if hit.matched.text else 0
    places = re.findall(r"^on ([^,\n\"]+)", hit.text[:end], re.MULTILINE)
    if places:
        place = _words(places[-1])
        for url in reversed(urls):
            if place and place <= _words(urlsplit(url).path):
                return url
    return urls[-1]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
