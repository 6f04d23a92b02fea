"""What full-text search keeps of one payload: its lines, when it happened, whom it names. Pure."""

from __future__ import annotations

from typing import NamedTuple

from autoplay_rag.content.chunks import span_of
from autoplay_rag.content.identity import people_of
from autoplay_rag.content.render import render
from autoplay_rag.content.words import index_text
from autoplay_rag.payloads import ActionsPayload, Payload

__all__ = ["Passage", "passage_of", "passage_of_text", "storable"]


class Passage(NamedTuple):
    """A payload's own words, whatever text a chunk is given.

    Attributes:
        text: The package's own rendering, a line each.
        indexed: What the full-text index is given for it.
        started: Unix seconds of its first action; 0 if unknown.
        ended: Unix seconds of its last one; 0 if unknown.
        actions: How many actions it holds.
        user_id: The person it names.
        conversation_id: The chat thread it names.
    """

    text: str
    indexed: str
    started: float
    ended: float
    actions: int
    user_id: str | None
    conversation_id: str | None


def passage_of(payload: Payload) -> Passage:
    r"""The passage of a payload, as it is kept: redacted.

    Example:
        >>> from autoplay_rag import SlimAction
        >>> click = SlimAction("Export", 'User clicked the "Export" button', "https://app.test/r")
        >>> passage_of(ActionsPayload("acme", "s1", "ann", actions=[click])).text
        'test\nclicked "Export"'
    """
    text = storable(render([payload]))
    started, ended = span_of(payload)
    actions = payload.actions if isinstance(payload, ActionsPayload) else ()
    people = people_of(payload)
    return Passage(
        text,
        index_text(text),
        started,
        ended,
        len(actions),
        people.user_id and storable(people.user_id),
        people.conversation_id and storable(people.conversation_id),
    )


def passage_of_text(
    text: str,
    *,
    started: float | None,
    ended: float | None,
    actions: int,
    user_id: str | None,
    conversation_id: str | None,
) -> Passage:
    """The passage of a chunk whose payloads are not known."""
    text = storable(text)
    return Passage(
        text,
        index_text(text),
        started or 0.0,
        ended or 0.0,
        actions,
        user_id,
        conversation_id,
    )


def storable(text: str) -> str:
    """A text that SQLite can keep: without NUL and lone surrogates."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
