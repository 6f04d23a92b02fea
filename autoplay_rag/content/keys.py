"""The key of a payload, the id of a chunk, the lane of a session. Pure.

Keys decide what is a duplicate, so they hold only what a connector repeats when it sends the
same payload again. `index`, `count`, user, email and conversation may differ between two
deliveries of one batch (an anonymous visit is linked, a counter restarts), and so may
`forwarded_at`.
"""

from __future__ import annotations

from hashlib import blake2b
from operator import attrgetter
from typing import Any

import msgspec

from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload

__all__ = [
    "PARTITIONS",
    "chunk_id",
    "lane_of",
    "partition_of",
    "payload_key",
    "session_lane",
]

PARTITIONS = 64
"""The number of partitions of all lanes. It is in the tables of PostgreSQL, and never changes."""

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
    """The key that two deliveries of one payload share: 32 hexadecimal digits (BLAKE2b-128).

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
        timeless = True  # people do ask the same question twice
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
        part: Which part this is, where one payload fills several chunks.

    Returns:
        32 hexadecimal digits: a UUID, as some stores (Qdrant, Weaviate) require.
    """
    which = (payload.product_id, payload.session_id, key)
    return _digest((*which, part) if part else which, 16)


def lane_of(payload: Payload, seq: int) -> int:
    """The lane a payload waits in: its session's, or one of its own without a session.

    Returns:
        A positive number of 63 bits for a session, `-seq` for a payload without one.
    """
    if not payload.session_id:
        return -seq
    return session_lane(payload.product_id, payload.session_id)


def session_lane(product_id: str, session_id: str) -> int:
    """The lane of a session: a positive number of 63 bits."""
    return int(_digest((product_id, session_id), 8), 16) >> 1


def partition_of(lane: int) -> int:
    """The partition of a lane. In SQL: `lane & 63`.

    Example:
        >>> partition_of(130), partition_of(-1)
        (2, 63)
    """
    return lane & (PARTITIONS - 1)


def _digest(value: object, size: int) -> str:
    return blake2b(_encode(value), digest_size=size).hexdigest()
