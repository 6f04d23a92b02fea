"""One ranking from two sides: how well the words fit, and how near the meaning is. Pure.

The score of a hit is its `text_score` plus up to 0.1 for nearness in meaning. That part is relative to
the question: 0.1 for the nearest chunk that the store returned, 0 for the farthest and for what it
did not return, so that it means the same for every embedding model. A hybrid score is therefore not
a cosine, and only comparable within one search.

- `text_score` belongs to the session. Its best chunk has all of it; the others the share that
  their own words have of the best one's.
- The only candidate of the dense side gets the whole 0.1: there is nothing to compare it with.
- What was retired from the catalog has neither score and is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from autoplay_rag.journal.base import FoundPassage
from autoplay_rag.search.lexical import Question, corrections, score

__all__ = ["Candidate", "Mode", "Unit", "fused", "group"]

Mode: TypeAlias = Literal["hybrid", "dense", "text"]

Unit: TypeAlias = str | int
"""What a hit is made of: a stored chunk's id, or the sequence number of a payload without one."""

_DENSE_WEIGHT: Final = 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk or payload, and how well it answers the question.

    Attributes:
        unit: Which.
        lane: Its session's lane.
        score: What it is ranked by.
        text_score: How well its words fit; None if they do not.
        dense_score: The store's score; None if the store did not return it.
    """

    unit: Unit
    lane: int
    score: float
    text_score: float | None
    dense_score: float | None


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
        question: What was asked.
        passages: What the candidate sessions say.
        dense: The store's scores by chunk id.
        counts: In how many passages each term of the question is.
        total: How many passages there are.
        mode: Which sides count.
        whole: Whether a hybrid ranking has everything, what neither side found last.
    """
    texts: dict[int, list[str]] = {}
    units: dict[int, list[Unit]] = {}
    for seq, lane, text, chunk, *_ in passages:
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
                found.append(Candidate(unit, lane, value, text_score, dense_score))
    found.sort(key=_rank)
    return found


def group(candidates: Iterable[Candidate]) -> dict[int, list[Candidate]]:
    """Candidates by session, the best session first, each with its best first."""
    sessions: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        sessions.setdefault(candidate.lane, []).append(candidate)
    return sessions


def _rank(candidate: Candidate) -> tuple[bool, float]:
    unscored = candidate.text_score is None and candidate.dense_score is None
    return unscored, -candidate.score
