"""Answers the tool calls of an agent about one user, with text that is marked as data.

The integration of each library only wraps `AGENT_TOOLS` in its own tool objects. The user is an
argument of `answer`, never one of the arguments that a model writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from autoplay_rag._describe import describe
from autoplay_rag.content.marking import as_data, escaped, plain_line
from autoplay_rag.content.times import said_time
from autoplay_rag.errors import ConfigurationError, EmbedderError, ServerError, StoreError
from autoplay_rag.live.sessions import LiveSession
from autoplay_rag.loading.found import page_of
from autoplay_rag.loading.pulling import PromptPull
from autoplay_rag.loading.reading import Reader
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.prompt import pulled_text
from autoplay_rag.search.timeline import SessionEvent, Sessions, WholeSession

__all__ = ["AGENT_TOOLS", "AgentTool", "Argument", "answer", "answer_sync"]

_log = logging.getLogger(__name__)

_ELEMENT: Final = "user_activity"
_RECENT: Final = "recent_activity"
_MOST_FOUND: Final = 20
_MOST_LISTED: Final = 50
_LONGEST_LINE: Final = 600
_LONGEST_PAGE: Final = 200
_LONGEST_ANSWER: Final = 8_000
_NOT_AVAILABLE: Final = (
    "What the user did is not available at the moment. This does not mean that the user did "
    "nothing, or that nothing matches: it could not be looked up."
)
_NO_SUCH_SESSION: Final = "This user has no session with this id."


class Argument(NamedTuple):
    """An argument that a model writes.

    Attributes:
        name: Its name.
        type: Its type, for a schema.
        description: Its description, for the model.
        default: Its default; `...` if it is required.
    """

    name: str
    type: Any
    description: str
    default: Any = ...


class AgentTool(NamedTuple):
    """A tool of an agent.

    Attributes:
        name: Its name.
        description: Its description, for the model.
        arguments: The arguments that the model writes.
    """

    name: str
    description: str
    arguments: tuple[Argument, ...]


_SINCE: Final = Argument(
    "since",
    str | None,
    "Only what ended then or later: an ISO date or time with a zone, or how long ago, such as "
    "'7d', '12h' or '30m'.",
    None,
)
_UNTIL: Final = Argument(
    "until", str | None, "Only what started then or earlier; as `since`.", None
)

AGENT_TOOLS: Final = (
    AgentTool(
        "search_sessions",
        "Search what the current user did and asked in the product before: by meaning and by exact "
        "words, such as codes, names and error messages. Gives the passages that match, each with "
        "its time, session and page.",
        (
            Argument("query", str, "What to look for, in plain words."),
            Argument("k", int, "How many sessions, at most 20.", 5),
            _SINCE,
            _UNTIL,
        ),
    ),
    AgentTool(
        "read_session",
        "Read one session of the current user from its beginning: each action, summary and chat "
        "turn with its time and page.",
        (
            Argument("session_id", str, "The id of the session, as another tool gave it."),
            Argument(
                "start", int, "The line to begin with, if an answer said that there are more.", 1
            ),
        ),
    ),
    AgentTool(
        "recent_activity",
        "Tell what the current user did in the product in the last minutes, oldest first.",
        (Argument("minutes", float, "How many minutes to look back, at most 60.", 10.0),),
    ),
    AgentTool(
        "user_history",
        "List the current user's sessions, the latest first, each with its time, its id and a line "
        "of what was done.",
        (
            _SINCE,
            _UNTIL,
            Argument(
                "matching", str | None, "Only sessions that contain all of these words.", None
            ),
            Argument("limit", int, "How many sessions, at most 50.", 20),
            Argument(
                "cursor", str | None, "Continue a list: the cursor that its last line named.", None
            ),
        ),
    ),
)
"""The tools. Every library uses the same names."""


async def answer(
    pipeline: Reader,
    tool: str,
    ids: Mapping[str, str],
    arguments: Mapping[str, Any],
    pull: PromptPull | None = None,
) -> str:
    """Answer a tool call.

    Args:
        pipeline: The pipeline to read; it must be running. Or a `ServeClient`.
        tool: The name of the tool.
        ids: The user: `user_id`, or `session_id` for an anonymous visitor. `product_id` limits it
            to one product. Take the ids from your login, never from a model.
        arguments: The arguments that the model wrote.
        pull: Pulls the user for `recent_activity`; None pulls nobody.

    Returns:
        Text for the model, marked as data. If an argument is invalid, or a server does not answer
        or refuses the key: an explanation for the model.

    Raises:
        ConfigurationError: If `ids` does not name a user or a session.
        AutoplayError: If the pipeline cannot be read.
    """
    asked = _asked(tool, ids, arguments)
    if isinstance(asked, str):
        return asked
    if pull is not None and tool == _RECENT and (text := _pulled(asked, await pull.session(ids))):
        return text
    try:
        try:
            found = await getattr(pipeline, asked.method)(*asked.values, **asked.options)
        except (EmbedderError, StoreError) as error:
            asked = asked.by_words_alone(error)
            found = await getattr(pipeline, asked.method)(*asked.values, **asked.options)
    except ConfigurationError as error:
        return _refused(error)
    except ServerError as error:
        return _unavailable(tool, error)
    return asked.write(found)


def answer_sync(
    pipeline: Reader,
    tool: str,
    ids: Mapping[str, str],
    arguments: Mapping[str, Any],
    pull: PromptPull | None = None,
) -> str:
    """Like `answer`, for any thread. Inside a running event loop it blocks the loop."""
    asked = _asked(tool, ids, arguments)
    if isinstance(asked, str):
        return asked
    if pull is not None and tool == _RECENT and (text := _pulled(asked, pull.session_sync(ids))):
        return text
    try:
        try:
            found = getattr(pipeline, f"{asked.method}_sync")(*asked.values, **asked.options)
        except (EmbedderError, StoreError) as error:
            asked = asked.by_words_alone(error)
            found = getattr(pipeline, f"{asked.method}_sync")(*asked.values, **asked.options)
    except ConfigurationError as error:
        return _refused(error)
    except ServerError as error:
        return _unavailable(tool, error)
    return asked.write(found)


def _pulled(asked: _Asked, session: LiveSession | None) -> str:
    """The answer of what was pulled; "" if that has nothing recent."""
    options = asked.options
    return pulled_text(
        session, seconds=options["seconds"], max_actions=None, max_chars=options["max_chars"]
    )


# -- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A method of the pipeline to call, and a function that formats its result."""

    method: str
    write: Callable[[Any], str]
    values: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def by_words_alone(self, error: Exception) -> _Asked:
        """The same call with full text only, for an outage of the embedder or the store."""
        if self.method != "search_sessions":
            raise error
        _log.warning("a tool searched by words alone: %s", describe(error))
        return replace(self, options={**self.options, "mode": "text"})


