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
            metavar="FILE.jsonl", help="What to replay; by default the samples of this package."
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Events a second; by default as fast as they are read.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The bearer token to ask for; by default none is needed.")
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="Start over when the recording is over.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 8765,
) -> None:
    """Serve a recording on this machine, like the connector.

    Every subscriber gets it from the beginning. Stop with Ctrl-C.
    """
    if recording is not None:
        _look_through(recording)
    asyncio.run(_serve(LocalConnector(recording, rate, token, loop=loop, port=port)))


def _look_through(recording: Path) -> None:
    """Print the number of events; fail early if the recording has none."""
    unread: list[Exception] = []
    events = sum(1 for _ in read_recording(recording, on_error=unread.append))
    if not events:
        raise ConfigurationError(
            f"{recording} holds no event: a recording has a payload in JSON on each line, as "
            "`autoplay-rag tail --jsonl` prints it"
        )
    note(
        f"{events:,} events"
        + (f", and lines no client can read: {len(unread):,}" if unread else "")
    )


async def _serve(connector: LocalConnector) -> None:
    over = asyncio.Event()
    with Interrupts() as interrupts, interrupts.calling(over.set):
        async with connector:
            say(f"serving {connector.url}")
            note("stop with Ctrl-C")
            await over.wait()
