"""The samples this package ships: a made-up product's sessions, and questions about them."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["Question", "questions", "samples"]


class Question(msgspec.Struct, frozen=True):
    """A question, and where its answer is.

    Attributes:
        question: As a colleague would ask it.
        session_id: The one session that answers it.
    """

    question: str
    session_id: str


def samples() -> Path:
    """The sample stream, a recording of JSON Lines.

    Example:
        >>> from autoplay_rag.connector.recording import read_recording
        >>> next(read_recording(samples())).product_id
        'northwind'
    """
    return Path(__file__).with_name("samples.jsonl")


def questions() -> list[Question]:
    """Questions about the samples, each with the session that answers it.

    Example:
        >>> all(question.session_id for question in questions())
        True
    """
    lines = Path(__file__).with_name("questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Question) for line in lines]
