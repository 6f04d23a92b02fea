"""Ctrl-C and its like: the first one ends the command in good order, the second one at once."""

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
    """Handles SIGINT, SIGTERM and SIGHUP while it is entered; make it inside the running loop.

    The first one calls what `calling` was given or, outside of it, cancels the current task.
    The second one ends the process with exit code 1, whatever is under way. A SIGHUP is never
    the second one, because a terminal that closes may send several; where it was ignored before,
    as under `nohup`, it stays so.

    Args:
        farewell: What the second one prints.

    Attributes:
        count: How many have come.
    """

    def __init__(self, farewell: str = "left at once") -> None:
        self.count = 0
        self._farewell = farewell
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._cancel: Callable[[], object] = task.cancel
        self._call: Callable[[], object] = task.cancel
        self._previous: dict[int, object] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._came)
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
            self._previous[hangup] = signal.signal(hangup, self._hung_up)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() had returned

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Have the first Ctrl-C call `call` instead."""
        self._call = call
        try:
            yield
        finally:
            self._call = self._cancel

    def _interrupt(self) -> None:
        self._call()

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        # Printing on a terminal that is gone raises, and would end the command half-way.
        if self._terminals:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in self._terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)
            self._terminals = []
        if self.count == 0:
            self._came(number, frame)

    def _came(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._loop.call_soon_threadsafe(self._interrupt)
        else:
            # Not print(): the signal may have come in the middle of one.
            os.write(2, f"{_SHOW_CURSOR if err.is_terminal else ''}{self._farewell}\n".encode())
            os._exit(1)
