"""What the formats of all analytics tools share: bodies, events, and how events become payloads. Pure.

Each event becomes a payload of its own. So a retry is recognised by the key of its payload, however
the tool divides its events into requests. The pipeline puts the payloads of a session together again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from autoplay_rag._tolerant import json_name
from autoplay_rag.errors import DecodeError
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction
from autoplay_rag.sources.pages import canonical
from autoplay_rag.sources.values import uuid7_time
from autoplay_rag.sources.words import Did

__all__ = [
    "Body",
    "Event",
    "Events",
    "NameSession",
    "Rejected",
    "own_session",
    "parse_body",
    "payloads_of",
    "read_events",
]

_log = logging.getLogger(__name__)

Body: TypeAlias = bytes | bytearray | str | Mapping[str, Any] | list[Any]
"""A request's body as it came, or its JSON as Python values."""

_SEVERAL: Final = 2
_FUTURE: Final = 24 * 3600.0
"""Seconds that an event may be later than its receipt before its clock counts as wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing a person did, as an analytics tool reports it.

    Attributes:
        id: The tool's id of the event; "" if it has none. A retry has the same.
        at: Unix seconds; 0 if unknown.
        received_at: Unix seconds when the tool received it; 0 if unknown.
        user_id: The person; "" while the person is anonymous.
        email: The person's address; "" if unknown.
        device: The browser or the device; "" if unknown.
        session_id: The visit; "" if the tool names none.
        url: The page; "" if unknown.
        did: What was done.
    """

    id: str = ""
    at: float = 0.0
    received_at: float = 0.0
    user_id: str = ""
    email: str = ""
    device: str = ""
    session_id: str = ""
    url: str = ""
    did: Did = field(repr=False)

    @property
    def actor(self) -> str:
        """Who acts, for cutting sessions: the device, because it stays when the person signs in."""
        if self.device:
            return f"device {self.device}"
        return f"user {self.user_id}" if self.user_id else ""


class Rejected(Exception):  # noqa: N818 - not an error: most of these are as they should be
    """An event without an action. `is_bad` says whether it should have had one."""

    def __init__(self, why: str, *, is_bad: bool = True) -> None:
        super().__init__(why)
        self.is_bad = is_bad


@dataclass(slots=True)
class Events:
    """The events of one body.

    Attributes:
        events: Those that are actions, by time.
        skipped: How many were not actions, such as `$identify`.
        repeated: How many had the id of an earlier event of the same body.
        bad: How many could not be read.
    """

    events: list[Event] = field(default_factory=list)
    skipped: int = 0
    repeated: int = 0
    bad: int = 0


class NameSession(Protocol):
    """Names the session of an event whose tool names none."""

    def __call__(self, product_id: str, actor: str, at: float, /) -> str:
        """Return the session's id."""


def parse_body(body: Body) -> Any:
    """Read a body's JSON: an object, an array, or an object on each line.

    Raises:
        DecodeError: If it is not a JSON object or array.
    """
    parsed: Any = body
    if isinstance(body, bytes | bytearray | str):
        try:
            parsed = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            parsed = _parse_lines(body) or _parse_tolerantly(body)
    elif isinstance(body, Mapping):
        parsed = dict(body)
    if not isinstance(parsed, dict | list):
        raise DecodeError(f"the body is a JSON {json_name(parsed)}, not an object or an array")
    return parsed


def _parse_lines(body: bytes | bytearray | str) -> list[Any] | None:
    """Read lines of JSON, as exports have them; None if the body is something else."""
    data = body.encode("utf-8", "replace") if isinstance(body, str) else body
    lines = [line for line in data.split(b"\n") if line.strip()]
    if len(lines) < _SEVERAL or not isinstance(_parsed(lines[0]), dict):
        return None
    return [_parsed(line) for line in lines]  # a broken one costs itself alone


def _parsed(line: bytes | bytearray) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _parse_tolerantly(body: bytes | bytearray | str) -> Any:
    """Read JSON with what msgspec refuses: lone surrogates, NaN, bytes that are not UTF-8."""
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_int=_int)
    except RecursionError:
        raise DecodeError("the body's JSON is nested too deeply") from None
    except ValueError as error:
        # json's message quotes nothing of the text but a position.
        raise DecodeError(f"the body is not JSON: {error}") from None


def _int(digits: str) -> float:
    return int(digits) if len(digits) < 20 else math.inf  # noqa: PLR2004 - digits of 64 bits


def read_events(
    items: Iterable[Any],
    read: Callable[[Mapping[str, Any]], Event],
    *,
    now: float | None = None,
) -> Events:
    """Read the events of a body. One that cannot be read costs itself alone.

    Args:
        items: The events as JSON values.
        read: Reads one. Raises `Rejected` for one without an action.
        now: Unix seconds of the receipt. An event that claims to be more than a day later has an
            unknown time. None checks nothing.
    """
    found = Events()
    seen: set[str] = set()
    for item in items:
        try:
            if not isinstance(item, dict):
                raise Rejected(f"an event is a JSON {json_name(item)}, not an object")  # noqa: TRY301
            event = read(item)
        except Rejected as why:
            if why.is_bad:
                found.bad += 1
                _log.debug("an event could not be read: %s", why)
            else:
                found.skipped += 1
            continue
        if event.id:
            if event.id in seen:
                found.repeated += 1
                continue
            seen.add(event.id)
        found.events.append(_dated(event, now))
    found.events.sort(key=lambda event: event.at)  # stable: those without a time come first
    return found


def _dated(event: Event, now: float | None) -> Event:
    """The event with a time that can be true, from the best clock it has."""
    at, received = event.at, event.received_at
    if now is not None and received > now + _FUTURE:
        received = 0.0
    latest = received or now
    if latest is not None and at > latest + _FUTURE:
        at = 0.0
    # An id with a time is the same in a retry; the time of receipt may not be.
    at = at or uuid7_time(event.id) or received
    if (at, received) == (event.at, event.received_at):
        return event
    return replace(event, at=at, received_at=received)


def payloads_of(
    events: Iterable[Event], product_id: str, name_session: NameSession
) -> list[Payload]:
    """Turn events into payloads, each with one action.

    Args:
        events: By time.
        product_id: The product.
        name_session: Names the sessions that the tool does not name.
    """
    return [_payload(event, product_id, name_session) for event in events]


def _payload(event: Event, product_id: str, name_session: NameSession) -> ActionsPayload:
    session = event.session_id or None
    if session is None and (actor := event.actor):
        session = name_session(product_id, actor, event.at)
    user, email = event.user_id or None, event.email or None
    action = SlimAction(
        title=event.did.title,
        description=event.did.description,
        canonical_url=canonical(event.url),
        type=event.did.type,
        timestamp_start=event.at,
        timestamp_end=event.at,
        raw_url=event.url,
        session_id=session,
        user_id=user,
        email=email,
    )
    return ActionsPayload(
        product_id=product_id,
        session_id=session,
        user_id=user,
        email=email,
        actions=[action],
        count=1,
        forwarded_at=event.received_at or event.at,
    )


def own_session(prefix: str, actor: str, number: str) -> str:
    """The id of a session that a tool numbers per device, such as by the time of its start.

    Args:
        prefix: The tool.
        actor: The device. The id does not show it.
        number: The tool's number of the session.

    Example:
        >>> own_session("amp", "device d1", "1712345678500")
        'amp_16ddae0b3dc34739_1712345678500'
    """
    return (
        f"{prefix}_{blake2b(actor.encode('utf-8', 'replace'), digest_size=8).hexdigest()}_{number}"
    )
