"""From a session's payloads to chunks: text, id and metadata. Pure.

Neighbouring batches of actions share a chunk up to a number of actions; a summary or a chat
turn is a chunk of its own. A payload stands in one chunk whole, unless it alone has more
actions than a chunk may: then it fills several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from autoplay_rag.content.identity import NOBODY, People, changes_hands
from autoplay_rag.content.keys import chunk_id
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload

__all__ = [
    "Accepted",
    "Chunk",
    "Draft",
    "Metadata",
    "Vector",
    "draft_chunks",
    "is_empty",
    "metadata_of",
    "span_of",
]

Vector: TypeAlias = Sequence[float]
"""One embedding; the package itself makes `array.array("f")`."""

Metadata: TypeAlias = Mapping[str, str | int | float]
"""Flat: no nesting, no None; an unknown value is absent."""

_PEOPLE = ("user_id", "conversation_id", "email")

_URLS_LENGTH = 1000
"""Characters of URLs kept in metadata: stores and splitters choke on long values."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The text, id and metadata that become one vector.

    Attributes:
        id: Deterministic: the same payloads give the same id.
        text: What is embedded and shown; never empty.
        metadata: Flat. `product_id`, `session_id`, `user_id`, `conversation_id`, `kind`
            ("actions", "summary" or "chat"), `started_at`, `ended_at`, `forwarded_at` (Unix
            seconds), `action_count`, `urls` (one string, space-separated). Unknown ones are absent.
    """

    id: str
    text: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Accepted:
    """A payload with its place in the journal.

    Attributes:
        seq: Its sequence number.
        key: Its `payload_key`.
        payload: As it is kept.
        people: Who its session belongs to by then; a summary does not say.
    """

    seq: int
    key: str
    payload: Payload
    people: People = NOBODY


@dataclass(frozen=True, slots=True)
class Draft:
    """A chunk before rendering: its id and its payloads."""

    id: str
    payloads: Sequence[Payload]
    sources: Sequence[Accepted]


def is_empty(payload: Payload) -> bool:
    """Whether there is nothing in a payload that could be found."""
    if isinstance(payload, ActionsPayload):
        return not payload.actions
    if isinstance(payload, ChatTurn):
        return not (payload.question.strip() or payload.answer.strip())
    return not payload.summary.strip()


def draft_chunks(accepted: Iterable[Accepted], max_actions: int) -> Iterator[Draft]:
    """Divide payloads, in order, over chunks.

    Args:
        accepted: Payloads in the order received. Those of different sessions, or of different
            people who had one session after another, never share a chunk.
        max_actions: The most actions in one chunk.
    """
    group: list[Accepted] = []
    size = 0
    person = None
    for item in accepted:
        payload = item.payload
        if not isinstance(payload, ActionsPayload):
            yield from _joined(group)
            group, size, person = [], 0, None
            yield Draft(chunk_id(payload, item.key), [payload], [item])
            continue
        count = len(payload.actions)
        user_id = item.people.user_id
        if group and (
            size + count > max_actions
            or not _together(group[0].payload, payload)
            or changes_hands(person, user_id)
        ):
            yield from _joined(group)
            group, size, person = [], 0, None
        person = user_id or person
        if count > max_actions:
            yield from _parts(item, payload, max_actions)
            continue
        group.append(item)
        size += count
    yield from _joined(group)


def _together(one: Payload, other: Payload) -> bool:
    session = one.session_id
    return bool(session) and (one.product_id, session) == (other.product_id, other.session_id)


def _joined(group: Sequence[Accepted]) -> Iterator[Draft]:
    if group:
        payloads = [item.payload for item in group]
        yield Draft(chunk_id(payloads[0], group[0].key), payloads, list(group))


def _parts(item: Accepted, payload: ActionsPayload, max_actions: int) -> Iterator[Draft]:
    for part, start in enumerate(range(0, len(payload.actions), max_actions)):
        actions = payload.actions[start : start + max_actions]
        share = msgspec.structs.replace(payload, actions=actions, count=len(actions))
        yield Draft(chunk_id(payload, item.key, part), [share], [item])


def metadata_of(
    payloads: Sequence[Payload], *, people: People = NOBODY, include_email: bool = False
) -> Metadata:
    """What a search can filter by, flat; what is unknown is absent.

    Args:
        payloads: Those of one chunk, in order.
        people: Who their session belongs to; used where the payloads do not say.
        include_email: Whether a person's address may go into the store.
    """
    first = payloads[0]
    found: dict[str, str | float] = {}
    if first.product_id:
        found["product_id"] = _storable(first.product_id)
    if first.session_id:
        found["session_id"] = _storable(first.session_id)
    for name in _PEOPLE if include_email else _PEOPLE[:2]:
        if known := _known(payloads, name) or getattr(people, name, None):
            found[name] = _storable(known)
    found["kind"] = first.kind
    started, ended, forwarded, urls = _gathered(payloads)
    if started:
        found["started_at"] = started
    if ended:
        found["ended_at"] = ended
    if forwarded:
        found["forwarded_at"] = forwarded
    if urls:
        found["action_count"] = len(urls)
        if joined := _joined_urls(dict.fromkeys(urls)):
            found["urls"] = _storable(joined)
    return found


def _gathered(payloads: Sequence[Payload]) -> tuple[float, float, float, list[str]]:
    """When it started, ended and was forwarded, and each action's URL."""
    started = ended = forwarded = 0.0
    urls: list[str] = []
    for payload in payloads:
        forwarded = max(forwarded, payload.forwarded_at)
        if isinstance(payload, ActionsPayload):
            urls += [action.canonical_url for action in payload.actions]
        since, until = span_of(payload)
        if since and (not started or since < started):
            started = since
        ended = max(ended, until)
    return started, ended, forwarded, urls


def span_of(payload: Payload) -> tuple[float, float]:
    """When a payload's first action started and its last one ended, in Unix seconds; 0 if unknown.

    Example:
        >>> from autoplay_rag import SlimAction
        >>> action = SlimAction(timestamp_start=5.0, timestamp_end=7.0)
        >>> span_of(ActionsPayload(actions=[action], forwarded_at=9.0))
        (5.0, 7.0)
    """
    if isinstance(payload, ActionsPayload):
        actions = payload.actions
        times = [action.timestamp_start for action in actions if action.timestamp_start]
        if times:
            return min(times), max(times + [action.timestamp_end for action in actions])
    return payload.forwarded_at, payload.forwarded_at


def _storable(text: str) -> str:
    # PostgreSQL and others refuse text with a NUL in it.
    return text.replace("\0", "\ufffd")


def _known(payloads: Sequence[Payload], name: str) -> str | None:
    """The first that is known: a visit may be linked to a person on its way."""
    for payload in payloads:
        found: str | None = getattr(payload, name, None)
        if found:
            return found
        if isinstance(payload, ActionsPayload):
            for action in payload.actions:
                found = getattr(action, name)
                if found:
                    return found
    return None


def _joined_urls(urls: Iterable[str]) -> str:
    joined = " ".join(filter(None, urls))
    if len(joined) <= _URLS_LENGTH:
        return joined
    # Whole ones, as many as there is room for.
    return joined[: _URLS_LENGTH + 1].rpartition(" ")[0]
