"""`autoplay-rag serve`: ingests streams and serves the HTTP interface until stopped."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from autoplay_rag.cli.config import Config, ConfigOption, load_config
from autoplay_rag.cli.console import log_client_failures, note, on_terminal, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.kafka import GroupOption, KafkaOption, TopicOption, topic_of
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    DEFAULT_STORE,
    AdoptOption,
    AllowHostOption,
    CollectionOption,
    EmbedderOption,
    RebuildOption,
    StoreOption,
    WrittenJournalOption,
    default_journal,
)
from autoplay_rag.cli.progress import counts
from autoplay_rag.cli.replica import PostgresOption, RoleOption, replica_of
from autoplay_rag.cli.sources import SOURCES_HELP, Sources, sources_of
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.devserver import questions
from autoplay_rag.devserver.live_samples import live_samples
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import ConfigurationError, EmbedderError, MissingExtraError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.serve.app import create_app
from autoplay_rag.serve.audit import AuditSink
from autoplay_rag.serve.keys import Keys
from autoplay_rag.serve.running import RunningServer, announced
from autoplay_rag.stores.named import folder_of, make_store

__all__ = ["new_loop", "serve"]

_FIRST_REQUESTS_SECONDS: Final = 30.0
_OBJECTS_OF_COLLECTION: Final = 10_000
"""How many new objects start a garbage collection; Python's own 700 take 4 % of the time under load."""
_SWITCH_SECONDS: Final = 0.0005
"""How long a thread may keep Python's lock from the event loop, which gives it up with each `send`. With
Python's own 5 ms, a search that scores in its thread holds up every event to every subscriber: at 200
events/s with 100 of them, searches took three times as long at the median."""
_SAMPLES = {"batch_window": 1.0, "retention_days": 1}
"""Settings of a pipeline for samples: found soon, and bounded however long it runs."""


def serve(
    url: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help=f"{SOURCES_HELP} And webhook:posthog, webhook:amplitude or webhook:segment. Without a "
            "source, the server takes webhooks and chat turns only.",
        ),
    ] = None,
    *,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    journal: WrittenJournalOption = None,
    postgres: PostgresOption = None,
    role: RoleOption = None,
    kafka: KafkaOption = None,
    topic: TopicOption = None,
    group: GroupOption = None,
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 for any free port.")
    ] = 8760,
    allow_host: AllowHostOption = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            envvar="AUTOPLAY_RAG_ALLOW_ORIGIN",
            help="The origin of web pages that may ask, such as https://app.example.com; repeatable.",
        ),
    ] = None,
    audit_log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append the audit lines to this file; by default they go to standard error.",
        ),
    ] = None,
    samples: Annotated[
        bool,
        typer.Option(
            "--samples",
            help="Read samples of a made-up product, which a connector on this machine sends on and "
            "on. Without --store, what is stored is deleted at the end.",
        ),
    ] = False,
    rebuild: RebuildOption = False,
    adopt: AdoptOption = False,
) -> None:
    """Read streams and other sources into a vector store, and answer over HTTP, until stopped.

    Keys come from AUTOPLAY_RAG_ADMIN_KEY, AUTOPLAY_RAG_READ_KEY and AUTOPLAY_RAG_INGEST_KEY, or from
    the files that these names with _FILE name. Without any, a key is made and shown.

    Ctrl-C and SIGTERM stop: subscribers are told, received payloads are stored, exit code 0. A
    second one exits at once: what is not stored stays in the journal for the next start.
    """
    if samples and (postgres or role or kafka):
        raise ConfigurationError(
            "--samples needs a store of its own: leave out --postgres, --role and --kafka"
        )
    if samples and (url or config):
        raise ConfigurationError(
            "--samples takes no URL and no settings file: leave out --config, and unset "
            "AUTOPLAY_RAG_CONFIG"
        )
    file = Config() if samples else load_config(config)
    options = {
        "store": store,
        "embedder": embedder,
        "collection": collection,
        "journal": journal,
        "postgres": postgres,
        "role": role,
        "kafka": kafka,
        "topic": topic,
        "group": group,
    }
    with ExitStack() as stack:
        if samples and store is None:
            folder = tempfile.TemporaryDirectory(prefix="autoplay-rag-", ignore_cleanup_errors=True)
            store = f"chroma:{stack.enter_context(folder)}/chroma"
        with file.explaining(name for name, value in options.items() if value is not None):
            sources = sources_of(url or [], [], file, retry_refusals=True)
            replica = replica_of(
                postgres,
                role,
                file,
                others={"store": store, "journal": journal, "samples": samples},
            )
            read = topic_of(kafka, topic, group, file)
            if read is not None and replica is None:
                raise ConfigurationError(
                    "kafka needs --postgres DSN, the database that takes the messages in"
                )
            if replica is None:
                store = store or file.store or DEFAULT_STORE
                journal = journal or file.journal or default_journal(folder_of(store))
                journal = journal.expanduser()
            made = make_store(
                replica.dsn if replica else store or "", collection or file.get("collection")
            )
            pipeline = IngestPipeline(
                made,
                make_embedder(embedder or file.get("embedder") or DEFAULT_EMBEDDER),
                journal=read.url if read else replica.dsn if replica else journal,
                catalog=replica.dsn if read and replica else None,
                kafka_settings=file.kafka_client if read else None,
                takes_work=replica is None or replica.reads,
                rebuild=rebuild,
                adopt=adopt,
                **(_SAMPLES if samples else file.pipeline),
            )
        given = Keys.from_environment()
        if replica is not None and not given and not on_terminal():
            raise ConfigurationError(
                "there is no key: set AUTOPLAY_RAG_ADMIN_KEY or AUTOPLAY_RAG_ADMIN_KEY_FILE, to the "
                "same key for all servers of the database"
            )
        keys = replace(given, local=secrets.token_urlsafe(32))
        app = create_app(
            pipeline,
            keys=keys,
            hosts=[host, *(allow_host or ())],
            cors_origins=allow_origin or (),
            audit=stack.enter_context(_auditing(audit_log, are_samples=samples)),
            routes="health" if replica is not None and replica.role == "ingest" else "all",
        )
        server = _server(app, host, port)
        if file.path is not None:
            note(f"settings: {file.path}")
        about = RunningServer(
            server.url, keys.local or "", os.getpid(), str(made.data_folder or ""), made.collection
        )
        if replica is not None and not replica.reads and sources.running:
            note("role serve: the sources are read by servers of another role")
            sources = replace(sources, streams=[], pulls=[])
        reading = _reading_samples() if samples else nullcontext(sources)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_serve(server, pipeline, reading, journal, about, has_keys=bool(given)))


