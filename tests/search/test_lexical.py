"""Full-text scores and snippets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.words import terms
from autoplay_rag.search.lexical import Question, corrections, matched, score

EXPORT = 'acme.test\non reports,\nclicked "Export",\ntyped "Q3 revenue" into "File name"'
BILLING = 'acme.test\nopened billing,\nselected "Annual" from "Plan"'
INVOICE = 'acme.test\non invoices,\nopened "INV-2024-0091",\nclicked "Download"'
OTHER = 'acme.test\non invoices,\nopened "INV-2024-00912",\nclicked "Download"'


def scores(question, *sessions):
    asked = Question.of(question)
    numbered = {lane: [text] for lane, text in enumerate(sessions)}
    counts = {
        term: sum(term in terms(text) for text in sessions)
        for text in (question, *sessions)
        for term in terms(text)
    }
    corrected = corrections(asked, numbered.values(), counts)
    found = score(asked, numbered, counts, len(sessions), corrected)
    return [found[lane].score for lane in range(len(sessions))]


def best(question, *sessions):
    found = scores(question, *sessions)
    assert found.count(max(found)) == 1, found
    return sessions[found.index(max(found))]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("how do I export reports", EXPORT),
        ("who switched to the annual plan?", BILLING),
        ("Q3 revenue", EXPORT),
        ("INV-2024-0091", INVOICE),
        ("inv-2024-00912", OTHER),
        ('where is "Download" of INV-2024-0091 used', INVOICE),
        ("anual billng", BILLING),  # one letter left out
        ("exprot the revneue", EXPORT),  # two letters swapped
    ],
)
def test_the_matching_session_is_first(question, answer):
    assert best(question, EXPORT, BILLING, INVOICE, OTHER) == answer


def test_a_typed_value_counts_more_than_a_label():
    typed = 'acme.test\ntyped "boston" into "Search"'
    label = 'acme.test\ntyped "paris" into "Boston office"'
    assert best("boston", typed, label) == typed


def test_a_repeated_line_counts_once():
    once = 'acme.test\nclicked "Export",\nopened billing'
    often = "acme.test\n" + 'clicked "Export",\n' * 50 + "opened billing"
    assert scores("export", once, often)[0] == pytest.approx(scores("export", once, often)[1])


def test_an_answer_to_half_of_the_question_scores_less():
    whole, half = scores("export revenue", EXPORT, 'acme.test\nclicked "Export"')
    assert whole > half > 0
    assert scores("zebra", EXPORT, BILLING) == [0, 0]


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_is_scored(question, texts):
    asked = Question.of(question)
    found = score(asked, {1: texts}, {}, 10, corrections(asked, [texts], {}))
    assert 0 <= found[1].score < 1000
    assert len(found[1].shares) == len(texts)
    assert all(0 <= share <= 1 for share in found[1].shares)
    for text in texts:
        shown = matched(asked, text)
        assert len(shown.text) <= 302
        assert all(0 <= start < end <= len(shown.text) for start, end in shown.places)


@given(st.text(min_size=1))
def test_places_are_words_of_the_question(text):
    shown = matched(Question.of(text), text)
    for start, end in shown.places:
        assert set(terms(shown.text[start:end])) <= set(terms(text))


def test_the_matched_line_is_shown():
    shown = matched(Question.of("export revenue"), EXPORT)
    assert shown.text == 'clicked "Export",\ntyped "Q3 revenue" into "File name"'
    assert [shown.text[a:b] for a, b in shown.places] == ["Export", "revenue"]
    assert matched(Question.of("zebra"), BILLING).places == []
    assert matched(Question.of("zebra"), BILLING).text.startswith("acme.test")
    long = "word " * 200 + "needle " + "word " * 200
    shown = matched(Question.of("needle"), long)
    assert [shown.text[a:b] for a, b in shown.places] == ["needle"]


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("invoice INV-0042?", ("INV-0042",)),
        ("mail ann@acme.test now", ("ann@acme.test",)),
        ('the "Save as draft" button', ("Save as draft",)),
        ("„Als Entwurf“ speichern", ("Als Entwurf",)),
        ("in 2023 or 2024", ()),
        ("order 100234", ("100234",)),
        ("a_b_c and snake_case", ("a_b_c", "snake_case")),
        ("plain words only", ()),
    ],
)
def test_codes_addresses_and_quotes_match_literally(text, exact):
    assert Question.of(text).exact == exact


def test_a_very_long_question_is_bounded():
    asked = Question.of("word" * 10_000 + " ".join(f"w{n}x" for n in range(10_000)))
    assert len(asked.lookups) <= 48
