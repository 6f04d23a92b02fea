"""`autoplay-rag search`: searches a store and its journal for a question."""

from __future__ import annotations

import asyncio
import math
import operator
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, cast, get_args

import typer

from autoplay_rag._checks import check_choice
from autoplay_rag.cli.config import ConfigOption
from autoplay_rag.cli.console import clean, note, say_json, table
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    CollectionOption,
    EmbedderOption,
    JournalOption,
    Place,
    ProductOption,
    SinceOption,
    StoreOption,
    UntilOption,
    find_place,
)
from autoplay_rag.cli.remote import read, server_of
from autoplay_rag.content.chunks import Vector
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.embedders.named import check_embedder_name, make_embedder
from autoplay_rag.errors import JournalError, MissingExtraError, StoreError
from autoplay_rag.journal.opened import OpenedJournal
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.remote.client import ServeClient
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.hits import Hit, Hits
from autoplay_rag.search.searcher import Searcher
from autoplay_rag.search.serving import Serving
from autoplay_rag.stores.base import Filter, VectorStore

__all__ = ["hits_table", "search", "shown_texts", "shown_time"]

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
    """Search a store and its journal for actions of users, also while `ingest` or `serve` runs."""
    check_choice("--mode", mode, get_args(Mode))
    limits = Filter(
        session_id=session, user_id=user, product_id=product, kind=kind, since=since, until=until
    )
    place = find_place(config, journal=journal, store=store, collection=collection)
    server = server_of(place, journal=journal, store=store, collection=collection)
    with place.file.explaining(["embedder"] if embedder is not None else []):
        name = embedder or place.file.get("embedder") or DEFAULT_EMBEDDER
        check_embedder_name(name)
        embeds = make_embedder(name) if mode != "text" and server is None else None
    # Only with the bundled model: another embedder may need an additional request to a service.
    finds_answers = not json and name == DEFAULT_EMBEDDER and mode != "text"
    asked = _Question(question, k, limits, cast("Mode", mode), finds_answers)
    if server is not None:
        if embedder is not None:
            note("the server embeds the question with its own embedder")
        hits, texts = read(server, lambda client: _ask(client, asked))
        answered, reason = _answered(asked.mode, hits.problem), _reason(hits.problem)
    else:
        sides = _sides(place, embeds, asked.mode, journal)
        hits, texts = asyncio.run(_search(sides, asked))
        answered, reason = sides.answered, sides.reason
    if json:
        say_json([{**asdict(hit), "sides": answered} for hit in hits])
        return
    if hits:
        hits_table(hits, texts=texts)
    elif hits.scope_known:
        note("nothing found")
    else:
        note("nothing found: no such session or user was ever seen")
    note(f"answered by {' and '.join(answered)}{reason}")


class _Question(NamedTuple):
    """What is asked.

    Attributes:
        finds_answers: Whether to find the line of each hit that is nearest in meaning.
    """

    text: str
    k: int
    limits: Filter
    mode: Mode
    finds_answers: bool


async def _ask(client: ServeClient, asked: _Question) -> tuple[Hits[Hit], list[str]]:
    """Ask a running server."""
    hits = await client.search(
        asked.text, asked.k, mode=asked.mode, filter=asked.limits, collapse=True
    )
    embedder = None
    if asked.finds_answers:
        with suppress(MissingExtraError):  # a command that only asks need not have the model
            embedder = make_embedder(DEFAULT_EMBEDDER)
    try:
        return hits, await shown_texts(hits, asked.text, embedder)
    finally:
        if embedder is not None:
            await embedder.aclose()


def _answered(mode: Mode, problem: str | None) -> list[str]:
    """Return the sides that answered a search of a pipeline."""
    return {
        "text": ["text"],
        "dense": ["dense"],
        "hybrid": ["text", "dense"][: 1 if problem else 2],
    }[mode]


def _reason(problem: str | None) -> str:
    return f"; the store did not: {clean(problem)}" if problem else ""


def _sides(place: Place, embeds: Embedder | None, mode: Mode, journal: Path | None) -> _Sides:
    """Return what the files at a place can answer.

    Raises:
        StoreError: If they cannot answer at all.
    """
    folder, kept = place.folder, None
    if mode != "text" and place.has_store():
        kept = place.make_store()
    found = journal or _usable(place.journal)
    if found is None and kept is None:
        raise StoreError(f"no Chroma store at {folder}: run `autoplay-rag ingest URL` first")
    if kept is None and mode == "dense":
        raise StoreError(f"no Chroma store at {folder}; words alone need --mode text")
    return _Sides(kept, embeds, found, is_named=journal is not None)


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

    store: VectorStore | None
    embedder: Embedder | None
    journal: Path | None
    is_named: bool
    answered: list[str] = field(default_factory=list)
    reason: str = ""


def _usable(journal: Path | None) -> Path | None:
    """Return the default journal; None if it is missing or this version cannot read it."""
    if journal is None or not journal.is_file():
        return None
    try:
        JournalReader(journal)
    except JournalError as error:
        note(f"searching without the journal: {clean(str(error))}")
        return None
    return journal


async def _search(sides: _Sides, asked: _Question) -> tuple[Hits[Hit], list[str]]:
    mode = asked.mode
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
        hits = await searcher.search(asked.text, asked.k, asked.limits, mode=mode, collapse=True)
        if opened and mode != "dense":
            sides.answered.append("text")
        if hits.problem:
            sides.reason = _reason(hits.problem)
        elif mode != "text":
            sides.answered.append("dense")
        embedder = sides.embedder if asked.finds_answers else None
        return hits, await shown_texts(hits, asked.text, embedder)


async def _started(
    sides: _Sides, journal: OpenedJournal | None, mode: Mode
) -> tuple[VectorStore | None, OpenedJournal | None]:
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


async def _belong_together(store: VectorStore, journal: OpenedJournal) -> bool:
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
