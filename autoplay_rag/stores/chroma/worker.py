"""The worker process that runs Chroma for `ChromaStore`.

Its command is `python -m autoplay_rag.stores.chroma.worker FOLDER PARENT_PID`. Chroma holds the GIL
while it writes, so it runs in a separate process. The process holds a file lock on the folder. The
operating system releases the lock when the process ends. The process ends when its standard input
is closed, at the latest when its parent ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path

import msgspec

from autoplay_rag._filelock import FileLock
from autoplay_rag.stores.chroma.copies import LOCK_NAME
from autoplay_rag.stores.chroma.folder import Folder, ignore_environment
from autoplay_rag.stores.chroma.frames import Done, Failed, Request
from autoplay_rag.stores.workers.pipe import encode, read, write
from autoplay_rag.stores.workers.serving import alarm, claim_pipes, ignore_signals

__all__ = ["main"]

_LOCK_TIMEOUT_S = 3.0
"""Seconds that the worker of a killed parent may take to finish its last request."""
_LOCK_POLL_S = 0.05


def main(path: Path, owner: int) -> None:
    """Serve requests until standard input ends.

    Args:
        path: The folder; it must exist.
        owner: The parent's process id, for the error message of other users of the folder.
    """
    ignore_signals()
    requests, replies = claim_pipes()
    lock = FileLock(path / LOCK_NAME)
    try:
        opened = _open(path, lock, owner)
        write(replies, encode(opened if isinstance(opened, Failed) else Done()))
        if isinstance(opened, Failed):
            return
        for request in _requests(requests):
            with alarm(request.timeout):
                reply = opened.answer(request)
            write(replies, encode(reply))
    except BrokenPipeError:
        pass  # the parent has ended, so the reply is not needed


def _requests(pipe: FileIO) -> Iterator[Request]:
    decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
    with suppress(EOFError):
        while True:
            yield read(pipe, decoder)


def _open(path: Path, lock: FileLock, owner: int) -> Folder | Failed:
    try:
        if not _acquire(lock):
            return Failed("locked", _locked_message(path, lock.holder()))
        # The lock names the parent, because a user who ends this process would only make the
        # parent start another.
        lock.path.write_text(str(owner))
        ignore_environment()
        return Folder(path)
    except ModuleNotFoundError as error:
        return Failed("missing", str(error))
    except Exception as error:  # noqa: BLE001 - any reason why Chroma does not start is reported
        return Failed("unavailable", f"Chroma could not open {path}: {error}")


def _acquire(lock: FileLock) -> bool:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not lock.acquire():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOCK_POLL_S)
    return True


def _locked_message(path: Path, holder: str) -> str:
    return (
        f"the Chroma folder {path} is in use by process {holder}, and Chroma allows only one process "
        "at a time, even for searches: close the store in that process, end the process, or use "
        "another folder"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
