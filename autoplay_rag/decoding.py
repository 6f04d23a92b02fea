"""From the bytes of one event to a payload: strictly first, tolerantly where that fails.

The fast path is strict (msgspec, compiled). Only an event that fails there is read a second time,
value by value: a value of a wrong type costs itself, or the one action it stands in, never the
payload around it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Final

import msgspec

from autoplay_rag._tolerant import OnRepair, json_name, read_tolerantly
from autoplay_rag.errors import DecodeError, UnknownPayloadError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["decode"]

_TYPES: Final[dict[str, type[ActionsPayload | SummaryPayload | ChatTurn]]] = {
    cls.kind: cls for cls in (ActionsPayload, SummaryPayload, ChatTurn)
}
_INT64_DIGITS: Final = 20
_decode_strictly: Callable[[bytes | str], Payload] = msgspec.json.Decoder(
    ActionsPayload | SummaryPayload | ChatTurn
).decode


def decode(data: bytes | str, *, on_repair: OnRepair | None = None) -> Payload:
    """Read the payload in one event's data.

    Args:
        data: The JSON of one event.
        on_repair: Called once for each value that had a wrong type and was given up or converted,
            with its place and what was found there (never the value itself).

    Returns:
        The payload, complete except for the values given up.

    Raises:
        UnknownPayloadError: If the event is of a type this version does not know.
        DecodeError: If the data is not a JSON object.

    Example:
        >>> decode(b'{"type": "summary", "session_id": "s1", "summary": "Exported a report."}').kind
        'summary'
    """
    try:
        return _decode_strictly(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _decode_tolerantly(data, on_repair or _ignore)


def _decode_tolerantly(data: bytes | str, on_repair: OnRepair) -> Payload:
    try:
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        found = json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise DecodeError("an event's JSON is nested too deeply") from None
    except ValueError as error:
        # json's message quotes nothing of the text but a position.
        raise DecodeError(f"an event is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DecodeError(f"an event is a JSON {json_name(found)}, not an object")
    type_ = found.get("type")
    if not isinstance(type_, str):
        raise UnknownPayloadError("" if type_ is None else json_name(type_))
    cls = _TYPES.get(type_)
    if cls is None:
        raise UnknownPayloadError(type_)
    return read_tolerantly(cls, found, on_repair)


def _parse_int(digits: str) -> int | float:
    """Python refuses to read very long integers; one such number is not worth the event."""
    return int(digits) if len(digits) <= _INT64_DIGITS else math.inf


def _ignore(_: str) -> None:
    """What `on_repair` is when nobody asked."""
