"""Computes the full-text score of a session for a question. Pure.

The score is computed over the distinct lines of a session. Typed or selected values count twice as
much as actions; names of fields, pages and sites count less. `benchmarks/retrieval.py` measures it.

The score is a cosine of weighted words: the sum of `ln(1 + weight) * idf^2` over the words that
question and session share, divided by the lengths of session and question. Words without a passage
count for the length of the question, so a session that answers half of a question scores half.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from autoplay_rag._text_cache import TextTable
from autoplay_rag.content.words import lookups, parts, terms, words

__all__ = ["Matched", "Question", "Scored", "corrections", "matched", "score"]

_SITE, _PAGE, _VALUE, _LABEL, _ACTION = 0.3, 0.5, 2.0, 0.3, 1.0
_VALUE_VERBS: Final = ("typed ", "selected ")
_VALUE_LINE: Final = re.compile(r'(typed|selected) ("[^"]*")(.*)', re.DOTALL)
_EXACT_BONUS: Final = 0.5
"""The bonus for a session that contains all codes, addresses and quoted phrases of the question
literally."""
_CORRECTED: Final = 0.8
"""The weight of a word that differs from the question's word by one typo."""
_LEAST_CORRECTED: Final = 4
_FIRST_LETTER_MAY_DIFFER: Final = 6
"""Words need so many letters before a typo in the first letter is corrected."""
_REMEMBERED: Final = 16_384
_LONGEST_REMEMBERED: Final = 300
"""Lines whose terms are cached, about 8 MB, and their most characters. A question without a filter
reads thousands of lines, mostly those of the question before it."""
_MOST_CHARACTERS: Final = 2000
_MOST_TERMS: Final = 48
_CODE: Final = re.compile(r"[^\s\"'()<>\[\]{},;!?]{4,}")
_JOINED: Final = re.compile(r"[^\W_][-_.@/:#+]+[^\W_]")
_QUOTE: Final = re.compile(
    r'["\u201c\u201e\u00ab]([^"\u201c\u201d\u00ab\u00bb]{3,})["\u201c\u201d\u00bb]'
)


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed question.

    Attributes:
        text: The question without NUL and lone surrogates.
        lookups: Its distinct terms, each with the words to look up.
        exact: Codes, addresses and quoted phrases to find literally.
    """

    text: str
    lookups: Mapping[str, tuple[str, ...]]
    exact: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Question:
        """Parse a question. Only its first 2,000 characters count.

        Example:
            >>> question = Question.of('who opened INV-0042 on "Billing details"?')
            >>> question.exact
            ('Billing details', 'INV-0042')
        """
        text = text.encode("utf-8", "replace").decode().replace("\0", " ").strip()
        short = text[:_MOST_CHARACTERS]
        exact = [quoted.strip() for quoted in _QUOTE.findall(short)]
        exact += [code for found in _CODE.findall(short) if _is_code(code := found.strip(".:-"))]
        found = dict(list(lookups(short).items())[:_MOST_TERMS])
        return cls(text, found, tuple(dict.fromkeys(exact)))


class Scored(NamedTuple):
    """The full-text score of a session.

    Attributes:
        score: 0 if question and session share no word; 1 or more if the session has all words.
        shares: The weight of each passage, as a share of the best passage's weight.
    """

    score: float
    shares: list[float]


@dataclass(frozen=True, slots=True)
class Matched:
    """The lines of a hit that answer the question.

    Attributes:
        text: The lines.
        places: Start and end in `text` of each word of the question.
    """

    text: str
    places: list[tuple[int, int]] = field(default_factory=list)


def score(
    question: Question,
    sessions: Mapping[int, Sequence[str]],
    counts: Mapping[str, int],
    total: int,
    corrected: Mapping[str, Iterable[str]] | None = None,
) -> dict[int, Scored]:
    """Score sessions.

    Args:
        question: The question.
        sessions: The texts of the passages of each session, by lane.
        counts: The number of passages with each term of the question and each corrected term.
        total: The number of passages in the catalog.
        corrected: The result of `corrections`.
    """
    wanted: dict[str, tuple[str, float]] = {term: (term, 1.0) for term in question.lookups}
    for term, others in (corrected or {}).items():
        wanted |= {other: (term, _CORRECTED) for other in others if other not in wanted}
    idf = {term: _idf(counts.get(term, 0), total) for term in {*question.lookups, *wanted}}
    length = math.sqrt(sum(idf[term] ** 2 for term in question.lookups))
    mean = length / math.sqrt(len(question.lookups) or 1)
    return {
        lane: _scored(question, texts, wanted, idf, length * mean)
        for lane, texts in sessions.items()
    }


def _scored(
    question: Question,
    texts: Sequence[str],
    wanted: Mapping[str, tuple[str, float]],
    idf: Mapping[str, float],
    length: float,
) -> Scored:
    counted: dict[float, list[str]] = {}
    seen: set[str] = set()
    shares = []
    squares = {term: idf[term] ** 2 for term in wanted}
    for text in texts:
        own = 0.0
        for line in text.split("\n"):
            is_new = line not in seen
            seen.add(line)
            for weight, found in _weighed(line):
                if is_new:
                    counted.setdefault(weight, []).extend(found)
                if not squares.keys().isdisjoint(found):
                    own += weight * sum(squares.get(term, 0.0) for term in found)
        shares.append(own)
    if not any(shares):  # no term matches: every weight is above 0
        return Scored(0.0, shares)
    weights = _summed(counted)
    values: dict[str, float] = {}
    for term in wanted.keys() & weights.keys():
        asked, worth = wanted[term]
        value = worth * math.log1p(weights[term]) * idf[term] * idf[asked]
        values[asked] = max(values.get(asked, 0.0), value)
    # Most words of a session have the weight of a single action.
    alike = Counter(weights.values())
    norm = math.sqrt(sum(count * math.log1p(weight) ** 2 for weight, count in alike.items()))
    total = sum(values.values()) / (norm * length) if norm and length else 0.0
    if question.exact:
        total += _EXACT_BONUS * _exact_share(question, texts, shares, idf)
    best = max(shares, default=0.0)
    return Scored(total, [share / best if best else 0.0 for share in shares])


def _summed(counted: Mapping[float, Iterable[str]]) -> dict[str, float]:
    """The weight of each term, from the terms that occurred with each weight."""
    weights: dict[str, float] = {}
    for weight, found in counted.items():
        for term, count in Counter(found).items():
            weights[term] = weights.get(term, 0.0) + weight * count
    return weights


def _exact_share(
    question: Question, texts: Sequence[str], shares: list[float], idf: Mapping[str, float]
) -> float:
    """The weight of the exact strings in the session, as a share of the question's weight.

    Passages with such a string become the best ones. By IDF, a rare code counts more than a year.
    """
    folded = [text.casefold() for text in texts]
    found: set[str] = set()
    for wanted in question.exact:
        having = [row for row, text in enumerate(folded) if _holds(text, wanted.casefold())]
        if having:
            found.update(terms(wanted))
        for row in having:
            shares[row] = max(shares, default=0.0) + 1.0
    weight = sum(idf[term] ** 2 for term in question.lookups)
    return sum(idf[term] ** 2 for term in found if term in idf) / weight if weight else 0.0


def _holds(text: str, wanted: str) -> bool:
    """Whether a text contains a string as whole words: `INV-12` does not contain `INV-1`."""
    at = text.find(wanted)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(wanted) : at + len(wanted) + 1]
        if not (before.isalnum() and wanted[0].isalnum()) and not (
            after.isalnum() and wanted[-1].isalnum()
        ):
            return True
        at = text.find(wanted, at + 1)
    return False


def _idf(count: int, total: int) -> float:
    return math.log1p((max(total - count, 0) + 0.5) / (count + 0.5))


def _is_code(text: str) -> bool:
    """Whether a string is a code, an id, an address or a number, not a word."""
    if _JOINED.search(text):
        return True
    digits = sum(char.isdigit() for char in text)
    return digits > 0 and (digits < len(text) or digits >= 5)  # noqa: PLR2004 - see `_CODE`


def _weights_of(line: str) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """The terms of one line of `content.render`, by their weight."""
    line = line.rstrip(",")
    if " " not in line and "." in line:
        return ((_SITE, tuple(terms(line))),)
    if line.startswith("on ") and '"' not in line:
        return ((_PAGE, tuple(terms(line[3:]))),)
    if line.startswith(_VALUE_VERBS) and (found := _VALUE_LINE.fullmatch(line)):
        verb, value, label = found.groups()
        return (
            (_ACTION, tuple(terms(verb))),
            (_VALUE, tuple(terms(value))),
            (_LABEL, tuple(terms(label))),
        )
    return ((_ACTION, tuple(terms(line))),)


_weighed: Final = TextTable(_weights_of, _REMEMBERED, longest=_LONGEST_REMEMBERED).__getitem__


# -- typos ----------------------------------------------------------------------------------------


def corrections(
    question: Question, sessions: Iterable[Sequence[str]], counts: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """Find corrections for terms of the question that are in no passage.

    Returns:
        For each such term, the terms of these sessions that differ by one typo. Terms without a
        correction are left out.
    """
    unknown = [
        term
        for term in question.lookups
        if not counts.get(term) and len(term) >= _LEAST_CORRECTED and term.isalpha()
    ]
    if not unknown:
        return {}
    lines: set[str] = set()
    for texts in sessions:
        for text in texts:
            lines.update(text.split("\n"))
    known: set[str] = set()
    for line in lines:
        for _, found in _weighed(line):
            known.update(found)
    by_length: dict[int, list[str]] = {}
    for term in known:
        by_length.setdefault(len(term), []).append(term)
    near = {
        term: tuple(
            sorted(
                other
                for length in range(len(term) - 1, len(term) + 2)
                for other in by_length.get(length, ())
                if _one_slip(term, other)
            )
        )
        for term in unknown
    }
    return {term: others for term, others in near.items() if others}


def _one_slip(one: str, other: str) -> bool:
    """Whether two words differ by one omitted, added or replaced letter, or by two swapped ones."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1 or one == other:
        return False
    if one[0] != other[0] and len(short) < _FIRST_LETTER_MAY_DIFFER:
        return False  # "look" is not a typo of "book"
    start = next(
        (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short)
    )
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    rest = start + 1
    return short[rest:] == long[rest:] or (
        short[start : start + 2] == long[start : start + 2][::-1]
        and short[start + 2 :] == long[start + 2 :]
    )


