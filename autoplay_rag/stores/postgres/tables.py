"""What is in the schema, and which tables a collection has.

| table | content |
|---|---|
| `store_collection` | the name of each collection, the number in the names of its tables, its model |
| `store_identity` | by number: the identity that a journal saved |
| `store_chunk_N` | id, text, metadata; a column with an index for each key that filters compare |
| `store_vector_N` | id and vector, and the vector index once it is built |

Vectors have a table of their own, so that a change of metadata does not touch the vector index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import errors

from autoplay_rag.errors import ConfigurationError, StoreMismatchError
from autoplay_rag.stores.postgres.conditions import NAME_COLUMNS, NAME_LENGTH, TIME_COLUMNS
from autoplay_rag.stores.postgres.link import Connection

__all__ = [
    "Collection",
    "Tables",
    "Vectors",
    "collection_statements",
    "quoted",
    "schema_statements",
]

_FORMAT = 1
"""The form of the tables. A newer form is refused."""
_OLDEST_PGVECTOR = (0, 8)
"""The first version that goes on with a search until enough rows pass the filter."""
_REMEDY = (
    "start once with IngestPipeline(rebuild=True) (command: --rebuild) to embed everything again "
    "with the new model, or use the old model, or another table"
)


@dataclass(frozen=True, slots=True)
class Collection:
    """What is known of a collection in one transaction.

    Attributes:
        number: The number in the names of its tables.
        model: The model of its vectors; None if none was named yet.
        dimension: The dimension of its vectors; None before the first.
        indexed: Whether the vector index is complete.
        rows: The number of chunks by the statistics of the server, which may be old.
    """

    number: int
    model: str | None
    dimension: int | None
    indexed: bool
    rows: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """Where pgvector is in this database.

    Attributes:
        schema: The quoted name of its schema, which need not be in the search path.
        oid: The number of its type `halfvec`.
    """

    schema: str
    oid: int

    @property
    def type(self) -> str:
        """The type of the vectors."""
        return f"{self.schema}.halfvec"

    @property
    def distance(self) -> str:
        """The operator for the negative inner product."""
        return f"OPERATOR({self.schema}.<#>)"


class Tables:
    """Creates and finds the tables of one collection.

    Args:
        schema: The name of the schema.
        name: The name of the collection.
        timeout: Seconds after which the server ends a statement.
    """

    def __init__(self, schema: str, name: str, timeout: float) -> None:
        self.name = name
        self._settings = {"statement_timeout": str(max(1, round(timeout * 1000)))}
        self._schema_name = schema
        self._schema = quoted(schema)

    def chunks(self, number: int) -> str:
        """The quoted name of the table of chunks."""
        return f"{self._schema}.store_chunk_{number}"

    def vectors(self, number: int) -> str:
        """The quoted name of the table of vectors."""
        return f"{self._schema}.store_vector_{number}"

    def index(self, number: int) -> str:
        """The quoted name of the vector index, with its schema."""
        return f"{self._schema}.{self.index_name(number)}"

    def index_name(self, number: int) -> str:
        """The name of the vector index."""
        return f"store_vector_{number}_hnsw"

    # -- the schema -----------------------------------------------------------------------------

    async def prepare(self, connection: Connection) -> Vectors:
        """Create what is missing, and find pgvector.

        Raises:
            ConfigurationError: If the role may not create what is missing, or the server has no
                pgvector or one that is too old.
        """
        found = await self._pgvector(connection)
        if found is None or not await self._exists(connection):
            try:
                await self._create(connection)
            except errors.InsufficientPrivilege as error:
                raise ConfigurationError(self._what_to_run(error, connection.info.user)) from None
            except errors.FeatureNotSupported:
                raise ConfigurationError(
                    "this PostgreSQL server has no pgvector: install it (package "
                    "postgresql-NN-pgvector, or an image such as pgvector/pgvector), or use a "
                    "server that has it"
                ) from None
            found = await self._pgvector(connection)
            assert found is not None
        return found

    async def _pgvector(self, connection: Connection) -> Vectors | None:
        cursor = await connection.execute(
            "SELECT e.extversion, quote_ident(n.nspname), t.oid::bigint FROM pg_extension e "
            "JOIN pg_namespace n ON n.oid = e.extnamespace "
            "LEFT JOIN pg_type t ON t.typnamespace = n.oid AND t.typname = 'halfvec' "
            "WHERE e.extname = 'vector'"
        )
        row = await cursor.fetchone()
        if row is None:
            return None
        version, schema, oid = row
        parts = str(version).split(".")
        if (int(parts[0]), int(parts[1])) < _OLDEST_PGVECTOR:
            raise ConfigurationError(
                f"this database has pgvector {version}, and 0.8 or later is needed: install a newer "
                "one on the server and run ALTER EXTENSION vector UPDATE"
            )
        return Vectors(schema, oid)

    async def _exists(self, connection: Connection) -> bool:
        cursor = await connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", [f"{self._schema}.store_identity"]
        )
        row = await cursor.fetchone()
        return row is not None and bool(row[0])

    async def _create(self, connection: Connection) -> None:
        # One process at a time: IF NOT EXISTS alone fails if two create the same at once.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('autoplay-rag', 0))"
        )
        cursor = await connection.execute("SELECT to_regnamespace(%s) IS NULL", [self._schema])
        if (await cursor.fetchone() or (False,))[0]:
            await connection.execute(f"CREATE SCHEMA {self._schema}")
        cursor = await connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
        if await cursor.fetchone() is None:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        for statement in schema_statements(self._schema_name):
            await connection.execute(statement.encode())

    def _what_to_run(self, error: errors.InsufficientPrivilege, user: str) -> str:
        role = quoted(user)
        return (
            f"the role {role} may not create what the store needs ({error.diag.message_primary}): run "
            "`autoplay-rag migrate --grant` with this role's name as a role that may, or let an "
            "administrator run, in this database, CREATE EXTENSION IF NOT EXISTS vector; "
            f"CREATE SCHEMA IF NOT EXISTS {self._schema} AUTHORIZATION {role}"
        )

    # -- the collection -------------------------------------------------------------------------

    async def find(
        self,
        connection: Connection,
        *,
        lock: str = "",
        name: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Collection | None:
        """Return the collection; None if it is missing.

        The same statement makes settings. They hold for this transaction only: a pooler gives the
        next one another connection.

        Args:
            connection: In a transaction.
            lock: `FOR SHARE` for writers, so that tables are not exchanged meanwhile; `FOR UPDATE`
                to change the row.
            name: Another collection of the schema.
            settings: Settings of PostgreSQL, by name, besides the timeout of statements.
        """
        wanted = self._settings | dict(settings or {})
        configured = ", set_config(%s, %s, true)" * len(wanted)
        cursor = await connection.execute(
            "SELECT number, model, dimension, format, coalesce((SELECT indisvalid FROM pg_index "
            f"WHERE indexrelid = to_regclass(%s || number || '_hnsw')), false), "
            f"coalesce((SELECT greatest(reltuples, 0) FROM pg_class "
            f"WHERE oid = to_regclass(%s || number)), 0)::bigint{configured} "
            f"FROM {self._schema}.store_collection WHERE name = %s {lock}",
            [
                *[f"{self._schema}.store_vector_"] * 2,
                *(each for setting in wanted.items() for each in setting),
                name or self.name,
            ],
        )
        row = await cursor.fetchone()
        if row is None:
            return None
        number, model, dimension, form, indexed, rows, *_ = row
        if form > _FORMAT:
            raise StoreMismatchError(
                f"the table {self.name!r} in the schema {self._schema_name!r} was written by a "
                "newer version of autoplay-rag: install that version"
            )
        return Collection(number, model, dimension, indexed, rows)

    async def make(
        self, connection: Connection, *, lock: str, name: str | None = None
    ) -> Collection:
        """Return the collection, and create it if it is missing."""
        found = await self.find(connection, lock=lock, name=name)
        if found is not None:
            return found
        cursor = await connection.execute(
            f"INSERT INTO {self._schema}.store_collection (name) VALUES (%s) "
            "ON CONFLICT DO NOTHING RETURNING number",
            [name or self.name],
        )
        row = await cursor.fetchone()
        if row is not None:
            await self._create_tables(connection, row[0])
        found = await self.find(connection, lock=lock, name=name)
        assert found is not None
        return found

    async def _create_tables(self, connection: Connection, number: int) -> None:
        vectors = await self._pgvector(connection)
        assert vectors is not None
        for statement in collection_statements(self._schema_name, number, vectors.type):
            await connection.execute(statement.encode())

    async def is_empty(self, connection: Connection, number: int) -> bool:
        """Whether the collection has no chunk."""
        cursor = await connection.execute(f"SELECT 1 FROM {self.chunks(number)} LIMIT 1")
        return await cursor.fetchone() is None

    async def adopt(self, connection: Connection, model: str | None) -> Collection:
        """Set the model of the vectors. The row of the collection is locked until the end.

        Raises:
            StoreMismatchError: If the collection has vectors of another model.
        """
        found = await self.make(connection, lock="FOR UPDATE")
        if found.model == model:
            return found
        empty = await self.is_empty(connection, found.number)
        if not empty and found.model is not None:
            raise StoreMismatchError(
                f"the table {self.name!r} in the schema {self._schema_name!r} holds vectors of the "
                f"model {found.model!r}, but {model!r} was asked for; {_REMEDY}"
            )
        return await self._change(connection, found, model, None if empty else found.dimension)

    async def adopt_dimension(self, connection: Connection, dimension: int) -> Collection:
        """Set the dimension of the vectors. The row of the collection is locked until the end.

        Raises:
            StoreMismatchError: If the collection has vectors of another dimension.
        """
        found = await self.make(connection, lock="FOR UPDATE")
        if found.dimension == dimension:
            return found
        if found.dimension is not None and not await self.is_empty(connection, found.number):
            raise self.wrong_dimension(found, dimension)
        return await self._change(connection, found, found.model, dimension)

    def wrong_dimension(self, collection: Collection, dimension: int) -> StoreMismatchError:
        """Return the error for vectors of another dimension."""
        return StoreMismatchError(
            f"the table {self.name!r} in the schema {self._schema_name!r} holds vectors of "
            f"dimension {collection.dimension}, but was given one of dimension {dimension}; "
            f"{_REMEDY}"
        )

    async def _change(
        self, connection: Connection, old: Collection, model: str | None, dimension: int | None
    ) -> Collection:
        if dimension != old.dimension and old.dimension is not None:
            # The index is for one dimension. It may be incomplete too.
            await connection.execute(f"DROP INDEX IF EXISTS {self.index(old.number)}")
        await connection.execute(
            f"UPDATE {self._schema}.store_collection SET model = %s, dimension = %s "
            "WHERE name = %s",
            [model, dimension, self.name],
        )
        return Collection(old.number, model, dimension, old.indexed, old.rows)

    async def exchange(self, connection: Connection, other: str) -> None:
        """Exchange the tables of two collections. A missing one counts as empty."""
        # In the same order everywhere, so that two exchanges cannot wait for each other.
        first, second = sorted((self.name, other))
        one = await self.make(connection, lock="FOR UPDATE", name=first)
        two = await self.make(connection, lock="FOR UPDATE", name=second)
        for name, held in ((first, two), (second, one)):
            await connection.execute(
                f"UPDATE {self._schema}.store_collection SET number = %s, model = %s, "
                "dimension = %s WHERE name = %s",
                [held.number, held.model, held.dimension, name],
            )

    async def drop(self, connection: Connection) -> None:
        """Delete the collection with its tables and its identity."""
        found = await self.find(connection, lock="FOR UPDATE")
        if found is None:
            return
        await connection.execute(
            f"DROP TABLE IF EXISTS {self.chunks(found.number)}, {self.vectors(found.number)}"
        )
        await connection.execute(
            f"DELETE FROM {self._schema}.store_identity WHERE number = %s", [found.number]
        )
        await connection.execute(
            f"DELETE FROM {self._schema}.store_collection WHERE name = %s", [self.name]
        )

    @property
    def identities(self) -> str:
        """The quoted name of the table of identities."""
        return f"{self._schema}.store_identity"


def schema_statements(schema: str) -> list[str]:
    """Return the statements that create the tables of all collections, for a schema that exists.

    Args:
        schema: The name of the schema.
    """
    name = quoted(schema)
    return [
        (
            f"CREATE TABLE IF NOT EXISTS {name}.store_collection ("
            'name text COLLATE "C" PRIMARY KEY, '
            "number bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY, "
            f"format int NOT NULL DEFAULT {_FORMAT}, model text, dimension int)"
        ),
        (
            f"CREATE TABLE IF NOT EXISTS {name}.store_identity ("
            "number bigint PRIMARY KEY, store_id text NOT NULL, journal_id text NOT NULL, "
            "batch bigint NOT NULL)"
        ),
    ]


def collection_statements(schema: str, number: int, vector_type: str) -> list[str]:
    """Return the statements that create the tables of one collection.

    Args:
        schema: The name of the schema.
        number: The number of the collection.
        vector_type: pgvector's type of half-precision vectors, with its schema.
    """
    chunks, vectors = (f"{quoted(schema)}.store_{kind}_{number}" for kind in ("chunk", "vector"))
    columns = [
        f'{name} text COLLATE "C" GENERATED ALWAYS AS (CASE WHEN jsonb_typeof(metadata -> '
        f"'{name}') = 'string' THEN left(metadata ->> '{name}', {NAME_LENGTH}) END) STORED"
        for name in NAME_COLUMNS
    ] + [
        f"{name} float8 GENERATED ALWAYS AS (CASE WHEN jsonb_typeof(metadata -> '{name}') = "
        f"'number' THEN (metadata -> '{name}')::float8 END) STORED"
        for name in TIME_COLUMNS
    ]
    return [
        (
            f'CREATE TABLE {chunks} (id text COLLATE "C" PRIMARY KEY, '
            f"text text NOT NULL, metadata jsonb NOT NULL, {', '.join(columns)})"
        ),
        *(
            f"CREATE INDEX ON {chunks} ({name}) WHERE {name} IS NOT NULL"
            for name in (*NAME_COLUMNS, *TIME_COLUMNS)
        ),
        f'CREATE TABLE {vectors} (id text COLLATE "C" PRIMARY KEY, vector {vector_type} NOT NULL)',
    ]


def quoted(name: str) -> str:
    """Quote a name for SQL.

    Example:
        >>> quoted('my "own" schema')
        '"my ""own"" schema"'
    """
    return '"' + name.replace('"', '""') + '"'
