"""One run of a worker process, as its parent controls it: start, request, end. All calls block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from autoplay_rag.errors import AutoplayError, ConfigurationError, StoreUnavailableError
from autoplay_rag.stores.workers.interpreter import WORKER_MARK, Interpreter
from autoplay_rag.stores.workers.pipe import read, write

__all__ = ["Launch", "WorkerProcess"]

_END_TIMEOUT_S = 10.0
"""Seconds that the worker may take to end by itself."""
_NOT_READY_TIMEOUT_S = 1.0
"""Seconds that a process that was never ready may take to end after its output has failed."""
_ALARM: Final = -signal.SIGALRM if hasattr(signal, "SIGALRM") else None
"""The status of a worker that its own alarm has ended; see `serving.alarm`."""
R = TypeVar("R")


@dataclass(frozen=True)
class Launch(Generic[R]):
    """How to start a worker, and how to read its replies.

    Attributes:
        name: What it is called in error messages: "the Chroma worker of ./folder".
        module: The module that the interpreter runs.
        arguments: The arguments of its command. They are visible to other users of the machine.
        interpreter: The interpreter that runs it.
        decoder: Decodes its replies.
        error_of: Returns the error that a reply stands for; None if the reply is an answer.
        folder: The worker's working folder, created with mode 0700 if it is missing. None for the
            working folder of this process.
        first: The frame to send before the worker is ready.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    interpreter: Interpreter
    decoder: msgspec.msgpack.Decoder[R]
    error_of: Callable[[R], AutoplayError | None]
    folder: Path | None = None
    first: bytes = b""


class WorkerProcess(Generic[R]):
    """A worker process. The constructor starts it and waits until it is ready.

    The worker ends when `end` is called, when this object is garbage-collected, or when this
    process ends, because the operating system then closes its standard input.

    Args:
        launch: How to start it.
        timeout: Seconds to wait.

    Raises:
        AutoplayError: If the worker reports it.
        ConfigurationError: If the interpreter does not run the worker.
        StoreUnavailableError: If it cannot be started.
    """

    def __init__(self, launch: Launch[R], timeout: float) -> None:
        self._launch = launch
        self._ready = False
        try:
            if launch.folder is not None:
                # It will hold personal data. The mode of an existing folder stays as it is.
                launch.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._popen = _spawn(launch)
        except OSError as error:
            raise StoreUnavailableError(f"{launch.name} cannot be started: {error}") from error
        self._finalizer = weakref.finalize(self, _end, self._popen)
        _running.add(self)
        try:
            self.ask(launch.first, timeout)
            self._ready = True
        except AutoplayError:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the worker is running."""
        return self._finalizer.alive and self._popen.poll() is None

    def ask(self, frame: bytes, timeout: float) -> R:
        """Send a frame and wait for the reply.

        Raises:
            AutoplayError: If the worker reports it.
            ConfigurationError: If the interpreter did not run the worker.
            StoreUnavailableError: If the worker died, or did not answer in time and was killed.
        """
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with self._deadline(timeout) as expired:
            try:
                write(self._popen.stdin, frame)
                reply: R | None = read(self._popen.stdout, self._launch.decoder)
            except (OSError, EOFError, msgspec.MsgspecError):
                reply = None
        if reply is None:
            if not (self._ready or expired.is_set()):
                self._check_interpreter()
            self._popen.kill()
            self.end()
            # Its own alarm may come before ours on a busy machine.
            what = (
                f"did not answer within {timeout:g} s and was killed"
                if expired.is_set() or self._popen.returncode == _ALARM
                else f"ended unexpectedly with status {self._popen.returncode}"
            )
            raise StoreUnavailableError(f"{self._launch.name} {what}; the next call restarts it")
        if error := self._launch.error_of(reply):
            raise error
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
        interpreter = self._launch.interpreter
        raise ConfigurationError(
            f"{interpreter.path} did not run {self._launch.name}: it {what}. {interpreter.remedy}"
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


_running: weakref.WeakSet[WorkerProcess[Any]] = weakref.WeakSet()


def _disown_all() -> None:
    for process in list(_running):
        process.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _spawn(launch: Launch[R]) -> subprocess.Popen[bytes]:
    # `-P` keeps the working folder off the import path.
    env = {**os.environ, WORKER_MARK: "1"}
    interpreter = launch.interpreter
    if interpreter.given is None:
        # The worker gets the import path of this process. Another interpreter has its own.
        env["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    if sys.platform == "win32":
        group: dict[str, int] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        group = {"process_group": 0}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own module
        [interpreter.path, "-P", "-W", "ignore", "-m", launch.module, *launch.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=launch.folder,
        env=env,
        **group,  # Ctrl-C in the terminal reaches only the parent
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
