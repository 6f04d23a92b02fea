"""`autoplay-rag search`: searches a store and its journal for a question."""

from __future__ import annotations

import asyncio
import math
import operator
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from autoplay_rag._checks import check_choice
from autoplay_rag.cli.config import ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say_json, table
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    CollectionOption,
    EmbedderOption,
    JournalOption,
    ProductOption,
    SinceOption,
    StoreOption,
    UntilOption,
    default_journal,
)
from autoplay_rag.content.chunks import Vector
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import JournalError, StoreError
from autoplay_rag.journal.opened import OpenedJournal
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.hits import Hit, Hits
from autoplay_rag.search.searcher import Searcher
from autoplay_rag.search.serving import Serving
from autoplay_rag.stores.base import Filter
from autoplay_rag.stores.chroma import ChromaStore
from autoplay_rag.stores.named import chroma_path, make_store

__all__ = ["hits_table", "search", "shown_texts", "shown_time"]

_CHROMA_FILE = "chroma.sqlite3"
_SNIPPET = 160


def search(
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    *,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="The most hits to show.")] = 5,
    session: Annotated[str | None, typer.Option(help="Only chunks of this session.")] = None,
    user: Annotated[str | None, typer.Option(help="Only chunks of this user.")] = None,
    product: ProductOption = None,
    kind: Annotated[
        str | None, typer.Option(metavar="actions|summary|chat", help="Only this kind.")
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="hybrid|dense|text",
            help="Compare words and meaning, meaning alone, or words alone.",
        ),
    ] = "hybrid",
    json: Annotated[bool, typer.Option("--json", help="Print JSON with the full texts.")] = False,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    journal: JournalOption = None,
    config: ConfigOption = None,
) -> None:
    """Search a store and its journal for actions of users, also while `ingest` runs."""
    check_choice("--mode", mode, get_args(Mode))
    file = load_config(config)
    with file.explaining(
        name for name, value in (("store", store), ("embedder", embedder)) if value is not None
    ):
        store = store or file.store or DEFAULT_STORE
        folder = chroma_path(store)
        embedder = embedder or file.get("embedder") or DEFAULT_EMBEDDER
        embeds = make_embedder(embedder) if mode != "text" else None
    limits = Filter(
        session_id=session, user_id=user, product_id=product, kind=kind, since=since, until=until
    )
    kept = None
    if mode != "text" and (folder / _CHROMA_FILE).is_file():  # Chroma would create it
        kept = make_store(store, collection or file.get("collection"))
    found = journal or _usable(file.journal or default_journal(folder))
    if found is None and kept is None:
        raise StoreError(f"no Chroma store at {folder}: run `autoplay-rag ingest URL` first")
    if kept is None and mode == "dense":
        raise StoreError(f"no Chroma store at {folder}; words alone need --mode text")
    # Only with the bundled model: another embedder may need an additional request to a service.
    finds_answers = not json and embedder == DEFAULT_EMBEDDER
    sides = _Sides(kept, embeds, found, is_named=journal is not None)
    hits, texts = asyncio.run(
        _search(sides, question, k, limits, cast("Mode", mode), finds_answers=finds_answers)
    )
    if json:
        say_json([{**asdict(hit), "sides": sides.answered} for hit in hits])
        return
    if hits:
        hits_table(hits, texts=texts)
    elif hits.scope_known:
        note("nothing found")
    else:
        note("nothing found: no such session or user was ever seen")
    note(f"answered by {' and '.join(sides.answered)}{sides.reason}")


@dataclass(slots=True)
class _Sides:
    """The sources of a search, and which of them answered.

    Attributes:
        store: The store; None if there is none, or if it is not used.
        embedder: Embeds the question; None if the store is not used.
        journal: The journal's file; None if there is none.
        is_named: Whether the user named the journal.
        answered: The sides that answered: "text", "dense".
        reason: Why a side did not answer.
    """

    store: ChromaStore | None
    embedder: Embedder | None
    journal: Path | None
    is_named: bool
    answered: list[str] = field(default_factory=list)
    reason: str = ""


def _usable(journal: Path) -> Path | None:
    """Return the default journal; None if it is missing or this version cannot read it."""
    if not journal.is_file():
        return None
    try:
        JournalReader(journal)
    except JournalError as error:
        note(f"searching without the journal: {clean(str(error))}")
        return None
    return journal


async def _search(
    sides: _Sides, question: str, k: int, limits: Filter, mode: Mode, *, finds_answers: bool
) -> tuple[Hits[Hit], list[str]]:
    async with AsyncExitStack() as closing:
        closing.enter_context(Interrupts())
        if sides.embedder is not None:
            closing.push_async_callback(sides.embedder.aclose)
        if sides.store is not None:
            closing.push_async_callback(sides.store.aclose)
        opened = OpenedJournal(sides.journal) if sides.journal is not None else None
        if opened is not None:
            closing.push_async_callback(opened.aclose)
        store, opened = await _started(sides, opened, mode)
        if store is None:
            mode = "text"
        searcher = Searcher(
            store,
            Serving(sides.embedder),
            opened.finder if opened else None,
            complete=opened is not None,
        )
        hits = await searcher.search(question, k, limits, mode=mode, collapse=True)
        if opened and mode != "dense":
            sides.answered.append("text")
        if hits.problem:
            sides.reason = f"; the store did not: {clean(hits.problem)}"
        elif mode != "text":
            sides.answered.append("dense")
        return hits, await shown_texts(hits, question, sides.embedder if finds_answers else None)


async def _started(
    sides: _Sides, journal: OpenedJournal | None, mode: Mode
) -> tuple[ChromaStore | None, OpenedJournal | None]:
    """Start the store, and return the store and the journal that can be used together."""
    store = sides.store
    if store is None or sides.embedder is None:
        return None, journal
    try:
        await store.start(sides.embedder.model)
        if journal and not sides.is_named and not await _belong_together(store, journal):
            return store, None
    except StoreError as error:
        # Only one process can use a Chroma folder, and a running `ingest` uses it.
        if journal is None or mode == "dense":
            raise
        sides.reason = f"; the store did not: {clean(str(error))}"
        return None, journal
    return store, journal


async def _belong_together(store: ChromaStore, journal: OpenedJournal) -> bool:
    identity = await store.identity()
    return identity is not None and identity.journal_id == journal.journal_id


async def shown_texts(hits: Sequence[Hit], question: str, embedder: Embedder | None) -> list[str]:
    """The text to show for each hit: the lines with words of the question, or the nearest line."""
    texts = [hit.matched.text if hit.matched.places else "" for hit in hits]
    rest = [hit for hit, text in zip(hits, texts, strict=True) if not text]
    if embedder is not None and rest:
        found = iter(await _answers(embedder, question, rest))
        return [text or next(found) for text in texts]
    return [text or hit.text for hit, text in zip(hits, texts, strict=True)]


async def _answers(embedder: Embedder, question: str, hits: Sequence[Hit]) -> list[str]:
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
                shown_time(hit.metadata.get("ended_at")),
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


def shown_time(seconds: object) -> str:
    """Format Unix seconds in the local time zone, with its name; "-" if unknown."""
    if not isinstance(seconds, int | float):
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"
