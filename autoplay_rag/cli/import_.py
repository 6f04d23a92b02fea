"""`autoplay-rag import`: reads files of events or payloads into a vector store."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.config import ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    CollectionOption,
    EmbedderOption,
    StoreOption,
    WrittenJournalOption,
    default_journal,
)
from autoplay_rag.cli.progress import showing_progress
from autoplay_rag.cli.replica import check_no_postgres
from autoplay_rag.connector.encodings import Lines, lines_of, open_lines
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import ConfigurationError, DrainTimeoutError, RecordingError
from autoplay_rag.ingest.importing import FORMATS, Format, Imported, import_records
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.sources.records import read_records
from autoplay_rag.stores.named import folder_of, make_store

__all__ = ["import_files"]

_STDIN = "-"
_SHOWN_ERRORS = 5


def import_files(
    file: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="The files, also compressed with gzip; - is standard input."
        ),
    ],
    *,
    format: Annotated[
        Format,
        typer.Option(
            metavar="|".join(FORMATS),
            help="What the files hold: events of a tool (segment: also of RudderStack), or payloads, "
            "as `autoplay-rag tail --jsonl` prints them.",
        ),
    ],
    product_id: Annotated[
        str,
        typer.Option(help="The product of events, and of payloads that name none."),
    ] = "",
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    journal: WrittenJournalOption = None,
    config: ConfigOption = None,
) -> None:
    """Read files of events or payloads into a vector store.

    The files hold lines of JSON, a JSON array, or one JSON object. What was imported before is not
    stored again, so an import can be repeated, and continued after Ctrl-C.
    """
    for path in file:
        if path != _STDIN:
            Path(path).stat()  # before anything is started; not opened, it may be a pipe
    if file.count(_STDIN) > 1:
        raise ConfigurationError("standard input can be read once only: give - once")
    settings = load_config(config)
    options = {"store": store, "embedder": embedder, "collection": collection, "journal": journal}
    with settings.explaining(name for name, value in options.items() if value is not None):
        if store is None:
            check_no_postgres(settings)
        store = store or settings.store or DEFAULT_STORE
        journal = journal or settings.journal or default_journal(folder_of(store))
        pipeline = IngestPipeline(
            make_store(store, collection or settings.get("collection")),
            make_embedder(embedder or settings.get("embedder") or DEFAULT_EMBEDDER),
            journal=journal,
            **settings.pipeline,
        )
    if settings.path is not None:
        note(f"settings: {settings.path}")
    imported, is_stored = asyncio.run(_import(pipeline, file, format, product_id, journal))
    if not is_stored or (imported.bad and imported.bad == imported.read):
        raise typer.Exit(1)


async def _import(
    pipeline: IngestPipeline, files: Sequence[str], format: Format, product_id: str, journal: Path
) -> tuple[Imported, bool]:
    """Read all files; return the counts, and whether everything read is stored."""
    imported = Imported()
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        note("storing what was read; press Ctrl-C again to exit at once")

    name = ""
    with Interrupts(
        f"exited at once: payloads that are not stored stay in {journal}"
    ) as interrupts:
        note(f"journal: {journal}")
        async with pipeline:
            with interrupts.calling(stop):
                doing = lambda: f"reading {name}: {imported.read:,} events"  # noqa: E731
                async with showing_progress(pipeline, [], doing=doing):
                    for path in files:
                        name = "standard input" if path == _STDIN else clean(path)
                        note(f"reading {name}")
                        with _opened(path) as lines:
                            await import_records(
                                pipeline,
                                read_records(lines, _Errors(name, imported)),
                                format,
                                product_id=product_id,
                                imported=imported,
                                stopped=stopping.is_set,
                            )
                    is_stored = await _drained(pipeline)
    say(_counts(imported))
    if imported.bad and imported.bad == imported.read:
        note(f"nothing could be read: are these files of the format {format}?")
    if stopping.is_set():
        note("stopped: run the same command again to continue")
    return imported, is_stored


async def _drained(pipeline: IngestPipeline) -> bool:
    while pipeline.ledger.pending:
        before = pipeline.ledger
        try:
            await pipeline.drain(30.0)
        except DrainTimeoutError as error:
            if (before.stored, before.dead) == (pipeline.ledger.stored, pipeline.ledger.dead):
                note(f"{clean(str(error))}; the next start stores them")
                return False
    return True


def _counts(imported: Imported) -> str:
    """What became of everything that was read, in one line.

    Example:
        >>> from collections import Counter
        >>> _counts(Imported(Counter(accepted=1200, duplicate=3), skipped=40))
        'read 1,243 · accepted 1,200 · duplicate 3 · not actions 40'
    """
    named = {
        **{name: imported.outcomes[name] for name in ("accepted", "duplicate")},
        **{name: imported.outcomes[name] for name in ("filtered", "refused", "dead", "overflow")},
        "not actions": imported.skipped,
        "repeated": imported.repeated,
        "unreadable": imported.bad,
    }
    shown = [f"{name} {count:,}" for name, count in named.items() if count or name == "accepted"]
    return " · ".join([f"read {imported.read:,}", *shown])


class _Errors:
    """Counts the values of a file that cannot be read, and names the first ones."""

    def __init__(self, name: str, imported: Imported) -> None:
        self._name = name
        self._imported = imported
        self._count = 0

    def __call__(self, error: str) -> None:
        self._imported.bad += 1
        self._count += 1
        if self._count <= _SHOWN_ERRORS:
            note(f"{self._name}, {error}")


@contextmanager
def _opened(path: str) -> Iterator[Lines]:
    if path != _STDIN:
        with open_lines(path) as lines:
            yield lines
        return
    if sys.stdin is None:
        raise RecordingError("standard input is closed")
    with lines_of(sys.stdin.buffer, "standard input") as lines:  # type: ignore[arg-type]
        yield lines
