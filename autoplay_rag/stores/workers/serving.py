"""What every worker process does around its own work: signals, pipes, and the deadline of a request."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

__all__ = ["alarm", "claim_pipes", "ignore_signals"]


def ignore_signals() -> None:
    """Ignore signals that end the parent. It may still drain; this process ends with it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def claim_pipes() -> tuple[FileIO, FileIO]:
    """Return the pipes for requests and replies.

    Afterwards standard input is empty, and other output goes to standard error: other code in this
    process cannot disturb the messages.
    """
    requests, replies = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Let the operating system kill this process after `seconds`, where it supports that.

    A running parent kills it anyway; this is for a parent that was killed. Stuck code may hold the
    GIL, so a timer in Python would not run.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
