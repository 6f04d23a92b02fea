"""Caches for functions of one text, bounded in entries and in the length of a text.

The texts are of people, so all caches can be emptied together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["TextTable", "cached_for_texts", "forget_texts"]

T = TypeVar("T")

_CLEAR: Final[list[Callable[[], None]]] = []
_LONGEST_NUMBER: Final = 3


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


class TextTable(dict[str, T]):
    """The results of a pure function of one word, by word. Asked for a missing one, it calls the function.

    A look-up takes a fifth of the time of a call of a function with `cached_for_texts`, which counts
    for functions that are called for each word of a text. It is emptied when it is full.

    Args:
        fn: The function.
        entries: The most results.
        longest: The most characters of a word whose result is kept. Of numbers, only short ones are:
            most others are new in each text.

    Example:
        >>> table = TextTable(str.upper, 100, longest=5)
        >>> table["hello"], table["goodbye"], sorted(table)
        ('HELLO', 'GOODBYE', ['hello'])
    """

    __slots__ = ("_entries", "_fn", "_longest")

    def __init__(self, fn: Callable[[str], T], entries: int, longest: int) -> None:
        super().__init__()
        self._fn = fn
        self._entries = entries
        self._longest = longest
        _CLEAR.append(self.clear)

    def __missing__(self, word: str) -> T:
        found = self._fn(word)
        if len(word) <= (_LONGEST_NUMBER if word.isdecimal() else self._longest):
            if len(self) >= self._entries:
                self.clear()
            self[word] = found
        return found


def forget_texts() -> None:
    """Empty all caches of texts. May be called from any thread."""
    for clear in _CLEAR:
        clear()
