"""Who is who: the key of a payload, the id of a chunk, the lane of a session. All pure.

Keys decide what is a duplicate, so they hold only what a connector repeats when it sends the
same thing again. `index`, `count`, user, email and conversation change between two deliveries
of one batch (an anonymous visit is linked, a counter starts anew), and so does `forwarded_at`.
"""

from __future__ import annotations

from hashlib import blake2b
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["NOBODY", "People", "changes_hands", "chunk_id", "lane_of", "payload_key", "people_of"]

_encode = msgspec.msgpack.Encoder().encode
_content_of = attrgetter(
    "type",
    "title",
    "description",
    "canonical_url",
    "raw_url",
    "timestamp_start",
    "timestamp_end",
)


def payload_key(payload: Payload) -> str:
    """What makes two deliveries the same payload: 32 hexadecimal digits (BLAKE2b-128).

    `forwarded_at` counts only where the rest cannot tell two events apart: without a session,
    and where an action has no timestamp. There, storing one twice is better than losing one.

    Example:
        >>> from autoplay_rag.payloads import SummaryPayload
        >>> first = SummaryPayload("acme", "s1", "Exported a report.", 3, forwarded_at=1.0)
        >>> again = SummaryPayload("acme", "s1", "Exported a report.", 4, forwarded_at=9.0)
        >>> payload_key(first) == payload_key(again)
        True
    """
    content: Any
    timeless = not payload.session_id
    if isinstance(payload, ActionsPayload):
        content = list(map(_content_of, payload.actions))
        timeless = timeless or 0.0 in [action.timestamp_start for action in payload.actions]
    elif isinstance(payload, ChatTurn):
        content = (payload.question, payload.answer)
        timeless = True  # people do ask the same thing twice
    else:
        content = payload.summary
    forwarded_at = payload.forwarded_at if timeless else None
    return _digest(
        (payload.kind, payload.product_id, payload.session_id, content, forwarded_at), 16
    )


def chunk_id(payload: Payload, key: str, part: int = 0) -> str:
    """The id of the chunk that begins with this payload.

    Args:
        payload: The first payload of the chunk.
        key: Its `payload_key`.
        part: Which piece this is, where one payload fills several chunks.

    Returns:
        32 hexadecimal digits: a UUID, as some stores (Qdrant, Weaviate) want it.
    """
    which = (payload.product_id, payload.session_id, key)
    return _digest((*which, part) if part else which, 16)


def lane_of(payload: Payload, seq: int) -> int:
    """The queue a payload waits in: its session's own, or its very own without a session.

    Returns:
        A positive number of 63 bits for a session, `-seq` for a payload without one.
    """
    if not payload.session_id:
        return -seq
    return int(_digest((payload.product_id, payload.session_id), 8), 16) >> 1


def changes_hands(before: str | None, now: str | None) -> bool:
    """Whether a session that was one person's is another's: nothing of the two may mix."""
    return now is not None and before not in (None, now)


class People(NamedTuple):
    """Whose something is, as far as is known.

    Attributes:
        user_id: The person.
        conversation_id: Their chat thread.
    """

    user_id: str | None = None
    conversation_id: str | None = None

    def after(self, payload: Payload) -> People:
        """Whose the session is once a payload of it has come.

        A session that changes hands starts anew: the next person's chat thread is not the last's.

        Example:
            >>> from autoplay_rag.payloads import SummaryPayload
            >>> ann = People().after(ActionsPayload("acme", "s1", "ann"))
            >>> ann.after(SummaryPayload("acme", "s1", "Exported a report."))
            People(user_id='ann', conversation_id=None)
        """
        user_id, conversation_id = people_of(payload)
        if changes_hands(self.user_id, user_id):
            return People(user_id, conversation_id)
        return People(user_id or self.user_id, conversation_id or self.conversation_id)


NOBODY = People()
"""Nobody that is known."""


def people_of(payload: Payload) -> People:
    """Person and chat thread, where a payload or one of its actions names them.

    Example:
        >>> from autoplay_rag.payloads import SlimAction
        >>> people_of(ActionsPayload("acme", "s1", actions=[SlimAction(user_id="u1")]))
        People(user_id='u1', conversation_id=None)
    """
    if isinstance(payload, SummaryPayload):
        return NOBODY
    user_id, conversation_id = payload.user_id, payload.conversation_id
    if isinstance(payload, ActionsPayload):
        user_id = user_id or next((a.user_id for a in payload.actions if a.user_id), None)
        conversation_id = conversation_id or next(
            (a.conversation_id for a in payload.actions if a.conversation_id), None
        )
    return People(user_id or None, conversation_id or None)


def _digest(value: object, size: int) -> str:
    return blake2b(_encode(value), digest_size=size).hexdigest()
