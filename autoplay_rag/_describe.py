"""An error in one line."""

from __future__ import annotations

__all__ = ["describe"]

_MOST_CHARACTERS = 300


def describe(error: BaseException) -> str:
    r"""An error in one line, for logs and dead letters: its type and the start of its message.

    Example:
        >>> describe(ValueError("bad\nvalue")), describe(TimeoutError())
        ('ValueError: bad value', 'TimeoutError')
    """
    message = " ".join(str(error).split()).encode("utf-8", "replace").decode().replace("\0", "")
    name = type(error).__name__
    return f"{name}: {message[:_MOST_CHARACTERS]}" if message else name
