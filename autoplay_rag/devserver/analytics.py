"""The sessions of a recording as analytics tools would report them, for trying without an account.

A tool reports less than the connector: not what was typed or selected, and not every kind of element.
What a product shows to its user is an event of its own (`message shown`), as products do that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from autoplay_rag.content.keys import payload_key
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction
from autoplay_rag.sources.specs import AnalyticsTool
from autoplay_rag.sources.tools import SECRET_HEADER, SIGNATURE_HEADER, segment_signature

__all__ = ["delivery", "events_of", "headers_for"]

_NAMED: Final = re.compile(
    r'User (?:clicked|switched|submitted|typed(?: ".*")? into|selected ".*" in) the "(.*)"(?: ([a-z ]+))?'
)
_CHOSE: Final = "User chose the file"
_SAW: Final = re.compile(r'User saw the message "(.*)"')
_TAGS: Final[Mapping[str, tuple[str, dict[str, str]]]] = {
    "button": ("button", {}),
    "link": ("a", {}),
    "tab": ("div", {"role": "tab"}),
    "menu item": ("div", {"role": "menuitem"}),
    "row": ("tr", {}),
    "column": ("th", {}),
    "icon": ("svg", {}),
    "toggle": ("button", {"role": "switch"}),
    "checkbox": ("input", {"type": "checkbox"}),
    "dropdown": ("select", {}),
    "picker": ("select", {}),
    "field": ("input", {"type": "text"}),
    "form": ("form", {}),
}


class _Done(NamedTuple):
    """One action, as a tool sees it."""

    kind: str
    """ "page", "click", "change", "submit" or "message"."""
    label: str
    tag: str
    attributes: dict[str, str]


def events_of(payload: Payload, tool: AnalyticsTool) -> list[dict[str, Any]]:
    """What a tool reports of a payload: an event for each action, as its webhook sends it.

    Args:
        payload: A batch of actions. Other payloads have no events.
        tool: The tool.

    Example:
        >>> click = SlimAction("", 'User clicked the "Export" button', type="click")
        >>> events_of(ActionsPayload("acme", "s1", "u1", actions=[click]), "posthog")[0]["event"]["event"]
        '$autocapture'
    """
    if not isinstance(payload, ActionsPayload):
        return []
    make = _MAKERS[tool]
    key = payload_key(payload)
    return [
        make(payload, action, _done(action), str(uuid5(NAMESPACE_URL, f"{key}/{number}")))
        for number, action in enumerate(payload.actions)
    ]


def delivery(events: Iterable[Mapping[str, Any]], tool: AnalyticsTool) -> bytes:
    """The body of a request with events; of one as the tool's webhook sends it, of several as a batch."""
    some = list(events)
    if len(some) == 1:
        return json.dumps(some[0]).encode()
    name = "events" if tool == "amplitude" else "batch"
    if tool == "posthog":
        some = [{**one["event"], "person": one["person"]} for one in some]
    return json.dumps({name: some}).encode()


def headers_for(body: bytes, tool: AnalyticsTool, secret: str) -> dict[str, str]:
    """The headers with which a tool proves that it knows the secret."""
    headers = {"content-type": "application/json"}
    if secret and tool == "segment":
        headers[SIGNATURE_HEADER] = segment_signature(body, secret)
    elif secret:
        headers[SECRET_HEADER] = secret
    return headers


def _done(action: SlimAction) -> _Done:
    if action.type == "pageview":
        return _Done("page", action.title, "", {})
    if saw := _SAW.fullmatch(action.description):
        return _Done("message", saw[1], "", {})
    if action.description.startswith(_CHOSE):
        return _Done("change", "", "input", {"type": "file"})
    named = _NAMED.fullmatch(action.description)
    label, role = (named[1], named[2] or "") if named else (action.title, "")
    tag, attributes = _TAGS.get(role, ("div", {}))
    if action.type == "type":
        tag, attributes = ("input", {"type": "text"})
    kinds = {"type": "change", "select": "change", "submit": "submit"}
    return _Done(kinds.get(action.type, "click"), label, tag, attributes)


