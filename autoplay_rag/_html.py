"""How payloads, hits and pipelines look in a notebook.

The text in them was typed or clicked by strangers: all of it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

_CELL = "text-align:left;vertical-align:top;overflow-wrap:anywhere"
_SHORT_CELL = "text-align:left;vertical-align:top;white-space:nowrap"
_SHORT = 24
"""The most characters of a cell that stays on one line: a time, or an id."""
_HEAD = "text-align:left;vertical-align:top;white-space:nowrap"
_ROW_LIMIT = 50
_IDS = ("product_id", "session_id", "user_id", "email", "conversation_id")
"""Fields that say to whom something belongs: shown after what happened."""


class Markup(str):
    """HTML that is escaped already."""

    __slots__ = ()


def payload_html(fields: Mapping[str, Any]) -> str:
    """A table of a payload's actions and, below it, of its other fields, ids last."""
    actions = fields.get("actions")
    names = sorted((name for name in fields if name != "actions"), key=_IDS.__contains__)
    rows = [(name, _value(name, fields[name])) for name in names]
    html = ""
    if actions:
        html += table_html(
            ("when", "type", "description", "page"),
            [
                (
                    _value("timestamp_start", action["timestamp_start"]),
                    action["type"],
                    action["description"] or action["title"],
                    action["canonical_url"],
                )
                for action in actions
            ],
        )
    return html + table_html(("field", "value"), [row for row in rows if row[1]])


def table_html(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """An HTML table, every cell escaped; long ones end with how many rows were left out.

    A line break is a `<br>`: pages that show saved notebooks drop the styles that would keep it.
    """
    rows = list(rows)
    head = "".join(f'<th style="{_HEAD}">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_style(cell)}">{_lines(cell)}</td>' for cell in row)
        + "</tr>"
        for row in rows[:_ROW_LIMIT]
    )
    more = f"<p>and {len(rows) - _ROW_LIMIT} more</p>" if len(rows) > _ROW_LIMIT else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def when(seconds: object) -> str:
    """Unix seconds as UTC; "" if they are unknown."""
    return _value("started_at", seconds) if isinstance(seconds, float | int) else ""


def _style(cell: object) -> str:
    return _SHORT_CELL if len(str(cell)) <= _SHORT else _CELL


def _lines(cell: object) -> str:
    if isinstance(cell, Markup):
        return cell
    return "<br>".join(escape(line) for line in str(cell).splitlines())


def _value(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, float | int) and (name.endswith("_at") or name.startswith("timestamp_")):
        try:
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC" if value else ""
        except (OverflowError, ValueError, OSError):
            return str(value)
    return str(value)
