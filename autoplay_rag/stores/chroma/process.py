"""One run of the Chroma worker, seen from its parent: start, ask, end. All calls block."""

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
"""Seconds the worker may take to end by itself."""
_NOT_READY_TIMEOUT_S = 1.0
"""Seconds that a process which is not ready may take to end after its output has ended."""
_WORKER_MARK = "AUTOPLAY_RAG_CHROMA_WORKER"
"""The environment variable that marks a worker."""
_INTERPRETER_NAME = re.compile(r"\.?(python|pypy|graalpy)[\w.+-]*", re.IGNORECASE)
_REMEDY = (
    "Pass ChromaStore(..., python=PATH): the path of a Python interpreter that has "
    "autoplay-rag[chroma] installed, in the version used here"
)
_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


@dataclass(frozen=True)
class Interpreter:
    """The Python interpreter that runs a worker; construct it with `named`.

    Attributes:
        path: The executable.
        given: What the user named; None for the interpreter of this process.
    """

    path: str
    given: str | None

    @classmethod
    def named(cls, python: str | os.PathLike[str] | None) -> Self:
        """Check an interpreter without starting it.

        Args:
            python: Its path, or a name on `PATH`; None for the interpreter of this process.

        Raises:
            ConfigurationError: If it is not an interpreter as far as can be seen, or if this
                process is itself a worker.
        """
        if os.environ.get(_WORKER_MARK):
            # Some program started itself in place of an interpreter.
            raise ConfigurationError(
                f"this process was started as a Chroma worker ({_WORKER_MARK} is set), and a worker "
                f"does not start another: {_shown(sys.executable)} is not a Python interpreter. "
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
                "ChromaStore runs Chroma in a Python process of its own. This program cannot start "
                f"one: sys.executable is {_shown(sys.executable)}, which is missing, a packaged "
                f"application or a program that embeds Python. {_REMEDY}"
            )
        return cls(found, None if python is None else found)


class ChromaProcess:
    """A worker process; constructing one starts it and waits until it is ready.

    It ends by `end`, with this object, or with this process: the operating system then closes
    its standard input.

    Args:
        folder: Chroma's folder, absolute. A missing folder is made, for its owner alone (mode 0700).
        interpreter: Runs the worker.
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
            # It will hold what people did. The mode of an existing folder is its owner's choice.
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
            if not (self._ready or expired.is_set()):
                self._check_interpreter()
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

    def _check_interpreter(self) -> None:
        """Blame the interpreter for a worker that was never ready, unless something killed it.

        A worker reports what fails in it. A program that writes something else, or ends by
        itself, does not run the worker.
        """
        try:
            status = self._popen.wait(_NOT_READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            what = "wrote something else to its standard output"
        else:
            if status < 0:
                return
            what = f"ended with status {status} before it was ready"
        raise ConfigurationError(
            f"{self._interpreter.path} did not run the Chroma worker: it {what}. {_REMEDY}"
        )

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


def _spawn(folder: Path, interpreter: Interpreter) -> subprocess.Popen[bytes]:
    # `-P` keeps the working folder off the import path. It is Chroma's folder, so that the worker
    # keeps no other one in use.
    env = {**os.environ, _WORKER_MARK: "1"}
    if interpreter.given is None:
        # The worker has this process's import path; another interpreter has its own.
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
        **group,  # a Ctrl-C in the terminal is for the parent alone
    )


def _executable(path: str) -> str | None:
    """The absolute path of an executable file; None if there is none.

    Links are not resolved: the link to an interpreter is what names its virtual environment.
    """
    found = shutil.which(Path(path).expanduser()) if path else None
    return None if found is None else str(Path(found).absolute())


def _shown(path: str | None) -> str:
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
