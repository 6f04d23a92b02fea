"""`autoplay-rag reembed` and `copy`: the same chunks with another model, or in another store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from autoplay_rag.cli.config import Config, ConfigOption, load_config
from autoplay_rag.cli.console import clean, note, say, say_json
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    CollectionOption,
    EmbedderOption,
    JournalOption,
    StoreOption,
    default_journal,
    find_place,
)
from autoplay_rag.cli.remote import Api, Server, ask, find_server, server_of
from autoplay_rag.cli.telling import teller
from autoplay_rag.cluster import JournalAddress
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.embedders.named import check_embedder_name, make_embedder
from autoplay_rag.errors import ConfigurationError, EmbedderUnavailableError, StoreError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.ingest.store_copy import copy_store
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.maintenance.report import CopyReport, ReembedReport
from autoplay_rag.stores.base import VectorStore
from autoplay_rag.stores.chroma.copies import DATABASE
from autoplay_rag.stores.named import folder_of, make_store
from autoplay_rag.stores.postgres.dsn import is_dsn, public_dsn

__all__ = ["copy", "reembed"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _OldModel(Embedder):
    """Stands for the model in use, which the command does not need: nothing is embedded with it."""

    def __init__(self, model: str) -> None:
        self.model = model

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:  # noqa: ARG002 - as `Embedder`
        raise EmbedderUnavailableError("payloads that wait are embedded with the new model")


def reembed(
    *,
    embedder: EmbedderOption = None,
    render: Annotated[
        bool, typer.Option("--render", help="Make the texts again from the kept payloads.")
    ] = False,
    json: JsonOption = False,
    journal: JournalOption = None,
    store: StoreOption = None,
    collection: CollectionOption = None,
    config: ConfigOption = None,
) -> None:
    """Embed everything again with another model: the one that --embedder names.

    It fills a second collection, then puts it in the place of the old one. An interrupted run goes
    on where it stopped. A running `autoplay-rag serve` does it beside its work. A running `ingest`
    must be stopped first.
    """
    place = find_place(config, journal=journal, store=store, collection=collection)
    server = server_of(place, journal=journal, store=store, collection=collection)
    if server is not None:
        with place.file.explaining(["embedder"] if embedder else []):
            name = embedder or place.file.get("embedder") or DEFAULT_EMBEDDER
            check_embedder_name(name)
        before, report = ask(server, lambda api: _ask_to_reembed(api, name, render=render))
        if report.model == before and not render:
            note(f"the store has vectors of {clean(before)} already")
        _show(report, name, json=json)
        return
    place.check_store()
    in_use = JournalReader(place.journal_file).status().model
    with place.file.explaining(["embedder"] if embedder else []):
        name = embedder or place.file.get("embedder") or DEFAULT_EMBEDDER
        new = make_embedder(name)
        if new.model == in_use and not render:
            note(f"the store has vectors of {clean(in_use)} already")
        pipeline = IngestPipeline(
            place.make_store(),
            new if new.model == in_use or not in_use else _OldModel(in_use),
            journal=place.journal_file,
            **place.file.pipeline,
        )
    _show(asyncio.run(_reembed(pipeline, new, render=render)), name, json=json)


def _show(report: ReembedReport, embedder: str, *, json: bool) -> None:
    if json:
        say_json(report)
    else:
        say(clean(str(report)))
    if report.chunks:
        note(f"from now on, start the pipeline with --embedder {clean(embedder)}")


async def _ask_to_reembed(api: Api, embedder: str, *, render: bool) -> tuple[str, ReembedReport]:
    before = (await api.get("/v1/status"))["model"]
    report = await api.run_job("reembed", embedder=embedder, render=render)
    return before, msgspec.convert(report, ReembedReport)


async def _reembed(pipeline: IngestPipeline, new: Embedder, *, render: bool) -> ReembedReport:
    with Interrupts():
        async with pipeline:
            report = await pipeline.reembed(new, render=render, on_progress=teller())
            await pipeline.drain()
            return report


def copy(
    *,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="chroma:PATH",
            help="The store to copy; by default the one of the running server, or of the settings "
            "file.",
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="chroma:PATH", help="The other store.")],
    from_collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="The collection to copy.")
    ] = None,
    to_collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="The collection in the other store.")
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The journal of the store. Only chunks that it knows are copied, and it belongs "
            "to the other store afterwards. No pipeline may use it. With --to-journal it may be "
            "postgresql://USER@HOST/DATABASE.",
        ),
    ] = None,
    to_journal: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|postgresql:",
            help="Copy the journal too: from a file into PostgreSQL, or back. Use only the copy "
            "afterwards.",
        ),
    ] = None,
    embedder: EmbedderOption = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Copy the chunks of a store into another one, which embeds them again.

    Chunks that are there already stay, so an interrupted copy goes on where it stopped. Nothing is
    deleted.

    A running `autoplay-rag serve` copies its own store beside its work, and stays with it: what is
    stored or forgotten meanwhile may differ in the copy. To move to the other store, stop the
    server and give --journal.
    """
    journals = _journals(journal, to_journal)
    file = load_config(config)
    with file.explaining(["store"] if from_ else []):
        from_name = from_ or file.store or file.get("postgres") or DEFAULT_STORE
        folder = folder_of(from_name)
    target = folder_of(to)
    with file.explaining(["embedder"] if embedder else []):
        name = embedder or file.get("embedder") or DEFAULT_EMBEDDER
        check_embedder_name(name)
    server = None if journals else _server_of_copy(file, folder, from_, from_collection)
    if server is not None:
        if target is None:
            raise ConfigurationError(
                "a running server copies to a Chroma folder only: stop it, and copy to PostgreSQL "
                "with --journal"
            )
        job = {"to": f"chroma:{server.path(target)}", "to_collection": to_collection}
        answer = ask(server, lambda api: api.run_job("copy", **job, embedder=name))
        report = msgspec.convert(answer, CopyReport)
        remark = "the server stays with its own store: to move, stop it and copy with --journal"
    else:
        collection = from_collection or (None if from_ else file.get("collection"))
        source = make_store(from_name, collection)
        copied = make_store(to, to_collection)
        if (folder, collection) == (target, to_collection) if folder else source == copied:
            raise ConfigurationError("--from and --to name the same collection")
        if folder is not None and not (folder / DATABASE).is_file():
            raise StoreError(f"no Chroma store at {folder}; check the path")
        with file.explaining(["embedder"] if embedder else []):
            new = make_embedder(name)
        report = asyncio.run(_copy(source, copied, new, journals))
        remark = f"from now on, start the pipeline with --store {clean(to)}" if journals else ""
        if to_journal:
            remark += f" and the journal {clean(to_journal)}"
    if json:
        say_json(report)
    else:
        say(clean(str(report)))
    if remark:
        note(remark)


