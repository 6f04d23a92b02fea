"""The register of erasures: a file of keyed hashes, by which a restored journal forgets again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_bytes

import msgspec

from autoplay_rag.errors import JournalError

__all__ = ["Register", "RegisterEntry", "register_of"]


class RegisterEntry(msgspec.Struct, frozen=True):
    """A request to forget, without ids.

    Attributes:
        scope: The names of the ids that were given, joined by "+".
        hash: The keyed hash of their values.
        asked: When it was asked, in Unix seconds.
        until: Only what happened up to then.
        block: Whether later events are refused too.
    """

    scope: str
    hash: str
    asked: float
    until: float | None = None
    block: bool = False


class _Key(msgspec.Struct):
    key: str


class Register:
    """A file with one line for its key and one for each request.

    Args:
        path: The file; None if there is none, for a journal in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def key(self, known: bytes) -> bytes:
        """Return the key of the file. A new file gets the known key, or a random one.

        Raises:
            JournalError: If the file cannot be read or written.
        """
        if self._path is None:
            return known or token_bytes(32)
        try:
            if not self._path.exists():
                key = known or token_bytes(32)
                self._append(_Key(key.hex()))
                return key
            with self._path.open("rb") as file:
                return bytes.fromhex(msgspec.json.decode(file.readline(), type=_Key).key)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    def exists(self) -> bool:
        """Whether the file exists."""
        return self._path is not None and self._path.exists()

    def entries(self) -> list[RegisterEntry]:
        """Return all requests, oldest first.

        Raises:
            JournalError: If the file cannot be read.
        """
        if self._path is None or not self._path.exists():
            return []
        try:
            lines = self._path.read_bytes().split(b"\n")[1:]
        except OSError as error:
            raise self._unusable(error) from error
        found = []
        for line in lines:
            # A line that was not written completely belongs to a request that was not recorded.
            with suppress(msgspec.MsgspecError):
                found.append(msgspec.json.decode(line, type=RegisterEntry))
        return found

    def add(self, entry: RegisterEntry) -> None:
        """Add a request, so that it survives a power loss.

        Raises:
            JournalError: If the file cannot be written.
        """
        if self._path is None:
            return
        try:
            self._append(entry)
        except OSError as error:
            raise self._unusable(error) from error

    def _append(self, line: object) -> None:
        assert self._path is not None
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        descriptor = os.open(self._path, flags, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
            torn = bool(size) and file.read(1) != b"\n"
            file.seek(0, os.SEEK_END)
            file.write((b"\n" if torn else b"") + msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _unusable(self, error: Exception) -> JournalError:
        return JournalError(f"the register of erasures {self._path} cannot be used: {error}")


def register_of(journal: Path) -> Path:
    """Return the default register of a journal.

    Example:
        >>> register_of(Path("data/journal.db")).as_posix()
        'data/journal.db.erasures'
    """
    return journal.with_name(journal.name + ".erasures")
