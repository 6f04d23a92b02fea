"""Payloads and hits as pandas data frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from autoplay_rag.errors import MissingExtraError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload
from autoplay_rag.search.hits import Hit, SessionHit
from autoplay_rag.search.timeline import SessionEvent, Sessions, SessionSummary, WholeSession

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
_SESSION_HIT_COLUMNS = (
    "session_id",
    "product_id",
    "user_id",
    "score",
    "matched",
    "started_at",
    "ended_at",
    "text",
)
_SESSION_COLUMNS = (
    "session_id",
    "product_id",
    "user_id",
    "started_at",
    "ended_at",
    "payloads",
    "actions",
    "what",
    "ambiguous",
)
_EVENT_COLUMNS = (
    "session_id",
    "product_id",
    "user_id",
    "kind",
    "started_at",
    "ended_at",
    "page",
    "type",
    "title",
    "description",
    "seq",
    "index",
)
_TIMES = ("forwarded_at", "started_at", "ended_at")
_COUNTS = ("index", "action_count", "payloads", "actions", "seq")
_PAYLOADS = (ActionsPayload, SummaryPayload, ChatTurn)


Frameable: TypeAlias = Payload | Hit | SessionHit | SessionSummary | SessionEvent | WholeSession


def to_frame(
    found: Iterable[Payload]
    | Iterable[Hit]
    | Iterable[SessionHit]
    | Iterable[SessionSummary]
    | Iterable[SessionEvent]
    | Frameable,
) -> pd.DataFrame:
    """Payloads, hits, sessions or actions as a data frame. Needs the extra `pandas`.

    A row is one action (with what its payload says of all its actions), one summary, one chat
    turn or one hit. A payload without actions gives no row. What `pipeline.search_sessions` finds
    or `pipeline.sessions` lists gives a row for each session, and what `pipeline.session` or
    `pipeline.actions` gives a row for each action, summary or chat turn.

    Args:
        found: Any of these, of one kind; one alone will do. Collect `pipeline.actions(...)` first:
            `to_frame([action async for action in pipeline.actions()])`.

    Returns:
        `forwarded_at`, `started_at` and `ended_at` are UTC datetimes, NaT where unknown. `text` is
        a hit's text, or what `to_text()` gives for the action, the summary or the turn. A hit's
        further metadata follow as columns of their own. `matched` has the lines of a found session
        that answer the question. Nothing found gives an empty frame with
        the columns of payloads, or of sessions for an empty page of sessions.

    Raises:
        MissingExtraError: If the extra is not installed.
        TypeError: If something is none of these, or kinds are mixed.

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
    if isinstance(found, WholeSession):
        found = found.events
        if not found:
            return _framed(pd, [], _EVENT_COLUMNS)
    single = isinstance(found, (*_PAYLOADS, Hit, SessionHit, SessionSummary, SessionEvent))
    items: list[Any] = [found] if single else list(found)  # type: ignore[arg-type]
    if isinstance(found, Sessions) or _are_all(SessionSummary, items):
        return _framed(pd, [_row(item, _SESSION_COLUMNS) for item in items], _SESSION_COLUMNS)
    if _are_all(SessionEvent, items):
        return _framed(pd, [_row(item, _EVENT_COLUMNS) for item in items], _EVENT_COLUMNS)
    if _are_all(SessionHit, items):
        found_sessions = [_session_hit_row(hit) for hit in items]
        return _framed(pd, found_sessions, _SESSION_HIT_COLUMNS)
    if _are_all(Hit, items):
        rows = [_hit_row(hit) for hit in items]
        columns = list(dict.fromkeys([*_HIT_COLUMNS, *(name for row in rows for name in row)]))
    else:
        rows = [row for item in items for row in _payload_rows(item)]
        columns = list(_PAYLOAD_COLUMNS)
    return _framed(pd, rows, columns)


def _framed(pandas: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    frame: pd.DataFrame = pandas.DataFrame(rows, columns=list(columns))
    for name in _TIMES:
        if name not in frame:
            continue
        times = [_time(row.get(name)) for row in rows]
        frame[name] = pandas.Series(times, index=frame.index, dtype="datetime64[us, UTC]")
    for name in _COUNTS:
        if name in frame:
            frame[name] = frame[name].astype("Int64")
    return frame


def _are_all(kind: type, items: Sequence[Any]) -> bool:
    return bool(items) and all(isinstance(item, kind) for item in items)


def _row(item: Any, columns: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in columns}


def _hit_row(hit: Hit) -> dict[str, Any]:
    return {
        **hit.metadata,
        "id": hit.id,
        "score": hit.score,
        "session_id": hit.session_id,
        "text": hit.text,
    }


def _session_hit_row(hit: SessionHit) -> dict[str, Any]:
    own = (name for name in _SESSION_HIT_COLUMNS if name != "matched")
    return {**_row(hit, own), "matched": hit.best.matched.text}


def _payload_rows(payload: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(payload, _PAYLOADS):
        raise TypeError(
            f"to_frame() takes payloads, hits, sessions or actions, all of one kind; {type(payload).__name__} was among them"
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
