"""The file beside a journal that says where its server is, for commands on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from autoplay_rag._filelock import FileLock

__all__ = ["RunningServer", "announced", "find_running", "running_file"]

_SUFFIX: Final = ".server"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server is.

    Attributes:
        url: Its address.
        key: An admin key that is valid as long as it runs.
        pid: Its process.
        store: The folder of its store, without links; "" if it is not known.
        collection: The collection in it; "" if it is not known.
    """

    url: str
    key: str = field(repr=False)
    pid: int
    store: str = ""
    collection: str = ""


def running_file(journal: Path) -> Path:
    """Return the file for a journal.

    Example:
        >>> running_file(Path("data/journal.db")).as_posix()
        'data/journal.db.server'
    """
    return journal.with_name(journal.name + _SUFFIX)


@contextmanager
def announced(journal: Path, server: RunningServer) -> Iterator[Path]:
    """Have the file inside the block; readable by its owner only.

    Args:
        journal: The journal, whose pipeline this process runs.
        server: What the file says.

    Yields:
        The file.
    """
    path = running_file(journal.resolve())
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(server))
    fresh.replace(path)  # whatever was there belonged to a server that is gone
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def find_running(journal: str | Path) -> RunningServer | None:
    """Return the server that uses a journal; None if there is none.

    The file of a server that was killed is not believed: the server holds the journal's lock as
    long as it lives, and its process is named there.

    Args:
        journal: The journal's file.
    """
    resolved = Path(journal).expanduser().resolve()
    path = running_file(resolved)
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            content = file.read()
        server = msgspec.json.decode(content, type=RunningServer)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None
    if os.name != "nt" and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
        return None  # anyone may have written it
    lock = FileLock(resolved.with_name(resolved.name + ".lock"))
    if lock.is_held() is False or lock.holder() != str(server.pid):
        return None
    return server
