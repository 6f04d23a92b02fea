"""The samples in this package: sessions of a fictitious product, and questions about them."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["Question", "questions", "samples"]


class Question(msgspec.Struct, frozen=True):
    """A question, and the session that answers it.

    Attributes:
        question: The question, worded as a colleague would ask it.
        session_id: The only session that answers it.
    """

    question: str
    session_id: str


def samples() -> Path:
    """Return the path of the sample stream, a recording in JSON Lines.

    Example:
        >>> from autoplay_rag.connector.recording import read_recording
        >>> next(read_recording(samples())).product_id
        'northwind'
    """
    return Path(__file__).with_name("samples.jsonl")


def questions() -> list[Question]:
    """Return questions about the samples, each with the session that answers it.

    Example:
        >>> all(question.session_id for question in questions())
        True
    """
    lines = Path(__file__).with_name("questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Question) for line in lines]
