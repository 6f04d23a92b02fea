"""One run of the Chroma worker, seen from its parent: start, ask, end. All calls block."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from autoplay_rag.errors import (
    AutoplayError,
    MissingExtraError,
    StoreLockedError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
)
from autoplay_rag.stores.chroma.frames import Answer, Failed, Reply, read, write

__all__ = ["ChromaProcess"]

_END_TIMEOUT_S = 10.0
"""Seconds the worker may take to end by itself."""
_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class ChromaProcess:
    """A worker process; constructing one starts it and waits until it is ready.

    It ends by `end`, with this object, or with this process: the operating system then closes
    its standard input.

    Args:
        folder: Chroma's folder, absolute. A missing folder is made, for its owner alone (mode 0700).
        timeout: Seconds to wait.

    Raises:
        MissingExtraError: If chromadb is not installed.
        StoreLockedError: If another process uses the folder.
        StoreUnavailableError: If Chroma cannot open the folder.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        self._folder = folder
        try:
            # It will hold what people did. The mode of an existing folder is its owner's choice.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._popen = _spawn(folder)
        except OSError as error:
            raise StoreUnavailableError(f"Chroma cannot be started in {folder}: {error}") from error
        self._finalizer = weakref.finalize(self, _end, self._popen)
        _running.add(self)
        try:
            self.ask(b"", timeout)
        except AutoplayError:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it can answer."""
        return self._finalizer.alive and self._popen.poll() is None

    def ask(self, frame: bytes, timeout: float) -> Answer:
        """Send a frame and wait for the reply.

        Raises:
            StoreError: As the worker says. A `StoreUnavailableError` also if it died, or did not
                answer in time and was killed.
        """
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with self._deadline(timeout) as expired:
            try:
                write(self._popen.stdin, frame)
                reply: Reply | None = read(self._popen.stdout, _decoder)
            except (OSError, EOFError, msgspec.MsgspecError):
                reply = None
        if reply is None:
            self._popen.kill()
            self.end()
            what = (
                f"did not answer within {timeout:g} s and was ended"
                if expired.is_set()
                else f"ended unexpectedly with status {self._popen.returncode}"
            )
            raise StoreUnavailableError(
                f"the Chroma worker of {self._folder} {what}; the next call starts it anew"
            )
        if isinstance(reply, Failed):
            raise _error_of(reply)
        return reply

    def kill(self) -> None:
        """Kill it, from any thread; a pending call raises `StoreUnavailableError`."""
        self._popen.kill()

    def end(self) -> None:
        """Close its input and wait until it has ended. May be called more than once."""
        self._finalizer()

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the worker after a while: no other way interrupts a read of a pipe everywhere."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._popen.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()
            timer.join()

    def disown(self) -> None:
        """In a forked child: leave the worker to the parent, and end with the parent."""
        self._finalizer.detach()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()
        self._popen.poll()


_running: weakref.WeakSet[ChromaProcess] = weakref.WeakSet()


def _disown_all() -> None:
    for process in list(_running):
        process.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _spawn(folder: Path) -> subprocess.Popen[bytes]:
    # The worker has this process's import path. `-P` keeps its working folder off that path. The
    # working folder is Chroma's own: Chroma reads settings from a `.env` file where it runs.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    command = [sys.executable, "-P", "-W", "ignore", "-m", "autoplay_rag.stores.chroma.worker"]
    if sys.platform == "win32":
        group: dict[str, int] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        group = {"process_group": 0}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own module
        [*command, str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        **group,  # a Ctrl-C in the terminal is for the parent alone
    )


def _end(popen: subprocess.Popen[bytes]) -> None:
    assert popen.stdin is not None
    assert popen.stdout is not None
    with suppress(OSError):
        popen.stdin.close()
    try:
        popen.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    popen.stdout.close()


def _error_of(failed: Failed) -> AutoplayError:
    match failed.kind:
        case "locked":
            return StoreLockedError(failed.message)
        case "mismatch":
            return StoreMismatchError(failed.message)
        case "missing":
            return MissingExtraError("ChromaStore", "chroma")
        case "rejected":
            return StoreRejectedError(failed.message)
        case "unavailable":
            return StoreUnavailableError(failed.message)
