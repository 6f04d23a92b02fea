"""The terms of texts and questions."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.words import index_text, lookups, parts, terms, words

TOKENIZER = "porter unicode61 remove_diacritics 2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("exported reports", "export the report"),
        ("exportCsv", "export CSV"),
        ("Q3", "q 3"),
        ("1,000 rows", "1000 rows"),
        ("room 007", "room 7"),
        ("three adults", "3 adults"),
        ("Mar 12", "March twelve"),
        ("José", "jose"),
        ("\uff26\uff35\uff2c\uff2c", "full"),
        ("straße", "STRASSE"),
        ("snake_case", "snake case"),
        ("設定画面", "設定 画面 定画"),
    ],
)
def test_equivalent_texts_have_equal_terms(one, other):
    assert sorted(terms(one)) == sorted(terms(other))


@pytest.mark.parametrize(
    ("one", "other"), [("invoice 12", "invoice 21"), ("ten", "tan"), ("сохранить", "отменить")]
)
def test_different_texts_have_different_terms(one, other):
    assert sorted(terms(one)) != sorted(terms(other))


@pytest.mark.parametrize("text", ["", " ", "\0", "!?", "the of", "\ud800", "🙂", "\u0301"])
def test_a_text_without_words_is_not_an_error(text):
    assert [term for term in terms(text) if not term.strip()] == []
    assert index_text(text).split() == text.split()


@given(st.text())
def test_every_term_has_a_word_to_look_up(text):
    found = lookups(text)
    assert set(found) == set(terms(text))
    assert all(raw and all(raw) for raw in found.values())


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), min_size=1))
def test_the_parts_of_a_word_have_all_its_characters(text):
    for word in words(text):
        assert "".join(dict.fromkeys(word)) == "".join(dict.fromkeys("".join(parts(word))))


CASES = [
    ('clicked "Export CSV"', "csv exports"),
    ("exportCsvButton", "export csv"),
    ("typed Q3 into Name", "Q3"),
    ("opened INV-2024-0091", "inv-2024-0091"),
    ("メールをエクスポートする", "エクスポート"),
    ("设置页面", "设置"),
    ("ไทยแลนด์", "ไทย"),
    ("Crème brûlée", "creme brulee"),
    ("booked three nights", "3 nights"),
    ("7 Aug", "august 7"),
]


@pytest.mark.parametrize(("text", "question"), CASES)
def test_the_index_finds_every_common_term(text, question):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE VIRTUAL TABLE words USING fts5(t, tokenize='{TOKENIZER}')")
        connection.execute("INSERT INTO words VALUES (?)", (index_text(text),))
        for term, raw in lookups(question).items():
            assert term in terms(text)
            match = " OR ".join(f'"{word}"' for word in raw)
            found = connection.execute("SELECT count(*) FROM words WHERE words MATCH ?", (match,))
            assert found.fetchone() == (1,), term
