"""Splits texts into the terms that full-text search compares. Pure.

Text and question are split in the same way: "export csv" finds `exportCsv`, "1000" finds `1,000`,
and "mar 03" finds "march 3". Only English is stemmed. Other languages are compared word by word,
and scripts without spaces by pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import chain
from typing import Final

import snowballstemmer

from autoplay_rag._text_cache import TextTable

__all__ = ["index_text", "lookups", "parts", "plain_text", "terms", "words"]

_WORD: Final = re.compile(r"[^\W_]+")
_ASCII_SPACES: Final = bytes(byte if chr(byte).isalnum() else ord(" ") for byte in range(128)) * 2
"""For ASCII only: what is not in a word becomes a space. Takes less than half the time, which counts because
every payload is split, and a search splits those of dozens of sessions."""
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BORDER: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
"""Where a word is split: between `export` and `Csv`, between `q` and `3`."""
_SPACELESS: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""

_NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
}
_MONTHS: Final = {
    month[:3]: month
    for month in [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ]
}
STOP_WORDS: Final = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "for",
        "and",
        "or",
        "with",
        "at",
        "by",
        "from",
        "is",
        "are",
        "was",
        "be",
        "it",
        "this",
        "that",
        "i",
        "my",
        "me",
        "their",
        "his",
        "her",
    ]
)
_LONGEST: Final = 64
"""The most characters of a term. A token of 10,000 letters is not a word."""
_REMEMBERED: Final = 8_192
"""Words whose parts and terms are cached, 3 MB in total. The words of an application fit; numbers and
ids, which are new in every payload, need no stemming."""

_ALIKE: Final = {
    one: other
    for word, short in (*_NUMBERS.items(), *((month, short) for short, month in _MONTHS.items()))
    for one, other in ((word, short), (short, word))
}
"""Pairs of words with the same term here, but different terms in SQLite's index."""

_stemmer = snowballstemmer.stemmer("porter")


def terms(text: str) -> list[str]:
    """The terms of a text: its words without stop words, normalised and stemmed.

    Example:
        >>> terms("Exported three reports, 1,000 rows each")
        ['export', '3', 'report', '1000', 'row', 'each']
        >>> terms("exportCsv in the Q3 report") == terms("export CSV, q 3 reports")
        True
    """
    return list(chain.from_iterable(map(_terms_of, words(text))))


def words(text: str) -> list[str]:
    """The words of a text in order, as written.

    Example:
        >>> words("Opened invoice INV-0042, 1,000 rows")
        ['Opened', 'invoice', 'INV', '0042', '1000', 'rows']
    """
    if "," in text:
        text = _THOUSANDS.sub("", text)
    return _words(text)


def parts(word: str) -> tuple[str, ...]:
    """The parts of one word of `words`; the word itself if it has none.

    Example:
        >>> parts("exportCsv"), parts("Q3"), parts("設定画面"), parts("plain")
        (('export', 'Csv'), ('Q', '3'), ('設定', '定画', '画面'), ('plain',))
    """
    return _parts_of(word)


def lookups(text: str) -> dict[str, tuple[str, ...]]:
    """The distinct terms of a question, each with the words to look up in the full-text index.

    The index stems the words of a query itself. Stemming a stem may change it, so the lookups are
    whole words.

    Example:
        >>> lookups("three reports")
        {'3': ('three', '3'), 'report': ('reports',)}
    """
    found: dict[str, dict[str, None]] = {}
    for word in words(text):
        apart = parts(word)
        for part in apart:
            for term in _terms_of(part):
                raw = found.setdefault(term, {})
                raw[part] = None
                if other := _ALIKE.get(part.casefold()):
                    raw[other] = None
                if len(apart) > 1 and len(part) > 1:
                    raw[word] = None
    return {term: tuple(raw) for term, raw in found.items()}


def index_text(text: str) -> str:
    """The text for SQLite's full-text index: the text itself and the parts of its words.

    So codes such as `Q3` or `INV2024` are found as a whole and by their parts.
    """
    if "," in text:
        text = _THOUSANDS.sub("", text)
    more = [part for found in map(_parts_of, words(text)) if len(found) > 1 for part in found]
    return f"{text}\n{' '.join(more)}" if more else text


def plain_text(text: str) -> str:
    """The words of a text in lower case and without accents, separated by spaces.

    For a full-text index that would read addresses or file names as one word.

    Example:
        >>> plain_text("Ouvert: https://app.example.com/Réglages_1")
        'ouvert https app example com reglages 1'
    """
    return " ".join(_words(_folded(text)))


def _words(text: str) -> list[str]:
    if text.isascii():
        return text.encode().translate(_ASCII_SPACES).decode().split()
    return _WORD.findall(text)


def _split(word: str) -> tuple[str, ...]:
    if word.isdecimal() and word.isascii():  # the most common word that is in no table
        return (word,)
    apart = _BORDER.sub(" ", word)
    if not word.isascii():
        apart = _SPACELESS.sub(_pairs, apart)
    return tuple(apart.split()) or (word,)


def _terms(word: str) -> tuple[str, ...]:
    if word.isdecimal() and word.isascii():
        return (word[:_LONGEST].lstrip("0") or "0",)
    lower = [_folded(part)[:_LONGEST] for part in _parts_of(word)]
    return tuple(_normalised(part) for part in lower if part not in STOP_WORDS)


# Bound methods: the loops over all words of a text stay in C.
_parts_of = TextTable(_split, _REMEMBERED, longest=_LONGEST).__getitem__
_terms_of = TextTable(_terms, _REMEMBERED, longest=_LONGEST).__getitem__


def _normalised(word: str) -> str:
    word = _NUMBERS.get(word, _MONTHS.get(word, word))
    if word.isdecimal():
        return word.lstrip("0") or "0"
    stem: str = _stemmer.stemWord(word)
    return stem


def _pairs(match: re.Match[str]) -> str:
    run = match[0]
    pairs = [run[start : start + 2] for start in range(len(run) - 1)] or [run]
    return f" {' '.join(pairs)} "


def _folded(text: str) -> str:
    """The text in lower case, without accents."""
    text = text.casefold()
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(char for char in decomposed if not unicodedata.combining(char))
