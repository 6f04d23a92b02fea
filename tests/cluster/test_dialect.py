"""Statements for SQLite as statements for PostgreSQL."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from psycopg import ClientCursor

from autoplay_rag.cluster.dialect import translated


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "SELECT 1 FROM a WHERE b = ? AND c = :name",
            "SELECT 1 FROM a WHERE b = %s AND c = %(name)s",
        ),
        ("a LIKE '50%'", "a LIKE '50%%'"),
        ("lane IN (SELECT value FROM json_each(?))", "lane = ANY(%s)"),
        ("lane NOT IN (SELECT value FROM json_each(:lanes))", "lane <> ALL(%(lanes)s)"),
        (
            "SELECT CAST(value AS INTEGER) FROM json_each(:seqs)",
            "SELECT unnest(%(seqs)s::bigint[])",
        ),
        ("INSERT OR IGNORE INTO a SELECT 1", "INSERT INTO a SELECT 1 ON CONFLICT DO NOTHING"),
        ("max(a.b, excluded.b), max(a)", "greatest(a.b, excluded.b), max(a)"),
        ("coalesce(min(a.b, c), d)", "coalesce(least(a.b, c), d)"),
        ("a.b IS 3 AND c IS 'x'", "a.b IS NOT DISTINCT FROM 3 AND c IS NOT DISTINCT FROM 'x'"),
        ("a IS NOT 0 AND b IS NOT NULL", "a IS DISTINCT FROM 0 AND b IS NOT NULL"),
        ("chunk.metadata ->> '$.urls'", "(chunk.metadata::json ->> 'urls')"),
        (
            "a CROSS JOIN b AS c ON c.d = a.d CROSS JOIN e WHERE 1 = 1",
            "a JOIN b AS c ON c.d = a.d CROSS JOIN e WHERE 1 = 1",
        ),
        ("FROM visit INDEXED BY visit_last WHERE +visit.a = 1", "FROM visit WHERE visit.a = 1"),
        ("FROM payload NOT INDEXED WHERE a", "FROM payload WHERE a"),
        ("LIMIT ?", "LIMIT nullif(%s, -1)"),
        ("SET user = excluded.user", 'SET "user" = excluded."user"'),
        ("field = 'user_id' AND a.user_id", "field = 'user_id' AND a.user_id"),
    ],
)
def test_a_statement_is_translated(sql, expected):
    assert translated(sql) == expected


def test_both_databases_return_the_same(postgres):
    """The translations mean the same, not only look right."""
    rows = [(1, 5, None, '{"email": "a@b.test"}'), (2, None, "x", "{}"), (3, 7, "y", None)]
    queries = [
        (
            "SELECT number FROM one WHERE number IN (SELECT value FROM json_each(?)) ORDER BY 1",
            "ids",
        ),
        ("SELECT number FROM one WHERE text IS 'x' ORDER BY number", None),
        ("SELECT number FROM one WHERE text IS NOT 'x' ORDER BY number", None),
        ("SELECT coalesce(min(number, other), number) FROM one ORDER BY number", None),
        ("SELECT max(number, coalesce(other, 0)) FROM one ORDER BY number", None),
        ("SELECT metadata ->> '$.email' FROM one ORDER BY number", None),
        ("SELECT number FROM one ORDER BY other DESC NULLS LAST, number LIMIT ?", -1),
        ("SELECT number FROM one ORDER BY number LIMIT ?", 2),
    ]
    with (
        sqlite3.connect(":memory:") as lite,
        psycopg.connect(postgres.dsn, cursor_factory=ClientCursor) as server,
    ):
        make = (
            "CREATE TEMPORARY TABLE one (number INTEGER, other INTEGER, text TEXT, metadata TEXT)"
        )
        for database in (lite, server):
            database.execute(make)
        for row in rows:
            lite.execute("INSERT INTO one VALUES (?, ?, ?, ?)", row)
            server.execute(translated("INSERT INTO one VALUES (?, ?, ?, ?)").encode(), row)
        for sql, given in queries:
            ours = {"ids": ("[1, 3, 9]",), None: ()}.get(given, (given,))
            theirs = {"ids": ([1, 3, 9],), None: ()}.get(given, (given,))
            found = server.execute(translated(sql).encode(), theirs).fetchall()
            assert found == lite.execute(sql, ours).fetchall(), sql
        server.rollback()
    lite.close()
