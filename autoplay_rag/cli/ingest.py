"""`autoplay-rag ingest`: reads streams into a vector store until stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag._checks import check_at_least, check_choice
from autoplay_rag.cli.config import PIPELINE_KEYS, ConfigOption, load_config
from autoplay_rag.cli.console import error, log_client_failures, note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    AdoptOption,
    CollectionOption,
    EmbedderOption,
    IdleOption,
    RebuildOption,
    StoreOption,
    WrittenJournalOption,
    default_journal,
)
from autoplay_rag.cli.progress import counts, showing_progress
from autoplay_rag.cli.reached import require_reached
from autoplay_rag.cli.replica import check_no_postgres
from autoplay_rag.cli.sources import SOURCES_HELP, sources_of
from autoplay_rag.connector.client import TOKEN_VARIABLE, AsyncConnectorClient
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import AutoplayError, ConfigurationError, ConnectorError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.sources.activity import LiveActivitySource
from autoplay_rag.stores.named import folder_of, make_store

__all__ = ["ingest"]


def ingest(
    url: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help=SOURCES_HELP),
    ] = None,
    *,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="The product's token; with several URLs, one for each, in the same order. By "
            f"default the value of {TOKEN_VARIABLE}_PRODUCT or {TOKEN_VARIABLE}.",
        ),
    ] = None,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    journal: WrittenJournalOption = None,
    batch_window: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long to gather the payloads of a session into a batch; by default 15.",
        ),
    ] = None,
    redact: Annotated[
        str | None,
        typer.Option(
            metavar="pii",
            help="Remove personal data and secrets before anything is kept. Needs the extra pii.",
        ),
    ] = None,
    retention_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            help="Delete what is older from store and journal; by default nothing is.",
        ),
    ] = None,
    remember_keys_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            help="How long a late delivery of what was deleted is known; by default 30.",
        ),
    ] = None,
    idle_seconds: IdleOption = None,
    config: ConfigOption = None,
    rebuild: RebuildOption = False,
    adopt: AdoptOption = False,
) -> None:
    """Read one or more streams, or pull endpoints, into a vector store.

    Ctrl-C stops reading, stores the received payloads, and exits. A second Ctrl-C exits at once:
    payloads that are not stored yet stay in the journal for the next start.

    If one of several streams fails permanently, the others continue, and the exit code is 1.
    """
    file = load_config(config)
    named = {
        "store": store,
        "embedder": embedder,
        "collection": collection,
        "batch_window": batch_window,
        "redact": redact,
        "retention_days": retention_days,
        "remember_keys_days": remember_keys_days,
        "idle_seconds": idle_seconds,
        "journal": journal,
        "url": url or None,
        "token": token or None,
    }
    given = {name: value for name, value in named.items() if value is not None}
    with file.explaining(given):
        sources = sources_of(url or [], token or [], file)
        if sources.tools and not sources.running:
            raise ConfigurationError(
                "a webhook needs a server: use `autoplay-rag serve` instead of ingest"
            )
        if not sources.running:
            raise ConfigurationError(
                "give the URL of a stream, https://.../stream/PRODUCT, as an argument or in "
                "autoplay-rag.toml"
            )
        if store is None:
            check_no_postgres(file)
        store = store or file.store or DEFAULT_STORE
        journal = journal or file.journal or default_journal(folder_of(store))
        idle_seconds = file.get("idle_seconds") if idle_seconds is None else idle_seconds
        check_at_least("idle_seconds", idle_seconds, 0, optional=True)
        options = file.pipeline
        options |= {name: given[name] for name in PIPELINE_KEYS if name in given}
        check_choice("redact", options.get("redact", "pii"), ("pii",))
        pipeline = IngestPipeline(
            make_store(store, collection or file.get("collection")),
            make_embedder(embedder or file.get("embedder") or DEFAULT_EMBEDDER),
            journal=journal,
            rebuild=rebuild,
            adopt=adopt,
            **options,
        )
    if file.path is not None:
        note(f"settings: {file.path}")
    if sources.tools:
        note("webhooks are left out: only `autoplay-rag serve` takes them")
    ledger, failures = asyncio.run(_ingest(pipeline, sources.running, journal, idle_seconds))
    if ledger.stored:
        named_too = f" --collection {collection}" if collection else ""
        note(f'ask: autoplay-rag search "..." --store {store}{named_too}')
    if ledger.dead:
        note(f"show the dead letters: autoplay-rag dead-letters list {journal}")
    for failure in failures:
        error(failure)
    if ledger.pending or failures:
        raise typer.Exit(1)


async def _ingest(
    pipeline: IngestPipeline,
    clients: Sequence[AsyncConnectorClient | LiveActivitySource],
    journal: Path,
    idle_seconds: float | None,
) -> tuple[Ledger, list[AutoplayError]]:
    """Read all sources to their end; return the ledger and the errors of single sources."""
    failures: list[AutoplayError] = []

    async def read(client: AsyncConnectorClient | LiveActivitySource) -> None:
        try:
            await pipeline.ingest(client, idle_seconds=idle_seconds)
        except AutoplayError as failure:
            if len(clients) == 1:
                raise
            failures.append(failure)

    def stop() -> None:
        for client in clients:
            client.stop()  # before the note, which fails if nobody reads stderr
        note("storing the received payloads; press Ctrl-C again to exit at once")

    if len(clients) > 1:
        log_client_failures()
    # Before the start: it loads what was pulled before. The gaps of a stream need the pull source.
    for client in clients:
        pipeline.attach(client)
    with Interrupts(
        f"exited at once: payloads that are not stored stay in {journal}"
    ) as interrupts:
        note(f"journal: {journal}")
        async with pipeline:
            with interrupts.calling(stop):
                try:
                    async with showing_progress(pipeline, clients):
                        await asyncio.gather(*map(read, clients))
                finally:
                    ledger = pipeline.ledger
                    if ledger.received:
                        say(counts(ledger))
    failures += _never_reached(clients, interrupted=bool(interrupts.count))
    return ledger, failures


def _never_reached(
    clients: Sequence[AsyncConnectorClient | LiveActivitySource], *, interrupted: bool
) -> list[AutoplayError]:
    found: list[AutoplayError] = []
    for client in clients:
        idle = isinstance(client, LiveActivitySource) and client.last_error is None
        if client.state != "failed" and not idle:  # a pull source may have nobody to watch
            try:
                require_reached(client, client.url, interrupted=interrupted)
            except ConnectorError as failure:
                found.append(failure)
    return found
