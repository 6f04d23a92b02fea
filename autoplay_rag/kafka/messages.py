"""A payload as a message of a topic, and back.

| part | content |
|---|---|
| key | `PRODUCT/SESSION` in UTF-8, so that a session stays in one partition; none without a session |
| value | the payload in JSON, in the wire format of the connector |
| header `type` | `actions`, `summary` or `chat`, as in the value |
| header `content-type` | `application/json` |

Only the value is read. The rest is for the partitioner, and for other programs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from autoplay_rag.decoding import decode
from autoplay_rag.errors import DecodeError
from autoplay_rag.payloads import Payload

__all__ = ["Message", "headers_of", "key_of", "message_of", "payload_of"]

_JSON: Final = b"application/json"
_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """What is sent to a topic.

    Attributes:
        key: Decides about the partition; None for any.
        value: The payload.
        headers: Name and value of each.
    """

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def key_of(product_id: str, session_id: str | None) -> bytes | None:
    """Return the key of a session; None without a session.

    Example:
        >>> key_of("acme", "s1")
        b'acme/s1'
    """
    return f"{product_id}/{session_id}".encode("utf-8", "replace") if session_id else None


def headers_of(kind: str) -> tuple[tuple[str, bytes], ...]:
    """Return the headers of a payload's message.

    Args:
        kind: The type of the payload.

    Example:
        >>> headers_of("summary")
        (('type', b'summary'), ('content-type', b'application/json'))
    """
    return (("type", kind.encode()), ("content-type", _JSON))


def message_of(payload: Payload) -> Message:
    """Return the message that carries a payload.

    Example:
        >>> from autoplay_rag import SummaryPayload
        >>> message_of(SummaryPayload("acme", "s1", "Exported a report.", 3, 1.0)).headers[0]
        ('type', b'summary')
    """
    try:
        value = _encode(payload)
    except UnicodeEncodeError:  # lone surrogates, in a payload that did not come from `decode`
        payload = type(payload).from_dict(payload.to_dict())
        value = _encode(payload)
    return Message(key_of(payload.product_id, payload.session_id), value, headers_of(payload.kind))


def payload_of(value: bytes | None) -> Payload:
    """Read the payload in a message.

    Args:
        value: The value of the message.

    Raises:
        DecodeError: If it is no payload. The error quotes nothing of it.

    Example:
        >>> payload_of(b'{"type": "summary", "session_id": "s1", "summary": "Exported."}').kind
        'summary'
    """
    if value is None:
        raise DecodeError("it has no value")
    return decode(value)
