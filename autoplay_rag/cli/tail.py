"""`autoplay-rag tail`: a stream as it comes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Annotated

import typer
from rich.text import Text

from autoplay_rag.cli.console import clean, note, on_terminal, out, stdout_closed
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import IdleOption, TokenOption, UrlArgument
from autoplay_rag.cli.reached import require_reached
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.recording import encode_line
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["tail"]

_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "bright_red")
_ID_WIDTH = 15


def tail(
    url: UrlArgument,
    *,
    token: TokenOption = "",
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print JSON Lines: a recording, to be replayed.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many payloads.")] = None,
    idle_seconds: IdleOption = None,
) -> None:
    """Print a stream as it comes, a line for each action; Ctrl-C ends it."""
    show = _json_line if jsonl else _pretty if on_terminal() else _plain
    client = AsyncConnectorClient(url, token)
    count = asyncio.run(_follow(client, url, show, limit=limit, idle_seconds=idle_seconds))
    note(f"{count:,} payloads")


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
                    # In a thread: a terminal or pipe that is slow must not slow the reader.
                    await asyncio.to_thread(show, payload)
                except BrokenPipeError:  # `| head` has seen enough
                    stdout_closed()
                    break
                count += 1
    require_reached(client, url, interrupted=bool(interrupts.count))
    return count


def _json_line(payload: Payload) -> None:
    sys.stdout.buffer.write(encode_line(payload) + b"\n")
    sys.stdout.buffer.flush()


def _plain(payload: Payload) -> None:
    for line in lines(payload):
        sys.stdout.write("  ".join(filter(None, line)) + "\n")
    sys.stdout.flush()


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
    """What is shown of a payload: when, whose session, what type, what, and on which page."""
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
