"""`autoplay-rag search`: what a store has on a question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from autoplay_rag.cli.config import ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say_json, table
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    CollectionOption,
    EmbedderOption,
    StoreOption,
    chroma_path,
    make_embedder,
    make_store,
)
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import StoreError
from autoplay_rag.search.hits import Hit
from autoplay_rag.search.searcher import Searcher
from autoplay_rag.stores.base import Filter
from autoplay_rag.stores.chroma import ChromaStore

__all__ = ["hits_table", "search"]

_CHROMA_FILE = "chroma.sqlite3"
_SNIPPET = 160


def search(
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    *,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many hits at most.")] = 5,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, whole texts included.")] = False,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    config: ConfigOption = None,
) -> None:
    """Search a store for what users did."""
    file = load_config(config)
    with file.explaining(
        name for name, value in (("store", store), ("embedder", embedder)) if value is not None
    ):
        store = store or file.store or DEFAULT_STORE
        folder = chroma_path(store)
        embeds = make_embedder(embedder or file.get("embedder") or DEFAULT_EMBEDDER)
    if not (folder / _CHROMA_FILE).is_file():  # Chroma would make one
        raise StoreError(
            f"there is no Chroma store at {folder}; run `autoplay-rag ingest URL` first"
        )
    limits = Filter(session_id=session, user_id=user)
    kept = make_store(store, collection or file.get("collection"))
    hits = asyncio.run(_search(kept, embeds, question, k, limits))
    if json:
        say_json(hits)
    elif hits:
        hits_table(hits)
    else:
        note("nothing found")


async def _search(
    store: ChromaStore, embedder: Embedder, question: str, k: int, limits: Filter
) -> list[Hit]:
    with Interrupts():
        try:
            await store.start(embedder.model)
            return await Searcher(store, embedder).search(question, k, limits)
        finally:
            await store.aclose()
            await embedder.aclose()


def hits_table(hits: Sequence[Hit], title: str = "") -> None:
    """Print hits, best first."""
    table(
        ("score", "session", "user", "when", "what"),
        [
            (
                f"{hit.score:.3f}",
                clean(hit.session_id or "-"),
                clean(str(hit.metadata.get("user_id", "-"))),
                _when(hit.metadata.get("ended_at")),
                _snippet(hit.text),
            )
            for hit in hits
        ],
        title=title,
    )


def _snippet(text: str) -> str:
    text = " · ".join(clean(line).removesuffix(",") for line in text.splitlines())
    return text if len(text) <= _SNIPPET else f"{text[: _SNIPPET - 1]}…"


def _when(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"
