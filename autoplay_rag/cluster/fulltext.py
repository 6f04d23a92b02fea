"""Writes the full-text index in PostgreSQL: a column of `passage` with a GIN index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.cluster.schema import WORDS
from autoplay_rag.content.words import plain_text
from autoplay_rag.journal.base import IndexEntry
from autoplay_rag.journal.fulltext import FullTextTables

__all__ = ["PostgresFullText", "query_of", "tsquery"]

_MOST_CHARACTERS: Final = 250_000
"""PostgreSQL refuses a text with more than 1 MB of different words."""
_COLUMNS: Final = ("bigint", "bigint", *["double precision"] * 2, "integer", "text", "text")


class PostgresFullText(FullTextTables):
    """The full-text index. Its operations are those of `FullTextTables`."""

    _older_count = ""
    _connection: PostgresConnection

    def add_texts(self, entries: Sequence[IndexEntry]) -> None:
        """As in `FullTextTables`."""
        self._connection.run_with_rows(
            "INSERT INTO passage (seq, lane, started, ended, actions, text, words) SELECT "
            f"seq, lane, started, ended, actions, text, to_tsvector('{WORDS}', words) "
            "FROM {} AS given (seq, lane, started, ended, actions, text, words)",
            _COLUMNS,
            [
                (
                    one.seq,
                    one.lane,
                    one.passage.started or None,
                    one.passage.ended or None,
                    one.passage.actions,
                    one.passage.text,
                    plain_text(one.passage.indexed)[:_MOST_CHARACTERS],
                )
                for one in entries
            ],
        )

    def _remove_texts(self, texts: Sequence[tuple[int, str]]) -> None:
        """The words are in the row of the passage."""

    def merge(self, first: bool) -> bool:  # noqa: ARG002 - as in `FullTextTables`
        """Do nothing: autovacuum removes the words of deleted rows."""
        return False

    def is_stale(self) -> bool:
        """Return False: there is nothing to merge."""
        return False


def query_of(words: Iterable[str]) -> str:
    """Return a query for any of some words or phrases, for `tsquery`.

    Example:
        >>> query_of(["Invoice #42", "or"])
        '"invoice 42" OR "or"'
    """
    return " OR ".join(f'"{plain}"' for word in words if (plain := plain_text(word)))


def tsquery(parameter: str = "?") -> str:
    """The SQL for a query of `query_of`. Words in quotes that stand together are a phrase."""
    return f"websearch_to_tsquery('{WORDS}', {parameter})"
