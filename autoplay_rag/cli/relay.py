"""`autoplay-rag relay`: passes payloads on into a topic of Kafka until stopped."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from autoplay_rag.cli.config import Config, ConfigOption, load_config
from autoplay_rag.cli.console import log_client_failures, note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.kafka import GroupOption, KafkaOption, TopicOption, topic_of
from autoplay_rag.cli.options import AllowHostOption
from autoplay_rag.cli.sources import SOURCES_HELP, Sources, sources_of
from autoplay_rag.errors import ConfigurationError, MissingExtraError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.relay.app import create_relay_app
from autoplay_rag.relay.relay import Relay
from autoplay_rag.serve.keys import Keys
from autoplay_rag.stores.postgres.dsn import is_dsn, public_dsn

__all__ = ["relay"]

DEFAULT_OUTBOX: Final = Path("relay.db")
DEFAULT_PORT: Final = 8761


def relay(
    url: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help=f"{SOURCES_HELP} And webhook:posthog, webhook:amplitude or webhook:segment. Without a "
            "source, give --port: the relay takes pushes and chat turns only.",
        ),
    ] = None,
    *,
    kafka: KafkaOption = None,
    topic: TopicOption = None,
    group: GroupOption = None,
    partitions: Annotated[
        int, typer.Option(min=1, help="The number of partitions, if the topic has to be created.")
    ] = 6,
    postgres: Annotated[
        str | None,
        typer.Option(
            metavar="DSN",
            help="The database of the servers that read the topic, without a password, as for `serve`. "
            "Then a payload is kept until the servers of --group have it, and sent again if the broker "
            "loses the topic.",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"The file for what is not delivered yet; by default {DEFAULT_OUTBOX}. Each relay needs "
            "its own.",
        ),
    ] = None,
    journal_max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="BYTES", help="The most bytes of payloads in it; by default 1 GiB."
        ),
    ] = None,
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="The port for webhooks, chat turns, health and metrics; 0 for any free port. By default "
            f"{DEFAULT_PORT} if a webhook is named, and otherwise none.",
        ),
    ] = None,
    allow_host: AllowHostOption = None,
) -> None:
    """Pass on streams, pulls, webhooks and chat turns into a topic of Kafka, until stopped.

    While the broker is away, a bounded file keeps what comes in. A webhook is answered once the broker
    has its payload. The settings of Kafka's clients come from the table kafka_client of the settings
    file, and from variables such as AUTOPLAY_RAG_KAFKA_SASL_PASSWORD, or from the files that these names
    with _FILE name. Keys come from the same variables as for `serve`.

    Ctrl-C and SIGTERM stop: what was received is delivered, for at most 10 seconds, exit code 0. A second
    one exits at once. What is not delivered stays in the file for the next start.
    """
    file = load_config(config)
    given = {
        "kafka": kafka,
        "topic": topic,
        "group": group,
        "postgres": postgres,
        "journal": journal,
    }
    with file.explaining(name for name, value in given.items() if value is not None):
        sources = sources_of(url or [], [], file, retry_refusals=True)
        address = topic_of(kafka, topic, group, file)
        if address is None:
            raise ConfigurationError(
                "the relay needs --kafka HOST:PORT and --topic TOPIC, or both in autoplay-rag.toml"
            )
        made = _relay_of(
            address,
            postgres or file.get("postgres"),
            file,
            outbox=journal or file.journal or DEFAULT_OUTBOX,
            partitions=partitions,
            max_bytes=journal_max_bytes,
        )
    if port is None and sources.tools:
        port = DEFAULT_PORT
    if port is None and not sources.running:
        raise ConfigurationError(
            "there is no source: name a stream, a pull endpoint or a webhook, or give --port for pushes"
        )
    if file.path is not None:
        note(f"settings: {file.path}")
    server = None if port is None else _server(made, host, port, allow_host or [])
    asyncio.run(_relay(made, server, sources))


def _relay_of(
    address: TopicAddress,
    postgres: str | None,
    file: Config,
    *,
    outbox: Path,
    partitions: int,
    max_bytes: int | None,
) -> Relay:
    if postgres is not None and not is_dsn(postgres):
        # Not quoted: it may have a password.
        raise ConfigurationError("postgres must have the form postgresql://USER@HOST/DATABASE")
    options: dict[str, Any] = {
        name: value
        for name, value in (
            ("max_bytes", max_bytes or file.get("journal_max_bytes")),
            ("durability", file.get("durability")),
            ("drain_timeout", file.get("drain_timeout")),
        )
        if value is not None
    }
    return Relay(
        address,
        outbox=outbox,
        settings=ClientSettings(file.kafka_client),
        partitions=partitions,
        postgres=None if postgres is None else public_dsn(postgres),
        **options,
    )


def _server(made: Relay, host: str, port: int, allow_host: list[str]) -> Any:
    given = Keys.from_environment()
    # Without a key, only deliveries with a signature or a secret are let through.
    app = create_relay_app(
        made,
        keys=given or Keys(local=secrets.token_urlsafe(32)),
        hosts=[host, *allow_host],
        audit=note,
    )
    try:
        from autoplay_rag.serve.server import HttpServer
    except ModuleNotFoundError:
        raise MissingExtraError("autoplay-rag relay with a port", "serve") from None
    if not given:
        note(
            "no key is set: chat turns and unsigned webhooks are refused, and so are /metrics; set "
            "AUTOPLAY_RAG_INGEST_KEY and AUTOPLAY_RAG_READ_KEY"
        )
    return HttpServer(app, host, port)


async def _relay(made: Relay, server: Any, sources: Sources) -> None:
    stopping = asyncio.Event()

    def stop() -> None:
        for source in sources.running:
            source.stop()
        if server is not None:
            server.stop()
        stopping.set()
        note("stopping: delivering what was received; press Ctrl-C again to exit at once")

    log_client_failures()
    with Interrupts(f"exited at once: what is not delivered stays in {made.outbox}") as interrupts:
        async with AsyncExitStack() as stack:
            if server is not None:
                stack.callback(server.close)
            for source in sources.running:
                made.attach(source)
            await stack.enter_async_context(made)
            with interrupts.calling(stop):
                say(f"relaying to the {made.address}")
                note(f"outbox: {made.outbox}")
                if sources.warning:
                    note(sources.warning, "yellow")
                for source in sources.running:
                    made.read_in_background(source)
                serving = stopping.wait() if server is None else _serve(server, sources)
                await _either(serving, made.watch())
    counts = made.counts
    kept = f"{counts.unread} sent and kept until they are read, " if counts.unread else ""
    note(
        f"{counts.received} received, {counts.delivered} delivered, {kept}{counts.waiting} waiting, "
        f"{counts.overflow} lost, {counts.dead} refused by the topic"
    )


async def _either(work: Coroutine[Any, Any, object], watch: Coroutine[Any, Any, None]) -> None:
    """Await the work, or raise what the watch raises before."""
    tasks = [asyncio.create_task(work), asyncio.create_task(watch)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _serve(server: Any, sources: Sources) -> None:
    serving = asyncio.create_task(server.run_until_stopped(), name="autoplay-relay-serve")
    ready = asyncio.create_task(server.ready(), name="autoplay-relay-ready")
    try:
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            say(f"serving {server.url}")
            for tool in sorted(sources.tools):
                note(f"{tool} posts to {server.url}/v1/webhooks/PRODUCT/{tool}")
        await serving
    finally:
        for task in (serving, ready):
            task.cancel()
        await asyncio.wait({serving, ready})
