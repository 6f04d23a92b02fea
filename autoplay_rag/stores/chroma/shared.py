"""The Chroma worker of a folder: how it starts, and which collections are being scanned."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from autoplay_rag.errors import (
    AutoplayError,
    MissingExtraError,
    StoreLockedError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
)
from autoplay_rag.stores.chroma.frames import Failed, Reply
from autoplay_rag.stores.workers.child import Launch
from autoplay_rag.stores.workers.interpreter import Interpreter
from autoplay_rag.stores.workers.shared import SharedWorker

__all__ = ["ChromaWorker", "interpreter_of"]

_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class ChromaWorker(SharedWorker[Reply]):
    """The worker of one folder, shared by all stores of this folder. Get one with `acquire`.

    Attributes:
        searched_at: The time of the last search, by `time.monotonic`.
    """

    def __init__(self, launch: Launch[Reply]) -> None:
        super().__init__(launch)
        self.searched_at = -math.inf
        self._scans: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def acquire(cls, folder: Path, interpreter: Interpreter | None = None) -> Self:
        """Return the worker of this folder. Each caller must `release` it.

        Args:
            folder: The folder's absolute and resolved path, so that each folder has one worker.
            interpreter: The interpreter that runs the worker; by default that of this process. The
                choice of a folder's first user applies as long as the worker is in use.
        """

        def launch() -> Launch[Reply]:
            return Launch(
                name=f"the Chroma worker of {folder}",
                module="autoplay_rag.stores.chroma.worker",
                arguments=(str(folder), str(os.getpid())),
                interpreter=interpreter or interpreter_of(None),
                decoder=_decoder,
                error_of=_error_of,
                # The worker's working folder, so that the worker does not keep another one in use.
                folder=folder,
            )

        return cls.shared(folder, launch)

    @contextmanager
    def scanning(self, collection: str) -> Iterator[None]:
        """Mark a collection as being scanned."""
        with self._lock:
            self._scans[collection] += 1
        try:
            yield
        finally:
            with self._lock:
                self._scans[collection] -= 1

    def is_scanned(self, collection: str) -> bool:
        """Whether a scan of this collection is under way. Readable from any thread."""
        return self._scans[collection] > 0


def interpreter_of(python: str | os.PathLike[str] | None) -> Interpreter:
    """Check the interpreter that is to run Chroma; see `Interpreter.named`."""
    return Interpreter.named(python, call="ChromaStore", packages="autoplay-rag[chroma]")


def _error_of(reply: Reply) -> AutoplayError | None:
    if not isinstance(reply, Failed):
        return None
    match reply.kind:
        case "locked":
            return StoreLockedError(reply.message)
        case "mismatch":
            return StoreMismatchError(reply.message)
        case "missing":
            return MissingExtraError("ChromaStore", "chroma")
        case "rejected":
            return StoreRejectedError(reply.message)
        case "unavailable":
            return StoreUnavailableError(reply.message)
