"""`autoplay-rag ingest`: a stream into a vector store, until it is told to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.console import note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_STORE,
    EmbedderOption,
    IdleOption,
    StoreOption,
    TokenOption,
    UrlArgument,
    chroma_path,
    make_embedder,
    make_store,
)
from autoplay_rag.cli.progress import counts, showing_progress
from autoplay_rag.cli.reached import require_reached
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.journal.ledger import Ledger

__all__ = ["default_journal", "ingest"]


def ingest(
    url: UrlArgument,
    *,
    token: TokenOption = "",
    store: StoreOption = DEFAULT_STORE,
    embedder: EmbedderOption = "local",
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where received payloads wait and are remembered; by default beside the store.",
        ),
    ] = None,
    idle_seconds: IdleOption = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Embed everything in the journal again: the store was emptied or replaced, or the "
            "embedder is another one.",
        ),
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt", help="Take over what the store of another journal holds, into this one."
        ),
    ] = False,
) -> None:
    """Take a stream into a vector store.

    Ctrl-C stops reading, stores what was received, and ends; a second Ctrl-C leaves at once, and
    what is not stored yet waits in the journal for the next start.
    """
    journal = journal or default_journal(chroma_path(store))
    client = AsyncConnectorClient(url, token)
    pipeline = IngestPipeline(
        make_store(store),
        make_embedder(embedder),
        journal=journal,
        rebuild=rebuild,
        adopt=adopt,
    )
    ledger = asyncio.run(_ingest(pipeline, client, url, journal, idle_seconds))
    if ledger.stored:
        note(f'ask: autoplay-rag search "..." --store {store}')
    if ledger.dead:
        note(f"see the dead letters with: autoplay-rag dead-letters list {journal}")
    if ledger.pending:
        raise typer.Exit(1)


def default_journal(store: Path) -> Path:
    """The journal beside a store.

    Example:
        >>> default_journal(Path("data/chroma")).as_posix()
        'data/chroma-journal.db'
    """
    if store.name in ("", ".."):  # "." and "..": beside what they stand for
        store = store.resolve()
    return store.parent / f"{store.name}-journal.db"


async def _ingest(
    pipeline: IngestPipeline,
    client: AsyncConnectorClient,
    url: str,
    journal: Path,
    idle_seconds: float | None,
) -> Ledger:
    def stop() -> None:
        client.stop()  # first: the note fails if nobody holds the other end of stderr
        note("storing what was received; Ctrl-C again leaves at once")

    with Interrupts(f"left at once: what is not stored waits in {journal}") as interrupts:
        note(f"journal: {journal}")
        async with pipeline:
            with interrupts.calling(stop):
                try:
                    async with showing_progress(pipeline, client):
                        await pipeline.ingest(client, idle_seconds=idle_seconds)
                finally:
                    ledger = pipeline.ledger
                    if ledger.received:
                        say(counts(ledger))
    require_reached(client, url, interrupted=bool(interrupts.count))
    return ledger
