"""Answers questions: queries the store and the catalog, and merges the results into one ranking."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, get_args

from autoplay_rag._describe import describe
from autoplay_rag._serial import SerialThread
from autoplay_rag._timings import Timings
from autoplay_rag._tracing import Attribute
from autoplay_rag.content.chunks import Chunk, Metadata
from autoplay_rag.content.filters import Filter
from autoplay_rag.content.keys import session_lane
from autoplay_rag.content.probe import PROBE_ID
from autoplay_rag.errors import (
    ConfigurationError,
    EmbedderUnavailableError,
    StoreUnavailableError,
)
from autoplay_rag.journal.base import Findable, Found, FoundPassage, Part, Scope
from autoplay_rag.search.fusion import Candidate, Mode, Unit, fused, group
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.lexical import Question, matched
from autoplay_rag.search.serving import Serving
from autoplay_rag.search.sessions import (
    CHARACTERS,
    JoinedLines,
    Whole,
    session_hit,
    time_of,
)
from autoplay_rag.search.slots import Slots
from autoplay_rag.search.spans import embedding_attributes, record, retrieval_attributes
from autoplay_rag.stores.base import Match, TextStore, VectorStore

__all__ = ["MOST_RERANKED", "Rerank", "Searcher", "filter_of", "reranked"]

_log = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")
H = TypeVar("H", bound=Hit | SessionHit)

Rerank: TypeAlias = Callable[[str, Sequence[Hit]], Awaitable[Sequence[Hit]]]
"""Reorders hits for a question, for example with your own cross-encoder or service."""

_NEAREST: Final = 100
_MATCHING: Final = 200
_SESSIONS: Final = 30
_PASSAGES: Final = 1000
_LEAST_OF_SESSION: Final = 16
"""About how many passages are scored when the sessions are not few, and how many of each session at least:
the latest, besides the matches. A thousand take 50 ms."""
"""The most candidates: chunks of the store, passages of full text, and sessions of each that are
scored."""
MOST_RERANKED: Final = 50
_HITS_OF_SESSION: Final = 5
_FIRST_PARTS: Final = 32
"""How many parts of a session are read at first for its text. Most texts are full by then."""
_MOST_READING: Final = 4
"""How many searches read passages at once. One of long sessions holds several MB, and one thread reads
and another scores: more at once would take memory, and no search would end sooner."""
_OUTAGES: Final = (EmbedderUnavailableError, StoreUnavailableError, OSError, TimeoutError)
"""Temporary failures. Full text alone then answers a hybrid search."""
_NOTHING: Final = Found(0, {}, [])
_UNKNOWN_LANE: Final = -(2**62)
"""Lanes below this are for chunks without a session that the catalog does not know."""


@dataclass(frozen=True, slots=True)
class Searcher:
    """Answers questions from a store and the journal's catalog, or from one of them.

    Attributes:
        store: The store to search; None to use full text only. It must be started.
        serving: Has the embedder for questions, if the store does not embed them itself.
        catalog: The full-text index and the sessions; None if there is only a store.
        complete: Whether the catalog knows every chunk of the store.
        watermark: Returns the pipeline's watermark.
        timings: Measures searches and their parts.
        trace_content: Whether questions and documents go into spans.
    """

    store: VectorStore | TextStore | None
    serving: Serving
    catalog: Findable | None = None
    complete: bool = False
    watermark: Callable[[], int] = lambda: 0
    timings: Timings = field(default_factory=Timings)
    trace_content: bool = False
    _slots: Slots = field(default_factory=lambda: Slots(_MOST_READING))
    _thread: SerialThread = field(default_factory=lambda: SerialThread("autoplay-search-scores"))

    async def search(
        self,
        text: str,
        k: int,
        filter: Filter,
        *,
        mode: Mode = "hybrid",
        collapse: bool = False,
        rerank: Rerank | None = None,
    ) -> Hits[Hit]:
        """Return the `k` best hits for a question, best first.

        The filter is applied again to the results, so that a store with a wrong filter cannot show
        one person's session to another.

        Raises:
            ConfigurationError: If the question is empty, `k` is below 1, the mode is unknown, or
                `rerank` returns other hits than it received.
            UnsupportedFilterError: If the store cannot translate the filter.
        """
        name, attributes = self._span(k, mode)
        with self.timings.measured("search", "hits", span=name, attributes=attributes) as span:
            found = await self._find(text, k, filter, mode)
            wanted = max(k, MOST_RERANKED) if rerank or collapse else k
            async with self._slots.here():
                ranking = await self._rank(found, k, filter, mode)
                hits = await self._hits(ranking, filter, wanted)
            if collapse:
                hits = _collapsed(hits)
            if rerank:
                hits = await reranked(rerank, ranking.question.text, hits)
            result = ranking.result(hits[:k])
            record(span, text, result, content=self.trace_content)
            return result

    async def search_sessions(
        self,
        text: str,
        k: int,
        filter: Filter,
        *,
        mode: Mode = "hybrid",
        rerank: Rerank | None = None,
    ) -> Hits[SessionHit]:
        """Return the `k` best sessions for a question, best first. Otherwise like `search`.

        `rerank` receives the best hit of each session.
        """
        name, attributes = self._span(k, mode)
        with self.timings.measured("search", "sessions", span=name, attributes=attributes) as span:
            found = await self._find(text, k, filter, mode)
            wanted = max(k, MOST_RERANKED) if rerank else k
            async with self._slots.here():
                ranking = await self._rank(found, k, filter, mode)
                best = await self._best_sessions(ranking, filter, wanted)
                hits = [] if rerank else await self._session_hits(best, ranking, filter)
            if rerank:
                lane_of = {some[0].id: lane for lane, some in best.items()}
                firsts = [some[0] for some in best.values()]
                order = await reranked(rerank, ranking.question.text, firsts)
                lanes = [lane_of[hit.id] for hit in order[:k]]
                async with self._slots.here():
                    chosen = {lane: best[lane] for lane in lanes}
                    hits = await self._session_hits(chosen, ranking, filter)
            result = ranking.result(hits)
            record(span, text, result, content=self.trace_content)
            return result

    def _span(self, k: int, mode: Mode) -> tuple[str, dict[str, Attribute]]:
        source = self.store.data_source if self.store else "journal"
        return f"retrieval {source}", retrieval_attributes(source, k, mode, self.serving.embedder)

    # -- candidates ---------------------------------------------------------------------------

    async def _find(self, text: str, k: int, filter: Filter, mode: Mode) -> _Candidates:
        """What store and full text find, without the texts of sessions."""
        question = Question.of(text)
        if not question.text:
            raise ConfigurationError("the question is empty")
        if k < 1:
            raise ConfigurationError(f"k is how many hits to return, at least 1, not {k}")
        if mode not in get_args(Mode):
            raise ConfigurationError(f"mode must be 'hybrid', 'dense' or 'text', not {mode!r}")
        if mode == "text" and not self.catalog:
            raise ConfigurationError("full text needs a journal, and there is none")
        watermark = self.watermark()
        scope = Scope(known=True, lanes=None, pending=0)
        if self.catalog:
            scope = await self.catalog.scope(filter.conditions())
        dense, found = await _both(
            self._dense(question.text, k, filter, scope) if mode != "text" else None,
            self._words(question, k, filter, scope) if mode != "dense" else None,
        )
        problem = None
        if isinstance(dense, BaseException):
            if mode == "dense" or not self.catalog or not isinstance(dense, _OUTAGES):
                raise dense
            problem = describe(dense)
            _log.warning("a search is answered by words alone: %s", problem)
            dense = []
        if isinstance(found, BaseException):
            raise found
        matches = {match.id: match for match in dense or ()}
        return _Candidates(question, matches, found or _NOTHING, scope, watermark, problem)

    async def _rank(self, known: _Candidates, k: int, filter: Filter, mode: Mode) -> _Ranking:
        """Read the passages of the sessions that were found, and rank them."""
        question, matches, found, scope, watermark, problem = known
        passages, whole = await self._passages(k, filter, scope, matches, found)
        with self.timings.measured("search_part", "score", span="search score"):
            candidates = await self._thread.run(
                fused,
                question,
                passages,
                {match.id: match.score for match in matches.values()},
                found.counts,
                found.total,
                mode=mode,
                whole=whole,
            )
        return _Ranking(question, candidates, passages, matches, scope, watermark, problem)

    async def _dense(self, text: str, k: int, filter: Filter, scope: Scope) -> list[Match]:
        while True:
            moment = await self.serving.wait()
            try:
                found = await self._nearest(text, max(_NEAREST, 2 * k), filter, scope)
            except Exception:
                if self.serving.moment == moment:
                    raise
                continue  # the vectors were exchanged meanwhile
            if self.serving.moment == moment:
                return found

    async def _nearest(self, text: str, limit: int, filter: Filter, scope: Scope) -> list[Match]:
        if isinstance(self.store, TextStore):
            with self.timings.measured("search_part", "store", span="search store"):
                found = await self.store.search(text, limit, filter)
        else:
            assert self.store is not None
            assert self.serving.embedder is not None
            embedder = self.serving.embedder
            with self.timings.measured(
                "search_part",
                "embed",
                span=f"embeddings {embedder.model}",
                attributes=embedding_attributes(embedder.model),
            ):
                vector = await embedder.embed_query(text)
            if self.catalog and scope.lanes is not None and self._scores_listed:
                ids = await self.catalog.chunk_ids(scope.lanes)
                with self.timings.measured("search_part", "store", span="search store"):
                    scores = await self.store.score(vector, ids)
                return [Match(chunk, "", score) for chunk, score in scores.items()]
            with self.timings.measured("search_part", "store", span="search store"):
                found = await self.store.query(vector, limit, filter)
        return [one for one in found if one.id != PROBE_ID and filter.matches(one.metadata)]

    @property
    def _scores_listed(self) -> bool:
        """Whether for few sessions, the catalog lists their chunks and the store scores only those."""
        store = self.store
        return self.complete and isinstance(store, VectorStore) and "score" in store.capabilities

    async def _words(self, question: Question, k: int, filter: Filter, scope: Scope) -> Found:
        if not self.catalog:
            return _NOTHING
        # Few sessions are all candidates: only the frequencies of the words are needed.
        most = max(_MATCHING, 2 * k) if scope.lanes is None else 0
        with self.timings.measured("search_part", "text", span="search text"):
            return await self.catalog.find(
                question.lookups, question.exact, filter.conditions(), most
            )

    async def _passages(
        self, k: int, filter: Filter, scope: Scope, matches: Mapping[str, Match], found: Found
    ) -> tuple[list[FoundPassage], bool]:
        """The passages of the candidate sessions, and whether to rank passages without a score."""
        if self.catalog and scope.lanes is not None and self._scores_listed:
            return await self.catalog.passages(scope.lanes), True
        lane_of = await self.catalog.lanes_of(list(matches)) if self.catalog else {}
        unknown = [match for match in matches.values() if match.id not in lane_of]
        if unknown and self.catalog:
            # What was forgotten must not be found while the store is yet to delete it.
            deleting = await self.catalog.being_deleted([match.id for match in unknown])
            unknown = [match for match in unknown if match.id not in deleting]
        others = [_as_passage(match, number) for number, match in enumerate(unknown, 1)]
        if not self.catalog:
            return others, False
        if scope.lanes is not None:
            return others + await self.catalog.passages(scope.lanes), True
        most = max(_SESSIONS, k)
        lanes = {
            **dict.fromkeys(_first(most, (lane for _, lane in found.passages))),
            **dict.fromkeys(
                _first(most, (lane_of[chunk] for chunk in matches if chunk in lane_of))
            ),
        }
        whole = len(lanes) < k and bool(filter.conditions())
        if whole:
            recent = await self.catalog.recent_lanes(filter.conditions(), k)
            lanes |= dict.fromkeys(recent)
        seqs = [seq for seq, lane in found.passages if lane in lanes]
        latest = max(_LEAST_OF_SESSION, _PASSAGES // max(1, len(lanes)))
        nearest = [chunk for chunk, lane in lane_of.items() if lane in lanes]
        return others + await self.catalog.passages(
            list(lanes), seqs, chunks=nearest, latest=latest
        ), whole

    # -- hits ---------------------------------------------------------------------------------

    async def _hits(self, ranking: _Ranking, filter: Filter, wanted: int) -> list[Hit]:
        found: list[Hit] = []
        candidates = iter(ranking.candidates)
        while len(found) < wanted and (page := list(islice(candidates, wanted))):
            made = await self._make(page, ranking)
            found += [
                made[one.unit]
                for one in page
                if one.unit in made and filter.matches(made[one.unit].metadata)
            ]
        return found[:wanted]

    async def _make(self, candidates: Sequence[Candidate], ranking: _Ranking) -> dict[Unit, Hit]:
        """Make hits. Deleted candidates are left out."""
        chunks = await self._chunks([one.unit for one in candidates], ranking)
        best: dict[str, Unit] = {}
        for one in candidates:
            if one.unit in chunks:
                best.setdefault(chunks[one.unit].id, one.unit)
        return {
            one.unit: Hit.of(
                chunk.id,
                chunk.text,
                one.score,
                chunk.metadata,
                dense_score=one.dense_score,
                text_score=one.text_score,
                matched=matched(ranking.question, chunk.text),
                embedded=one.embedded,
            )
            for one in candidates
            if (chunk := chunks.get(one.unit)) is not None and best[chunk.id] == one.unit
        }

    async def _chunks(self, units: Sequence[Unit], ranking: _Ranking) -> dict[Unit, Chunk | Match]:
        """Text and metadata from the catalog; for chunks that it does not know, from the store."""
        ids = [unit for unit in units if isinstance(unit, str)]
        found: dict[Unit, Chunk | Match] = {
            chunk: ranking.matches[chunk]
            for chunk in ids
            if chunk in ranking.matches and ranking.matches[chunk].text
        }
        if self.catalog:
            if ids:
                found |= {chunk.id: chunk for chunk in await self.catalog.chunks(ids)}
            waiting = [unit for unit in units if isinstance(unit, int)]
            if waiting:
                found |= {seq: one for seq, one in (await self.catalog.waiting(waiting)).items()}  # noqa: C416 - of other types
            if stored := [unit for unit in waiting if unit not in found]:
                # Stored since the candidates were chosen: use their chunks.
                parts = await self.catalog.passages([], stored)
                names = {part.seq: part.chunk for part in parts if part.chunk is not None}
                made = {one.id: one for one in await self.catalog.chunks(list(set(names.values())))}
                found |= {seq: made[name] for seq, name in names.items() if name in made}
        return found

    # -- sessions -----------------------------------------------------------------------------

    async def _best_sessions(
        self, ranking: _Ranking, filter: Filter, wanted: int
    ) -> dict[int, list[Hit]]:
        """The best hits that pass the filter, by lane, best session first."""
        groups = group(ranking.candidates)
        found: dict[int, list[Hit]] = {}
        lanes = iter(groups)
        while len(found) < wanted and (page := list(islice(lanes, wanted))):
            best = {lane: groups[lane][:_HITS_OF_SESSION] for lane in page}
            made = await self._make([one for some in best.values() for one in some], ranking)
            for lane in page:
                hits = _passing(made, best[lane], filter)
                if not hits and len(groups[lane]) > _HITS_OF_SESSION:
                    # Another hit of the session may pass.
                    rest = groups[lane][_HITS_OF_SESSION:]
                    hits = _passing(await self._make(rest, ranking), rest, filter)
                if hits:
                    found[lane] = hits[:_HITS_OF_SESSION]
        return dict(islice(found.items(), wanted))

    async def _session_hits(
        self, found: Mapping[int, list[Hit]], ranking: _Ranking, filter: Filter
    ) -> list[SessionHit]:
        # The catalog has the times of the whole session. Those of one person come from the parts.
        of_all = self.catalog is not None and filter.user_id is None
        visits = await self.catalog.visits(list(found)) if self.catalog and of_all else {}
        whole = await self._whole(found, ranking, filter)
        return [
            session_hit(hits, visits.get(lane), whole.get(lane)) for lane, hits in found.items()
        ]

    async def _whole(
        self, found: Mapping[int, list[Hit]], ranking: _Ranking, filter: Filter
    ) -> dict[int, Whole]:
        """What the parts of these sessions show that belong to the person of the filter, by lane."""
        units = await self._units(found, ranking)
        others = [unit for of_lane in units.values() for unit, part in of_lane.items() if not part]
        chunks = await self._chunks(others, ranking) if others else {}
        people = replace(filter, since=None, until=None, kind=None)
        wholes: dict[int, Whole] = {}
        for lane, of_lane in units.items():
            whole = Whole()
            for unit, part in list(of_lane.items()):
                metadata = _metadata_of(part, found[lane][0]) if part else None
                if metadata is None and unit in chunks:
                    metadata = chunks[unit].metadata
                if metadata is None or not people.matches(metadata):
                    del of_lane[unit]
                else:
                    whole.add(metadata)
            if of_lane:
                wholes[lane] = whole
        texts = await self._texts({lane: list(units[lane]) for lane in wholes}, ranking, chunks)
        for lane, text in texts.items():
            wholes[lane].text = text
        return wholes

    async def _units(
        self, lanes: Collection[int], ranking: _Ranking
    ) -> dict[int, dict[Unit, Part | None]]:
        """The parts of sessions, in order, by lane; None for what is not in the catalog's chunks."""
        units: dict[int, dict[Unit, Part | None]] = {lane: {} for lane in lanes}
        for one in ranking.passages:
            # What the catalog does not know has no number.
            if not one.seq and one.chunk is not None and one.lane in lanes:
                units[one.lane][one.chunk] = None
        for each in await self.catalog.parts(list(lanes)) if self.catalog else ():
            if each.chunk is None:
                units[each.lane][each.seq] = None
            else:
                units[each.lane].setdefault(each.chunk, each)
        return units

    async def _texts(
        self,
        units: Mapping[int, Sequence[Unit]],
        ranking: _Ranking,
        known: Mapping[Unit, Chunk | Match],
    ) -> dict[int, str]:
        """The texts of sessions, by lane. Of long sessions, only the first parts are read."""
        joined = {lane: JoinedLines(CHARACTERS) for lane in units}
        start, end = 0, _FIRST_PARTS
        while page := {lane: some[start:end] for lane, some in units.items() if some[start:]}:
            wanted = [unit for some in page.values() for unit in some if unit not in known]
            chunks = {**known, **await self._chunks(wanted, ranking)}
            for lane, some in page.items():
                for unit in some:
                    if unit in chunks and not joined[lane].is_full:
                        joined[lane].add(chunks[unit].text)
            units = {lane: some for lane, some in units.items() if not joined[lane].is_full}
            start, end = end, 2 * end
        return {lane: one.text for lane, one in joined.items()}


