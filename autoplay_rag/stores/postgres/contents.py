"""Writing, reading and searching one collection."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from psycopg import errors

from autoplay_rag.errors import StoreMismatchError
from autoplay_rag.stores.base import Chunk, Filter, Match, StoreIdentity
from autoplay_rag.stores.postgres.conditions import where_of
from autoplay_rag.stores.postgres.encoding import (
    Binary,
    decoded_metadata,
    decoded_text,
    encoded_changes,
    encoded_metadata,
    encoded_text,
    half_vector,
    half_vectors,
    made_chunk,
)
from autoplay_rag.stores.postgres.link import Connection, Link
from autoplay_rag.stores.postgres.tables import Collection, Tables, Vectors
from autoplay_rag.stores.rows import Rows

__all__ = ["Contents"]

_LEAST_FEW, _MOST_FEW = 1000, 10_000
"""The bounds of the number of chunks that are few: see `_few`."""
_INDEX_COST = 5
"""A vector that the index visits costs as much as so many that are compared by id."""
_LEAST_EF, _MOST_EF = 100, 1000
"""The bounds of `hnsw.ef_search`: the candidates that a search of the index keeps."""
_MOST_INDEXED = _MOST_EF // 2
"""The most results that are searched with the index."""
_CHUNK = "c.id, c.text, c.metadata::text"


class _Search(NamedTuple):
    vector: Binary
    k: int
    where: str
    parameters: list[Any]


class Contents:
    """The chunks of one collection.

    Each call is one transaction, which first finds the tables of the collection and compares the
    model. So a call that began before an exchange of collections mixes nothing.

    Args:
        link: The connections.
        tables: The tables of the collection.
    """

    def __init__(self, link: Link, tables: Tables) -> None:
        self._link = link
        self._tables = tables
        self._known: Vectors | None = None
        self.model: str | None = None
        """The model of `start`; None before it."""

    # -- the collection -------------------------------------------------------------------------

    async def start(self, model: str) -> None:
        """Create the collection if it is missing, and set its model."""
        self._known = None
        async with self._transaction() as connection:
            await self._tables.adopt(connection, model)
        self.model = model

    async def prepare(self) -> None:
        """Create the collection if it is missing, without a model."""
        async with self._transaction() as connection:
            await self._tables.make(connection, lock="FOR SHARE")

    async def exchange(self, other: str) -> None:
        """Exchange the collection with another."""
        async with self._transaction() as connection:
            await self._tables.exchange(connection, other)

    async def drop(self) -> None:
        """Delete the collection."""
        async with self._transaction() as connection:
            await self._tables.drop(connection)
        self.model = None

    async def identity(self) -> StoreIdentity | None:
        """Return the saved identity."""
        async with self._transaction() as connection:
            found = await self._tables.find(connection)
            if found is None:
                return None
            cursor = await connection.execute(
                f"SELECT store_id, journal_id, batch FROM {self._tables.identities} "
                "WHERE number = %s",
                [found.number],
            )
            row = await cursor.fetchone()
        return StoreIdentity(*row) if row else None

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity. The same one keeps the higher batch."""
        async with self._writing() as (connection, found):
            await connection.execute(
                f"INSERT INTO {self._tables.identities} AS held "
                "(number, store_id, journal_id, batch) "
                "VALUES (%s, %s, %s, %s) ON CONFLICT (number) DO UPDATE SET "
                "store_id = excluded.store_id, journal_id = excluded.journal_id, "
                # A process that was frozen may come late with a batch that has been exceeded since.
                "batch = CASE WHEN (held.store_id, held.journal_id) = "
                "(excluded.store_id, excluded.journal_id) "
                "THEN greatest(held.batch, excluded.batch) ELSE excluded.batch END",
                [found.number, identity.store_id, identity.journal_id, identity.batch],
            )

    # -- writing --------------------------------------------------------------------------------

    async def upsert(self, rows: Rows) -> Collection:
        """Store a batch.

        Returns:
            The collection in which it is.
        """
        # In the order of ids, so that two batches cannot wait for each other.
        order = sorted(range(len(rows.ids)), key=rows.ids.__getitem__)
        ids = [encoded_text(rows.ids[at]) for at in order]
        texts = [encoded_text(rows.texts[at]) for at in order]
        metadatas = [encoded_metadata(rows.metadatas[at]) for at in order]
        width = len(rows.vectors) // len(rows.ids)
        joined = b"".join(rows.vectors[at * width : (at + 1) * width] for at in order)
        ordered = Rows(ids, texts, [], joined, rows.dimension)
        async with self._writing(rows.dimension) as (connection, found):
            vectors = self._vectors
            await connection.execute(
                f"INSERT INTO {self._tables.chunks(found.number)} (id, text, metadata) "
                "SELECT id, text, metadata::jsonb "
                "FROM unnest(%b::text[], %b::text[], %b::text[]) AS new (id, text, metadata) "
                "ON CONFLICT (id) DO UPDATE SET text = excluded.text, "
                "metadata = excluded.metadata",
                [ids, texts, metadatas],
            )
            table = self._tables.vectors(found.number)
            await connection.execute(
                f"INSERT INTO {table} AS v (id, vector) "
                f"SELECT id, vector FROM unnest(%b::text[], %b::{vectors.type}[]) "
                "AS new (id, vector) ON CONFLICT (id) DO UPDATE SET vector = excluded.vector "
                # A new version of a row costs as much in the index as a new row.
                f"WHERE v.vector OPERATOR({vectors.schema}.<>) excluded.vector",
                [ids, half_vectors(ordered, vectors.oid)],
            )
        return found

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks."""
        async with self._writing() as (connection, found):
            parameters = [[encoded_text(one) for one in ids]]
            chunks = self._tables.chunks(found.number)
            await connection.execute(
                f"DELETE FROM {chunks} WHERE id IN (SELECT id FROM {chunks} "
                "WHERE id = ANY (%b::text[]) ORDER BY id FOR UPDATE)",
                parameters,
            )
            await connection.execute(
                f"DELETE FROM {self._tables.vectors(found.number)} WHERE id = ANY (%b::text[])",
                parameters,
            )

    async def update_metadata(
        self, changes: Mapping[str, Mapping[str, str | int | float | None]]
    ) -> None:
        """Change metadata. Rows that are so already are not written."""
        ids = sorted(changes)
        async with self._writing() as (connection, found):
            chunks = self._tables.chunks(found.number)
            await connection.execute(
                "WITH wanted AS MATERIALIZED (SELECT c.id, c.metadata, "
                "jsonb_strip_nulls(c.metadata || new.changes::jsonb) AS merged "
                "FROM unnest(%b::text[], %b::text[]) AS new (id, changes) "
                f"JOIN {chunks} c USING (id) ORDER BY c.id FOR UPDATE OF c) "
                f"UPDATE {chunks} c SET metadata = merged FROM wanted "
                # As text: 1 and 1.0 are equal in jsonb.
                "WHERE c.id = wanted.id AND wanted.metadata::text <> merged::text",
                [
                    [encoded_text(one) for one in ids],
                    [encoded_changes(changes[one]) for one in ids],
                ],
            )

    # -- reading --------------------------------------------------------------------------------

    async def count(self) -> int:
        """Return the number of chunks."""
        async with self._reading() as (connection, found):
            if found is None:
                return 0
            cursor = await connection.execute(
                f"SELECT count(*) FROM {self._tables.chunks(found.number)}"
            )
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids."""
        async with self._reading() as (connection, found):
            if found is None:
                return []
            cursor = await connection.execute(
                f"SELECT {_CHUNK} FROM {self._tables.chunks(found.number)} c "
                "WHERE c.id = ANY (%b::text[])",
                [[encoded_text(one) for one in ids]],
            )
            rows = await cursor.fetchall()
        return [made_chunk(row) for row in rows]

    async def page(self, after: str | None, limit: int) -> list[Chunk]:
        """Return the next chunks of a scan, in the order of ids.

        Args:
            after: The last id of the page before; None for the first page.
            limit: The most chunks.
        """
        async with self._reading() as (connection, found):
            if found is None:
                return []
            where, parameters = (
                ("", []) if after is None else ("WHERE c.id > %s", [encoded_text(after)])
            )
            cursor = await connection.execute(
                f"SELECT {_CHUNK} FROM {self._tables.chunks(found.number)} c {where} "
                "ORDER BY c.id LIMIT %s",
                [*parameters, limit],
            )
            rows = await cursor.fetchall()
        return [made_chunk(row) for row in rows]

    async def score(self, packed: bytes, ids: Sequence[str]) -> dict[str, float]:
        """Return the similarity of stored vectors."""
        vector, dimension = half_vector(packed)
        async with self._reading() as (connection, found):
            if found is None or not await self._fits(connection, found, dimension):
                return {}
            vectors = self._vectors
            cursor = await connection.execute(
                f"SELECT id, vector {vectors.distance} %b::{vectors.type} "
                f"FROM {self._tables.vectors(found.number)} WHERE id = ANY (%b::text[])",
                [vector, [encoded_text(one) for one in ids]],
            )
            rows = await cursor.fetchall()
        return {decoded_text(one): _similarity(distance) for one, distance in rows}

    async def query(self, packed: bytes, k: int, filter: Filter) -> list[Match]:
        """Return the nearest chunks that pass the filter."""
        vector, dimension = half_vector(packed)
        where, parameters = where_of(filter)
        search = _Search(vector, k, where, parameters)
        settings = {
            # Without these, a search ends with 40 candidates, however few pass the filter.
            "hnsw.ef_search": str(min(_MOST_EF, max(_LEAST_EF, 2 * k))),
            "hnsw.iterative_scan": "relaxed_order",
            # Compiling an expression takes longer than such a search.
            "jit": "off",
        }
        async with self._reading(settings) as (connection, found):
            if found is None or not await self._fits(connection, found, dimension):
                return []
            if not found.indexed or k > _MOST_INDEXED:
                rows = await self._exact(connection, found, search)
            else:
                rows = await self._indexed(connection, found, search)
        return [
            Match(
                decoded_text(one),
                decoded_text(text),
                _similarity(distance),
                decoded_metadata(metadata),
            )
            for one, text, metadata, distance in rows
        ]

    async def _indexed(
        self, connection: Connection, found: Collection, search: _Search
    ) -> list[tuple[Any, ...]]:
        vectors = self._vectors
        chunks = self._tables.chunks(found.number)
        table = self._tables.vectors(found.number)
        size = f"{vectors.type}({found.dimension})"
        distance = f"v.vector::{size} {vectors.distance} %b::{size}"
        passing = ""
        if search.where:
            best = await self._best_of_few(connection, found, search)
            if best is not None:
                return best
            passing = f"JOIN {chunks} c USING (id) WHERE {search.where} "
        cursor = await connection.execute(
            f"WITH near AS MATERIALIZED (SELECT v.id, {distance} AS distance FROM {table} v "
            f"{passing}ORDER BY {distance} LIMIT %s) SELECT {_CHUNK}, distance "
            f"FROM near JOIN {chunks} c USING (id) ORDER BY distance, c.id",
            [search.vector, *search.parameters, search.vector, search.k],
        )
        rows = await cursor.fetchall()
        if len(rows) < search.k:
            # The search of an index gives up after 20,000 vectors.
            return await self._exact(connection, found, search)
        return rows

    async def _best_of_few(
        self, connection: Connection, found: Collection, search: _Search
    ) -> list[tuple[Any, ...]] | None:
        """Return the best chunks if few pass the filter; None if many do.

        The server counts by an index alone, and compares vectors only if it has counted few.
        """
        vectors = self._vectors
        chunks = self._tables.chunks(found.number)
        few = _few(search.k, found.rows)
        cursor = await connection.execute(
            "WITH many AS MATERIALIZED (SELECT count(*) > %s AS many FROM "
            f"(SELECT FROM {chunks} c WHERE {search.where} LIMIT %s) AS passing), "
            f"passing AS MATERIALIZED (SELECT c.id FROM {chunks} c WHERE {search.where} "
            "AND NOT (SELECT many FROM many)), near AS MATERIALIZED ("
            f"SELECT v.id, v.vector {vectors.distance} %b::{vectors.type} AS distance "
            f"FROM passing JOIN {self._tables.vectors(found.number)} v USING (id) "
            f"ORDER BY distance, v.id LIMIT %s) SELECT {_CHUNK}, distance, many "
            f"FROM many LEFT JOIN (near JOIN {chunks} c USING (id)) ON true "
            "ORDER BY distance, c.id",
            [few, *search.parameters, few + 1, *search.parameters, search.vector, search.k],
        )
        rows = await cursor.fetchall()
        if rows[0][-1]:
            return None
        return [row[:-1] for row in rows if row[0] is not None]

    async def _exact(
        self, connection: Connection, found: Collection, search: _Search
    ) -> list[tuple[Any, ...]]:
        vectors = self._vectors
        chunks = self._tables.chunks(found.number)
        passing = f"passing AS MATERIALIZED (SELECT c.id FROM {chunks} c WHERE {search.where}), "
        cursor = await connection.execute(
            # The column itself has no index, so the planner cannot use the approximate one.
            f"WITH {passing if search.where else ''}near AS MATERIALIZED ("
            f"SELECT v.id, v.vector {vectors.distance} %b::{vectors.type} AS distance "
            f"FROM {self._tables.vectors(found.number)} v "
            f"{'JOIN passing USING (id) ' if search.where else ''}ORDER BY distance, v.id LIMIT %s) "
            f"SELECT {_CHUNK}, distance FROM near JOIN {chunks} c USING (id) "
            "ORDER BY distance, c.id",
            [*search.parameters, search.vector, search.k],
        )
        return await cursor.fetchall()

    async def _fits(self, connection: Connection, found: Collection, dimension: int) -> bool:
        """Whether there is something to compare with.

        Raises:
            StoreMismatchError: If the collection has vectors of another dimension.
        """
        if found.dimension is None:
            return False
        if found.dimension != dimension:
            if await self._tables.is_empty(connection, found.number):
                return False
            raise self._tables.wrong_dimension(found, dimension)
        return True

    async def vacuum(self) -> None:
        """Free the space of deleted rows."""
        found, _ = await self.whole()
        if found is None:
            return
        async with self._link.connection() as connection:
            for table in (self._tables.chunks(found.number), self._tables.vectors(found.number)):
                with suppress(errors.UndefinedTable):  # dropped meanwhile
                    await connection.execute(f"VACUUM {table}".encode())

    async def whole(self) -> tuple[Collection | None, Vectors]:
        """Return what is known of the collection, whatever its model is."""
        async with self._transaction() as connection:
            return await self._tables.find(connection), self._vectors

    # -- transactions ---------------------------------------------------------------------------

    @property
    def _vectors(self) -> Vectors:
        assert self._known is not None
        return self._known

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        if self._known is None:
            async with self._link.transaction() as connection:
                known = await self._tables.prepare(connection)
            self._known = known
        async with self._link.transaction() as connection:
            yield connection

    @asynccontextmanager
    async def _writing(
        self, dimension: int | None = None
    ) -> AsyncIterator[tuple[Connection, Collection]]:
        async with self._transaction() as connection:
            found = await self._tables.make(connection, lock="FOR SHARE")
            fits = (self.model is None or found.model == self.model) and (
                dimension is None or found.dimension == dimension
            )
            if fits:
                yield connection, found
        if not fits:
            # Anew, with the stronger lock at once: two that hold the weaker one would wait for
            # each other.
            async with self._transaction() as connection:
                if self.model is not None:
                    found = await self._tables.adopt(connection, self.model)
                if dimension is not None:
                    found = await self._tables.adopt_dimension(connection, dimension)
                yield connection, found

    @asynccontextmanager
    async def _reading(
        self, settings: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[Connection, Collection | None]]:
        async with self._transaction() as connection:
            found = await self._tables.find(connection, settings=settings)
            if found is not None and self.model is not None and found.model != self.model:
                if not await self._tables.is_empty(connection, found.number):
                    raise StoreMismatchError(
                        f"the table {self._tables.name!r} holds vectors of the model "
                        f"{found.model!r} since it was exchanged or replaced, but {self.model!r} "
                        "was asked for: start the store with the new model"
                    )
                found = None
            yield connection, found


def _few(k: int, rows: int) -> int:
    """Return how many chunks may pass a filter so that comparing all of them is faster.

    The index visits `k * rows / passing` vectors until `k` of them have passed.

    Args:
        k: The wanted results.
        rows: The estimated number of chunks in the collection.
    """
    return min(_MOST_FEW, max(_LEAST_FEW, math.isqrt(_INDEX_COST * k * rows)))


def _similarity(distance: float) -> float:
    """Return the similarity for a negative inner product. Half precision may exceed the bounds."""
    return min(1.0, max(-1.0, -distance))
