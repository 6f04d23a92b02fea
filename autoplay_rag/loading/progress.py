"""One line on standard error that shows the progress of a load."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TextIO, TypeVar

__all__ = ["Counted", "is_watched", "shown_progress"]

_DELAY = 2.0
"""Seconds before the line appears: most loads of a recording end sooner."""
_PERIOD = 1.0

T = TypeVar("T")


class Counted(Generic[T]):
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self.count = 0

    def __call__(self, *args: Any) -> T:
        """Call the function."""
        self.count += 1
        return self._function(*args)


def is_watched(stream: TextIO | None) -> bool:
    """True if the stream is a terminal or the output of a notebook cell."""
    if stream is None:
        return False
    try:
        if stream.isatty():
            return True
    except ValueError:  # it is closed
        return False
    # A notebook's kernel replaces standard error with a stream of its own.
    return type(stream).__module__.partition(".")[0] == "ipykernel"


@contextmanager
def shown_progress(
    wanted: bool | None,
    name: str,
    documents: Counted[Any],
    *,
    max_documents: int | None = None,
    max_seconds: float | None = None,
) -> Iterator[None]:
    """Show the number of documents on standard error, once a second.

    The line appears after two seconds and is removed at the end.

    Args:
        wanted: Whether to show it; None shows it in a terminal and in a notebook only.
        name: The name of the loader.
        documents: Counts the documents.
        max_documents: The limit to show.
        max_seconds: The limit to show.
    """
    stream = sys.stderr
    if stream is None or not (is_watched(stream) if wanted is None else wanted):
        yield
        return
    ended = threading.Event()
    before, started = documents.count, time.monotonic()

    def text() -> str:
        of_documents = "" if max_documents is None else f" of {max_documents}"
        of_seconds = "" if max_seconds is None else f" of {max_seconds:g}"
        seconds = int(time.monotonic() - started)
        came = documents.count - before
        return f"{name}: {came}{of_documents} documents, {seconds}{of_seconds} s"

    def say() -> None:
        width = 0
        try:
            if not ended.wait(_DELAY):
                while True:
                    line = text()
                    width = max(width, len(line))
                    stream.write(f"\r{line.ljust(width)}")
                    stream.flush()
                    if ended.wait(_PERIOD):
                        break
                stream.write(f"\r{' ' * width}\r")
                stream.flush()
        except (OSError, ValueError):
            return  # the stream was closed; the load goes on

    thread = threading.Thread(target=say, name="autoplay-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
