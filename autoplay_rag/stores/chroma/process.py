"""One run of the Chroma worker, as its parent controls it: start, request, end. All calls block."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from autoplay_rag.errors import (
    AutoplayError,
    ConfigurationError,
    MissingExtraError,
    StoreLockedError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
)
from autoplay_rag.stores.chroma.frames import Answer, Failed, Reply, read, write

__all__ = ["ChromaProcess", "Interpreter"]

_END_TIMEOUT_S = 10.0
"""Seconds that the worker may take to end by itself."""
_NOT_READY_TIMEOUT_S = 1.0
"""Seconds that a process that was never ready may take to end after its output has failed."""
_WORKER_MARK = "AUTOPLAY_RAG_CHROMA_WORKER"
"""The environment variable that is set in a worker."""
_INTERPRETER_NAME = re.compile(r"\.?(python|pypy|graalpy)[\w.+-]*", re.IGNORECASE)
_REMEDY = (
    "Pass ChromaStore(..., python=PATH) with the path of a Python interpreter that has the same "
    "version of autoplay-rag[chroma] installed"
)
_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


@dataclass(frozen=True)
class Interpreter:
    """The Python interpreter that runs a worker. Construct it with `named`.

    Attributes:
        path: The executable.
        given: The same if the user named it; None for the interpreter of this process.
    """

    path: str
    given: str | None

    @classmethod
    def named(cls, python: str | os.PathLike[str] | None) -> Self:
        """Check an interpreter without starting it.

        Args:
            python: Its path, or a name on `PATH`; None for the interpreter of this process.

        Raises:
            ConfigurationError: If it is not executable or does not look like an interpreter, or if
                this process is itself a worker.
        """
        if os.environ.get(_WORKER_MARK):
            # `sys.executable` was this program, not an interpreter, so it started itself.
            raise ConfigurationError(
                f"this process was started as a Chroma worker ({_WORKER_MARK} is set), and a worker "
                f"does not start another: {_quoted(sys.executable)} is not a Python interpreter. "
                f"{_REMEDY}"
            )
        own = _executable(sys.executable or "")
        found = own if python is None else _executable(os.fspath(python))
        if python is not None and found is None:
            raise ConfigurationError(f"python={os.fspath(python)!r} is not executable. {_REMEDY}")
        packaged = getattr(sys, "frozen", False) and found == own
        named_so = python is not None or _INTERPRETER_NAME.fullmatch(Path(found or "").name)
        if found is None or packaged or not named_so:
            raise ConfigurationError(
                "ChromaStore runs Chroma in a separate Python process. This program cannot start "
                f"one: sys.executable is {_quoted(sys.executable)}, which is missing, a packaged "
                f"application or a program that embeds Python. {_REMEDY}"
            )
        return cls(found, None if python is None else found)


class ChromaProcess:
    """A worker process. The constructor starts it and waits until it is ready.

    The worker ends when `end` is called, when this object is garbage-collected, or when this
    process ends, because the operating system then closes its standard input.

    Args:
        folder: The absolute path of Chroma's folder. A missing folder is created with mode 0700.
        interpreter: The interpreter that runs the worker.
        timeout: Seconds to wait.

    Raises:
        ConfigurationError: If the interpreter does not run the worker.
        MissingExtraError: If chromadb is not installed.
        StoreLockedError: If another process uses the folder.
        StoreUnavailableError: If Chroma cannot open the folder.
    """

    def __init__(self, folder: Path, interpreter: Interpreter, timeout: float) -> None:
        self._folder = folder
        self._interpreter = interpreter
        self._ready = False
        try:
            # It will hold personal data. The mode of an existing folder stays as its owner set it.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._popen = _spawn(folder, interpreter)
        except OSError as error:
            raise StoreUnavailableError(f"Chroma cannot be started in {folder}: {error}") from error
        self._finalizer = weakref.finalize(self, _end, self._popen)
        _running.add(self)
        try:
            self.ask(b"", timeout)
            self._ready = True
        except AutoplayError:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the worker is running."""
        return self._finalizer.alive and self._popen.poll() is None

    def ask(self, frame: bytes, timeout: float) -> Answer:
        """Send a frame and wait for the reply.

        Raises:
            ConfigurationError: If the interpreter did not run the worker.
            MissingExtraError: If the worker reports that chromadb is not installed.
            StoreError: If the worker reports it. `StoreUnavailableError` also if the worker died,
                or did not answer in time and was killed.
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
            if not (self._ready or expired.is_set()):
                self._check_interpreter()
            self._popen.kill()
            self.end()
            what = (
                f"did not answer within {timeout:g} s and was killed"
                if expired.is_set()
                else f"ended unexpectedly with status {self._popen.returncode}"
            )
            raise StoreUnavailableError(
                f"the Chroma worker of {self._folder} {what}; the next call restarts it"
            )
        if isinstance(reply, Failed):
            raise _error_of(reply)
        return reply

    def _check_interpreter(self) -> None:
        """Raise `ConfigurationError` if the process is not a worker. Do nothing if it was killed.

        A worker reports its failures. A program that writes other output, or exits by itself, is
        not a worker.
        """
        try:
            status = self._popen.wait(_NOT_READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            what = "wrote other data to its standard output"
        else:
            if status < 0:
                return
            what = f"ended with status {status} before it was ready"
        raise ConfigurationError(
            f"{self._interpreter.path} did not run the Chroma worker: it {what}. {_REMEDY}"
        )

    def kill(self) -> None:
        """Kill the worker, from any thread. A pending call raises `StoreUnavailableError`."""
        self._popen.kill()

    def end(self) -> None:
        """Close the worker's input and wait until it ends. May be called more than once."""
        self._finalizer()

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the worker after `seconds`. Nothing else interrupts a pipe read on every platform."""
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
        """Close the pipes in a forked child, so that the worker belongs to the parent alone."""
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


def _spawn(folder: Path, interpreter: Interpreter) -> subprocess.Popen[bytes]:
    # `-P` keeps the working folder off the import path. The working folder is Chroma's folder, so
    # that the worker does not keep another folder in use.
    env = {**os.environ, _WORKER_MARK: "1"}
    if interpreter.given is None:
        # The worker gets the import path of this process. Another interpreter has its own.
        env["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    command = [interpreter.path, "-P", "-W", "ignore", "-m", "autoplay_rag.stores.chroma.worker"]
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
        env=env,
        **group,  # Ctrl-C in the terminal reaches only the parent
    )


def _executable(path: str) -> str | None:
    """Return the absolute path of an executable file; None if there is none.

    Links are not resolved: an interpreter finds its virtual environment by the path of the link.
    """
    found = shutil.which(Path(path).expanduser()) if path else None
    return None if found is None else str(Path(found).absolute())


def _quoted(path: str | None) -> str:
    return repr(path) if path else "not set"


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
