"""Caches for functions of one text, bounded in entries and in the length of a text.

The texts are of people, so all caches can be emptied together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["TextTable", "forget_texts", "forgets"]

T = TypeVar("T")

_CLEAR: Final[list[Callable[[], None]]] = []
_LONGEST_NUMBER: Final = 3


class TextTable(dict[str, T]):
    """The results of a pure function of one text, by text. A missing one is computed.

    A look-up takes half the time of a call of a wrapper with `functools.lru_cache`, or less in a
    loop in C. That counts for functions that are called for each word or line of many texts.

    Args:
        fn: The function.
        entries: The most results. The table is emptied when it is full.
        longest: The most characters of a text whose result is kept. Of numbers, only short ones are:
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

    def __missing__(self, text: str) -> T:
        found = self._fn(text)
        if len(text) <= (_LONGEST_NUMBER if text.isdecimal() else self._longest):
            if len(self) >= self._entries:
                self.clear()
            self[text] = found
        return found


def forgets(clear: Callable[[], None]) -> None:
    """Have `forget_texts` empty another cache of texts as well."""
    _CLEAR.append(clear)


def forget_texts() -> None:
    """Empty all caches of texts. May be called from any thread."""
    for clear in _CLEAR:
        clear()
