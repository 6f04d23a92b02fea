"""Creates the tables of journal and store with a role that may, and lets another role use them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import psycopg

from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.cluster.schema import FORMAT, prepare, statements
from autoplay_rag.errors import ConfigurationError, JournalError
from autoplay_rag.stores.postgres.dsn import parameters_of, place_of
from autoplay_rag.stores.postgres.failures import reason_of
from autoplay_rag.stores.postgres.store import PgVectorStore
from autoplay_rag.stores.postgres.tables import collection_statements, quoted, schema_statements

__all__ = ["MigrationReport", "migrate", "migration_statements"]

_FIRST: Final = 1
"""The number of the first collection of a schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport:
    """What a migration has left.

    Attributes:
        schema: The name of the schema.
        place: Server and database, without a secret.
        format: The form of the journal's tables.
        indexed: Whether the store has a vector index. It is built once there are 10,000 chunks.
        granted: The role that may use the tables now; None if none was named.
    """

    schema: str
    place: str
    format: int
    indexed: bool
    granted: str | None

    def __str__(self) -> str:
        index = "with a vector index" if self.indexed else "without a vector index"
        granted = f", usable by the role {self.granted}" if self.granted else ""
        return (
            f"the schema {self.schema} of {self.place} has all tables (format {self.format}), "
            f"{index}{granted}"
        )


def migration_statements(
    schema: str = "autoplay", *, table: str = "chunks", grant: str | None = None
) -> list[str]:
    """Return the statements that create everything in a database without the schema.

    Args:
        schema: The name of the schema.
        table: The name of the store's collection.
        grant: A role that may use the tables afterwards.

    Example:
        >>> migration_statements()[:3]
        ['BEGIN', 'CREATE EXTENSION IF NOT EXISTS vector', 'CREATE SCHEMA "autoplay"']
    """
    name, literal = quoted(schema), table.replace("'", "''")
    return [
        "BEGIN",
        "CREATE EXTENSION IF NOT EXISTS vector",
        f"CREATE SCHEMA {name}",
        # pgvector is in `public` unless the administrator has put it elsewhere.
        f"SET LOCAL search_path TO {name}, public",
        *statements(os.urandom(16).hex()),
        *schema_statements(schema),
        f"INSERT INTO store_collection (name) VALUES ('{literal}')",
        *collection_statements(schema, _FIRST, "halfvec"),
        *(_grants(schema, grant) if grant else ()),
        "COMMIT",
    ]


async def migrate(
    dsn: str, *, schema: str = "autoplay", table: str = "chunks", grant: str | None = None
) -> MigrationReport:
    """Create what is missing of journal and store, and the vector index if it is due.

    It may be repeated. With `grant`, another role may then run the pipeline without the right to
    create anything. Such a role cannot embed everything again with another model, which makes
    tables, nor build the vector index, which only the owner of a table can: run this again once a
    backfill is in.

    Args:
        dsn: See `PgVectorStore`. Its role needs the right to create.
        schema: The name of the schema.
        table: The name of the store's collection.
        grant: A role that may use the tables afterwards.

    Raises:
        ConfigurationError: If the role may not create what is missing, if there is no role
            `grant`, or if the server has no pgvector or one that is too old.
        JournalVersionError: If a newer version of this package made the tables.
        JournalError: If the server cannot be reached.
        StoreError: If the store cannot be used.
    """
    parameters = parameters_of(dsn)
    store = PgVectorStore(dsn, schema=schema, table=table)
    try:
        connection = PostgresConnection(parameters, schema)
        try:
            prepare(connection, schema, os.urandom(16).hex())
            indexed = await store.migrate()
            if grant:
                for statement in _grants(schema, grant):
                    connection.run_all(statement)
        except psycopg.errors.UndefinedObject as error:
            raise ConfigurationError(f"nothing was granted: {reason_of(error)}") from None
        except psycopg.Error as error:
            raise JournalError(
                f"the schema {schema!r} of {place_of(parameters)} was not migrated: "
                f"{reason_of(error)}"
            ) from None
        finally:
            connection.close()
    finally:
        await store.aclose()
    return MigrationReport(
        schema=schema, place=place_of(parameters), format=FORMAT, indexed=indexed, granted=grant
    )


def _grants(schema: str, role: str) -> list[str]:
    """Return the statements that let a role use the tables of a schema, and create none."""
    name, to = quoted(schema), quoted(role)
    maintain = f"GRANT MAINTAIN ON ALL TABLES IN SCHEMA {name} TO {to}".replace("'", "''")
    return [
        f"GRANT USAGE ON SCHEMA {name} TO {to}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {to}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {name} TO {to}",
        # To vacuum after forgetting. Before PostgreSQL 17, only the owner can.
        (
            "DO $do$ BEGIN IF current_setting('server_version_num')::int >= 170000 THEN "
            f"EXECUTE '{maintain}'; END IF; END $do$"
        ),
    ]
