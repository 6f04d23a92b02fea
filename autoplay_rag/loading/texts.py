"""Turns a group of payloads into texts with ids and metadata. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from autoplay_rag.content.chunks import metadata_of
from autoplay_rag.content.keys import chunk_id
from autoplay_rag.content.render import Render
from autoplay_rag.payloads import Payload

__all__ = ["Keyed", "LoadedText", "Make", "TextMaker", "pieces"]

Keyed = tuple[str, Payload]
"""A payload's key, computed before redaction, and the payload."""


class LoadedText(NamedTuple):
    """The content of one document.

    Attributes:
        id: Deterministic: the same payloads give the same id.
        text: The pipeline's text form; never empty.
        metadata: Flat, as in a `Chunk`. Also `chunk_id` (the id again, because text splitters drop
            ids) and `source` (the stream's URL without secrets, or the recording's path).
    """

    id: str
    text: str
    metadata: dict[str, str | int | float]


Make: TypeAlias = Callable[[str, str, dict[str, Any]], Any]
"""Makes a library's document from id, text and metadata."""


@dataclass(frozen=True, slots=True)
class TextMaker:
    """Makes texts from payloads.

    Attributes:
        render: Makes the text.
        max_chars: The most characters of one text. Longer texts are split.
        include_email: Whether the metadata includes a person's email address.
        source: The name of the payloads' source.
        make: Makes the returned object from id, text and metadata.
    """

    render: Render
    max_chars: int
    include_email: bool
    source: str
    make: Make = LoadedText

    def texts(self, group: Sequence[Keyed]) -> list[Any]:
        """Return the text of a group of payloads, split if it is too long.

        The first part has the id that the pipeline gives to a chunk beginning with the same
        payload. The ids of the following parts are derived from it.
        """
        key, first = group[0]
        payloads = [payload for _, payload in group]
        metadata = metadata_of(payloads, include_email=self.include_email)
        made: list[Any] = []
        for text in pieces(self.render(payloads), self.max_chars):
            name = chunk_id(first, key, len(made))
            made.append(
                self.make(name, text, {**metadata, "chunk_id": name, "source": self.source})
            )
        return made


def pieces(text: str, max_chars: int) -> list[str]:
    r"""Split a text at line ends. Split a line that is too long between words, or else anywhere.

    Example:
        >>> pieces("opened Reports\nclicked Export", 16)
        ['opened Reports', 'clicked Export']
    """
    text = text.strip()
    if 0 < len(text) <= max_chars:
        return [text]
    found: list[str] = []
    while len(text) > max_chars:
        end = max_chars
        for separator in ("\n", " "):
            # A separator right after the piece does not count towards its length.
            if (at := text.rfind(separator, 1, max_chars + 1)) > 0:
                end = at
                break
        found.append(text[:end].rstrip())
        text = text[end:].lstrip()
    if text:
        found.append(text)
    return found
