"""The elements of a page as PostHog describes them: a chain as text, or a list of objects. Pure.

The chain is `tag.class1.class2:name="value"name="value";tag...`, from the clicked element outwards.
Quotes in a value are escaped with a backslash, and nothing else is: a backslash stands for itself. See
PostHog's `plugin-server/src/utils/db/elements-chain.ts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from autoplay_rag.sources.values import first_text, has_words, text_of
from autoplay_rag.sources.words import Element

__all__ = ["element_of", "elements_of_chain"]

_MOST: Final = 8
"""How far from the clicked element the button around it is looked for."""
_LONGEST_CHAIN: Final = 20_000
_ELEMENT: Final = re.compile(r'(?:[^;"]|"(?:\\.|[^"\\])*")+')
_ATTRIBUTES: Final = re.compile(r":(?=[\w-]*=)")
"""Where the attributes begin: a class may have a colon, too."""
# Tried only where an attribute can begin, or long text without any would take quadratic time.
_ATTRIBUTE: Final = re.compile(r'(?:\A|(?<="))([^="]+)="((?:\\.|[^"\\])*)"')
_TAG: Final = re.compile(r"[A-Za-z][\w-]*")
_LABELS: Final = (
    "aria-label", "title", "alt", "placeholder", "data-label", "data-attr", "name",
    "data-testid", "id",
)  # fmt: skip
_NAMED_BY: Final = ("aria-label", "title", "alt")
_FORM: Final = ("aria-label", "title", "name", "data-attr", "data-testid", "id")
_BUTTONS: Final = frozenset(("submit", "button", "reset"))
_TYPED: Final = frozenset(("input", "textarea", "select"))
_SAID_BY_TEXT: Final = frozenset(("input", "textarea", "select", "form"))
"""Tags whose text is what they contain, and not what they are called."""


def elements_of_chain(chain: str) -> list[dict[str, str]]:
    r"""Read a chain.

    Returns:
        For each element its attributes, with `tag_name` and `text`; at most the first eight.

    Example:
        >>> chain = 'span:text="Export";button.btn:attr__aria-label="Save \\"all\\""text="Export"'
        >>> [one["tag_name"] for one in elements_of_chain(chain)]
        ['span', 'button']
        >>> elements_of_chain(chain)[1]["aria-label"]
        'Save "all"'
    """
    found = []
    for part in islice(_ELEMENT.finditer(chain[:_LONGEST_CHAIN]), _MOST):
        text = part[0].strip()
        tag = _TAG.match(text)
        element = {"tag_name": tag[0] if tag else ""}
        start = _ATTRIBUTES.search(text)
        for name, value in _ATTRIBUTE.findall(text[start.end() :]) if start else ():
            key = name.removeprefix("attr__").removeprefix("attr_")
            element[key] = value.replace('\\"', '"')
        found.append(element)
    return found


def element_of(elements: Iterable[Any], how: str, text: str = "") -> Element:
    """The element that something was done with: the button around the clicked icon, not the icon.

    Args:
        elements: From the clicked element outwards: `$elements` of an event, those of PostHog's
            API, or those of a chain.
        how: "click", "change", "submit", ...
        text: The text of the clicked element, if the event has it.
    """
    inner = ""
    first: Element | None = None
    for element in _flat(elements):
        tag = element.get("tag_name", "").lower()
        if how == "submit" and tag != "form":
            continue
        label = "" if tag in _SAID_BY_TEXT else first_text(element, "text") or inner
        if label and not has_words(label):  # a cross or an arrow
            label = first_text(element, *_NAMED_BY) or label
        if how == "submit":
            label = first_text(element, *_FORM)
        if element.get("type") in _BUTTONS:  # of other inputs, the value is what was typed
            label = first_text(element, "value") or label
        label = label or first_text(element, *_LABELS)
        made = Element.of(tag, label, role=element.get("role", ""), kind=element.get("type", ""))
        if how == "submit" or (how == "change" and tag in _TYPED) or made.is_interactive:
            return made if made.label or not text else made._replace(label=text)
        inner = inner or label
        first = first or made
    if how == "submit":
        return Element("", "form")
    found = first or Element()
    return found._replace(label=text or found.label or inner)


def _flat(elements: Iterable[Any]) -> Iterator[Mapping[str, str]]:
    """The attributes of each element, under their HTML names."""
    for element in islice(elements, _MOST):
        if not isinstance(element, dict):
            continue
        attributes = element.get("attributes")
        values = {**(attributes if isinstance(attributes, dict) else {}), **element}
        flat: dict[str, str] = {}
        for name, value in values.items():
            if isinstance(name, str) and (said := text_of(value)):
                key = name.removeprefix("attr__").removeprefix("attr_").removeprefix("$el_")
                flat.setdefault(key, said)
        yield flat
