"""The HTML of the page. Pure. All texts are from people and pages: each is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from autoplay_rag.content.marking import plain_line
from autoplay_rag.content.times import said_time
from autoplay_rag.live import LiveSession
from autoplay_rag.search.hits import SessionHit
from autoplay_rag.search.lexical import Matched

__all__ = ["page_html", "sign_in_html"]

_EVENTS: Final = 3
_LINE: Final = 300
"""The latest events of a live session, and the most characters of a line."""


def page_html(
    *,
    counts: Mapping[str, int | str],
    live: Sequence[LiveSession],
    question: str,
    user_id: str,
    found: Sequence[SessionHit] | None,
    problem: str | None,
    may_choose: bool,
) -> str:
    """Return the page.

    Args:
        counts: The counts by name; empty for none.
        live: The live sessions, newest first.
        question: What was asked.
        user_id: The person asked about; "" for all.
        found: The answer; None if nothing was asked.
        problem: What failed, for the reader.
        may_choose: Whether the reader may choose a person.
    """
    fields = _field("q", "Search sessions", question, kind="search")
    if may_choose:
        fields += _field("user_id", "Of the user (optional)", user_id)
    parts = [
        f'<form method="get" action="./" role="search">{fields}<button>Search</button></form>',
        _problem(problem),
        _results(found),
        _counts(counts),
        "<h2>Live sessions</h2>",
        _list(map(_live, live)) or '<p class="quiet">No session is active.</p>',
    ]
    out = '<form method="post" action="./sign-out"><button>Sign out</button></form>'
    return _document("".join(parts), out)


def sign_in_html(problem: str | None) -> str:
    """Return the page with the sign-in form.

    Args:
        problem: What was wrong with the last try.
    """
    field = _field("key", "Key or token", "", kind="password")
    return _document(
        f'{_problem(problem)}<form method="post" action="./sign-in">{field}'
        '<button>Sign in</button></form><p class="quiet">A read key, an admin key, or a token. '
        "Without a key of your own, autoplay-rag serve made one: it said where.</p>"
    )


def _document(body: str, right: str = "") -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>autoplay-rag</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="./page.css"></head>'
        f"<body><header><h1>autoplay-rag</h1>{right}</header><main>{body}</main></body></html>"
    )


def _field(name: str, label: str, value: str, kind: str = "text") -> str:
    return (
        f'<label>{escape(label)}<input type="{kind}" name="{name}" value="{escape(value)}" '
        'autocomplete="off"></label>'
    )


def _problem(problem: str | None) -> str:
    return f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""


def _counts(counts: Mapping[str, int | str]) -> str:
    if not counts:
        return ""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_number(value))}</dd></div>"
        for name, value in counts.items()
    )
    return f"<h2>Counts</h2><dl>{cells}</dl>"


def _results(found: Sequence[SessionHit] | None) -> str:
    if found is None:
        return ""
    head = f'<h2 id="found">{len(found)} session{"" if len(found) == 1 else "s"} found</h2>'
    return head + _list(map(_result, found))


def _result(hit: SessionHit) -> str:
    best = hit.best
    text = _marked(best.matched) if best.matched.text else escape(plain_line(best.text, _LINE))
    about = (said_time(hit.ended_at), hit.user_id, hit.session_id, hit.product_id)
    return f"<p><bdi>{text}</bdi></p>{_about(about)}"


def _live(session: LiveSession) -> str:
    lines = session.last(events=_EVENTS).render(_EVENTS * _LINE).splitlines()
    text = "".join(f"<p><bdi>{escape(line)}</bdi></p>" for line in reversed(lines))
    return text + _about((session.user_id, session.session_id, session.product_id))


def _about(values: Iterable[str | None]) -> str:
    said = " · ".join(f"<bdi>{escape(plain_line(value, _LINE))}</bdi>" for value in values if value)
    return f'<p class="quiet">{said}</p>'


def _marked(matched: Matched) -> str:
    """The matched lines with the words of the question marked."""
    html, at = "", 0
    for start, end in matched.places:
        html += f"{escape(matched.text[at:start])}<mark>{escape(matched.text[start:end])}</mark>"
        at = end
    return html + escape(matched.text[at:])


def _list(items: Iterable[str]) -> str:
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f"<ol>{rows}</ol>" if rows else ""


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
