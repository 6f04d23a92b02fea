"""Segment's events as payloads. RudderStack's are the same, with sessions of their own.

Read are, wherever they come from:

- the webhook destinations of both: one event, or a list of events
  (https://www.twilio.com/docs/segment/connections/destinations/catalog/actions-webhook,
  https://www.rudderstack.com/docs/destinations/webhooks/setup-guide/);
- requests of the tracking API: `{"batch": [...], "sentAt": ...}`;
- lines of the archives of the destination for Amazon S3.

Segment corrects the device's clock: `timestamp = receivedAt - (sentAt - originalTimestamp)`
(https://www.twilio.com/docs/segment/connections/spec/common#timestamps). Where `timestamp` is missing,
the same is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from autoplay_rag.payloads import Payload
from autoplay_rag.sources.analytics import (
    Body,
    Event,
    Events,
    Rejected,
    own_session,
    parse_body,
    payloads_of,
    read_events,
)
from autoplay_rag.sources.cutting import DeviceSessions, names
from autoplay_rag.sources.pages import url_of
from autoplay_rag.sources.values import at_of, first_text, id_of, object_of, text_of
from autoplay_rag.sources.words import Did, custom, opened_page, opened_screen

__all__ = ["from_segment", "segment_events"]

_NOT_ACTIONS: Final = frozenset(("identify", "group", "alias", "delete", "merge", "record"))
_NOT_SAID: Final = frozenset(("Segment Signal Generated", "Segment Consent Preference Updated"))


def from_segment(
    body: Body,
    *,
    product_id: str = "",
    sessions: DeviceSessions | None = None,
    now: float | None = None,
) -> list[Payload]:
    """Turn what Segment or RudderStack sends into payloads, one for each event that is an action.

    Calls that are not actions (`identify`, `group`, `alias`) and events that cannot be read are left
    out. A retry makes equal payloads, so a pipeline counts them as duplicates.

    Args:
        body: The body of a request, or its JSON; see this module for the forms.
        product_id: The product of the payloads.
        sessions: Names the sessions of events without one, across calls: Segment's have none. By
            default they are cut within this body alone.
        now: Unix seconds of the receipt. An event that claims to be more than a day later has an
            unknown time.

    Raises:
        DecodeError: If the body is not a JSON object or array.

    Example:
        >>> event = {
        ...     "type": "track",
        ...     "event": "Report Exported",
        ...     "userId": "u1",
        ...     "timestamp": "2026-03-03T08:01:14.807Z",
        ...     "properties": {"format": "CSV"},
        ...     "context": {"page": {"url": "https://app.test/reports/8812"}},
        ... }
        >>> from_segment(event, product_id="acme")[0].actions[0].description
        'User triggered "Report Exported" (format: CSV)'
    """
    found = segment_events(body, now=now)
    return payloads_of(found.events, product_id, names(sessions))


def segment_events(body: Body, *, now: float | None = None) -> Events:
    """Read the events of a body; see `from_segment`."""
    parsed = parse_body(body)
    envelope = parsed if isinstance(parsed, dict) else {}
    return read_events(_items(parsed), lambda item: _event(item, envelope), now=now)


def _items(parsed: Any) -> Iterator[Any]:
    if isinstance(parsed, dict) and isinstance(parsed.get("batch"), list):
        parsed = parsed["batch"]
    yield from parsed if isinstance(parsed, list) else [parsed]


def _event(item: Mapping[str, Any], envelope: Mapping[str, Any]) -> Event:
    kind = text_of(item.get("type")).lower()
    if kind in _NOT_ACTIONS:
        raise Rejected(f"{kind} is not an action", is_bad=False)
    context = object_of(item.get("context"))
    page = object_of(context.get("page"))
    properties = object_of(item.get("properties"))
    user_id, device = id_of(item.get("userId")), id_of(item.get("anonymousId"))
    at, received_at = _times(item, envelope)
    url = url_of(properties.get("url"), page.get("url"))
    actor = f"device {device}" if device else f"user {user_id}" if user_id else ""
    session = _session(item, context)
    return Event(
        id=id_of(item.get("messageId")),
        at=at,
        received_at=received_at,
        user_id=user_id,
        email=_email(item, context),
        device=device,
        session_id=own_session("seg", actor, session) if session and actor else "",
        url=url,
        did=_did(kind, item, properties, page, url),
    )


def _session(item: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """The session that RudderStack numbers, or Segment's plug-in for Amplitude."""
    amplitude = object_of(object_of(item.get("integrations")).get("Actions Amplitude"))
    for value in (context.get("sessionId"), context.get("session_id"), amplitude.get("session_id")):
        session = id_of(value)
        if session and session not in ("-1", "0"):
            return session
    return ""


def _email(item: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    for values in (object_of(context.get("traits")), object_of(item.get("traits"))):
        email = text_of(values.get("email"))
        if "@" in email:
            return email
    return ""


def _times(item: Mapping[str, Any], envelope: Mapping[str, Any]) -> tuple[float, float]:
    """When the event happened, and when Segment received it."""
    received = at_of(item.get("receivedAt")) or at_of(envelope.get("receivedAt"))
    sent = at_of(item.get("sentAt")) or at_of(envelope.get("sentAt"))
    at = at_of(item.get("timestamp"))
    if not at and (at := at_of(item.get("originalTimestamp"))) and sent and received:
        at = round(received - (sent - at), 6)
    return at, received


def _did(
    kind: str,
    item: Mapping[str, Any],
    properties: Mapping[str, Any],
    page: Mapping[str, Any],
    url: str,
) -> Did:
    if kind == "page":
        title = first_text(properties, "title") or first_text(page, "title")
        return opened_page(
            title or text_of(item.get("name")) or first_text(properties, "name"), url
        )
    if kind == "screen":
        return opened_screen(text_of(item.get("name")) or first_text(properties, "name"))
    if kind != "track":
        raise Rejected("an event of Segment has a known `type`, such as track or page")
    name = text_of(item.get("event"))
    if not name:
        raise Rejected("a track call of Segment has a name, as a text, in `event`")
    if name in _NOT_SAID or name.startswith("$"):
        raise Rejected(f"{name} is not an action", is_bad=False)
    if name in ("Page Viewed", "Viewed Page"):
        return opened_page(first_text(properties, "title") or first_text(page, "title"), url)
    return custom(name, properties)
