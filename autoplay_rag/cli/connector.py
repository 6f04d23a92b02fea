"""`autoplay-rag connector`: serves a recording on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.console import note, say
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import ConfigurationError

__all__ = ["connector"]


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
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 for any free port.")
    ] = 8765,
) -> None:
    """Serve a recording on this machine, like the connector.

    Every subscriber gets it from the beginning. Stop with Ctrl-C.
    """
    if recording is not None:
        _check_recording(recording)
    asyncio.run(_serve(LocalConnector(recording, rate, token, loop=loop, port=port)))


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


async def _serve(connector: LocalConnector) -> None:
    over = asyncio.Event()
    with Interrupts() as interrupts, interrupts.calling(over.set):
        async with connector:
            say(f"serving {connector.url}")
            note("stop with Ctrl-C")
            await over.wait()
