"""Payloads and hits as pandas data frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from autoplay_rag.errors import MissingExtraError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload
from autoplay_rag.search.hits import Hit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["to_frame"]

_PAYLOAD_COLUMNS = (
    "kind",
    "product_id",
    "session_id",
    "user_id",
    "email",
    "conversation_id",
    "forwarded_at",
    "index",
    "type",
    "title",
    "description",
    "canonical_url",
    "raw_url",
    "started_at",
    "ended_at",
    "text",
)
_HIT_COLUMNS = (
    "id",
    "score",
    "session_id",
    "text",
    "kind",
    "product_id",
    "user_id",
    "conversation_id",
    "started_at",
    "ended_at",
    "forwarded_at",
    "action_count",
    "urls",
)
_TIMES = ("forwarded_at", "started_at", "ended_at")
_COUNTS = ("index", "action_count")
_PAYLOADS = (ActionsPayload, SummaryPayload, ChatTurn)


def to_frame(found: Iterable[Payload] | Iterable[Hit] | Payload | Hit) -> pd.DataFrame:
    """Payloads or hits as a data frame. Needs the extra `pandas`.

    A row is one action (with what its payload says of all its actions), one summary, one chat
    turn or one hit. A payload without actions gives no row.

    Args:
        found: Payloads or hits, not both; one alone will do.

    Returns:
        `forwarded_at`, `started_at` and `ended_at` are UTC datetimes, NaT where unknown. `text` is
        a hit's text, or what `to_text()` gives for the action, the summary or the turn. A hit's
        further metadata follow as columns of their own. Nothing found gives an empty frame with
        the columns of payloads.

    Raises:
        MissingExtraError: If the extra is not installed.
        TypeError: If something is neither payload nor hit, or both are mixed.

    Example:
        >>> from autoplay_rag import ActionsPayload, SlimAction
        >>> payload = ActionsPayload(session_id="s1", actions=[SlimAction("Export", type="click")])
        >>> to_frame([payload])[["session_id", "type", "title"]].to_numpy().tolist()
        [['s1', 'click', 'Export']]
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError("to_frame()", "pandas") from None
    items: list[Any] = [found] if isinstance(found, (*_PAYLOADS, Hit)) else list(found)
    if items and all(isinstance(item, Hit) for item in items):
        rows = [_hit_row(hit) for hit in items]
        columns = list(dict.fromkeys([*_HIT_COLUMNS, *(name for row in rows for name in row)]))
    else:
        rows = [row for item in items for row in _payload_rows(item)]
        columns = list(_PAYLOAD_COLUMNS)
    frame = pd.DataFrame(rows, columns=columns)
    for name in _TIMES:
        times = [_time(row.get(name)) for row in rows]
        frame[name] = pd.Series(times, index=frame.index, dtype="datetime64[us, UTC]")
    for name in _COUNTS:
        if name in frame:
            frame[name] = frame[name].astype("Int64")
    return frame


def _hit_row(hit: Hit) -> dict[str, Any]:
    return {
        **hit.metadata,
        "id": hit.id,
        "score": hit.score,
        "session_id": hit.session_id,
        "text": hit.text,
    }


def _payload_rows(payload: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(payload, _PAYLOADS):
        raise TypeError(
            f"to_frame() takes payloads, or hits, and not both; {type(payload).__name__} was among them"
        )
    whole = {name: getattr(payload, name, None) for name in _PAYLOAD_COLUMNS}
    if not isinstance(payload, ActionsPayload):
        yield {**whole, "text": payload.to_text()}
        return
    for action in payload.actions:
        row = {name: getattr(action, name, None) for name in _PAYLOAD_COLUMNS}
        row.update({name: value for name, value in whole.items() if value is not None})
        row["started_at"], row["ended_at"] = action.timestamp_start, action.timestamp_end
        row["text"] = action.to_text()
        yield row


def _time(seconds: Any) -> datetime | None:
    """Unix seconds as a datetime; 0 stands for unknown, and so does what no calendar has."""
    if not seconds:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError, TypeError):
        return None
