"""`autoplay-rag tail`: prints a stream live."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.text import Text

from autoplay_rag.cli.config import ConfigOption
from autoplay_rag.cli.console import clean, note, on_terminal, out, stream_closed
from autoplay_rag.cli.following import follow_server
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import IdleOption, JournalOption, StoreOption, TokenOption, find_place
from autoplay_rag.cli.reached import require_reached
from autoplay_rag.cli.remote import server_of
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.recording import encode_line
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["tail"]

_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "bright_red")
_ID_WIDTH = 15


def tail(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The stream: https://.../stream/PRODUCT; by default what the running "
            "`autoplay-rag serve` receives.",
        ),
    ] = None,
    *,
    token: TokenOption = "",
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print JSON Lines: a recording that can be replayed.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to this file in UTF-8, replacing its content.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many payloads.")] = None,
    idle_seconds: IdleOption = None,
    journal: JournalOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a stream live, one line per action. Stop with Ctrl-C."""
    if url is None:
        place = find_place(config, journal=journal, store=store)
        server = server_of(place, journal=journal, store=store)
        if server is None:
            raise ConfigurationError(
                f"give the URL of a stream: no `autoplay-rag serve` uses the journal {place.journal_file}"
            )
        follow = partial(follow_server, server)
    elif journal is not None or store is not None:
        raise ConfigurationError(
            "--journal and --store name a server to ask: give no URL with them"
        )
    else:
        follow = partial(_follow, AsyncConnectorClient(url, token), url)
    follow = partial(follow, limit=limit, idle_seconds=idle_seconds)
    if output is None:
        # Lines for people use the terminal's encoding; JSON Lines are always UTF-8.
        show = _json_line if jsonl else _pretty if on_terminal() else _plain
        count = asyncio.run(follow(show))
    else:
        encoded = _encoded_json if jsonl else _encoded_text
        with _open_private(output) as file:

            def write(payload: Payload) -> None:
                file.write(encoded(payload))
                file.flush()

            count = asyncio.run(follow(write))
    note(f"{count:,} payloads")


def _open_private(path: Path) -> BinaryIO:
    """Open a file that only its owner can read, because it records what users did."""
    binary = getattr(os, "O_BINARY", 0)  # Windows would write "\\r\\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | binary, 0o600)
    return open(descriptor, "wb")  # noqa: PTH123 - a descriptor, not a path


def _encoded_json(payload: Payload) -> bytes:
    return encode_line(payload) + b"\n"


def _encoded_text(payload: Payload) -> bytes:
    return _text(payload).encode()


async def _follow(
    client: AsyncConnectorClient,
    url: str,
    show: Callable[[Payload], None],
    *,
    limit: int | None,
    idle_seconds: float | None,
) -> int:
    count = 0
    with Interrupts() as interrupts, interrupts.calling(client.stop):
        async with aclosing(client.stream(limit, idle=idle_seconds)) as payloads:
            async for payload in payloads:
                try:
                    # In a thread: a slow terminal or pipe must not block reading the stream.
                    await asyncio.to_thread(show, payload)
                except BrokenPipeError:  # the reader of the output has exited, as in `| head`
                    stream_closed()
                    break
                count += 1
    require_reached(client, url, interrupted=bool(interrupts.count))
    return count


def _json_line(payload: Payload) -> None:
    sys.stdout.buffer.write(_encoded_json(payload))
    sys.stdout.buffer.flush()


def _plain(payload: Payload) -> None:
    sys.stdout.write(_text(payload))
    sys.stdout.flush()


def _text(payload: Payload) -> str:
    return "".join("  ".join(filter(None, line)) + "\n" for line in lines(payload))


def _pretty(payload: Payload) -> None:
    session = payload.session_id or ""
    colour = _COLOURS[sum(session.encode()) % len(_COLOURS)] if session else "dim"
    for when, who, type_, what, where in lines(payload):
        out.print(
            Text.assemble(
                (f"{when}  ", "dim"),
                (f"{who}  ", colour),
                (f"{type_:<9} ", "bold"),
                what,
                (f"  {where}", "dim"),
            )
        )


def lines(payload: Payload) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the lines of a payload: time, session, type, description and URL."""
    who = clean(payload.session_id or "anonymous").ljust(_ID_WIDTH)
    forwarded = _clock(payload.forwarded_at)
    if isinstance(payload, SummaryPayload):
        yield forwarded, who, "summary", clean(payload.summary), ""
    elif isinstance(payload, ChatTurn):
        yield forwarded, who, "chat", clean(payload.question), ""
    elif isinstance(payload, ActionsPayload):
        for action in payload.actions:
            what = clean(action.description or action.title)
            when = _clock(action.timestamp_start) if action.timestamp_start else forwarded
            yield when, who, clean(action.type), what, clean(action.canonical_url)


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"
