"""`autoplay-rag demo`: stream, ingest and search in one command, only on this machine."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.console import note, paragraph, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.progress import showing_progress
from autoplay_rag.cli.search import hits_table, shown_texts
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.recording import read_recording_lines
from autoplay_rag.devserver import LocalConnector, questions, samples
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.embedders.local import LocalEmbedder
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.stores.chroma import ChromaStore

__all__ = ["demo"]

_RATE = 100.0
"""Events per second: fast, but slow enough to see. One minute of the samples takes 50 ms."""
_WINDOW_S = 0.5
_IDLE_S = 1.0
_SHOWN = 4
_K = 5


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Keep the store in this folder; by default it is deleted."
        ),
    ] = None,
) -> None:
    """Stream samples into Chroma and search them, without a key or network access."""
    if folder is not None:
        asyncio.run(_demo(folder))
        note(f'ask more: autoplay-rag search "..." --store chroma:{folder}')
    else:
        with tempfile.TemporaryDirectory(
            prefix="autoplay-rag-", ignore_cleanup_errors=True
        ) as temporary:
            asyncio.run(_demo(Path(temporary)))


async def _demo(folder: Path) -> None:
    embedder = LocalEmbedder()
    total = sum(1 for _ in read_recording_lines(samples()))
    paragraph(
        "A connector on this machine streams the actions of users in a made-up product. The "
        "pipeline batches them per session, embeds them with the bundled model and stores them in "
        "Chroma."
    )
    began = time.monotonic()
    with Interrupts():
        async with (
            LocalConnector(rate=_RATE) as connector,
            IngestPipeline(ChromaStore(folder), embedder, batch_window=_WINDOW_S) as pipeline,
        ):
            client = AsyncConnectorClient(connector.url)
            async with showing_progress(pipeline, [client], total=total):
                ledger = await pipeline.ingest(client, idle_seconds=_IDLE_S)
            paragraph(
                f"Stored {ledger.stored:,} of {total:,} events as {ledger.chunks:,} chunks in "
                f"{time.monotonic() - began:.0f} s."
            )
            await _ask(pipeline, embedder)


async def _ask(pipeline: IngestPipeline, embedder: Embedder) -> None:
    """Show the hits of a few questions, and count for all whether the right session is found."""
    asked = questions()
    for question in asked[:: len(asked) // _SHOWN][:_SHOWN]:
        say("")
        hits = await pipeline.search(question.question, k=3, collapse=True)
        texts = await shown_texts(hits, question.question, embedder)
        hits_table(hits, title=question.question, texts=texts)
    first = found = 0
    for question in asked:
        sessions = await pipeline.search_sessions(question.question, k=_K)
        ids = [session.session_id for session in sessions]
        first += question.session_id in ids[:1]
        found += question.session_id in ids
    say("")
    paragraph(
        f"Of all {len(asked)} sample questions, the right session comes first for {first}, "
        f"and among the first {_K} for {found}."
    )
