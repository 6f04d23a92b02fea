"""How well the words of a session answer a question. Pure.

A score is by session, over its different lines: what was typed or selected counts twice as much
as an action, names of fields, pages and sites less. `benchmarks/retrieval.py` measures it.

The score is a cosine of weighted words: for each word of the question that the session has,
`ln(1 + weight) * idf^2`, divided by the session's length and the question's. Words that are in no
passage stay in the question's length, so an answer to half of a question scores half.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from autoplay_rag.content.words import lookups, parts, terms, words

__all__ = ["Matched", "Question", "Scored", "corrections", "matched", "score"]

_SITE, _PAGE, _VALUE, _LABEL, _ACTION = 0.3, 0.5, 2.0, 0.3, 1.0
_VALUE_LINE: Final = re.compile(r'(typed|selected) ("[^"]*")(.*)', re.DOTALL)
_EXACT_BONUS: Final = 0.5
"""For a session that has all codes, addresses and quoted phrases of the question as they stand."""
_CORRECTED: Final = 0.8
"""The weight of a word that is one slip away from the question's."""
_LEAST_CORRECTED: Final = 4
_FIRST_LETTER_MAY_DIFFER: Final = 6
"""Letters of a word."""
_MOST_CHARACTERS: Final = 2000
_MOST_TERMS: Final = 48
_CODE: Final = re.compile(r"[^\s\"'()<>\[\]{},;!?]{4,}")
_JOINED: Final = re.compile(r"[^\W_][-_.@/:#+]+[^\W_]")
_QUOTE: Final = re.compile(
    r'["\u201c\u201e\u00ab]([^"\u201c\u201d\u00ab\u00bb]{3,})["\u201c\u201d\u00bb]'
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, taken apart.

    Attributes:
        text: As it was asked, without what no index can hold.
        lookups: Its different terms, each with the words to look up.
        exact: Codes, addresses and quoted phrases: what counts as it stands.
    """

    text: str
    lookups: Mapping[str, tuple[str, ...]]
    exact: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Question:
        """Take a question apart; the first 2,000 characters of it count.

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
    """How well a session's words answer a question.

    Attributes:
        score: 0 where it shares no word with it; 1 and more where it has all.
        shares: For each of its passages, what part of the best passage's weight it has.
    """

    score: float
    shares: list[float]


@dataclass(frozen=True, slots=True)
class Matched:
    """The lines of a hit that answer the question.

    Attributes:
        text: The lines.
        places: Start and end of each word of the question in `text`.
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
        question: What was asked.
        sessions: The texts of each session's passages.
        counts: In how many passages each term of the question is, and each corrected one.
        total: How many passages there are.
        corrected: Terms of the sessions to count for a term of the question that is nowhere.
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
    weights: dict[str, float] = {}
    seen: set[str] = set()
    shares = []
    for text in texts:
        own = 0.0
        for line in text.split("\n"):
            weighed = _weighed(line)
            if line not in seen:
                seen.add(line)
                for term, weight in weighed:
                    weights[term] = weights.get(term, 0.0) + weight
            for term, weight in weighed:
                if term in wanted:
                    own += weight * idf[term] ** 2
        shares.append(own)
    if not any(shares):  # a site or a field may weigh little, but never nothing
        return Scored(0.0, shares)
    found: dict[str, float] = {}
    for term in wanted.keys() & weights.keys():
        asked, worth = wanted[term]
        value = worth * math.log1p(weights[term]) * idf[term] * idf[asked]
        found[asked] = max(found.get(asked, 0.0), value)
    norm = math.sqrt(sum(math.log1p(weight) ** 2 for weight in weights.values()))
    total = sum(found.values()) / (norm * length) if norm and length else 0.0
    if question.exact:
        total += _EXACT_BONUS * _exact_share(question, texts, shares, idf)
    best = max(shares, default=0.0)
    return Scored(total, [share / best if best else 0.0 for share in shares])


def _exact_share(
    question: Question, texts: Sequence[str], shares: list[float], idf: Mapping[str, float]
) -> float:
    """How much of the question the exact strings are that the session has.

    Passages that have one count as the best. A rare code counts for more than a year.
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
    """Whether a text has a string that no longer word goes on from: `INV-1` is not in `INV-12`."""
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
    """Whether a string is a code, an id, an address or a number rather than a word."""
    if _JOINED.search(text):
        return True
    digits = sum(char.isdigit() for char in text)
    return digits > 0 and (digits < len(text) or digits >= 5)  # noqa: PLR2004 - see `_CODE`


@lru_cache(maxsize=50_000)
def _weighed(line: str) -> tuple[tuple[str, float], ...]:
    """The terms of one line of `content.render`, each with what it counts for."""
    line = line.rstrip(",")
    if " " not in line and "." in line:
        return tuple((term, _SITE) for term in terms(line))
    if line.startswith("on ") and '"' not in line:
        return tuple((term, _PAGE) for term in terms(line[3:]))
    if found := _VALUE_LINE.fullmatch(line):
        verb, value, label = found.groups()
        return (
            *((term, _ACTION) for term in terms(verb)),
            *((term, _VALUE) for term in terms(value)),
            *((term, _LABEL) for term in terms(label)),
        )
    return tuple((term, _ACTION) for term in terms(line))


# -- slips of the pen -----------------------------------------------------------------------------


def corrections(
    question: Question, sessions: Iterable[Sequence[str]], counts: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """For words of the question that are nowhere: words of these sessions that are one slip away.

    Returns:
        By the question's term the sessions' terms, only where there are any.
    """
    unknown = [
        term
        for term in question.lookups
        if not counts.get(term) and len(term) >= _LEAST_CORRECTED and term.isalpha()
    ]
    if not unknown:
        return {}
    known = {
        term
        for texts in sessions
        for text in texts
        for line in text.split("\n")
        for term, _ in _weighed(line)
        if len(term) >= _LEAST_CORRECTED - 1
    }
    found = {term: tuple(sorted(t for t in known if _one_slip(term, t))) for term in unknown}
    return {term: others for term, others in found.items() if others}


def _one_slip(one: str, other: str) -> bool:
    """Whether one letter was left out, added, exchanged, or changed places with the next."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1 or one == other:
        return False
    if one[0] != other[0] and len(short) < _FIRST_LETTER_MAY_DIFFER:
        return False  # "look" is not a slip for "book"
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


# -- what to show ---------------------------------------------------------------------------------

_SHOWN_LINES: Final = 3
_SHOWN_CHARACTERS: Final = 300


def matched(question: Question, text: str, also: Iterable[str] = ()) -> Matched:
    r"""The lines of a text that have the question's words, and where.

    Args:
        question: What was asked.
        text: The text of a hit.
        also: Terms that count as the question's.

    Returns:
        The best lines in their order; the first ones without places if no line has a word of it.

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
    """The part of a long text that begins shortly before the first word asked for."""
    places = _places(text, wanted)
    start = max(0, places[0][0] - _SHOWN_CHARACTERS // 4) if places else 0
    cut = text[start : start + _SHOWN_CHARACTERS]
    return f"{'…' if start else ''}{cut}{'…' if start + len(cut) < len(text) else ''}"


def _places(text: str, wanted: set[str]) -> list[tuple[int, int]]:
    found = []
    at = 0
    for word in words(text):
        at = text.find(word, at)
        if at < 0:  # `1,000` is the word 1000
            at = 0
            continue
        start = at
        for part in parts(word):
            begin = text.find(part, start, at + len(word))
            if begin >= 0 and not wanted.isdisjoint(terms(part)):
                found.append((begin, begin + len(part)))
        at += len(word)
    return found
