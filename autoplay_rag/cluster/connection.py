"""One connection to the journal's database: runs statements for SQLite, writes many rows at once.

All functions block. A connection belongs to one thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg import ClientCursor, pq
from psycopg.conninfo import make_conninfo

from autoplay_rag.cluster.dialect import translated
from autoplay_rag.journal.rows import Database, JsonList
from autoplay_rag.stores.postgres.dsn import CONNECTION_DEFAULTS
from autoplay_rag.stores.postgres.tables import quoted

__all__ = ["PostgresConnection", "Server"]

Server: TypeAlias = psycopg.Connection[tuple[Any, ...]]

_INTO: Final = re.compile(r"(\w+) \((.+)\)")
_COLUMNS: Final = (
    "SELECT c.relname, a.attname, format_type(a.atttypid, NULL), "
    "a.attnum = ANY(i.indkey::smallint[]) FROM pg_class c "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary "
    "WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace(%s) ORDER BY c.relname, a.attnum"
)


class _Table(NamedTuple):
    types: dict[str, str]
    key: tuple[str, ...]


class PostgresConnection(Database):
    """Runs the statements of the journal's tables on PostgreSQL.

    Values are written into the statement, so nothing has to be prepared, and the server plans each
    statement for its values. That also works behind a pooler in transaction mode.

    Args:
        parameters: The parameters of a connection, by libpq's names.
        schema: The name of the schema.
    """

    def __init__(self, parameters: Mapping[str, str], schema: str) -> None:
        self._conninfo = make_conninfo("", **{**CONNECTION_DEFAULTS, **parameters})
        self._schema = schema
        self._server: Server | None = None
        self._tables: dict[str, _Table] = {}

    def __repr__(self) -> str:
        return f"<PostgresConnection: schema {self._schema!r}>"

    # -- the connection -----------------------------------------------------------------------

    @property
    def server(self) -> Server:
        """The connection of psycopg. It is opened if it is not open."""
        if self._server is None or self._server.closed:
            self._server = psycopg.connect(
                self._conninfo,
                autocommit=True,
                prepare_threshold=None,
                cursor_factory=ClientCursor,
            )
        return self._server

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that works as far as is known."""
        return self._server is not None and not self._server.closed

    @property
    def in_transaction(self) -> bool:
        """As in `Database`."""
        if self._server is None:
            return False
        return self._server.info.transaction_status != pq.TransactionStatus.IDLE

    def close(self) -> None:
        """Close the connection. The next statement opens another one."""
        if self._server is not None:
            self._server.close()

    def begin(self, *more: str, options: str = "") -> list[list[tuple[Any, ...]]]:
        """Begin a transaction in which the schema's tables have no prefix.

        Args:
            more: Statements for PostgreSQL that are sent along.
            options: Options of BEGIN.

        Returns:
            The rows of each of `more`.
        """
        path = f"SET LOCAL search_path TO {quoted(self._schema)}"
        # Compiling a statement takes longer than running it: each has its own values.
        return self.run_all(f"BEGIN {options}", path, "SET LOCAL jit = off", *more)[3:]

    def run_all(self, *statements: str) -> list[list[tuple[Any, ...]]]:
        """Run statements for PostgreSQL at once, and return the rows of each."""
        cursor = self.server.execute("; ".join(statements).encode())
        found = []
        while True:
            found.append(cursor.fetchall() if cursor.description else [])
            if not cursor.nextset():
                return found

    def commit(self) -> None:
        """Commit the transaction."""
        self.server.execute("COMMIT")

    def rollback(self) -> None:
        """Roll the transaction back; a connection that does not work any more is closed."""
        if self._server is None or self._server.closed:
            return
        try:
            self._server.execute("ROLLBACK")
        except psycopg.Error:
            self._server.close()

    def load_columns(self) -> None:
        """Read the types of all columns."""
        self._tables.clear()
        for table, column, kind, in_key in self.server.execute(_COLUMNS, [quoted(self._schema)]):
            known = self._tables.setdefault(table, _Table({}, ()))
            known.types[column] = kind
            if in_key:
                self._tables[table] = known._replace(key=(*known.key, column))

    # -- statements ---------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Any = (), /) -> ClientCursor[tuple[Any, ...]]:
        """As in `Database`."""
        given: Any
        if isinstance(parameters, Mapping):
            given = {name: _value(value) for name, value in parameters.items()}
        else:
            given = [_value(value) for value in parameters]
        cursor = self.server.execute(translated(sql).encode(), given)
        assert isinstance(cursor, ClientCursor)
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> ClientCursor[tuple[Any, ...]]:
        """As in `Database`."""
        cursor = ClientCursor(self.server)
        for given in parameters:
            cursor.execute(translated(sql).encode(), [_value(value) for value in given])
        return cursor

    def read_all(self, columns: str, rest: str, parameters: Sequence[Any]) -> list[Any]:
        """As in `Database`."""
        return self.execute(f"SELECT {columns} {rest}", parameters).fetchall()

    def insert(self, into: str, rows: Sequence[Sequence[Any]], verb: str, after: str) -> int:
        """As in `Database`."""
        found = _INTO.fullmatch(into)
        assert found is not None, into
        name, columns = found[1], tuple(found[2].split(", "))
        table = self._tables[name]
        if verb == "INSERT OR IGNORE":
            after = "ON CONFLICT DO NOTHING"
        elif verb == "INSERT OR REPLACE":
            after = _replacing(table.key, columns)
        count = 0
        for some in _rounds(rows, table.key, columns) if "DO UPDATE" in after else [rows]:
            count += self._insert(name, table, columns, some, after)
        return count

    def _insert(
        self,
        name: str,
        table: _Table,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        after: str,
    ) -> int:
        into = ", ".join(f'"{column}"' for column in columns)
        kinds = ["json" if c == "metadata" else table.types[c] for c in columns]
        sql = f"INSERT INTO {name} ({into}) SELECT * FROM {{}} {translated(after)}"
        return self.run_with_rows(sql, kinds, rows)

    def run_with_rows(self, sql: str, kinds: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
        """Run a statement for PostgreSQL that reads rows, and return how many it changed.

        Args:
            sql: The statement, with `{}` for the rows.
            kinds: The types of the columns. "json" is a text that is JSON.
            rows: One value for each column.
        """
        if not rows:
            return 0
        arrays, values = [], []
        for kind, cells in zip(kinds, zip(*rows, strict=True), strict=True):
            convert = _CONVERSIONS[kind]
            listed = [None if cell is None else convert(cell) for cell in cells]
            # A list without a value has no type that could be sent in binary form.
            form = "%b" if any(cell is not None for cell in listed) else "%s"
            arrays.append(f"{form}::{'text' if kind == 'json' else kind}[]")
            values.append(listed)
        cursor = psycopg.Cursor(self.server)
        cursor.execute(sql.format(f"unnest({', '.join(arrays)})").encode(), values)
        return cursor.rowcount


def _value(value: Any) -> Any:
    """A value of a parameter, in a form that psycopg knows."""
    if isinstance(value, JsonList):
        return value.values
    if isinstance(value, IntEnum):
        return int(value)
    return _text(value) if isinstance(value, str) else value


def _text(value: object) -> str:
    """A text without NUL, which PostgreSQL cannot keep."""
    return str(value).replace("\0", "\ufffd")


def _json(value: object) -> str:
    """JSON without NUL, which PostgreSQL's functions for JSON refuse."""
    return _text(value).replace("\\u0000", "\\ufffd")


_CONVERSIONS: Final[Mapping[str, Any]] = {
    "bigint": int,
    "bytea": bytes,
    "double precision": float,
    "integer": int,
    "json": _json,
    "smallint": int,
    "text": _text,
}


def _replacing(key: Sequence[str], columns: Sequence[str]) -> str:
    others = [column for column in columns if column not in key]
    if not others:
        return "ON CONFLICT DO NOTHING"
    changes = ", ".join(f'"{column}" = excluded."{column}"' for column in others)
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"


def _rounds(
    rows: Sequence[Sequence[Any]], key: Sequence[str], columns: Sequence[str]
) -> Iterator[Sequence[Sequence[Any]]]:
    """Divide rows so that no statement changes a row twice, which PostgreSQL refuses.

    Each round is in the order of the keys: processes that change the same rows in different orders
    would block each other.
    """
    places = [columns.index(column) for column in key if column in columns]
    left: Sequence[Sequence[Any]] = rows
    while left:
        some: dict[tuple[Any, ...], Sequence[Any]] = {}
        again = []
        for row in left:
            own = tuple(row[place] for place in places)
            if own in some:
                again.append(row)
            else:
                some[own] = row
        yield [some[own] for own in sorted(some)]
        left = again