@asynccontextmanager
async def _reading_samples() -> AsyncIterator[Sources]:
    async with live_samples() as url:
        note(f'samples: {url}; search for "{questions()[0].question}"')
        yield Sources([AsyncConnectorClient(url)])


def _server(app: Any, host: str, port: int) -> Any:
    try:
        from autoplay_rag.serve.server import HttpServer
    except ModuleNotFoundError:
        raise MissingExtraError("autoplay-rag serve", "serve") from None
    return HttpServer(app, host, port)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of uvloop if it is installed, as with chromadb, or else of asyncio.

    uvloop keeps Python's lock while it sends. With 120,000 events and 90 subscribers, searches take 15 %
    less time.
    """
    try:
        import uvloop
    except ModuleNotFoundError:  # on Windows, or with another store
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(
    server: Any,
    pipeline: IngestPipeline,
    reading: AbstractAsyncContextManager[Sources],
    file: Path | None,
    about: RunningServer,
    *,
    has_keys: bool,
) -> None:
    sources = Sources()
    journal = pipeline.settings.journal

    def stop() -> None:
        for source in sources.running:
            source.stop()
        server.stop()
        note("stopping: storing the received payloads; press Ctrl-C again to exit at once")

    log_client_failures()
    with Interrupts(
        f"exited at once: payloads that are not stored stay in {journal}"
    ) as interrupts:
        async with AsyncExitStack() as stack:
            stack.callback(server.close)
            sources = await stack.enter_async_context(reading)
            # Before the start: it loads what was pulled before. The gaps of a stream need the pull
            # source.
            for source in sources.running:
                pipeline.attach(source)
            await stack.enter_async_context(pipeline)
            await _prepare(pipeline)
            with ExitStack() as announcing, interrupts.calling(stop):
                serving = asyncio.create_task(server.run_until_stopped(), name="autoplay-serve")
                ready = asyncio.create_task(server.ready(), name="autoplay-serve-ready")
                tasks = {serving, ready}
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if ready.done():
                        tasks.add(asyncio.create_task(_spare_the_collector()))
                        sys.setswitchinterval(_SWITCH_SECONDS)
                        path = announcing.enter_context(announced(file, about)) if file else None
                        _introduce(server.url, about.key, str(journal), path, has_keys=has_keys)
                        for tool in sorted(sources.tools):
                            note(f"{tool} posts to {server.url}/v1/webhooks/PRODUCT/{tool}")
                        if sources.warning:
                            note(sources.warning, "yellow")
                        for source in sources.running:
                            pipeline.read_in_background(source)
                    await serving
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
        if pipeline.ledger.received:
            note(counts(pipeline.ledger))


async def _prepare(pipeline: IngestPipeline) -> None:
    """Load the embedder, for which the first searches would have to wait.

    A failure is not reported here: the first request fails in the same way, or it passes by then.
    """
    if pipeline.embedder is not None:
        with suppress(EmbedderError):
            await pipeline.embedder.prepare()


async def _spare_the_collector() -> None:
    """Take what lives as long as the process out of the garbage collections.

    The modules alone are 200,000 objects. A full collection walked through all of them every few
    seconds under load, and every request waited for it, 150 ms on a processor with nothing else to
    do. Libraries import more with the first requests, hence the second time.
    """
    # A search reads and makes thousands of rows, and each thousand would start a collection.
    gc.set_threshold(_OBJECTS_OF_COLLECTION, *gc.get_threshold()[1:])
    for wait in (0.0, _FIRST_REQUESTS_SECONDS):
        await asyncio.sleep(wait)
        gc.collect()
        gc.freeze()


def _introduce(url: str, key: str, journal: str, path: Path | None, *, has_keys: bool) -> None:
    say(f"serving {url}")
    note(f"journal: {journal}")
    if has_keys:
        return
    if on_terminal():
        say(f"open {url}/?key={key}")
    else:
        note(f"no key is set, so one was made: it is in {path}")


@contextmanager
def _auditing(path: Path | None, *, are_samples: bool) -> Iterator[AuditSink]:
    """Give a function that writes a line of the audit log."""
    if path is None:
        # Samples are about nobody, and the lines would push the printed address out of sight.
        yield _drop if are_samples else note
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ConfigurationError(f"--audit-log: {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as file:
        yield lambda line: print(line, file=file)


def _drop(_line: str) -> None:
    """Write nothing."""
