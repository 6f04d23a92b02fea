"""`autoplay-rag status` and `dead-letters`: read a journal, also while a pipeline writes it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.config import ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say, say_json, table
from autoplay_rag.cli.options import (
    DEFAULT_STORE,
    default_journal,
    help_without_subcommand,
)
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.journal.base import Action
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.journal.reader import JournalReader, JournalStatus
from autoplay_rag.maintenance.space import space_of
from autoplay_rag.stores.named import chroma_path

__all__ = ["dead_letters", "status"]

JournalArgument = Annotated[
    Path, typer.Argument(metavar="JOURNAL", help="The journal's file, as printed by `ingest`.")
]
IdsArgument = Annotated[
    list[int] | None, typer.Argument(metavar="ID...", help="Ids from `dead-letters list`.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All dead letters.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="The most to list.")]

_PIPELINE = {True: "running", False: "not running", None: "unknown"}
_WHEN = {
    True: "now",
    False: "at its next start, because it is not running",
    None: "now or at its next start: only its own user can see whether it is running",
}

dead_letters = typer.Typer()


def status(
    journal: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOURNAL",
            help="The journal's file; by default the one in the settings file, or the one beside "
            "the default store.",
        ),
    ] = None,
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
    file = load_config(config)
    with file.explaining():
        folder = chroma_path(file.store or DEFAULT_STORE)
    own = file.journal or default_journal(folder)
    journal = journal or own
    found = JournalReader(journal).status()
    if check:
        problems = _problems(found)
        say("not ok: " + "; ".join(problems) if problems else "ok")
        raise typer.Exit(1 if problems else 0)
    is_own = journal.resolve() == own.resolve() and folder.is_dir()
    space = space_of(journal, folder if is_own else None)
    if json:
        counters = {name: getattr(found.ledger, name) for name in COUNTERS}
        say_json(
            {
                **counters,
                "queue_bytes": found.queue_bytes,
                "oldest_at": found.oldest_at,
                "oldest_pending": found.ledger.oldest_pending,
                "lag_p50": found.ledger.lag_p50,
                "lag_p99": found.ledger.lag_p99,
                "watermark": found.watermark,
                "health": found.health.state,
                "reasons": found.health.reasons,
                "running": found.running,
                "model": found.model,
                "reembedding": None
                if found.copy is None
                else {
                    "model": found.copy.model,
                    "done": found.copy.done,
                    "total": found.copy.total,
                },
                "journal_bytes": space.journal,
                "store_bytes": space.store,
                "free_bytes": space.free,
                "space_is_low": space.is_low,
            }
        )
        return
    rows = [(name, f"{getattr(found.ledger, name):,}") for name in COUNTERS]
    rows.append(("queue bytes", f"{found.queue_bytes:,}"))
    if found.oldest_at is not None:
        rows.append(("waiting s", f"{max(0.0, time.time() - found.oldest_at):,.0f}"))
    for name in ("p50", "p99"):
        seconds = getattr(found.ledger, f"lag_{name}")
        if seconds is not None:
            rows.append((f"lag {name} s", f"{seconds:,.1f}"))
    if found.copy is not None:
        copy = found.copy
        rows.append(("re-embedded", f"{copy.done:,} of {copy.total:,} with {clean(copy.model)}"))
    rows.append(("journal", _megabytes(space.journal)))
    rows.append(("store", _megabytes(space.store)))
    rows.append(("disk free", _megabytes(space.free)))
    rows.append(("pipeline", _PIPELINE[found.running]))
    rows.append(("health", clean(str(found.health))))
    for name, value in rows:
        say(f"{name:<12}{value:>12}")
    if space.warning:
        note(f"warning: {space.warning}")


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.1f} MB"


def _problems(found: JournalStatus) -> list[str]:
    """Return the problems of a journal, a few words each."""
    problems = []
    if not found.running:
        unknown = found.running is None
        problems.append(
            "only the pipeline's own user can see whether it is running"
            if unknown
            else "the pipeline is not running"
        )
    if found.health.state != "ok":
        # A stopped pipeline has no current health: this is the last one it noted.
        last = "" if found.running else "last noted: "
        problems.append(f"{last}{clean(str(found.health))}")
    if found.ledger.overflow:
        problems.append(f"{found.ledger.overflow:,} payloads lost to overflow")
    return problems


@dead_letters.callback(invoke_without_command=True)
def _about(context: typer.Context) -> None:
    """List, retry or discard payloads that could not be stored."""
    help_without_subcommand(context)


@dead_letters.command("list")
def list_(journal: JournalArgument, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List dead letters, oldest first."""
    reader = JournalReader(journal)
    letters = reader.dead_letters(limit)
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
    if len(letters) == limit and (more := len(reader.dead_ids()) - limit) > 0:
        note(f"{more:,} more: see them with --limit {limit + more}")


@dead_letters.command()
def retry(journal: JournalArgument, ids: IdsArgument = None, all_: AllOption = False) -> None:
    """Put dead letters back into the queue."""
    _ask(journal, "retry", ids or [], all_=all_)


@dead_letters.command()
def discard(journal: JournalArgument, ids: IdsArgument = None, all_: AllOption = False) -> None:
    """Delete dead letters permanently."""
    _ask(journal, "discard", ids or [], all_=all_)


def _ask(journal: Path, action: Action, ids: list[int], *, all_: bool) -> None:
    if bool(ids) == all_:
        raise ConfigurationError("give the ids of dead letters, or --all")
    reader = JournalReader(journal)
    ids = list(dict.fromkeys(ids))
    known = set(reader.dead_ids())
    if unknown := [id_ for id_ in ids if id_ not in known]:
        raise ConfigurationError(f"no dead letter has id {', '.join(map(str, unknown))}")
    if not known:
        note("no dead letters")
        return
    running = reader.ask(action, None if all_ else ids)
    count = len(known) if all_ else len(ids)
    say(f"{action} {count:,}: the pipeline will do this {_WHEN[running]}")
