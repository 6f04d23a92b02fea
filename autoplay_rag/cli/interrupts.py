"""Handling of Ctrl-C and similar signals: the first stops the command, the second exits at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from autoplay_rag.cli.console import err

__all__ = ["Interrupts"]

_SHOW_CURSOR = "\x1b[?25h"


class Interrupts:
    """A context manager that handles SIGINT, SIGTERM and SIGHUP. Create it in the running loop.

    The first signal calls the function given to `calling` or, outside of `calling`, cancels the
    current task. The second signal exits the process with code 1 at once. A SIGHUP never counts as
    the second signal, because a closing terminal may send several. If SIGHUP was ignored before,
    as under `nohup`, it stays ignored.

    Args:
        exit_message: The message that the second signal prints.

    Attributes:
        count: The number of signals received.
    """

    def __init__(self, exit_message: str = "exited at once") -> None:
        self.count = 0
        self._exit_message = exit_message
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._cancel: Callable[[], object] = task.cancel
        self._call: Callable[[], object] = task.cancel
        self._previous: dict[int, object] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
            self._previous[hangup] = signal.signal(hangup, self._on_hangup)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() had returned

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Make the first signal call `call` instead of cancelling the task."""
        self._call = call
        try:
            yield
        finally:
            self._call = self._cancel

    def _interrupt(self) -> None:
        self._call()

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        # Printing to a closed terminal raises, and would end the command half-way.
        if self._terminals:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in self._terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)
            self._terminals = []
        if self.count == 0:
            self._on_signal(number, frame)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._loop.call_soon_threadsafe(self._interrupt)
        else:
            # Not print(): the signal may have interrupted a call of it.
            os.write(2, f"{_SHOW_CURSOR if err.is_terminal else ''}{self._exit_message}\n".encode())
            os._exit(1)
