"""Amplitude's events as payloads.

Read are, wherever they come from:

- the webhook destination, which sends one event in the format of the export
  (https://amplitude.com/docs/data/destination-catalog/webhooks);
- lines of the Export API (https://amplitude.com/docs/apis/analytics/export);
- requests of the HTTP V2 and the Batch API: `{"api_key": ..., "events": [...]}`
  (https://amplitude.com/docs/apis/analytics/http-v2).

`event_time` has no zone and is UTC. Amplitude has corrected it already, by what the device's clock
was wrong when it sent: `client_event_time + (server_received_time - client_upload_time)`. Where it is
missing, the same is computed here.
"""

from __future__ import annotations

import re
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
from autoplay_rag.sources.values import (
    at_of,
    first_text,
    has_words,
    id_of,
    list_of,
    object_of,
    text_of,
)
from autoplay_rag.sources.words import (
    Did,
    Element,
    custom,
    interacted,
    opened_page,
    opened_screen,
)

__all__ = ["amplitude_events", "from_amplitude"]

_OWN: Final = "[Amplitude] "
_NOT_ACTIONS: Final = frozenset(
    (
        "session_start",
        "session_end",
        "revenue_amount",
        "revenue",
        "[Amplitude] Start Session",
        "[Amplitude] End Session",
        "[Amplitude] Network Request",
        "[Amplitude] Web Vitals",
        "[Amplitude] Replay Captured",
        "[Amplitude] Attribution Captured",
        "[Amplitude] Page Blurred",
        "[Amplitude] Page Focused",
        "[Amplitude] Viewport Content Updated",
        "[Experiment] Exposure",
        "[Experiment] Assignment",
    )
)
_PAGES: Final = frozenset(("page viewed", "page view", "viewed page", "pageview"))
_SCREENS: Final = frozenset(("screen viewed", "screen view", "viewed screen"))
_OF_SEGMENT: Final = re.compile(r"(?:viewed|loaded) .+ (page|screen)")
"""Page and screen calls that Segment passed on, such as "Viewed Pricing Page" and "Loaded a Page"."""
_CALLED: Final = frozenset(("url", "path", "name", "title"))
"""Properties of such a call. An event of the product's own with such a name may have none."""
_HOW: Final = {
    "element clicked": "click",
    "element changed": "change",
    "rage click": "rage",
    "rage clicked": "rage",
    "dead click": "dead",
    "dead clicked": "dead",
}
_FORMS: Final = frozenset(("form started", "form submitted"))
_NO_SESSION: Final = frozenset(("", "-1", "0"))


def from_amplitude(
    body: Body,
    *,
    product_id: str = "",
    sessions: DeviceSessions | None = None,
    now: float | None = None,
) -> list[Payload]:
    """Turn what Amplitude sends or exports into payloads, one for each event that is an action.

    Events that are not actions (`session_start`, `$identify`, web vitals, ...) and events that cannot
    be read are left out. A retry makes equal payloads, so a pipeline counts them as duplicates.

    Args:
        body: The body of a request, or its JSON; see this module for the forms.
        product_id: The product of the payloads.
        sessions: Names the sessions of events without a `session_id`, across calls. By default they
            are cut within this body alone.
        now: Unix seconds of the receipt. An event that claims to be more than a day later has an
            unknown time.

    Raises:
        DecodeError: If the body is not a JSON object or array.

    Example:
        >>> event = {
        ...     "event_type": "[Amplitude] Element Clicked",
        ...     "user_id": "u1",
        ...     "event_time": "2026-03-03 08:01:14.807000",
        ...     "event_properties": {
        ...         "[Amplitude] Element Tag": "button",
        ...         "[Amplitude] Element Text": "Export",
        ...         "[Amplitude] Page URL": "https://app.test/reports/8812",
        ...     },
        ... }
        >>> from_amplitude(event, product_id="acme")[0].actions[0].description
        'User clicked the "Export" button'
    """
    found = amplitude_events(body, now=now)
    return payloads_of(found.events, product_id, names(sessions))


def amplitude_events(body: Body, *, now: float | None = None) -> Events:
    """Read the events of a body; see `from_amplitude`."""
    return read_events(_items(parse_body(body)), _event, now=now)


def _items(parsed: Any) -> Iterator[Any]:
    if isinstance(parsed, dict):
        for name in ("events", "event"):  # "event" in the first version of the API
            if isinstance(parsed.get(name), list | dict):
                parsed = parsed[name]
                break
    yield from parsed if isinstance(parsed, list) else [parsed]