class _Candidates(NamedTuple):
    question: Question
    matches: dict[str, Match]
    found: Found
    scope: Scope
    watermark: int
    problem: str | None


class _Ranking(NamedTuple):
    question: Question
    candidates: list[Candidate]
    passages: list[FoundPassage]
    matches: dict[str, Match]
    scope: Scope
    watermark: int
    problem: str | None

    def result(self, hits: Iterable[H]) -> Hits[H]:
        return Hits(
            hits,
            watermark=self.watermark,
            unembedded=self.scope.pending,
            scope_known=self.scope.known,
            problem=self.problem,
        )


async def _both(
    one: Coroutine[Any, Any, A] | None, other: Coroutine[Any, Any, B] | None
) -> tuple[A | BaseException | None, B | BaseException | None]:
    """Run both concurrently. Returns their results or exceptions; None for a missing coroutine."""
    tasks = [asyncio.create_task(each or _nothing()) for each in (one, other)]
    try:
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
    finally:  # a cancelled `gather` does not wait until its tasks have ended
        await asyncio.wait(tasks)
    return first, second


async def _nothing() -> Any:
    return None


def _as_passage(match: Match, number: int) -> FoundPassage:
    """Make a passage from a chunk that the catalog does not know, with the store's text."""
    session = match.metadata.get("session_id")
    product = str(match.metadata.get("product_id", ""))
    lane = session_lane(product, str(session)) if session is not None else _UNKNOWN_LANE - number
    started, ended = (time_of(match.metadata, name) for name in ("started_at", "ended_at"))
    return FoundPassage(0, lane, match.text, match.id, started, ended)