def _asked(tool: str, ids: Mapping[str, str], arguments: Mapping[str, Any]) -> _Asked | str:
    """The call for the pipeline, or the answer if no call is needed."""
    user_id, session_id = ids.get("user_id"), ids.get("session_id")
    if not user_id and not session_id:
        raise ConfigurationError(
            f"{tool} does not know whose activity to read: give it a user_id, or the session_id of "
            "an anonymous visitor, from your login"
        )
    product = {"product_id": ids.get("product_id")}
    # An anonymous visitor may read only the current session.
    owner = {"user_id": user_id} if user_id else {"session_id": session_id}
    times = {name: arguments.get(name) or None for name in ("since", "until")}
    match tool:
        case "search_sessions":
            k = min(int(arguments.get("k", 5)), _MOST_FOUND)
            return _Asked(
                tool, _written_hits, (arguments["query"], k), {**owner, **product, **times}
            )
        case "read_session":
            wanted = arguments["session_id"]
            if not user_id and wanted != session_id:
                return _NO_SUCH_SESSION
            start = max(1, int(arguments.get("start", 1)))
            return _Asked(
                "session",
                lambda found: _written_session(found, start),
                (wanted,),
                {"user_id": user_id, **product},
            )
        case "recent_activity":
            whose = {"user_id": user_id, "session_id": session_id, **product}
            seconds = 60 * float(arguments.get("minutes", 10))
            return _Asked(
                "context",
                lambda text: text or "Nothing was recorded of this user in that time.",
                options={**whose, "seconds": seconds, "max_chars": _LONGEST_ANSWER},
            )
        case "user_history":
            if not user_id:
                return "This visitor is anonymous: only the current session is known."
            options: dict[str, Any] = {
                **product,
                **times,
                "matching": arguments.get("matching") or None,
                "limit": min(int(arguments.get("limit", 20)), _MOST_LISTED),
                "cursor": arguments.get("cursor") or None,
            }
            return _Asked("sessions", _written_list, (user_id,), options)
    raise ConfigurationError(f"there is no tool {tool!r}")