# -- snippets -------------------------------------------------------------------------------------

_SHOWN_LINES: Final = 3
_SHOWN_CHARACTERS: Final = 300


def matched(question: Question, text: str, also: Iterable[str] = ()) -> Matched:
    r"""Find the lines of a text that contain words of the question.

    Args:
        question: The question.
        text: The text of a hit.
        also: More terms to find.

    Returns:
        The best lines in their order. If no line matches: the first lines, without places.

    Example:
        >>> matched(Question.of("how do I export?"), 'acme.test\nopened billing,\nclicked "Export"')
        Matched(text='clicked "Export"', places=[(9, 15)])
    """
    wanted = {*question.lookups, *also}
    lines = text.split("\n")
    weights = [len(wanted.intersection(terms(line))) for line in lines]
    for row, line in enumerate(lines):
        weights[row] += sum(_holds(line.casefold(), one.casefold()) for one in question.exact)
    best = sorted(range(len(lines)), key=lambda row: (-weights[row], row))[:_SHOWN_LINES]
    if any(weights):
        best = [row for row in best if weights[row] * 2 >= max(weights)]
    shown = "\n".join(lines[row] for row in sorted(best)).rstrip(",")
    if len(shown) > _SHOWN_CHARACTERS:
        shown = _around(shown, wanted)
    return Matched(shown, _places(shown, wanted) if any(weights) else [])


def _around(text: str, wanted: set[str]) -> str:
    """The part of a long text that begins shortly before the first match."""
    places = _places(text, wanted)
    start = max(0, places[0][0] - _SHOWN_CHARACTERS // 4) if places else 0
    cut = text[start : start + _SHOWN_CHARACTERS]
    return f"{'…' if start else ''}{cut}{'…' if start + len(cut) < len(text) else ''}"


def _places(text: str, wanted: set[str]) -> list[tuple[int, int]]:
    found = []
    at = 0
    for word in words(text):
        at = text.find(word, at)
        if at < 0:  # the word is not literally in the text: `1,000` is the word 1000
            at = 0
            continue
        start = at
        for part in parts(word):
            begin = text.find(part, start, at + len(word))
            if begin >= 0 and not wanted.isdisjoint(terms(part)):
                found.append((begin, begin + len(part)))
        at += len(word)
    return found
