"""Caches for functions of one text, bounded in entries and in the length of a text.

The texts are of people, so all caches can be emptied together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["cached_for_texts", "forget_texts"]

T = TypeVar("T")

_CLEAR: Final[list[Callable[[], None]]] = []


def cached_for_texts(
    entries: int, longest: int
) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Decorate a pure function of one text with a cache of the results used last.

    Args:
        entries: The most results. A process that has seen many texts keeps so many forever.
        longest: The most characters of a text whose result is kept.

    Example:
        >>> @cached_for_texts(100, longest=5)
        ... def shout(text):
        ...     print("called")
        ...     return text.upper()
        >>> shout("hello"), shout("hello")
        called
        ('HELLO', 'HELLO')
    """

    def decorate(fn: Callable[[str], T]) -> Callable[[str], T]:
        kept = functools.lru_cache(maxsize=entries)(fn)
        _CLEAR.append(kept.cache_clear)

        @functools.wraps(fn)
        def call(text: str, /) -> T:
            return kept(text) if len(text) <= longest else fn(text)

        return call

    return decorate


def forget_texts() -> None:
    """Empty all caches of texts. May be called from any thread."""
    for clear in _CLEAR:
        clear()
