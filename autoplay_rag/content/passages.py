"""Makes the full-text index entry of one payload: text, times and people. Pure."""

from __future__ import annotations

from typing import NamedTuple

from autoplay_rag.content.chunks import span_of
from autoplay_rag.content.identity import people_of
from autoplay_rag.content.render import render
from autoplay_rag.content.words import index_text
from autoplay_rag.payloads import ActionsPayload, Payload

__all__ = ["Passage", "passage_of", "passage_of_text", "storable"]


class Passage(NamedTuple):
    """The text of one payload for full-text search. Independent of the text of its chunk.

    Attributes:
        text: The package's own rendering, one line per action.
        indexed: The text for the full-text index; see `index_text`.
        started: Unix seconds of its first action; 0 if unknown.
        ended: Unix seconds of its last action; 0 if unknown.
        actions: The number of its actions.
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
    r"""The passage of a redacted payload.

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
    """The passage of a chunk with unknown payloads."""
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
    """Replace NUL and lone surrogates, which SQLite cannot store."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
