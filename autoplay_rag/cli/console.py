"""The output of the commands: with colour on a terminal, elsewhere as plain lines.

Text from users is printed only through `clean`, so that it cannot move the cursor or set the title
of the window.

`prepare_streams` runs first. After it, standard output and standard error exist and accept any
text, whatever their encoding is. A reader that exits early (`| head`) is not an error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from logging import StreamHandler
from typing import Literal, TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

__all__ = [
    "JsonFormatter",
    "LogFormat",
    "OneLineFormatter",
    "clean",
    "err",
    "error",
    "flush_streams",
    "log_client_failures",
    "log_to_stderr",
    "note",
    "on_terminal",
    "out",
    "paragraph",
    "prepare_streams",
    "progress",
    "say",
    "say_json",
    "stream_closed",
    "table",
]

LogFormat = Literal["text", "json"]

_log = logging.getLogger(__name__)
_STDOUT, _STDERR = 1, 2
_GAP = 2
"""Spaces between the columns of a table."""
_LAST_COLUMN = 24
"""The least width of a table's last column, unless its cells are shorter."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _StderrOptions:
    """The options of the output to standard error."""

    as_json = False
    client_failures = False


def prepare_streams() -> None:
    r"""Make standard output and standard error usable for any text.

    A closed stream (in a service, or after `>&-`) is replaced by the null device. Otherwise Python
    sets it to None, and the next opened file gets its descriptor. Characters that the encoding
    lacks are written like `\u2713`.
    """
    for number in (0, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            # This opens the lowest free descriptor, which is `number`: those below are open now.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = _nowhere(_STDOUT)
    if sys.stderr is None:
        sys.stderr = _nowhere(_STDERR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a replacement by a test or a host program
            stream.reconfigure(errors="backslashreplace")


def flush_streams() -> None:
    """Flush the output, and drop what cannot be written, for example to a full disk.

    Otherwise the interpreter would try again at exit and print its own traceback.
    """
    for number, stream in ((_STDOUT, sys.stdout), (_STDERR, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            stream_closed(number)


def _nowhere(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False)


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return out.is_terminal


def say(line: str, style: str = "") -> None:
    """Print one line of the result to standard output."""
    _print(out, line, style)


def paragraph(text: str, style: str = "") -> None:
    """Print text that a terminal shows in as many lines as it needs, broken between words."""
    for line in textwrap.wrap(text, out.width) if on_terminal() else [text]:
        say(line, style)


def say_json(value: object) -> None:
    """Print a value as one line of JSON."""
    _print(out, msgspec.json.encode(value).decode(), "")


def note(line: str, style: str = "dim") -> None:
    """Print one line to standard error that is not part of the result."""
    if _StderrOptions.as_json:
        _print(err, _json_line("INFO", __package__, line), "")
    else:
        _print(err, line, style)


def progress(line: str) -> None:
    """Log one line of progress, with its time."""
    _log.info("%s", line)


def error(message: object) -> None:
    """Print why the command failed, in one line."""
    text = clean(str(message))
    if _StderrOptions.as_json:
        _print(err, _json_line("ERROR", __package__, text), "")
    else:
        _print(err, f"error: {text}", "bold red")


def clean(text: str) -> str:
    r"""Return a text on one line, without control characters.

    Example:
        >>> clean("Export\n\x1b[2Jnow")
        'Export �[2Jnow'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows under heads; without a terminal, tab-separated and without the heads.

    On a terminal too narrow for the columns, a row is a paragraph without heads.
    """
    if title:
        paragraph(title, "bold")
    if not on_terminal():
        for row in rows:
            say("\t".join(row))
    elif _fits(heads, rows, out.width):
        drawn = Table(box=None, padding=(0, _GAP, 0, 0))
        for head in heads:
            drawn.add_column(head, header_style="dim", overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        _draw(out, drawn)
    else:
        for row in rows:
            for line in _as_paragraph(row, out.width):
                say(line)


def _fits(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether all columns but the last fit unbroken, and leave room for the last one."""
    *others, last = (max(map(cell_len, column)) for column in zip(heads, *rows, strict=True))
    return sum(others) + _GAP * len(heads) + min(last, _LAST_COLUMN) <= width


def _as_paragraph(row: Sequence[str], width: int) -> list[str]:
    """The row as lines. Only the last cell is broken, and cells longer than a line."""
    *cells, last = row
    unbroken = [cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells]
    lines = textwrap.wrap(
        (" " * _GAP).join([*unbroken, last]),
        width,
        subsequent_indent=" " * _GAP,
        break_on_hyphens=False,
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def stream_closed(number: int = _STDOUT) -> None:
    """Redirect a stream without a reader to the null device, so that exiting does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def log_to_stderr(*, verbose: bool, log_format: LogFormat = "text") -> None:
    """Print log records to standard error, each with its time.

    Args:
        verbose: Whether to print all details and tracebacks.
        log_format: With "json", each line of standard error is a JSON object.
    """
    _StderrOptions.as_json = log_format == "json"
    _StderrOptions.client_failures = False
    handler: logging.Handler
    if log_format == "json":
        handler = StreamHandler()
        handler.setFormatter(JsonFormatter(tracebacks=verbose))
    else:
        handler = RichHandler(console=err, show_path=False) if err.is_terminal else StreamHandler()
        # RichHandler prints time and level itself.
        start = "" if err.is_terminal else "%(asctime)s %(levelname)s "
        formatter = (logging.Formatter if verbose else OneLineFormatter)(
            f"{start}%(message)s", "%Y-%m-%dT%H:%M:%SZ"
        )
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    if not verbose:
        # A client's failure is also raised, and then printed as the command's error.
        handler.addFilter(
            lambda record: (
                _StderrOptions.client_failures or record.name != "autoplay_rag.connector.client"
            )
        )
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    _log.setLevel(logging.INFO)


def log_client_failures() -> None:
    """Log immediately when a client fails. With several clients, the command's error comes last."""
    _StderrOptions.client_failures = True


class OneLineFormatter(logging.Formatter):
    """Formats a record on one line, with only the name of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        short = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
        name = f" ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else ""
        return clean(super().format(short)) + name


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, and the exception's name.

    Args:
        tracebacks: Whether to add the traceback of an exception.
    """

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        more = {}
        if record.exc_info and record.exc_info[0]:
            more["error"] = record.exc_info[0].__name__
            if self._tracebacks:
                more["traceback"] = self.formatException(record.exc_info)
        return _json_line(
            record.levelname, record.name, record.getMessage(), at=record.created, **more
        )


def _json_line(
    level: str, logger: str | None, message: str, *, at: float | None = None, **more: str
) -> str:
    at = time.time() if at is None else at
    when = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03}Z"
    line = {"time": when, "level": level, "logger": logger, "message": message, **more}
    # Lone surrogates, as in a file name, cannot be encoded as UTF-8.
    known = {
        name: value and value.encode("utf-8", "replace").decode() for name, value in line.items()
    }
    return msgspec.json.encode(known).decode()


def _print(console: Console, line: str, style: str) -> None:
    if console.is_terminal:
        _draw(console, Text(line, style))
    else:
        _write(console, line)


def _draw(console: Console, drawn: Text | Table) -> None:
    try:
        console.print(drawn)
    except (BrokenPipeError, SystemExit):  # Rich turns the first into the second
        _left(console)


def _write(console: Console, line: str) -> None:
    try:
        print(line, file=sys.stderr if console.stderr else sys.stdout, flush=True)
    except BrokenPipeError:
        _left(console)


def _left(console: Console) -> None:
    stream_closed(_STDERR if console.stderr else _STDOUT)
