"""What the commands print: on a terminal with colour, elsewhere as plain lines.

What users typed or clicked is printed only through `clean`: it must not be able to move the
reader's cursor or set the title of their window.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from logging import StreamHandler

import msgspec
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

__all__ = [
    "OneLineFormatter",
    "clean",
    "err",
    "error",
    "log_to_stderr",
    "note",
    "on_terminal",
    "out",
    "say",
    "say_json",
    "stdout_closed",
    "table",
]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def on_terminal() -> bool:
    """Whether a person is looking at what we print."""
    return out.is_terminal


def say(line: str, style: str = "") -> None:
    """Print one line of result."""
    _print(out, line, style)


def say_json(value: object) -> None:
    """Print a value as one line of JSON."""
    _print(out, msgspec.json.encode(value).decode(), "")


def note(line: str, style: str = "dim") -> None:
    """Print one line that is no result, so that results can be piped on."""
    _print(err, line, style)


def error(message: object) -> None:
    """Print why the command failed, in one line."""
    _print(err, f"error: {clean(str(message))}", "bold red")


def clean(text: str) -> str:
    r"""Text on one line, without anything a terminal would act on.

    Example:
        >>> clean("Export\n\x1b[2Jnow")
        'Export �[2Jnow'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows under heads; without a terminal, tab-separated and without the heads."""
    if title:
        say(title, "bold")
    if not on_terminal():
        for row in rows:
            say("\t".join(row))
        return
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for head in heads:
        drawn.add_column(head, header_style="dim", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    out.print(drawn)


def stdout_closed() -> None:
    """After a broken pipe: what is still buffered has nowhere to go, and is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_to_stderr(*, verbose: bool) -> None:
    """Have log records printed; tracebacks and details only if `verbose`."""
    handler = RichHandler(console=err, show_path=False) if err.is_terminal else StreamHandler()
    named = "" if err.is_terminal else "%(levelname)s "  # the other one prints it itself
    handler.setFormatter(
        (logging.Formatter if verbose else OneLineFormatter)(f"{named}%(message)s")
    )
    if not verbose:
        # A client's end is also raised, and then printed as the command's error.
        handler.addFilter(lambda record: record.name != "autoplay_rag.connector.client")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


class OneLineFormatter(logging.Formatter):
    """Of an exception it keeps the name."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        short = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
        name = f" ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else ""
        return clean(super().format(short)) + name


def _print(console: Console, line: str, style: str) -> None:
    if console.is_terminal:
        console.print(Text(line, style))
    else:
        print(line, file=sys.stderr if console.stderr else sys.stdout, flush=True)
