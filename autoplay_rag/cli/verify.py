"""`autoplay-rag verify`: compares a journal with its store."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import typer

from autoplay_rag.cli.asking import ask_pipeline
from autoplay_rag.cli.config import ConfigOption
from autoplay_rag.cli.console import clean, note, say, say_json
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    CollectionOption,
    EmbedderOption,
    JournalOption,
    Place,
    StoreOption,
    find_place,
)
from autoplay_rag.cli.remote import ask, server_of
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.maintenance.alone import verify_alone
from autoplay_rag.maintenance.report import VerifyReport

__all__ = ["verify"]

_KINDS = {
    "missing": "stored, but not in the store",
    "stale": "another text or other metadata in the store",
    "doubled": "more than once in the store",
    "undeleted": "to be deleted, but still in the store",
    "extra": "in the store, but unknown to the journal",
}


def verify(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Store again, correct or delete what differs.")
    ] = False,
    delete_extra: Annotated[
        bool,
        typer.Option(
            "--delete-extra",
            help="With --repair: delete chunks that the journal does not know, even if they are more "
            "than 5 % of the collection.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    config: ConfigOption = None,
) -> None:
    """Compare a journal with its store. Exit with 1 if something is wrong.

    If a pipeline uses the journal, it does this beside its work. Otherwise --repair starts one for
    the time of the repair, which also stores the payloads that wait.
    """
    if delete_extra and not repair:
        raise ConfigurationError("--delete-extra needs --repair")
    place = find_place(config, journal=journal, store=store, collection=collection)
    options = {"repair": repair, "delete_extra": delete_extra}
    server = server_of(place, journal=journal, store=store, collection=collection)
    if server is not None:
        answer = ask(server, lambda api: api.run_job("verify", **options))
    else:
        answer = ask_pipeline(place.journal_file, "verify", options)
    if answer is not None:
        report = msgspec.convert(answer, VerifyReport)
    else:
        place.check_store()
        if repair:
            with place.file.explaining(["embedder"] if embedder else []):
                name = embedder or place.file.get("embedder") or DEFAULT_EMBEDDER
                pipeline = IngestPipeline(
                    place.make_store(),
                    make_embedder(name),
                    journal=place.journal_file,
                    **place.file.pipeline,
                )
            report = asyncio.run(_repair(pipeline, delete_extra=delete_extra))
        else:
            report = asyncio.run(_verify(place))
    if json:
        say_json(report)
    else:
        _print(report)
    if not report.clean:
        raise typer.Exit(1)


async def _verify(place: Place) -> VerifyReport:
    with Interrupts():
        return await verify_alone(place.journal_file, place.make_store())


async def _repair(pipeline: IngestPipeline, *, delete_extra: bool) -> VerifyReport:
    with Interrupts():
        async with pipeline:
            report = await pipeline.verify(repair=True, delete_extra=delete_extra)
            await pipeline.drain()
            return report


def _print(report: VerifyReport) -> None:
    say(str(report))
    for kind, meaning in _KINDS.items():
        if count := getattr(report, kind):
            examples = ", ".join(clean(one) for one in report.examples.get(kind, ()))
            more = ", ..." if count > len(report.examples.get(kind, ())) else ""
            say(f"{kind:<10}{count:>9,}  {meaning}: {examples}{more}")
    done = {
        "stored again": report.queued,
        "metadata corrected": report.updated,
        "deleted": report.deleted,
    }
    if any(done.values()):
        say("repaired: " + ", ".join(f"{count:,} {what}" for what, count in done.items() if count))
    for remark in report.remarks:
        note(clean(remark))
    if report.unchecked:
        note(f"the store cannot show: {', '.join(report.unchecked)}")
