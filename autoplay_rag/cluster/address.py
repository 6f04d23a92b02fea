"""The address of a journal in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplay_rag.stores.postgres.dsn import parameters_of, place_of

__all__ = ["JournalAddress"]


@dataclass(frozen=True, slots=True)
class JournalAddress:
    """Names a journal in PostgreSQL.

    Attributes:
        dsn: The connection string. It may have a password, so it is not shown.
        schema: The schema with the tables.

    Raises:
        ConfigurationError: If the connection string cannot be parsed.
        MissingExtraError: If psycopg is not installed.

    Example:
        >>> str(JournalAddress("postgresql://ann:s3cret@db.test/app"))
        'schema autoplay of app on db.test'
    """

    dsn: str = field(repr=False)
    schema: str = "autoplay"

    def __post_init__(self) -> None:
        parameters_of(self.dsn)

    def __str__(self) -> str:
        return f"schema {self.schema} of {place_of(parameters_of(self.dsn))}"