def _server_of_copy(
    file: Config, folder: Path | None, from_: str | None, collection: str | None
) -> Server | None:
    """Find the server whose store is to be copied."""
    if from_ is None:
        journal = file.journal or (default_journal(folder) if folder else None)
        if journal is None:
            return None
        return find_server(journal, is_named=collection is not None, collection=collection)
    # The settings file may be about another store.
    beside = default_journal(folder) if folder else None
    for journal in filter(None, (file.journal, beside)):
        server = find_server(journal, is_named=True, store=folder, collection=collection)
        if server is not None:
            return server
    return None


def _journals(journal: str | None, to_journal: str | None) -> list[Path | JournalAddress]:
    """Return the journal of the store, and the one that it is copied to."""
    if to_journal is not None and journal is None:
        raise ConfigurationError("--to-journal needs --journal: the journal to copy")
    if journal is None:
        return []
    own = _journal_of(journal)
    if isinstance(own, Path) and not own.is_file():
        raise ConfigurationError(f"no journal found at {own}; check the path")
    if to_journal is None:
        if isinstance(own, JournalAddress):
            raise ConfigurationError(
                "a journal in PostgreSQL belongs to the store in the same schema: copy it too, with "
                "--to-journal and a new file"
            )
        return [own]
    other = _journal_of(to_journal)
    if isinstance(own, Path) is isinstance(other, Path):
        raise ConfigurationError("--to-journal copies from a file into PostgreSQL, or back")
    return [own, other]


def _journal_of(name: str) -> Path | JournalAddress:
    return JournalAddress(public_dsn(name)) if is_dsn(name) else Path(name).expanduser()


async def _copy(
    source: VectorStore,
    target: VectorStore,
    embedder: Embedder,
    journals: Sequence[Path | JournalAddress],
) -> CopyReport:
    from autoplay_rag.cluster import copy_journal

    with Interrupts():
        own = journals[0] if journals else None
        other = journals[-1] if len(journals) > 1 else None
        if isinstance(own, JournalAddress):
            assert isinstance(other, Path)
            # First: the store is copied by what the file says of it.
            note(str(await copy_journal(own, other)))
            own, other = other, None
        report = await copy_store(source, target, embedder, journal=own, on_progress=teller())
        if own is not None and other is not None:
            note(str(await copy_journal(own, other)))
        return report