def _posthog(
    payload: ActionsPayload, action: SlimAction, done: _Done, number: str
) -> dict[str, Any]:
    device, user = _device(payload), payload.user_id
    properties: dict[str, Any] = {
        "$current_url": action.raw_url,
        "$device_id": device,
        "$session_id": payload.session_id,
        "$is_identified": user is not None,
        "$lib": "web",
    }
    name = "$autocapture"
    if done.kind == "page":
        name = "$pageview"
        properties["title"] = done.label
    elif done.kind == "message":
        name = "message shown"
        properties["message"] = done.label
    else:
        properties["$event_type"] = done.kind
    email = {"email": payload.email} if payload.email else {}
    return {
        "event": {
            "uuid": number,
            "event": name,
            "distinct_id": user or device,
            "timestamp": _iso(action.timestamp_start),
            "elements_chain": _chain(done) if name == "$autocapture" else "",
            "properties": {key: value for key, value in properties.items() if value is not None},
        },
        "person": {"id": str(uuid5(NAMESPACE_URL, user or device)), "properties": email},
    }


def _chain(done: _Done) -> str:
    attributes = {f"attr__{name}": value for name, value in done.attributes.items()}
    named_by_attribute = done.tag in ("input", "select", "form")
    if done.label:
        attributes["attr__aria-label" if named_by_attribute else "text"] = done.label
    said = "".join(
        f'{name}="{value.replace(chr(34), chr(92) + chr(34))}"'
        for name, value in sorted(attributes.items())
    )
    return f'{done.tag}.ui:{said};main:nth-child="1";body:nth-child="1"'


def _amplitude(
    payload: ActionsPayload, action: SlimAction, done: _Done, number: str
) -> dict[str, Any]:
    device = _device(payload)
    properties: dict[str, Any] = {"[Amplitude] Page URL": action.raw_url}
    names = {
        "page": "[Amplitude] Page Viewed",
        "click": "[Amplitude] Element Clicked",
        "change": "[Amplitude] Element Changed",
        "submit": "[Amplitude] Form Submitted",
        "message": "message shown",
    }
    if done.kind == "page":
        properties["[Amplitude] Page Title"] = done.label
    elif done.kind == "message":
        properties["message"] = done.label
    elif done.kind == "submit":
        properties["[Amplitude] Form Name"] = done.label
    else:
        properties["[Amplitude] Element Tag"] = done.tag
        properties["[Amplitude] Element Attributes"] = done.attributes
        is_input = done.tag in ("input", "select")
        properties[f"[Amplitude] Element {'Aria Label' if is_input else 'Text'}"] = done.label
    session = int(blake2b((payload.session_id or "").encode(), digest_size=6).hexdigest(), 16)
    email = {"email": payload.email} if payload.email else {}
    return {
        "event_type": names[done.kind],
        "$insert_id": number,
        "user_id": payload.user_id,
        "device_id": device,
        "session_id": session if payload.session_id else -1,
        "event_time": _iso(action.timestamp_start).replace("T", " ").removesuffix("Z"),
        "event_properties": properties,
        "user_properties": email,
    }


def _segment(
    payload: ActionsPayload, action: SlimAction, done: _Done, number: str
) -> dict[str, Any]:
    call: dict[str, Any] = {
        "messageId": number,
        "anonymousId": _device(payload),
        "userId": payload.user_id,
        "timestamp": _iso(action.timestamp_start),
        "context": {
            "page": {"url": action.raw_url},
            "traits": {"email": payload.email} if payload.email else {},
        },
    }
    if done.kind == "page":
        return {**call, "type": "page", "properties": {"title": done.label, "url": action.raw_url}}
    names = {"click": "Element Clicked", "change": "Field Changed", "submit": "Form Submitted"}
    roles = {"button": "Button Clicked", "a": "Link Clicked"}
    if done.kind == "message":
        return {
            **call,
            "type": "track",
            "event": "message shown",
            "properties": {"message": done.label},
        }
    name = roles.get(done.tag, names["click"]) if done.kind == "click" else names[done.kind]
    return {**call, "type": "track", "event": name, "properties": {"label": done.label}}


_MAKERS: Final[Mapping[AnalyticsTool, Callable[..., dict[str, Any]]]] = {
    "posthog": _posthog,
    "amplitude": _amplitude,
    "segment": _segment,
}


def _device(payload: ActionsPayload) -> str:
    """The browser: the samples have one for each session."""
    name = payload.session_id or payload.user_id or "visitor"
    return f"device-{blake2b(name.encode(), digest_size=6).hexdigest()}"


def _iso(at: float) -> str:
    return (
        datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
        + "Z"
    )
