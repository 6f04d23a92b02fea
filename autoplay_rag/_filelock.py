"""A lock on a file that the operating system lets go of when its process ends, however it ends."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["FileLock"]

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.02


class FileLock:
    """Holds `path` for this process alone.

    Args:
        path: The lock file; it is made if need be and left behind.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "journal.lock"
        >>> mine, other = FileLock(path), FileLock(path)
        >>> mine.acquire(), other.acquire()
        (True, False)
        >>> mine.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; hardly waits."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        # Somebody who only asks `is_held` has it for a moment.
        for attempt in range(_ATTEMPTS):
            if _lock(fd):
                break
            if attempt == _ATTEMPTS - 1:
                os.close(fd)
                return False
            time.sleep(_ATTEMPT_SECONDS)
        self._fd = fd
        with suppress(OSError):  # a full disk: who holds it is only for messages
            os.ftruncate(fd, 0)
            os.write(fd, str(os.getpid()).encode())
        return True

    def is_held(self) -> bool | None:
        """Whether any process, this one included, has the lock.

        Returns:
            None if it cannot be known, because the file may not be read.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except PermissionError:
            return None
        except OSError:
            return False
        try:
            # Shared, so that two who ask at once do not take each other for the holder.
            return not _lock(fd, shared=True)
        finally:
            os.close(fd)

    def holder(self) -> str:
        """The process that wrote itself into the lock file, for messages."""
        try:
            return self.path.read_text() or "unknown"
        except OSError:
            return "unknown"

    def release(self, *, remove: bool = False) -> None:
        """Let go; does nothing if the lock is not held.

        Args:
            remove: Leave no file behind, where there was nothing to lock after all.
        """
        if self._fd is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(fd: int, *, shared: bool = False) -> bool:  # noqa: ARG001 - it knows no shared ones
        # Windows locks bytes and forbids reading them: one far behind the text is locked.
        os.lseek(fd, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(fd, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _lock(fd: int, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
