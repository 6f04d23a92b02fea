"""What happened in an event, in the words the connector uses: "User clicked the "Export" button". Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from autoplay_rag.sources.pages import page_words
from autoplay_rag.sources.values import first_text, text_of

__all__ = [
    "Did",
    "Element",
    "custom",
    "failed",
    "interacted",
    "opened_page",
    "opened_screen",
    "words_of_name",
]

_LONGEST_LABEL: Final = 120
_LONGEST_VALUE: Final = 80
_LONGEST_MESSAGE: Final = 200
_MOST_PROPERTIES: Final = 5

_TYPING: Final = frozenset(("field", "text box"))
_CLICKED_TO_CHANGE: Final = frozenset(("checkbox", "toggle", "radio button"))
_CLICKS: Final = {"rage": " again and again", "dead": ", and nothing happened"}
_INPUTS: Final = {
    "checkbox": "checkbox",
    "radio": "radio button",
    "submit": "button",
    "button": "button",
    "reset": "button",
    "image": "button",
    "file": "file field",
}
_TAGS: Final = {
    "a": "link",
    "button": "button",
    "select": "dropdown",
    "option": "option",
    "textarea": "field",
    "form": "form",
    "label": "label",
    "img": "image",
    "svg": "icon",
    "summary": "heading",
    "tr": "row",
    "td": "cell",
    "th": "column",
    "li": "list item",
}
_ROLES: Final = {
    "button": "button",
    "link": "link",
    "tab": "tab",
    "menuitem": "menu item",
    "menuitemcheckbox": "menu item",
    "menuitemradio": "menu item",
    "checkbox": "checkbox",
    "switch": "toggle",
    "radio": "radio button",
    "option": "option",
    "combobox": "dropdown",
    "listbox": "dropdown",
    "textbox": "field",
    "searchbox": "field",
    "row": "row",
    "gridcell": "cell",
    "columnheader": "column",
    "treeitem": "entry",
    "slider": "slider",
    "img": "image",
}

_CLICKED: Final = re.compile(
    r"(?:click(?:ed|s)?|tap(?:ped)?|press(?:ed)?)\s+(?:on\s+)?(?:the\s+|a\s+)?"
    r"(button|link|tab|cta|element|icon|menu item|card)"
    r"|(button|link|tab|cta|element|icon|menu item|card)\s+(?:was\s+)?(?:click(?:ed)?|tap(?:ped)?|press(?:ed)?)",
    re.IGNORECASE,
)
"""Names of events that only say that something was clicked; what it was is in a property."""
_SUBMITTED: Final = re.compile(
    r"form submi(?:tted|t)|submit(?:ted)? (?:a |the )?form", re.IGNORECASE
)
_SHOWN: Final = re.compile(
    r"(?:error |success |warning )?(?:message|toast|alert|notification|banner|error|snackbar) "
    r"(?:was )?(?:shown|displayed|seen|viewed)",
    re.IGNORECASE,
)
_LABELS: Final = (
    "text", "label", "button_text", "buttonText", "button_name", "buttonName", "element_text",
    "link_text", "linkText", "button", "cta", "title", "name",
)  # fmt: skip
_FORM_LABELS: Final = ("form_name", "formName", "form", "label", "name", "title")
_ADDRESSES: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_NOT_SAID: Final = frozenset(
    (
        "account", "address", "age", "anonymous", "at", "auth", "birth", "birthday", "browser",
        "card", "contact", "customer", "cvc", "date", "device", "distinct", "dob", "email",
        "employee", "first", "full", "gender", "guid", "hash", "href", "iban", "id", "ids", "ip",
        "key", "last", "lat", "latitude", "library", "lng", "longitude", "mail", "member", "os",
        "passwd", "password", "path", "person", "phone", "referrer", "secret", "session", "ssn",
        "time", "timestamp", "token", "uri", "url", "user", "username", "utm", "uuid", "version",
    )
)  # fmt: skip
"""Words in names of properties that say little about what was done, or that say who did it."""
_INTERNAL: Final = ("$", "_", "[", "")
"""The first characters of properties that a tool adds itself."""
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN: Final = re.compile(r"[_\s]+|(?<=\w)[.:/-](?=\w)")


class Did(NamedTuple):
    """What a person did, in the words of an action.

    Attributes:
        type: As in `SlimAction`.
        title: The page's or the element's name.
        description: What happened.
    """

    type: str
    title: str
    description: str


class Element(NamedTuple):
    """An element of a page.

    Attributes:
        label: Its text or its name; "" if it has none.
        role: What it is: "button", "link", "field", ...
    """

    label: str = ""
    role: str = "element"

    @classmethod
    def of(cls, tag: str, label: Any, *, role: str = "", kind: str = "") -> Element:
        """Make an element.

        Args:
            tag: The HTML tag.
            label: Its text, or what names it.
            role: Its attribute `role`.
            kind: The attribute `type` of an `input`.

        Example:
            >>> Element.of("input", "Remember me", kind="checkbox")
            Element(label='Remember me', role='checkbox')
        """
        tag = tag.lower()
        said = _ROLES.get(role.lower()) if role else None
        if said is None and tag == "input":
            said = _INPUTS.get(kind.lower(), "field")
        return cls(text_of(label, _LONGEST_LABEL), said or _TAGS.get(tag, "element"))

    @property
    def is_interactive(self) -> bool:
        """Whether it is something to click or to fill in, and not a part or a container of that."""
        return self.role not in ("element", "icon", "image", "label", "list item", "cell", "row")

    @property
    def name(self) -> str:
        """The element with its label, as in `the "Export" button`."""
        if not self.label:
            return f"an unlabeled {self.role}"
        return (
            f'the "{self.label}" {self.role}' if self.role != "element" else f'the "{self.label}"'
        )


def opened_page(title: str, url: str) -> Did:
    """A page was opened.

    Example:
        >>> opened_page("", "https://app.test/settings/billing").description
        'User visited the "Billing" page'
    """
    name = title or page_words(url)
    return Did(
        "pageview", name, f'User visited the "{name}" page' if name else "User visited a page"
    )


def opened_screen(name: str) -> Did:
    """A screen of an app was opened."""
    return Did(
        "pageview", name, f'User visited the "{name}" screen' if name else "User visited a screen"
    )


def interacted(how: str, element: Element) -> Did:
    """Something was done with an element of a page.

    Args:
        how: "click", "change", "submit", "rage", "dead" or "copy".
        element: The element.

    Example:
        >>> interacted("click", Element("Export", "button")).description
        'User clicked the "Export" button'
        >>> interacted("change", Element("Work email", "field")).description
        'User typed into the "Work email" field'
    """
    label, role = element
    title = f"{label} {role}" if label and role != "element" else label
    if how == "submit":
        return Did(
            "submit", f"{label} form".lstrip(), f"User submitted {Element(label, 'form').name}"
        )
    if how == "change":
        return _changed(element, title)
    if how == "copy":
        return Did("copy", title, f"User copied text from {element.name}")
    verb = "switched" if role == "toggle" else "clicked"
    return Did("click", title, f"User {verb} {element.name}{_CLICKS.get(how, '')}")


def failed(message: str, kind: str = "") -> Did:
    """The page had an error."""
    said = text_of(message, 200) or kind or "an error"
    return Did("error", kind or "Error", f'User saw the error "{said}"')


def custom(name: str, properties: Mapping[str, Any]) -> Did:
    """An event that the product's own code sent.

    Example:
        >>> custom("report_exported", {"format": "CSV", "rows": 120, "email": "a@b.test"}).description
        'User triggered "report exported" (format: CSV, rows: 120)'
        >>> custom("Button Clicked", {"text": "Export"}).description
        'User clicked the "Export" button'
    """
    words = words_of_name(name)
    if (clicked := _CLICKED.fullmatch(words)) and (label := first_text(properties, *_LABELS)):
        role = (clicked[1] or clicked[2]).lower()
        role = "button" if role == "cta" else role
        return interacted("click", Element(text_of(label, _LONGEST_LABEL), role))
    if _SUBMITTED.fullmatch(words) and (label := first_text(properties, *_FORM_LABELS)):
        return interacted("submit", Element(text_of(label, _LONGEST_LABEL), "form"))
    if _SHOWN.fullmatch(words) and (text := text_of(properties.get("message"), _LONGEST_MESSAGE)):
        return Did("message", "Message", f'User saw the message "{text}"')
    said = ", ".join(_said(properties.items()))
    return Did("event", words, f'User triggered "{words}"' + (f" ({said})" if said else ""))


def words_of_name(name: str) -> str:
    """The name of an event in words.

    Example:
        >>> words_of_name("reportExported"), words_of_name("user.signed_up"), words_of_name("Order Completed")
        ('report exported', 'user signed up', 'Order Completed')
    """
    name = text_of(name, _LONGEST_LABEL)
    if " " not in name:
        name = _CAMEL.sub(" ", name)
        if "_" in name and name.isupper():
            name = name.lower()
        elif "_" not in name and not name.isupper():
            name = name[:1] + name[1:].lower()
    return _BETWEEN.sub(" ", name).strip()


def _changed(element: Element, title: str) -> Did:
    role = element.role
    if role in _CLICKED_TO_CHANGE:
        return interacted("click", element)
    if role == "dropdown":
        return Did("select", title, f"User selected an option in {element.name}")
    if role == "file field":
        return Did("select", title, f"User chose a file in {element.name}")
    if role in _TYPING:
        return Did("type", title, f"User typed into {element.name}")
    return Did("type", title, f"User changed {element.name}")


def _said(properties: Iterable[tuple[str, Any]]) -> Iterable[str]:
    left = _MOST_PROPERTIES
    for name, value in properties:
        if name[:1] in _INTERNAL or not any(map(str.isalpha, name)):
            continue
        words = words_of_name(name)
        if words.lower() == "name" or not _NOT_SAID.isdisjoint(words.lower().split()):
            continue
        if isinstance(value, bool):
            said = "yes" if value else "no"
        elif isinstance(value, int) and abs(value) < 10**12:
            said = str(value)
        elif isinstance(value, float) and abs(value) < 10**12:
            said = f"{value:g}"
        else:
            said = text_of(value, _LONGEST_VALUE)
            if not said or _ADDRESSES.search(said):
                continue
        yield f"{words}: {said}"
        left -= 1
        if not left:
            return
