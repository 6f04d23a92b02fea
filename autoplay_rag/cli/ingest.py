"""`autoplay-rag ingest`: reads streams into a vector store until stopped."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import httpx
import typer

from autoplay_rag._checks import check_at_least, check_choice
from autoplay_rag.cli.config import PIPELINE_KEYS, Config, ConfigOption, Stream, load_config
from autoplay_rag.cli.console import error, log_client_failures, note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    CollectionOption,
    EmbedderOption,
    IdleOption,
    StoreOption,
    WrittenJournalOption,
    default_journal,
)
from autoplay_rag.cli.progress import counts, showing_progress
from autoplay_rag.cli.reached import require_reached
from autoplay_rag.connector.client import TOKEN_VARIABLE, AsyncConnectorClient
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import AutoplayError, ConfigurationError, ConnectorError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.stores.named import folder_of, make_store

__all__ = ["client_of", "ingest", "streams_of", "token_variable"]


def ingest(
    url: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL", help="The streams to read, each https://.../stream/PRODUCT."),
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
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Embed everything in the journal again, after the store was emptied or replaced, "
            "or for another embedder.",
        ),
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt", help="Add the content of a store of another journal to this journal."
        ),
    ] = False,
) -> None:
    """Read one or more streams into a vector store.

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
        clients = [client_of(stream) for stream in streams_of(url or [], token or [], file)]
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
    ledger, failures = asyncio.run(_ingest(pipeline, clients, journal, idle_seconds))
    if ledger.stored:
        named_too = f" --collection {collection}" if collection else ""
        note(f'ask: autoplay-rag search "..." --store {store}{named_too}')
    if ledger.dead:
        note(f"show the dead letters: autoplay-rag dead-letters list {journal}")
    for failure in failures:
        error(failure)
    if ledger.pending or failures:
        raise typer.Exit(1)


def token_variable(url: str) -> str:
    """Return the name of the environment variable for a stream's token.

    Example:
        >>> token_variable("https://connector.example.com/stream/acme-eu")
        'AUTOPLAY_APP_UNKEY_TOKEN_ACME_EU'
    """
    product = httpx.URL(url).path.rstrip("/").rpartition("/")[2]
    return f"{TOKEN_VARIABLE}_{re.sub(r'[^A-Za-z0-9]', '_', product).upper()}"


def streams_of(urls: Sequence[str], tokens: Sequence[str], file: Config) -> list[Stream]:
    """Return the streams to read: those of the command line or, if there are none, of the file."""
    from_file = file.streams(urls, tokens=not tokens)
    if urls:
        # A token of the file is only used for the URL in the same table.
        known = {stream.url: stream.token for stream in from_file}
        streams = [Stream(url, known.get(url, "")) for url in urls]
    else:
        streams = from_file
    if not streams:
        raise ConfigurationError(
            "give the URL of a stream, https://.../stream/PRODUCT, as an argument or in "
            "autoplay-rag.toml"
        )
    if len({stream.url for stream in streams}) < len(streams):
        raise ConfigurationError("a URL is given twice")
    if tokens and len(tokens) != len(streams):
        raise ConfigurationError(
            "give --token once for each URL, in the same order: "
            f"got {len(streams)} URLs and {len(tokens)} tokens"
        )
    if tokens:
        return [replace(stream, token=one) for stream, one in zip(streams, tokens, strict=True)]
    return streams


def client_of(stream: Stream) -> AsyncConnectorClient:
    """Make the client of a stream, with the token of its environment variable if it has none."""
    try:
        variable = token_variable(stream.url)
    except httpx.InvalidURL:
        variable = TOKEN_VARIABLE  # the client reports what is wrong with the URL
    try:
        return AsyncConnectorClient(stream.url, stream.token or os.environ.get(variable, ""))
    except ConfigurationError as error:
        if not stream.where:
            raise
        raise ConfigurationError(f"{stream.where}: {error}") from None


async def _ingest(
    pipeline: IngestPipeline,
    clients: Sequence[AsyncConnectorClient],
    journal: Path,
    idle_seconds: float | None,
) -> tuple[Ledger, list[AutoplayError]]:
    """Read all streams to their end; return the ledger and the errors of single streams."""
    failures: list[AutoplayError] = []

    async def read(client: AsyncConnectorClient) -> None:
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
    clients: Sequence[AsyncConnectorClient], *, interrupted: bool
) -> list[AutoplayError]:
    found: list[AutoplayError] = []
    for client in clients:
        if client.state != "failed":
            try:
                require_reached(client, client.url, interrupted=interrupted)
            except ConnectorError as failure:
                found.append(failure)
    return found
