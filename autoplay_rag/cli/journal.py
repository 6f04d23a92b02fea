"""`autoplay-rag status` and `dead-letters`: read a journal, also while a pipeline writes it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from autoplay_rag.cli.config import ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say, say_json, table
from autoplay_rag.cli.options import (
    DEFAULT_STORE,
    default_journal,
    find_place,
    has_shared_journal,
    help_without_subcommand,
    journal_file,
)
from autoplay_rag.cli.remote import Api, ask, find_server
from autoplay_rag.cli.replica import check_file
from autoplay_rag.cli.state import as_json, problems_of, rows_of
from autoplay_rag.decoding import decode
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.journal.base import Action, DeadLetter, Health
from autoplay_rag.journal.copying import Copy
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.journal.reader import JournalReader, JournalStatus
from autoplay_rag.maintenance.space import Space, space_of
from autoplay_rag.stores.named import folder_of

__all__ = ["dead_letters", "status"]

JournalArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="JOURNAL",
        callback=check_file,
        help="The journal's file; by default the one in the settings file, or the one beside the "
        "default store.",
    ),
]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[JOURNAL] [ID...]",
        help="The journal's file, as for `dead-letters list`, and ids that this shows. A file "
        "whose name is a number is named ./1.",
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="All dead letters.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="The most to list.")]

_WHEN = {
    True: "now",
    False: "at its next start, because it is not running",
    None: "now or at its next start: only its own user can see whether it is running",
}

_MOST_LETTERS = 1000
"""The most dead letters in one request to a server."""

dead_letters = typer.Typer()


def status(
    journal: JournalArgument = None,
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Print one line. Exit with 1 if payloads were lost, or the pipeline is "
            "degraded, failed or not running; otherwise with 0.",
        ),
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the state of a journal: counts, pending payloads, sizes, and whether a pipeline runs."""
    own, folder = _own(journal, config)
    server = find_server(journal or own, is_named=journal is not None)
    if server is not None:
        found, space = ask(server, _ask_status)
    else:
        path = journal_file(journal or own)
        found = JournalReader(path).status()
        is_own = own is not None and path.resolve() == own.resolve()
        space = space_of(path, folder if is_own and folder and folder.is_dir() else None)
    if check:
        problems = problems_of(found)
        say("not ok: " + "; ".join(problems) if problems else "ok")
        raise typer.Exit(1 if problems else 0)
    if json:
        say_json(as_json(found, space))
        return
    for name, value in rows_of(found, space):
        say(f"{name:<12}{value:>12}")
    if space.warning:
        note(f"warning: {space.warning}")


async def _ask_status(api: Api) -> tuple[JournalStatus, Space]:
    answer = await api.get("/v1/status")
    others = ("reembedding", "space", "topic")
    status = {name: value for name, value in answer.items() if name not in others}
    copy, space, topic = answer["reembedding"], answer["space"], answer.get("topic")
    return (
        JournalStatus(
            **{
                **status,
                "ledger": msgspec.convert(answer["ledger"], Ledger),
                "health": msgspec.convert(answer["health"], Health),
                # Only what is shown: the rest is the pipeline's own.
                "copy": copy and Copy(**copy, collection="", store_id="", render=False, last=0),
                "topic": msgspec.convert(topic, TopicStatus | None),
            }
        ),
        Space(**space),
    )


def _own(journal: Path | None, config: Path | None) -> tuple[Path | None, Path | None]:
    """The journal that the settings name, and the folder of its store; None for PostgreSQL."""
    file = load_config(config)
    if journal is None and has_shared_journal(file):
        return None, None
    with file.explaining():
        folder = folder_of(file.store or DEFAULT_STORE)
        own = file.journal or (journal if folder is None else None) or default_journal(folder)
    return own, folder


@dead_letters.callback(invoke_without_command=True)
def _about(context: typer.Context) -> None:
    """List, retry or discard payloads that could not be stored."""
    help_without_subcommand(context)