def _metadata_of(part: Part, hit: Hit) -> Metadata:
    """The metadata of a stored part that a filter of people looks at, and its times.

    Product and session are those of any other part of the session.
    """
    named = {
        "user_id": part.user_id,
        "conversation_id": part.conversation_id,
        "started_at": part.started,
        "ended_at": part.ended,
    }
    found = {name: value for name, value in named.items() if value is not None}
    for name in ("product_id", "session_id"):
        if name in hit.metadata:
            found[name] = hit.metadata[name]
    return found


def _passing(
    made: Mapping[Unit, Hit], candidates: Iterable[Candidate], filter: Filter
) -> list[Hit]:
    hits = [made[one.unit] for one in candidates if one.unit in made]
    return [hit for hit in hits if filter.matches(hit.metadata)]


def _collapsed(hits: Iterable[Hit]) -> list[Hit]:
    """Keep one hit for each text: the latest one, with the rank and score of the best one."""
    same: dict[str, list[Hit]] = {}
    for hit in hits:
        same.setdefault(hit.text, []).append(hit)
    return [
        replace(
            max(some, key=lambda hit: time_of(hit.metadata, "ended_at") or 0.0),
            score=some[0].score,
            sessions=len({hit.session_id or hit.id for hit in some}),
        )
        for some in same.values()
    ]


async def reranked(rerank: Rerank, question: str, hits: Sequence[Hit]) -> list[Hit]:
    """Return hits in the order of a function.

    Raises:
        ConfigurationError: If it returns other hits than it received.
    """
    order = list(await rerank(question, list(hits)))
    given = {hit.id for hit in hits}
    if not all(hit.id in given for hit in order):
        raise ConfigurationError("rerank must return hits that it was given, in another order")
    return list({hit.id: hit for hit in order}.values())


def _first(count: int, values: Iterable[int]) -> list[int]:
    return list(islice(dict.fromkeys(values), count))


def filter_of(filter: Filter | None, **conditions: Any) -> Filter:
    """Return one filter from a `Filter` or its fields.

    Raises:
        ConfigurationError: If both are given, or a time is invalid.
    """
    given = {name: value for name, value in conditions.items() if value is not None}
    if filter is not None and given:
        raise ConfigurationError("give either filter=... or its fields, not both")
    return filter or Filter(**given)
