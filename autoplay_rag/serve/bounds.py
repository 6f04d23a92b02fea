"""What a bound token may see of an answer of the pipeline. Pure.

The filter of a token selects one person's or one session's chunks. Some values of an answer depend
on other people's data all the same; here they are left out or computed from the person's own part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from autoplay_rag.live.feed import FeedEvent
from autoplay_rag.payloads import ActionsPayload, Payload
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.timeline import SessionEvent, WholeSession

__all__ = ["own_hits", "own_part", "own_payload", "own_session_hits"]

_OUTAGE = "the embedder or the store was unavailable: only full text was searched"


def own_hits(found: Hits[Hit]) -> Hits[Hit]:
    """Return hits without what depends on other people's texts.

    The scores of full text depend on how often a word occurs in everyone's texts. A rank does not:
    the score is 1, 1/2, 1/3 and so on.
    """
    hits = (_ranked(hit, rank) for rank, hit in enumerate(found, 1))
    return Hits(hits, watermark=found.watermark, problem=_said(found.problem))


def own_session_hits(found: Hits[SessionHit]) -> Hits[SessionHit]:
    """Return sessions without what depends on other people's texts; see `own_hits`."""
    sessions = []
    for rank, session in enumerate(found, 1):
        order = sorted(session.hits, key=lambda hit: -hit.score)
        ranks = {hit.id: rank + below for below, hit in enumerate(order)}
        hits = [_ranked(hit, ranks[hit.id]) for hit in session.hits]
        sessions.append(replace(session, score=1 / rank, hits=hits))
    return Hits(sessions, watermark=found.watermark, problem=_said(found.problem))


def own_part(session: WholeSession, user_id: str) -> WholeSession:
    """Return one person's part of a session, as if nobody else had used it.

    Args:
        session: The session, as read for this person.
        user_id: The person.
    """
    events = tuple(event for event in session.events if event.user_id == user_id)
    alone = not session.ambiguous and len(events) == len(session.events)
    if alone:
        return session
    times = [at for event in events for at in (event.started_at, event.ended_at) if at is not None]
    return replace(
        session,
        user_id=user_id,
        users=(user_id,),
        ambiguous=False,
        started_at=min(times, default=None),
        ended_at=max(times, default=None),
        payloads=len({event.seq for event in events}),
        events=events,
        text=session.text if len(events) == len(session.events) else _text(events),
    )


def own_payload(event: FeedEvent, user_id: str) -> Payload | None:
    """Return the part of a payload that is one person's; None if there is none.

    Args:
        event: The payload, with the person it belongs to.
        user_id: The person.
    """
    if event.user_id != user_id:
        return None
    payload = event.payload
    if not isinstance(payload, ActionsPayload):
        return payload
    actions = [action for action in payload.actions if action.user_id in (None, "", user_id)]
    if len(actions) == len(payload.actions):
        return payload
    if not actions:
        return None
    return msgspec.structs.replace(payload, actions=actions, count=len(actions))


def _ranked(hit: Hit, rank: int) -> Hit:
    # The last digits of a similarity depend on how many vectors a store compares at once.
    dense = None if hit.dense_score is None else round(hit.dense_score, 6)
    return replace(hit, score=1 / rank, dense_score=dense, text_score=None)


def _said(problem: str | None) -> str | None:
    # The reason may name services of the operator.
    return None if problem is None else _OUTAGE


def _text(events: Iterable[SessionEvent] | Sequence[SessionEvent]) -> str:
    return "\n".join(event.description or event.title for event in events)
