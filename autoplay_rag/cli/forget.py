"""`autoplay-rag forget` and `export`: what is held about a person, deleted or as JSON Lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from autoplay_rag.cli.asking import ask_pipeline
from autoplay_rag.cli.config import ConfigOption
from autoplay_rag.cli.console import note, say, say_json
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    CollectionOption,
    EmbedderOption,
    JournalOption,
    ProductOption,
    StoreOption,
    find_place,
)
from autoplay_rag.cli.remote import read, server_of
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.journal.opened import OpenedJournal
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.maintenance.asked import asked_of
from autoplay_rag.maintenance.exporting import export_records
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.remote.client import ServeClient

__all__ = ["export", "forget"]

UserOption = Annotated[str | None, typer.Option(help="The person.")]
SessionOption = Annotated[str | None, typer.Option(help="The session.")]
ConversationOption = Annotated[str | None, typer.Option(help="The chat thread.")]
_POLL_SECONDS = 0.2


def forget(
    *,
    user: UserOption = None,
    session: SessionOption = None,
    product: ProductOption = None,
    conversation: ConversationOption = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only what happened up to then: a date, a time, or 7d."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    block: Annotated[
        bool, typer.Option("--block", help="Also refuse events that happen later.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    config: ConfigOption = None,
) -> None:
    """Forget a person, a session, a chat thread or a product: all that is given must hold.

    If a pipeline uses the journal, it does this beside its work, and erases the files in the
    background. Otherwise this command starts one, which also stores the payloads that wait.
    """
    asked = asked_of(
        "forget",
        user_id=user,
        session_id=session,
        product_id=product,
        conversation_id=conversation,
        until=until,
    )
    place = find_place(config, journal=journal, store=store, collection=collection)
    server = server_of(place, journal=journal, store=store, collection=collection)
    options = {"asked": asked, "dry_run": dry_run, "block": block}
    if server is not None:
        receipt = read(
            server,
            lambda client: client.forget(**asked._asdict(), dry_run=dry_run, block=block),
        )
    elif (answer := ask_pipeline(place.journal_file, "forget", options)) is not None:
        receipt = msgspec.convert(answer, Receipt)
    else:
        place.check_store()
        with place.file.explaining(["embedder"] if embedder else []):
            pipeline = IngestPipeline(
                place.make_store(),
                make_embedder(embedder or place.file.get("embedder") or DEFAULT_EMBEDDER),
                journal=place.journal_file,
                **place.file.pipeline,
            )
        receipt = asyncio.run(_forget(pipeline, asked, dry_run=dry_run, block=block))
    if json:
        say_json(receipt)
        return
    say(str(receipt))
    for remark in receipt.remaining:
        note(remark)


async def _forget(pipeline: IngestPipeline, asked: Asked, *, dry_run: bool, block: bool) -> Receipt:
    with Interrupts():
        async with pipeline:
            receipt = await pipeline.forget(**asked._asdict(), dry_run=dry_run, block=block)
            while not (dry_run or receipt.erased):
                await asyncio.sleep(_POLL_SECONDS)
                receipt = await pipeline.receipt(receipt.number)
            return receipt


def export(
    *,
    user: UserOption = None,
    session: SessionOption = None,
    product: ProductOption = None,
    conversation: ConversationOption = None,
    journal: JournalOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Print everything that is held about a person, a session or a chat thread, as JSON Lines.

    It asks the running server, or reads the journal, also while a pipeline uses it.
    """
    asked = asked_of(
        "export",
        user_id=user,
        session_id=session,
        product_id=product,
        conversation_id=conversation,
    )
    place = find_place(config, journal=journal, store=store)
    server = server_of(place, journal=journal, store=store)
    if server is not None:
        count = read(server, lambda client: _ask_to_export(client, asked))
    else:
        count = asyncio.run(_export(place.journal_file, asked))
    note(f"{count:,} records")


async def _ask_to_export(client: ServeClient, asked: Asked) -> int:
    count = 0
    async for record in client.export(**asked.given()):
        say(msgspec.json.encode(record).decode())
        count += 1
    return count


async def _export(path: Path, asked: Asked) -> int:
    count = 0
    with Interrupts():
        async with _opened(path) as journal:
            async for record in export_records(journal.read, asked):
                say(msgspec.json.encode(record).decode())
                count += 1
    return count


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[OpenedJournal]:
    journal = OpenedJournal(path)
    try:
        yield journal
    finally:
        await journal.aclose()
