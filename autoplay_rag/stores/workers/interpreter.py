"""Which Python interpreter runs a worker process."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from autoplay_rag.errors import ConfigurationError

__all__ = ["WORKER_MARK", "Interpreter"]

WORKER_MARK = "AUTOPLAY_RAG_WORKER"
"""The environment variable that is set in a worker."""
_NAME = re.compile(r"\.?(python|pypy|graalpy)[\w.+-]*", re.IGNORECASE)


@dataclass(frozen=True)
class Interpreter:
    """The Python interpreter that runs a worker. Construct it with `named`.

    Attributes:
        path: The executable.
        given: The same if the user named it; None for the interpreter of this process.
        remedy: What the user can do if it does not run the worker, as a sentence without a stop.
    """

    path: str
    given: str | None
    remedy: str

    @classmethod
    def named(cls, python: str | os.PathLike[str] | None, *, call: str, packages: str) -> Self:
        """Check an interpreter without starting it.

        Args:
            python: Its path, or a name on `PATH`; None for the interpreter of this process.
            call: What takes the argument `python`, for error messages: "ChromaStore".
            packages: What the interpreter needs, for error messages: "autoplay-rag[chroma]".

        Raises:
            ConfigurationError: If it is not executable or does not look like an interpreter, or if
                this process is itself a worker.
        """
        remedy = (
            f"Pass {call}(..., python=PATH) with the path of a Python interpreter that has the same "
            f"version of {packages} installed"
        )
        if os.environ.get(WORKER_MARK):
            # `sys.executable` was this program, not an interpreter, so it started itself.
            raise ConfigurationError(
                f"this process was started as a worker of a store ({WORKER_MARK} is set), and a "
                f"worker does not start another: {_quoted(sys.executable)} is not a Python "
                f"interpreter, or runs a program without `if __name__ == '__main__':`. {remedy}"
            )
        own = _executable(sys.executable or "")
        found = own if python is None else _executable(os.fspath(python))
        if python is not None and found is None:
            raise ConfigurationError(f"python={os.fspath(python)!r} is not executable. {remedy}")
        packaged = getattr(sys, "frozen", False) and found == own
        named_so = python is not None or _NAME.fullmatch(Path(found or "").name)
        if found is None or packaged or not named_so:
            raise ConfigurationError(
                f"{call} starts a separate Python process. This program cannot start one: "
                f"sys.executable is {_quoted(sys.executable)}, which is missing, a packaged "
                f"application or a program that embeds Python. {remedy}"
            )
        return cls(found, None if python is None else found, remedy)


def _executable(path: str) -> str | None:
    """Return the absolute path of an executable file; None if there is none.

    Links are not resolved: an interpreter finds its virtual environment by the path of the link.
    """
    found = shutil.which(Path(path).expanduser()) if path else None
    return None if found is None else str(Path(found).absolute())


def _quoted(path: str | None) -> str:
    return repr(path) if path else "not set"
