"""PostHog's events as payloads.

Read are, wherever they come from:

- the webhook destination, as it is preset: `{"event": {...}, "person": {...}}`
  (https://posthog.com/docs/cdp/destinations/webhook);
- batches of the capture API: `{"batch": [...], "sent_at": ...}`, a list of events, or one event
  (https://posthog.com/docs/api/capture);
- pages of the events API, `{"results": [...]}`, answers of an events query with the column `*`, and
  lines of batch exports, where `properties` may be a text
  (https://posthog.com/docs/cdp/batch-exports).

Times follow PostHog's own rule (`plugin-server/src/worker/ingestion/timestamps.ts`): with the time of
the server (`now`) and of sending (`sent_at`), an event happened as long before the one as it did
before the other. Without `now`, the time of the event stands as it is: it must not depend on when a
retry comes.
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
    parse_body,
    payloads_of,
    read_events,
)
from autoplay_rag.sources.cutting import DeviceSessions, names
from autoplay_rag.sources.elements import element_of, elements_of_chain
from autoplay_rag.sources.pages import url_of
from autoplay_rag.sources.values import (
    at_of,
    first_text,
    id_of,
    list_of,
    object_of,
    text_of,
)
from autoplay_rag.sources.words import (
    Did,
    Element,
    custom,
    failed,
    interacted,
    opened_page,
    opened_screen,
)

__all__ = ["from_posthog", "posthog_events"]

_HOW: Final = {"$rageclick": "rage", "$dead_click": "dead", "$copy_autocapture": "copy"}
_AUTOCAPTURED: Final = frozenset(("$autocapture", *_HOW))
_TOUCHES: Final = {"touch": "click", "tap": "click", "": "click"}
_MOST_OFFSET: Final = 7 * 24 * 3600.0


def from_posthog(
    body: Body,
    *,
    product_id: str = "",
    sessions: DeviceSessions | None = None,
    now: float | None = None,
) -> list[Payload]:
    """Turn what PostHog sends or exports into payloads, one for each event that is an action.

    Events that are not actions (`$identify`, `$pageleave`, feature flags, ...) and events that cannot
    be read are left out. A retry makes equal payloads, so a pipeline counts them as duplicates.

    Args:
        body: The body of a request, or its JSON; see this module for the forms.
        product_id: The product of the payloads.
        sessions: Names the sessions of events without a `$session_id`, across calls. By default
            they are cut within this body alone.
        now: Unix seconds of the receipt. An event that claims to be more than a day later has an
            unknown time.

    Raises:
        DecodeError: If the body is not a JSON object or array.

    Example:
        >>> body = {
        ...     "event": {
        ...         "event": "$autocapture",
        ...         "distinct_id": "u1",
        ...         "timestamp": "2026-03-03T08:01:14Z",
        ...         "elements_chain": 'button:text="Export"',
        ...         "properties": {
        ...             "$session_id": "s1",
        ...             "$event_type": "click",
        ...             "$current_url": "https://app.test/reports/8812",
        ...         },
        ...     }
        ... }
        >>> print(from_posthog(body, product_id="acme")[0].to_text())
        Session s1 — 1 actions
        [0] click: User clicked the "Export" button — https://app.test/reports/:id
    """
    found = posthog_events(body, now=now)
    return payloads_of(found.events, product_id, names(sessions))


def posthog_events(body: Body, *, now: float | None = None) -> Events:
    """Read the events of a body; see `from_posthog`."""
    parsed = parse_body(body)
    envelope = parsed if isinstance(parsed, dict) else {}
    return read_events(_items(parsed), lambda item: _event(item, envelope), now=now)


def _items(parsed: Any) -> Iterator[Any]:
    if isinstance(parsed, dict):
        for name in ("batch", "results", "events"):
            if isinstance(parsed.get(name), list):
                parsed = parsed[name]
                break
    for item in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(item, list):
            item = _of_row(item)  # noqa: PLW2901
        # The webhook destination: the event and its person side by side.
        if isinstance(item, dict) and isinstance(item.get("event"), dict):
            yield {**item["event"], "person": item["event"].get("person") or item.get("person")}
        else:
            yield item


def _of_row(row: list[Any]) -> Any:
    """The event in a row of an events query, whose column `*` has it whole; else the row."""
    whole = (cell for cell in row if isinstance(cell, dict) and isinstance(cell.get("event"), str))
    return next(whole, row)


def _event(item: Mapping[str, Any], envelope: Mapping[str, Any]) -> Event:
    name = text_of(item.get("event"))
    if not name:
        raise Rejected("an event of PostHog has a name, as a text, in `event`")
    properties = object_of(item.get("properties"))
    person = object_of(item.get("person"))
    ids = (item.get("distinct_id"), item.get("distinctId"), properties.get("distinct_id"))
    distinct_id = next(filter(None, map(id_of, ids)), "")
    device = id_of(properties.get("$device_id"))
    user_id = _user_id(distinct_id, device, properties)
    at, received_at = _times(item, properties, envelope)
    return Event(
        id=id_of(item.get("uuid")) or id_of(properties.get("$insert_id")) or id_of(item.get("id")),
        at=at,
        received_at=received_at,
        user_id=user_id,
        email=_email(item, properties, person),
        device=device or ("" if user_id else distinct_id),
        session_id=id_of(properties.get("$session_id")),
        url=url_of(properties.get("$current_url")),
        did=_did(name, item, properties),
    )


def _user_id(distinct_id: str, device: str, properties: Mapping[str, Any]) -> str:
    """The person; "" while the person is anonymous: then `distinct_id` names the browser."""
    if user_id := id_of(properties.get("$user_id")):
        return user_id
    anonymous = (
        distinct_id == device
        or properties.get("$is_identified") is False
        or properties.get("$process_person_profile") is False
    )
    return "" if anonymous else distinct_id


def _email(
    item: Mapping[str, Any], properties: Mapping[str, Any], person: Mapping[str, Any]
) -> str:
    for values in (
        object_of(person.get("properties")),
        object_of(item.get("person_properties")),
        object_of(item.get("$set")),
        object_of(properties.get("$set")),
    ):
        email = text_of(values.get("email"))
        if "@" in email:
            return email
    return ""


def _times(
    item: Mapping[str, Any], properties: Mapping[str, Any], envelope: Mapping[str, Any]
) -> tuple[float, float]:
    """When the event happened, and when PostHog received it."""
    now = at_of(item.get("now")) or at_of(envelope.get("now"))
    sent = at_of(item.get("sent_at")) or at_of(envelope.get("sent_at"))
    said = at_of(item.get("timestamp")) or at_of(properties.get("$time"))
    received = now or at_of(item.get("created_at")) or sent
    offset = item.get("offset")
    if said and now and sent:
        said = now + (said - sent)
    elif not said and isinstance(offset, int | float) and 0 <= offset / 1000 < _MOST_OFFSET:
        said = max(0.0, (now or sent) - offset / 1000)
    return round(said, 6), received


def _did(name: str, item: Mapping[str, Any], properties: Mapping[str, Any]) -> Did:
    url = url_of(properties.get("$current_url"))
    if name == "$pageview":
        return opened_page(first_text(properties, "title", "$title"), url)
    if name == "$screen":
        return opened_screen(first_text(properties, "$screen_name", "$screen_title"))
    if name in _AUTOCAPTURED:
        how = _HOW.get(name) or text_of(properties.get("$event_type"))
        return interacted(_TOUCHES.get(how, how), _element(item, properties, how))
    if name == "$exception":
        return _exception(properties)
    if name.startswith("$"):
        raise Rejected(f"{name} is not an action", is_bad=False)
    return custom(name, properties)


def _element(item: Mapping[str, Any], properties: Mapping[str, Any], how: str) -> Element:
    chain = item.get("elements_chain") or properties.get("$elements_chain")
    elements = (
        elements_of_chain(chain)
        if isinstance(chain, str) and chain
        else list_of(properties.get("$elements")) or list_of(item.get("elements"))
    )
    return element_of(elements, how, text_of(properties.get("$el_text")))


def _exception(properties: Mapping[str, Any]) -> Did:
    listed = list_of(properties.get("$exception_list"))
    first = object_of(listed[0]) if listed else {}
    message = first_text(properties, "$exception_message") or text_of(first.get("value"))
    return failed(message, first_text(properties, "$exception_type") or text_of(first.get("type")))
