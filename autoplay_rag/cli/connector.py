"""`autoplay-rag connector`: serves a recording on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from autoplay_rag._secrets import secret_from
from autoplay_rag.cli.console import note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.sources.specs import ANALYTICS_TOOLS, AnalyticsTool

__all__ = ["connector"]

SECRET_VARIABLE = "AUTOPLAY_RAG_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable


def connector(
    recording: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", help="The recording to replay; by default this package's samples."
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Events per second; by default as fast as they are read.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The bearer token to require; by default none.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Repeat the recording forever.")] = False,
    *,
    post: Annotated[
        str | None,
        typer.Option(
            metavar="TOOL=URL",
            help="Also post the recording to a webhook, as posthog, amplitude or segment would: "
            f"posthog=http://127.0.0.1:8760/v1/webhooks/northwind/posthog. {SECRET_VARIABLE} is the "
            "secret.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 for any free port.")
    ] = 8765,
) -> None:
    """Serve a recording on this machine, like the connector.

    Every subscriber gets it from the beginning. Stop with Ctrl-C.
    """
    if recording is not None:
        _check_recording(recording)
    tool, url = _webhook(post) if post is not None else (None, "")
    asyncio.run(
        _serve(LocalConnector(recording, rate, token, loop=loop, port=port), tool, url, rate)
    )


def _check_recording(recording: Path) -> None:
    """Print the number of events; fail early if the recording has none."""
    unread: list[Exception] = []
    events = sum(1 for _ in read_recording(recording, on_error=unread.append))
    if not events:
        raise ConfigurationError(
            f"{recording} has no events: each line of a recording is a payload in JSON, as "
            "printed by `autoplay-rag tail --jsonl`"
        )
    note(f"{events:,} events" + (f"; unreadable lines: {len(unread):,}" if unread else ""))


def _webhook(post: str) -> tuple[AnalyticsTool, str]:
    tool, equals, url = post.partition("=")
    if not equals or tool not in ANALYTICS_TOOLS or not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"--post takes TOOL=URL, with a tool of {', '.join(ANALYTICS_TOOLS)} and an http or https URL"
        )
    return tool, url


async def _serve(
    connector: LocalConnector, tool: AnalyticsTool | None, url: str, rate: float | None
) -> None:
    over = asyncio.Event()
    with Interrupts() as interrupts, interrupts.calling(over.set):
        async with connector:
            say(f"serving {connector.url}")
            note("stop with Ctrl-C")
            ended = asyncio.create_task(over.wait(), name="autoplay-connector-stop")
            tasks: list[asyncio.Task[Any]] = [ended]
            try:
                if tool is not None:
                    secret = secret_from(SECRET_VARIABLE) or ""
                    posting = connector.post_webhooks(url, tool, secret=secret, rate=rate)
                    tasks.append(asyncio.create_task(posting, name="autoplay-connector-post"))
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if not ended.done():
                        say(f"posted {tasks[1].result():,} events")
                await ended
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
