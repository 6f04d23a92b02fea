"""A filter as SQL. Pure."""

from __future__ import annotations

import json
from typing import Any, LiteralString

from autoplay_rag.errors import UnsupportedFilterError
from autoplay_rag.stores.base import Filter
from autoplay_rag.stores.postgres.encoding import encoded_text

__all__ = ["NAME_COLUMNS", "NAME_LENGTH", "TIME_COLUMNS", "where_of"]

NAME_COLUMNS = ("product_id", "session_id", "user_id", "conversation_id", "kind")
"""The metadata keys with a column of their own for texts."""
TIME_COLUMNS = ("started_at", "ended_at")
"""The metadata keys with a column of their own for numbers."""
NAME_LENGTH = 500
"""The characters of a text in its column. A row of an index has less than 2,704 bytes."""

_OPERATORS: dict[str, LiteralString] = {"==": "=", ">=": ">=", "<=": "<="}


def where_of(filter: Filter) -> tuple[str, list[Any]]:
    """Return the conditions on the table of chunks, called `c`, and their parameters.

    Returns:
        The text is empty if the filter has no condition. The names of keys are parameters.

    Raises:
        UnsupportedFilterError: If the comparison or the type of the value is unknown.

    Example:
        >>> where_of(Filter(user_id="u1", since=100.0))
        ('c.user_id = %s AND c.ended_at >= %s::float8', ['u1', 100.0])
    """
    parts: list[str] = []
    parameters: list[Any] = []
    # A user's own subclass may compare with anything.
    conditions: list[tuple[str, str, object]] = list(filter.conditions())
    for key, comparison, value in conditions:
        operator = _OPERATORS.get(comparison)
        if operator is None or not isinstance(value, str | int | float):
            raise UnsupportedFilterError(
                f"PgVectorStore cannot compare {key!r} by {comparison!r} with a "
                f"{type(value).__name__}"
            )
        part, used = _condition(key, operator, value)
        parts.append(part)
        parameters += used
    return " AND ".join(parts), parameters


def _condition(key: str, operator: str, value: str | float) -> tuple[str, list[Any]]:
    if isinstance(value, str):
        text = encoded_text(value)
        if key in NAME_COLUMNS and operator == "=" and len(text) < NAME_LENGTH:
            return f"c.{key} = %s", [text]
        part = (
            "jsonb_typeof(c.metadata -> %s) = 'string' "
            f'AND (c.metadata ->> %s) COLLATE "C" {operator} %s'
        )
        return part, [encoded_text(key), encoded_text(key), text]
    if key in TIME_COLUMNS and not isinstance(value, bool):
        return f"c.{key} {operator} %s::float8", [float(value)]
    # In Python, True is 1; in JSON, it is not.
    number = json.dumps(int(value) if isinstance(value, bool) else value)
    return (
        f"jsonb_typeof(c.metadata -> %s) = 'number' AND c.metadata -> %s {operator} %s::jsonb",
        [encoded_text(key), encoded_text(key), number],
    )
