"""The process that runs Chroma for `ChromaStore`: `python -m` this module, FOLDER, PARENT'S ID.

It is a process of its own because Chroma holds the interpreter's lock while it writes. It owns
the folder by a lock that the operating system frees however the process ends, and it lives as
long as its standard input is open, which is as long as its parent does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import msgspec

from autoplay_rag._filelock import FileLock
from autoplay_rag.stores.chroma.folder import Folder
from autoplay_rag.stores.chroma.frames import Done, Failed, Request, encode, read, write

__all__ = ["main"]

_LOCK_NAME = "autoplay-rag.lock"
_LOCK_PATIENCE_S = 3.0
"""How long the worker of a killed parent may take to finish its last request."""
_LOCK_POLL_S = 0.05


def main(path: Path, owner: int) -> None:
    """Serve requests until standard input ends.

    Args:
        path: The folder; it must exist.
        owner: The parent's process id, which others are told while the folder is locked.
    """
    _ignore_signals()
    replies = _claim_stdout()
    lock = FileLock(path / _LOCK_NAME)
    try:
        opened = _open(path, lock, owner)
        write(replies, encode(opened if isinstance(opened, Failed) else Done()))
        if isinstance(opened, Failed):
            return
        for request in _requests():
            with _alarm(request.timeout):
                reply = opened.answer(request)
            write(replies, encode(reply))
    except BrokenPipeError:
        pass  # the parent is gone, and with it whoever wanted the reply


def _requests() -> Iterator[Request]:
    decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
    pipe = FileIO(0, "rb", closefd=False)
    with suppress(EOFError):
        while True:
            yield read(pipe, decoder)


def _ignore_signals() -> None:
    """What ends the parent must leave it the time to drain; this process ends when it does."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _claim_stdout() -> FileIO:
    """Keep the pipe for replies; what others print goes to standard error from now on."""
    replies = FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _open(path: Path, lock: FileLock, owner: int) -> Folder | Failed:
    try:
        if not _take(lock):
            return Failed("locked", _locked_message(path, lock.holder()))
        # A message that named this process would have it ended, only to be started again.
        lock.path.write_text(str(owner))
        return Folder(path)
    except ModuleNotFoundError as error:
        return Failed("missing", str(error))
    except Exception as error:  # noqa: BLE001 - whatever keeps Chroma from starting is to be told
        return Failed("unavailable", f"Chroma could not open {path}: {error}")


def _take(lock: FileLock) -> bool:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while not lock.acquire():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOCK_POLL_S)
    return True


def _locked_message(path: Path, holder: str) -> str:
    return (
        f"the Chroma folder {path} is in use by process {holder}, and Chroma allows one process "
        "at a time, also for searching alone: close the store there, end that process, or use "
        "a folder of its own here"
    )


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Be killed by the operating system after a while, where it can do so.

    A parent that lives sees to that itself; this is for when it has been killed. Code that is
    stuck may hold the interpreter's lock, so nothing in Python would do.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
