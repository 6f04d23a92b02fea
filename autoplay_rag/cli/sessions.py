"""`autoplay-rag sessions` and `session`: read a journal, also while a pipeline writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from autoplay_rag.cli.config import ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say_json, table
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_STORE,
    JournalOption,
    ProductOption,
    SinceOption,
    StoreOption,
    UntilOption,
    default_journal,
    has_shared_journal,
    journal_file,
)
from autoplay_rag.cli.remote import Server, find_server, read
from autoplay_rag.cli.search import shown_time
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.journal.opened import OpenedJournal
from autoplay_rag.remote.client import ServeClient
from autoplay_rag.search.timeline import (
    Sessions,
    SessionSummary,
    list_sessions,
    read_session,
    wanted_of,
)
from autoplay_rag.stores.named import folder_of

__all__ = ["session", "sessions"]

T = TypeVar("T")
_MOST_SESSIONS = 500
"""The most sessions on one page of a server."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def sessions(
    *,
    user: Annotated[str | None, typer.Option(help="Only sessions of this user.")] = None,
    product: ProductOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    matching: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Only sessions that have all these words.")
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Only sessions that do not.")
    ] = None,
    page: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only sessions that visited a URL with this.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most sessions to show.")] = 20,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Where the page before ended.")
    ] = None,
    json: JsonOption = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List sessions, the latest first, also while `ingest` runs."""
    conditions: dict[str, Any] = {
        "user_id": user,
        "product_id": product,
        "since": since,
        "until": until,
        "matching": matching,
        "without": without,
        "page": page,
    }
    wanted = wanted_of(**conditions)
    source = _source(journal, store, config)
    if isinstance(source, Server):
        found = read(source, lambda client: _ask_pages(client, conditions, limit, cursor))
    else:
        found = _read(source, lambda timeline: list_sessions(timeline, wanted, limit, cursor))
    if json:
        say_json(
            {
                "sessions": [asdict(one) for one in found],
                "total": found.total,
                "next": found.next,
                "sides": ["journal"],
            }
        )
        return
    if found:
        table(
            ("session", "user", "ended", "actions", "what"),
            [
                (
                    clean(one.session_id),
                    clean(one.user_id or ("(several)" if one.ambiguous else "-")),
                    shown_time(one.ended_at),
                    f"{one.actions:,}",
                    clean(one.what),
                )
                for one in found
            ],
        )
    else:
        note("nothing found")
    note(f"{_said(source)}: {len(found):,} of {found.total:,} sessions")
    if found.next:
        note(f"more: --cursor {found.next}")


def session(
    session_id: Annotated[str, typer.Argument(metavar="SESSION")],
    *,
    user: Annotated[str | None, typer.Option(help="Only what belongs to this user.")] = None,
    product: ProductOption = None,
    json: JsonOption = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one session in order, also while `ingest` runs."""
    source = _source(journal, store, config)
    if isinstance(source, Server):
        found = read(source, lambda client: client.session(session_id, product, user_id=user))
    else:
        found = _read(source, lambda timeline: read_session(timeline, session_id, product, user))
    if found is None:
        where = source.url if isinstance(source, Server) else source
        raise JournalError(f"no session {session_id!r} of that product and user in {where}")
    if json:
        say_json({**asdict(found), "sides": ["journal"]})
        return
    table(
        ("when", "type", "what", "page"),
        [
            (
                shown_time(event.started_at),
                clean(event.type or event.kind),
                clean(event.description or event.title),
                clean(event.page),
            )
            for event in found.events
        ],
    )
    if found.ambiguous and user is None:
        note(f"{len(found.users):,} people used this session; see one of them with --user")
    if found.missing:
        note(f"{found.missing:,} payloads are not shown: their bodies were not kept; see --json")
    note(_said(source))


def _journal(journal: Path | None, store: str | None, config: Path | None) -> Path | None:
    """The given journal, the one of the settings, or the one beside the store; None for PostgreSQL."""
    if journal is not None:
        return journal
    file = load_config(config)
    if store is None and has_shared_journal(file):
        return None
    with file.explaining(() if store is None else ("store",)):
        folder = folder_of(store or file.store or DEFAULT_STORE)
        if store is None and file.journal is not None:
            return file.journal
        return default_journal(folder)


def _source(journal: Path | None, store: str | None, config: Path | None) -> Server | Path:
    """The server to ask, or the journal to read."""
    path = _journal(journal, store, config)
    server = find_server(
        path,
        is_named=journal is not None or store is not None,
        store=None if store is None else folder_of(store),
    )
    return journal_file(path) if server is None else server


def _said(source: Server | Path) -> str:
    """Say who answered."""
    if isinstance(source, Server):
        return f"answered by the server at {source.url}"
    return f"answered by the journal {source}"


async def _ask_pages(
    client: ServeClient, conditions: Mapping[str, Any], limit: int, cursor: str | None
) -> Sessions:
    """Ask for as many pages as the limit needs."""
    found: list[SessionSummary] = []
    while True:
        wanted = min(limit - len(found), _MOST_SESSIONS)
        page = await client.sessions(**conditions, limit=wanted, cursor=cursor)
        found += page
        cursor = page.next
        if cursor is None or len(found) >= limit:
            return Sessions(found, total=page.total, next=cursor)


def _read(path: Path, read: Callable[[AsyncTimeline], Awaitable[T]]) -> T:
    async def opened() -> T:
        journal = OpenedJournal(path)
        try:
            with Interrupts():
                return await read(journal.timeline)
        finally:
            await journal.aclose()

    return asyncio.run(opened())