def _refused(error: ConfigurationError) -> str:
    return f"This cannot be answered: {escaped(plain_line(str(error)))}"


def _unavailable(tool: str, error: ServerError) -> str:
    _log.warning("%s could not be answered: %s", tool, describe(error))
    return _NOT_AVAILABLE


# -- formatting -----------------------------------------------------------------------------------


def _written_hits(found: Hits[SessionHit]) -> str:
    if not found:
        known = "Nothing in this user's sessions matches."
        return known if found.scope_known else "Nothing was recorded of this user yet."
    lines = [_line(_where(hit), _said(hit)) for session in found for hit in session.hits]
    return _marked("What the user did before, the best session first.", lines)


def _written_session(found: WholeSession | None, start: int) -> str:
    if found is None:
        return _NO_SUCH_SESSION
    lines = [_event_line(event) for event in found.events]
    if found.missing:
        # The bodies of some payloads were not kept, but the full-text index has their text.
        lines = [_line([], line) for line in found.text.split("\n")]
    heading = _line([*_span(found), _session(found.session_id)], f"{len(lines)} lines")
    shown, size = [heading], len(heading)
    for number, line in enumerate(lines[start - 1 :], start):
        size += len(escaped(line)) + 1
        if size > _LONGEST_ANSWER:
            shown.append(f"More: start={number}")
            break
        shown.append(line)
    return _marked("A session of the user, in order.", shown)


def _written_list(found: Sessions) -> str:
    if not found:
        return "No session of this user fits."
    lines = [
        _line([*_span(one), _session(one.session_id), f"{one.actions} actions"], one.what)
        for one in found
    ]
    lines.append(f"{len(found)} of {found.total} sessions.")
    if found.next:
        lines.append(f"More: cursor={found.next}")
    return _marked("Sessions of the user, the latest first.", lines)


def _marked(about: str, lines: Iterable[str]) -> str:
    return as_data("\n".join(lines), _ELEMENT, about)


def _line(where: Sequence[str], text: str) -> str:
    place = ", ".join(part for part in where if part)
    said = plain_line(text, _LONGEST_LINE)
    return f"[{place}] {said}" if place else said


def _where(hit: Hit) -> list[str]:
    at = hit.metadata.get("ended_at")
    return [
        said_time(at if isinstance(at, int | float) else None),
        _session(hit.session_id),
        plain_line(page_of(hit) or "", _LONGEST_PAGE),
    ]


def _said(hit: Hit) -> str:
    lines = (hit.matched.text or hit.text).split("\n")
    return "; ".join(line.rstrip(",") for line in lines)


def _event_line(event: SessionEvent) -> str:
    kind = "" if event.kind == "actions" else event.kind
    page = plain_line(event.page, _LONGEST_PAGE)
    return _line([said_time(event.started_at), kind, page], event.description)


def _session(session_id: str | None) -> str:
    return f"session {plain_line(session_id)}" if session_id else "no session"


def _span(session: Any) -> list[str]:
    started, ended = said_time(session.started_at), said_time(session.ended_at)
    return [started] if started == ended else [" to ".join(at for at in (started, ended) if at)]
