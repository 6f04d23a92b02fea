"""`autoplay-rag backup` and `restore`: a journal and its Chroma folder, into a folder and back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from autoplay_rag.cli.asking import ask_pipeline
from autoplay_rag.cli.config import ConfigOption
from autoplay_rag.cli.console import note, say, say_json
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import JournalOption, Place, StoreOption, find_place
from autoplay_rag.cli.remote import ask, server_of
from autoplay_rag.cli.telling import teller
from autoplay_rag.maintenance.alone import backup_alone
from autoplay_rag.maintenance.backup import BackupReport
from autoplay_rag.maintenance.restoring import restore as put_back

__all__ = ["backup", "restore"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def backup(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new or an empty folder for the backup.")
    ],
    *,
    json: JsonOption = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy a journal and its store, also while a pipeline uses them.

    A running pipeline writes the backup itself. The folder appears under its name once the backup is
    complete.
    """
    place = find_place(config, journal=journal, store=store)
    server = server_of(place, journal=journal, store=store)
    if server is not None:
        where = server.path(folder)
        answer = ask(server, lambda api: api.run_job("backup", folder=where))
    else:
        folder = folder.expanduser().absolute()
        answer = ask_pipeline(place.journal_file, "backup", {"folder": str(folder)})
    if answer is not None:
        report = msgspec.convert(answer, BackupReport)
    else:
        place.check_store()
        report = asyncio.run(_backup(folder, place))
    if json:
        say_json(report)
        return
    what = "journal and store" if report.has_store else "the journal only"
    say(
        f"{report.folder}: {what}, {report.files} files, {report.size / 2**20:,.1f} MB, "
        f"{report.seconds:.1f} s"
    )
    note("the backup holds personal data: keep it where only its owner can read it")


async def _backup(folder: Path, place: Place) -> BackupReport:
    with Interrupts():
        return await backup_alone(
            folder, place.journal_file, place.make_store(), on_progress=teller()
        )


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by `backup`.")],
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace a journal and a store that exist and are not in use."
        ),
    ] = False,
    erasure_register: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file with all requests to forget, which are applied to the backup; by default "
            "the one in the settings file, or the one beside the journal.",
        ),
    ] = None,
    json: JsonOption = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Check a backup and put journal and store back. Nobody who was forgotten comes back."""
    place = find_place(config, journal=journal, store=store)
    report = put_back(
        folder,
        journal=place.journal_file,
        store=place.folder,
        force=force,
        erasure_register=erasure_register or place.file.erasure_register,
    )
    if json:
        say_json(report)
        return
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.made_at))
    say(f"restored the backup of {made}: {report.files} files, {report.size / 2**20:,.1f} MB")
    say(f"journal: {report.journal}")
    if report.store:
        say(f"store: {report.store}")
    else:
        note("the backup has no store: start once with --rebuild to fill one from the journal")
