"""`autoplay-rag search`: searches a store for a question."""

from __future__ import annotations

import asyncio
import math
import operator
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
from autoplay_rag.content.chunks import Vector
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import StoreError
from autoplay_rag.search.hits import Hit
from autoplay_rag.search.searcher import Searcher
from autoplay_rag.stores.base import Filter
from autoplay_rag.stores.chroma import ChromaStore

__all__ = ["answers", "hits_table", "search"]

_CHROMA_FILE = "chroma.sqlite3"
_SNIPPET = 160


def search(
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    *,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="The most hits to show.")] = 5,
    session: Annotated[str | None, typer.Option(help="Only chunks of this session.")] = None,
    user: Annotated[str | None, typer.Option(help="Only chunks of this user.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON with the full texts.")] = False,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    config: ConfigOption = None,
) -> None:
    """Search a store for actions of users."""
    file = load_config(config)
    with file.explaining(
        name for name, value in (("store", store), ("embedder", embedder)) if value is not None
    ):
        store = store or file.store or DEFAULT_STORE
        folder = chroma_path(store)
        embedder = embedder or file.get("embedder") or DEFAULT_EMBEDDER
        embeds = make_embedder(embedder)
    if not (folder / _CHROMA_FILE).is_file():  # Chroma would create it
        raise StoreError(f"no Chroma store at {folder}: run `autoplay-rag ingest URL` first")
    limits = Filter(session_id=session, user_id=user)
    kept = make_store(store, collection or file.get("collection"))
    # Only with the bundled model: another embedder may need one more request to a service.
    finds_answers = not json and embedder == DEFAULT_EMBEDDER
    hits, texts = asyncio.run(
        _search(kept, embeds, question, k, limits, finds_answers=finds_answers)
    )
    if json:
        say_json(hits)
    elif hits:
        hits_table(hits, texts=texts)
    else:
        note("nothing found")


async def _search(
    store: ChromaStore,
    embedder: Embedder,
    question: str,
    k: int,
    limits: Filter,
    *,
    finds_answers: bool,
) -> tuple[list[Hit], list[str] | None]:
    with Interrupts():
        try:
            await store.start(embedder.model)
            hits = await Searcher(store, embedder).search(question, k, limits)
            texts = await answers(embedder, question, hits) if finds_answers else None
        finally:
            await store.aclose()
            await embedder.aclose()
    return hits, texts


async def answers(embedder: Embedder, question: str, hits: Sequence[Hit]) -> list[str]:
    """Return the line of each hit's text that is nearest in meaning to the question."""
    lines = [_lines(hit.text) for hit in hits]
    asked = await embedder.embed_query(question)
    texts = list(dict.fromkeys(line for each in lines for line in each))
    vectors = dict(zip(texts, await embedder.embed(texts), strict=True)) if texts else {}
    return [max(each, key=lambda line: _cosine(asked, vectors[line]), default="") for each in lines]


def hits_table(hits: Sequence[Hit], title: str = "", *, texts: Sequence[str] | None = None) -> None:
    """Print hits, best first.

    Args:
        hits: The hits.
        title: The title above the table.
        texts: The text to show for each hit; by default the beginning of its own text.
    """
    shown = [hit.text for hit in hits] if texts is None else texts
    table(
        ("score", "session", "user", "when", "what"),
        [
            (
                f"{hit.score:.3f}",
                clean(hit.session_id or "-"),
                clean(str(hit.metadata.get("user_id", "-"))),
                _when(hit.metadata.get("ended_at")),
                _snippet(text),
            )
            for hit, text in zip(hits, shown, strict=True)
        ],
        title=title,
    )


def _snippet(text: str) -> str:
    text = " · ".join(_lines(text))
    return text if len(text) <= _SNIPPET else f"{text[: _SNIPPET - 1]}…"


def _lines(text: str) -> list[str]:
    lines = (clean(line).removesuffix(",").strip(" ·") for line in text.splitlines())
    return [line for line in lines if line]


def _cosine(one: Vector, other: Vector) -> float:
    length = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / length if length else 0.0


def _when(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"
