"""Merges full-text and dense scores into one hybrid ranking. Pure.

The score of a hit is its `text_score` plus a dense part of up to 0.1. The dense part is relative to
the question, so that it is comparable for all embedding models: 0.1 for the nearest chunk that the
store returned, 0 for the farthest one and for chunks that it did not return. A hybrid score is
therefore not a cosine, and only comparable within one search.

- `text_score` is computed for a session. The best chunk of the session gets all of it. The others
  get a share: the weight of their own words, divided by that of the best chunk.
- If the store returned only one chunk, its dense part is 0.1, because nothing can be compared.
- A chunk that a summary replaced (`summaries="replace"`) has no dense part. Its `text_score` stays:
  its words remain a part of its session. Chunks that were deleted have no score and are not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from autoplay_rag.journal.base import FoundPassage
from autoplay_rag.search.lexical import Question, corrections, score

__all__ = ["Candidate", "Mode", "Unit", "fused", "group"]

Mode: TypeAlias = Literal["hybrid", "dense", "text"]

Unit: TypeAlias = str | int
"""The source of a hit: the id of a stored chunk, or the number of a payload without a chunk."""

_DENSE_WEIGHT: Final = 0.1


class Candidate(NamedTuple):
    """A chunk or payload, with its scores for the question.

    Attributes:
        unit: The chunk or payload.
        lane: The lane of its session.
        score: The score for the ranking.
        text_score: The full-text score; None if no word matches.
        dense_score: The store's score; None if the store did not return it.
        embedded: Whether the store has it.
    """

    unit: Unit
    lane: int
    score: float
    text_score: float | None
    dense_score: float | None
    embedded: bool


def fused(
    question: Question,
    passages: Sequence[FoundPassage],
    dense: Mapping[str, float],
    counts: Mapping[str, int],
    total: int,
    *,
    mode: Mode,
    whole: bool = False,
) -> list[Candidate]:
    """Rank candidates, best first.

    Args:
        question: The question.
        passages: The passages of the candidate sessions.
        dense: The store's scores by chunk id.
        counts: The number of passages with each term of the question.
        total: The number of passages in the catalog.
        mode: The scores to use.
        whole: Whether a hybrid ranking includes candidates without any score. They come last.
    """
    texts: dict[int, list[str]] = {}
    units: dict[int, list[Unit]] = {}
    retired: set[Unit] = set()
    for seq, lane, text, chunk, _, _, is_retired in passages:
        if is_retired and chunk is not None:
            retired.add(chunk)
        texts.setdefault(lane, []).append(text)
        units.setdefault(lane, []).append(seq if chunk is None else chunk)
    corrected = corrections(question, texts.values(), counts) if mode != "dense" else {}
    words = score(question, texts, counts, total, corrected) if mode != "dense" else {}
    far, near = min(dense.values(), default=0.0), max(dense.values(), default=0.0)
    found = []
    for lane, of_lane in units.items():
        shares: dict[Unit, float] = {}
        for row, unit in enumerate(of_lane):
            share = words[lane].shares[row] if lane in words else 0.0
            shares[unit] = max(share, shares.get(unit, 0.0))
        for unit, share in shares.items():
            text_score = words[lane].score * share or None if lane in words else None
            dense_score = dense.get(unit) if isinstance(unit, str) else None
            value = dense_score or 0.0
            if mode != "dense":
                value = text_score or 0.0
                if dense_score is not None and mode == "hybrid":
                    nearness = (dense_score - far) / (near - far) if near > far else 1.0
                    value += _DENSE_WEIGHT * nearness
            counted = dense_score if mode == "dense" else text_score
            if mode == "hybrid" and (whole or dense_score is not None):
                counted = value
            if counted is not None:
                stored = isinstance(unit, str) and unit not in retired
                found.append(Candidate(unit, lane, value, text_score, dense_score, stored))
    found.sort(key=_rank)
    return found


def group(candidates: Iterable[Candidate]) -> dict[int, list[Candidate]]:
    """Group candidates by session. Sessions and the candidates of each session are best first."""
    sessions: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        sessions.setdefault(candidate.lane, []).append(candidate)
    return sessions


def _rank(candidate: Candidate) -> tuple[bool, float]:
    unscored = candidate.text_score is None and candidate.dense_score is None
    return unscored, -candidate.score
