"""Many rows in one statement: writing and reading."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.journal.rows import (
    delete_in,
    exact_real,
    exact_text,
    insert,
    json_list,
    lossy_text,
    read_all,
)


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE one (number INTEGER PRIMARY KEY, text TEXT, data BLOB)")
        yield connection


def rows_of(connection):
    return connection.execute("SELECT * FROM one ORDER BY number").fetchall()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 127, 128, 129, 300])
def test_any_number_of_rows_is_inserted_in_order(connection, count):
    rows = [(i, f"text\0 {i}", bytes([i % 256])) for i in range(count)]
    assert insert(connection, "one (number, text, data)", rows) == count
    assert rows_of(connection) == rows


def test_rows_that_are_there_can_be_left_or_replaced(connection):
    insert(connection, "one (number, text)", [(i, "old") for i in range(0, 200, 2)])
    rows = [(i, "new") for i in range(200)]
    into = "one (number, text)"
    assert insert(connection, into, rows, after="ON CONFLICT (number) DO NOTHING") == 100
    assert [text for _, text, _ in rows_of(connection)] == ["old", "new"] * 100
    assert insert(connection, into, rows, verb="INSERT OR REPLACE") == 200
    assert {text for _, text, _ in rows_of(connection)} == {"new"}
    with pytest.raises(sqlite3.IntegrityError):
        insert(connection, into, rows)


def test_rows_are_deleted_by_a_column(connection):
    insert(connection, "one (number, text)", [(i, f"t{i}") for i in range(10)])
    assert delete_in(connection, "one", "number", []) == 0
    assert delete_in(connection, "one", "number", [1, 2, 99]) == 2
    assert delete_in(connection, "one", "text", ["t3", "no"]) == 1
    assert [number for number, _, _ in rows_of(connection)] == [0, 4, 5, 6, 7, 8, 9]


def test_rows_are_read_in_one_step(connection):
    insert(
        connection,
        "one (number, text, data)",
        [(2**60, 'a "quoted" \u2603', b"\0\xff"), (2, None, None)],
    )
    found = read_all(
        connection,
        "number, text, hex(data)",
        "FROM one WHERE number IN (SELECT value FROM json_each(?))",
        json_list([2**60, 2, 3]),
    )
    assert sorted(found) == [[2, None, ""], [2**60, 'a "quoted" \u2603', "00FF"]]
    assert read_all(connection, "number", "FROM one WHERE number = ?", 5) == []


TIMES = st.floats(-1e18, 1e18).filter(lambda number: not 0 < abs(number) < 1e-9)


@given(TIMES | st.none(), st.text(st.characters(codec="utf-8")) | st.none())
def test_times_and_texts_can_be_read_exactly(number, text):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE one (number REAL, text TEXT)")
        connection.execute("INSERT INTO one VALUES (?, ?)", (number, text))
        columns = f"{exact_real('number')}, {exact_text('text')}"
        ((found, digits),) = read_all(connection, columns, "FROM one")
    assert (found if found is None else float(found)) == number
    assert bytes.fromhex(digits).decode() == (text or "")


def test_text_that_is_damaged_is_read_all_the_same(connection):
    connection.text_factory = lossy_text
    connection.execute("INSERT INTO one VALUES (1, CAST(x'61FF62' AS TEXT), NULL)")
    assert rows_of(connection) == [(1, "a\ufffdb", None)]
