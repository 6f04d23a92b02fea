"""The process that runs Chroma for `ChromaStore`: `python -m` this module, FOLDER, PARENT'S ID.

It is a process of its own because Chroma holds the interpreter's lock while it writes. It owns
the folder by a lock that the operating system frees however the process ends, and it lives as
long as its standard input is open, which is as long as its parent does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from queue import SimpleQueue

import msgspec

from autoplay_rag._filelock import FileLock
from autoplay_rag.stores.chroma_folder import Folder
from autoplay_rag.stores.chroma_frames import Done, Failed, Request, encode, read, write

__all__ = ["main"]

_LOCK_NAME = "autoplay-rag.lock"
_LOCK_PATIENCE_S = 3.0
"""How long the worker of a killed parent may take to finish its last request."""
_LOCK_POLL_S = 0.05
_GRACE_S = 10.0
"""How long a request under way may go on after the parent has gone."""


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
        requests: SimpleQueue[Request | None] = SimpleQueue()
        threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
        while (request := requests.get()) is not None:
            write(replies, encode(opened.answer(request)))
    except BrokenPipeError:
        pass  # the parent is gone, and with it whoever wanted the reply


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


def _read_requests(requests: SimpleQueue[Request | None]) -> None:
    """Hand requests on, so that the parent's end is noticed while one of them is under way."""
    decoder = msgspec.msgpack.Decoder(Request)
    pipe = FileIO(0, "rb", closefd=False)
    try:
        while True:
            requests.put(read(pipe, decoder))
    except EOFError:
        requests.put(None)
    time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