@dead_letters.command("list")
def list_(
    journal: JournalArgument = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List dead letters, oldest first."""
    path = _journal(journal, config)
    server = find_server(path, is_named=journal is not None)
    if server is not None:
        letters, total = ask(server, lambda api: _ask_letters(api, limit))
    else:
        reader = JournalReader(journal_file(path))
        letters = reader.dead_letters(limit)
        total = len(reader.dead_ids()) if len(letters) == limit else len(letters)
    if json:
        say_json(letters)
    elif letters:
        table(
            ("id", "died at", "kind", "session", "error"),
            [
                (
                    str(letter.id),
                    time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.died_at)),
                    letter.kind,
                    clean(letter.session_id or "-"),
                    clean(letter.error),
                )
                for letter in letters
            ],
        )
    else:
        note("no dead letters")
    if len(letters) == limit and (more := total - limit) > 0:
        note(f"{more:,} more: see them with --limit {limit + more}")


@dead_letters.command()
def retry(
    journal_and_ids: IdsArgument = None, all_: AllOption = False, config: ConfigOption = None
) -> None:
    """Put dead letters back into the queue."""
    _change("retry", journal_and_ids or [], config, all_=all_)


@dead_letters.command()
def discard(
    journal_and_ids: IdsArgument = None, all_: AllOption = False, config: ConfigOption = None
) -> None:
    """Delete dead letters permanently."""
    _change("discard", journal_and_ids or [], config, all_=all_)


def _change(action: Action, given: list[str], config: Path | None, *, all_: bool) -> None:
    named = check_file(Path(given[0])) if given and not given[0].isdecimal() else None
    texts = given[1:] if named is not None else given
    if unknown := [text for text in texts if not text.isdecimal()]:
        raise ConfigurationError(f"not the id of a dead letter: {', '.join(unknown)}")
    ids = list(dict.fromkeys(int(text) for text in texts))
    if bool(ids) == all_:
        raise ConfigurationError("give the ids of dead letters, or --all")
    path = _journal(named, config)
    server = find_server(path, is_named=named is not None)
    if server is not None:
        known = ask(server, _ask_ids)
    else:
        reader = JournalReader(journal_file(path))
        known = set(reader.dead_ids())
    if unknown := [str(id_) for id_ in ids if id_ not in known]:
        raise ConfigurationError(f"no dead letter has id {', '.join(unknown)}")
    if not known:
        note("no dead letters")
        return
    running: bool | None = True
    if server is not None:
        ask(server, lambda api: _ask_to_change(api, action, None if all_ else ids))
    else:
        running = reader.ask(action, None if all_ else ids)
    count = len(known) if all_ else len(ids)
    say(f"{action} {count:,}: the pipeline will do this {_WHEN[running]}")


def _journal(journal: Path | None, config: Path | None) -> Path | None:
    """The given journal, the one of the settings, or the one beside the store; None for PostgreSQL."""
    if journal is not None:
        return journal
    return find_place(config, journal=None, store=None).journal


async def _ask_letters(api: Api, limit: int) -> tuple[list[DeadLetter], int]:
    letters: list[DeadLetter] = []
    cursor: str | None = None
    while True:
        wanted = min(_MOST_LETTERS, limit - len(letters))
        page = await api.get("/v1/dead-letters", limit=wanted, cursor=cursor)
        for one in page["dead_letters"]:
            payload = one["payload"] and decode(msgspec.json.encode(one["payload"]))
            letters.append(DeadLetter(**{**one, "payload": payload}))
        cursor = page["next"]
        if cursor is None or len(letters) >= limit:
            return letters, page["total"]


async def _ask_ids(api: Api) -> set[int]:
    letters, _ = await _ask_letters(api, sys.maxsize)
    return {letter.id for letter in letters}


async def _ask_to_change(api: Api, action: Action, ids: list[int] | None) -> None:
    if ids is None:
        await api.post(f"/v1/dead-letters/{action}", {"all": True})
        return
    for start in range(0, len(ids), _MOST_LETTERS):
        await api.post(f"/v1/dead-letters/{action}", {"ids": ids[start : start + _MOST_LETTERS]})