def _event(item: Mapping[str, Any]) -> Event:
    name = text_of(item.get("event_type"))
    if not name:
        if "user_properties" in item:
            raise Rejected("a user, not an event", is_bad=False)
        raise Rejected("an event of Amplitude has a name, as a text, in `event_type`")
    properties = object_of(item.get("event_properties"))
    user_id, device = id_of(item.get("user_id")), id_of(item.get("device_id"))
    at, received_at = _times(item)
    session = id_of(item.get("session_id"))
    actor = f"device {device}" if device else f"user {user_id}" if user_id else ""
    has_session = actor and session not in _NO_SESSION
    return Event(
        id=id_of(item.get("insert_id")) or id_of(item.get("$insert_id")) or id_of(item.get("uuid")),
        at=at,
        received_at=received_at,
        user_id=user_id,
        email=_email(item),
        device=device,
        session_id=own_session("amp", actor, session) if has_session else "",
        url=_url(properties),
        did=_did(name, properties),
    )


def _email(item: Mapping[str, Any]) -> str:
    properties = object_of(item.get("user_properties"))
    for values in (properties, object_of(properties.get("$set"))):
        email = text_of(values.get("email"))
        if "@" in email:
            return email
    return ""


def _times(item: Mapping[str, Any]) -> tuple[float, float]:
    """When the event happened, and when Amplitude received it."""
    received = at_of(item.get("server_received_time")) or at_of(item.get("server_upload_time"))
    at = at_of(item.get("event_time")) or at_of(item.get("time"))
    if not at and (at := at_of(item.get("client_event_time"))):
        uploaded = at_of(item.get("client_upload_time"))
        at = round(at + (received - uploaded), 6) if received and uploaded else at
    return at, received


def _url(properties: Mapping[str, Any]) -> str:
    own = (f"{_OWN}Page URL", f"{_OWN}Page Location", f"{_OWN}Page View Location")
    return url_of(*(properties.get(name) for name in (*own, "page_url", "url", "page_location")))


def _did(name: str, properties: Mapping[str, Any]) -> Did:
    if name in _NOT_ACTIONS or name.startswith("$"):
        raise Rejected(f"{name[:60]} is not an action", is_bad=False)
    kind = name.removeprefix(_OWN).lower().replace("_", " ")
    if opened := _opened(kind, properties):
        return opened
    if name.startswith(_OWN) and kind in _HOW:
        return interacted(_HOW[kind], _element(properties))
    if name.startswith(_OWN) and kind in _FORMS:
        return _form(kind, properties)
    return custom(name.removeprefix(_OWN), properties)


def _opened(kind: str, properties: Mapping[str, Any]) -> Did | None:
    """A page or a screen that was opened; None if the event is another one."""
    if kind in _PAGES:
        title = first_text(properties, f"{_OWN}Page Title", "page_title", "title")
        path = first_text(properties, f"{_OWN}Page Path", "page_path", "path", "page")
        return opened_page(title, _url(properties) or path)
    if kind in _SCREENS:
        return opened_screen(first_text(properties, f"{_OWN}Screen Name", "screen_name", "name"))
    if (passed_on := _OF_SEGMENT.fullmatch(kind)) and not properties.keys().isdisjoint(_CALLED):
        title = first_text(properties, "title", "name")
        if passed_on[1] == "screen":
            return opened_screen(title)
        # Without a title, a path as the name says less than the words of the address.
        return opened_page("" if title.startswith("/") else title, _url(properties) or title)
    return None


def _form(kind: str, properties: Mapping[str, Any]) -> Did:
    names = (f"{_OWN}Form Name", "form_name", f"{_OWN}Form ID", "form_id")
    form = Element(first_text(properties, *names), "form")
    if kind == "form submitted":
        return interacted("submit", form)
    return Did("focus", f"{form.label} form".lstrip(), f"User started to fill in {form.name}")


def _element(properties: Mapping[str, Any]) -> Element:
    tag = first_text(properties, f"{_OWN}Element Tag")
    hierarchy = list_of(properties.get(f"{_OWN}Element Hierarchy"))
    # From the element outwards. Newer SDKs have its attributes there alone.
    innermost = object_of(hierarchy[0]) if hierarchy else {}
    attributes = {
        **object_of(innermost.get("attrs")),
        **object_of(properties.get(f"{_OWN}Element Attributes")),
    }
    label = (
        ""
        if tag.lower() in ("input", "select", "textarea")
        else first_text(properties, f"{_OWN}Element Text")
    )
    if not has_words(label):
        label = (
            first_text(properties, f"{_OWN}Element Aria Label")
            or first_text(attributes, "aria-label", "placeholder", "name", "title")
            or label
            or first_text(properties, f"{_OWN}Element ID")
        )
    return Element.of(
        tag, label, role=text_of(attributes.get("role")), kind=text_of(attributes.get("type"))
    )
