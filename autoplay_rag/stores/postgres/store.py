"""`PgVectorStore`: chunks in PostgreSQL, with pgvector."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from autoplay_rag._checks import check_above, check_at_least, check_choice
from autoplay_rag.errors import ConfigurationError, MissingExtraError, StoreRejectedError
from autoplay_rag.stores.base import (
    Changes,
    Chunk,
    Filter,
    Match,
    StoreIdentity,
    Vector,
    VectorStore,
)
from autoplay_rag.stores.postgres.dsn import parameters_of, place_of
from autoplay_rag.stores.postgres.remains import remains_in
from autoplay_rag.stores.rows import checked_changes, pack, pack_vector

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.parts import Parts

__all__ = ["PgVectorStore"]

T = TypeVar("T")

_MOST_NAME_BYTES = 63
"""The longest name of a schema in PostgreSQL."""


class PgVectorStore(VectorStore):
    """Keeps chunks in PostgreSQL with pgvector 0.8 or later. Several processes may share a table.

    Vectors are scaled to length 1 and kept in half precision, which changes a score of real
    vectors by about 0.0001. They are compared by cosine.

    The schema and its tables are created at the first use, if the role may create them. If it may
    not, the error names what an administrator has to run.

    With `index="hnsw"`, the vector index is built in the background when there are 10,000 chunks or
    more and writing has calmed down, so that a backfill does not wait for the index. Other calls go
    on meanwhile. If the store is closed meanwhile, the server completes the index. Until then, and
    with `index="none"`, each search compares all vectors that pass the filter.

    Each call is one transaction and keeps no state in the connection, so a pooler may stand in
    between (PgBouncer in transaction mode).

    Two stores are equal if they name the same table of the same database.

    Args:
        dsn: `postgresql://user@host:port/database`, or libpq's `key=value` pairs. What it does not
            say (such as the password) comes from the variable `AUTOPLAY_RAG_POSTGRES_DSN`, or from
            the file that `AUTOPLAY_RAG_POSTGRES_DSN_FILE` names, and then from libpq's own
            variables and files (`PGPASSWORD`, `~/.pgpass`). `postgresql:` takes all from there.
        schema: The schema for all tables.
        table: The name of this collection of chunks in the schema.
        index: "hnsw" to build the vector index when it pays, "none" to build it only with
            `build_index`. An index that is there is used and maintained in either case.
        pool_size: The most connections.
        timeout: Seconds that a call may take, the wait for a free connection included. After that,
            its statement is cancelled, and the call raises `StoreUnavailableError`.

    Raises:
        ConfigurationError: If an argument is invalid.
        MissingExtraError: If psycopg or NumPy is not installed.

    Example:
        >>> async def main():
        ...     store = PgVectorStore("postgresql://ann@db.test/app")
        ...     await store.start("example-model")
        ...     await store.upsert([Chunk("c1", "Opened billing", {})], [[0.6, 0.8]])
        ...     found = await store.query([0.6, 0.8], k=1, filter=Filter())
        ...     await store.aclose()
        ...     return found
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "autoplay",
        table: str = "chunks",
        index: Literal["hnsw", "none"] = "hnsw",
        pool_size: int = 8,
        timeout: float = 60.0,
    ) -> None:
        if not (find_spec("psycopg") and find_spec("numpy")):
            raise MissingExtraError("PgVectorStore", "postgres")
        check_choice("index", index, ("hnsw", "none"))
        check_at_least("pool_size", pool_size, 1, whole=True)
        check_above("timeout", timeout)
        _check_name("schema", schema, most=_MOST_NAME_BYTES)
        if "%" in schema:  # the sign of a parameter in every statement
            raise ConfigurationError(f"schema must be a name without %, not {schema!r}")
        _check_name("table", table)
        self._parameters = parameters_of(dsn)
        self._schema = schema
        self._table = table
        self._index = index
        self._pool_size = pool_size
        self._timeout = timeout
        self._model: str | None = None
        self._parts: Parts | None = None
        self._opening = threading.Lock()

    def __repr__(self) -> str:
        place = place_of(self._parameters)
        return f"<PgVectorStore: table {self._table!r} in schema {self._schema!r} of {place}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PgVectorStore):
            return NotImplemented
        return self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)

    @property
    def schema(self) -> str:
        """The schema of all tables."""
        return self._schema

    @property
    def collection(self) -> str:
        """The name of the collection: `table`."""
        return self._table

    @property
    def data_source(self) -> str:
        """The name of the system in traces."""
        return "postgresql"

    async def start(self, model: str) -> None:
        """Create what is missing in the database, and set the model of the vectors.

        Args:
            model: The name of the embedder and its settings.

        Raises:
            ConfigurationError: If the role may not create what is missing, or if the server has no
                pgvector or one that is too old.
            StoreMismatchError: If the table holds vectors of another model, or was written by a
                newer version of this package.
            StoreUnavailableError: If the same call may succeed later.
        """
        await self._run(lambda parts: parts.contents.start(model))
        self._model = model

    async def migrate(self) -> bool:
        """Create what is missing in the database, and the vector index if it is due.

        `start` does this too, where its role may, except for the index, which is built after
        writing. This needs no model. With `index="none"` it builds no index.

        Returns:
            Whether there is a vector index afterwards.

        Raises:
            ConfigurationError: If the role may not create what is missing, or if the server has no
                pgvector or one that is too old.
            StoreUnavailableError: If the same call may succeed later.
        """
        await self._run(lambda parts: parts.contents.prepare())
        if self._index == "none":
            return False
        return await self._run(lambda parts: parts.indexing.build_if_due(), limited=False)

    async def aclose(self) -> None:
        """Wait for running calls, and close the connections. A later call opens new ones."""
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.close()

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks. A chunk with a known id replaces text, metadata and vector of the old one.

        Args:
            chunks: Any number; one transaction stores at most `max_batch`.
            vectors: One for each chunk, all of the same dimension.

        Raises:
            StoreRejectedError: If the batch will never be accepted.
            StoreMismatchError: If the table holds vectors of another dimension.
            StoreUnavailableError: If the same call may succeed later.
        """
        for start in range(0, max(len(chunks), len(vectors)), self.max_batch):
            part = slice(start, start + self.max_batch)
            # Copies: the caller may change its lists and arrays, and waits in another thread.
            await self._run(
                partial(
                    _upsert,
                    chunks=list(chunks[part]),
                    vectors=list(vectors[part]),
                    index=self._index,
                )
            )

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """Return the `k` nearest chunks that pass the filter, best first.

        The result is exact without a vector index, if few chunks pass the filter (1,000 to 10,000,
        depending on the size of the collection), or if `k` is more than 500. Otherwise the index is
        searched, which may miss some. The result has fewer than `k` chunks only if fewer pass.

        Args:
            vector: The vector of the question, with the stored dimension.
            k: The most matches; at least 1.
            filter: The filter on the chunks.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is invalid.
            StoreMismatchError: If the table holds vectors of another dimension.
            StoreUnavailableError: If the same call may succeed later.
            UnsupportedFilterError: If PostgreSQL cannot make the comparison.
        """
        if k < 1:
            raise StoreRejectedError(f"k is {k}; it must be at least 1")
        packed = pack_vector(vector, "the question")
        return await self._run(lambda parts: parts.contents.query(packed, k, filter))

    async def score(self, vector: Vector, ids: Sequence[str]) -> dict[str, float]:
        """Return the cosine similarity of stored vectors, by chunk id. Unknown ids are left out.

        Args:
            vector: The question, of the same dimension as the stored vectors.
            ids: Ids of chunks, any number.

        Raises:
            StoreRejectedError: If the vector is invalid.
            StoreMismatchError: If the table holds vectors of another dimension.
            StoreUnavailableError: If the same call may succeed later.
        """
        packed = pack_vector(vector, "the question")
        return await self._run(lambda parts: parts.contents.score(packed, ids))

    async def count(self) -> int:
        """Return the number of stored chunks.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        return await self._run(lambda parts: parts.contents.count())

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks. An unknown id is not an error.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        for part in self._pages(ids):
            await self._run(partial(_delete, ids=part))

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids, in any order. Unknown ids are left out.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        found: list[Chunk] = []
        for part in self._pages(ids):
            found += await self._run(partial(_get, ids=part))
        return found

    async def scan(self, page: int = 1000) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks, in pages, in the order of their ids.

        Each page is a transaction of its own. A chunk that is in the store during the whole scan is
        returned once. Chunks that are stored or deleted during the scan may be missing or not.

        Args:
            page: The most chunks in one page. The limit is `max_batch`.

        Raises:
            ConfigurationError: If `page` is less than 1.
            StoreUnavailableError: If the same call may succeed later.
        """
        check_at_least("page", page, 1, whole=True)
        limit = min(page, self.max_batch)
        after: str | None = None
        while True:
            found = await self._run(partial(_page, after=after, limit=limit))
            if found:
                yield found
            if len(found) < limit:
                return
            after = found[-1].id

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without touching text, vector and vector index.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay. An
                unknown id is not an error. One transaction changes at most `max_batch` chunks.

        Raises:
            StoreRejectedError: If a key or a value cannot be stored.
            StoreUnavailableError: If the same call may succeed later.
        """
        wanted = checked_changes(changes)
        for part in self._pages(list(wanted)):
            some = {one: wanted[one] for one in part}
            await self._run(partial(_update_metadata, changes=some))

    def sibling(self, name: str) -> Self:
        """Return another table in the same schema. Not started.

        Args:
            name: A suffix. The new name is this table's name, a hyphen and `name`.

        Example:
            >>> dsn = "postgresql://db.test/app"
            >>> PgVectorStore(dsn).sibling("large") == PgVectorStore(dsn, table="chunks-large")
            True
        """
        other = type(self)(
            "postgresql:",
            schema=self._schema,
            table=self._sibling_name(name),
            index=self._index,
            pool_size=self._pool_size,
            timeout=self._timeout,
        )
        # Not from the environment once more, which may have changed.
        other._parameters = self._parameters  # noqa: SLF001 - of the same class
        return other

    async def exchange(self, name: str) -> None:
        """Exchange this table with its sibling of this name, in one transaction.

        Only their names change, so it takes some milliseconds. A missing table counts as an empty
        one. Every store of every process notices it: its calls raise `StoreMismatchError` until
        `start` was called with the model of the new content, unless it has that model already.

        Raises:
            StoreUnavailableError: If the same call may succeed later. If the connection broke, it
                is unknown whether they were exchanged.
        """
        await self._run(lambda parts: parts.contents.exchange(self._sibling_name(name)))

    async def drop(self) -> None:
        """Delete the table with its index, its identity and its model.

        It works for vectors of any model, also before `start`. Siblings stay.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        await self._run(lambda parts: parts.contents.drop())
        self._model = None

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if it or the table is missing.

        It works for vectors of any model, also before `start`.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        return await self._run(lambda parts: parts.contents.identity())

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity, where no search finds it.

        If the same store and journal are saved with a higher batch, that one stays.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        await self._run(lambda parts: parts.contents.save_identity(identity))

    async def erase(self) -> bool:
        """Free the space of deleted chunks, in the vector index too (`VACUUM`).

        Returns:
            False: the server overwrites the space later. See `remains`.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        await self._run(lambda parts: parts.contents.vacuum(), limited=False)
        return False

    @property
    def remains(self) -> tuple[str, ...]:
        """What of deleted chunks the server and its copies may still hold."""
        return remains_in(self._parameters)

    async def is_own(self) -> bool:
        """True: the tables hold only what this package stored."""
        return True

    async def build_index(self) -> bool:
        """Build the vector index now, and wait for it. Other calls go on meanwhile.

        50,000 chunks take about 10 s. `maintenance_work_mem` of the role should hold the index: 1.1
        KB a chunk with 384 dimensions, 3.4 KB with 1,536. If this is cancelled, the server goes on.

        Returns:
            Whether there is an index afterwards. False if nothing was stored yet.

        Raises:
            ConfigurationError: If the vectors have more than 4,000 dimensions.
            StoreUnavailableError: If the same call may succeed later.
        """
        return await self._run(lambda parts: parts.indexing.build(), limited=False)

    async def drop_index(self) -> None:
        """Delete the vector index: before a large backfill into a store that has one.

        Searches compare all vectors until it is built again.

        Raises:
            StoreUnavailableError: If the same call may succeed later.
        """
        await self._run(lambda parts: parts.indexing.drop())

    @property
    def _place(self) -> tuple[object, ...]:
        names = ("host", "hostaddr", "port", "dbname", "user", "service")
        server = tuple(self._parameters.get(name) for name in names)
        return (*server, self._schema, self._table)

    def _sibling_name(self, name: str) -> str:
        return f"{self._table}-{name}"

    def _pages(self, ids: Sequence[str]) -> list[list[str]]:
        once = list(dict.fromkeys(ids))
        return [
            once[start : start + self.max_batch] for start in range(0, len(once), self.max_batch)
        ]

    async def _run(
        self, work: Callable[[Parts], Coroutine[Any, Any, T]], *, limited: bool = True
    ) -> T:
        parts = self._opened()
        return await parts.link.run(lambda: work(parts), limited=limited)

    def _opened(self) -> Parts:
        from autoplay_rag.stores.postgres.parts import Parts

        with self._opening:  # the event loops of two threads may come at once
            if self._parts is None:
                self._parts = Parts(
                    self._parameters, self._schema, self._table, self._pool_size, self._timeout
                )
                self._parts.contents.model = self._model
            return self._parts


async def _upsert(parts: Parts, *, chunks: list[Chunk], vectors: list[Vector], index: str) -> None:
    rows = pack(chunks, vectors)
    found = await parts.contents.upsert(rows)
    if index == "hnsw" and not found.indexed:
        parts.indexing.wrote(found, len(rows.ids))


async def _delete(parts: Parts, *, ids: list[str]) -> None:
    await parts.contents.delete(ids)


async def _get(parts: Parts, *, ids: list[str]) -> list[Chunk]:
    return await parts.contents.get(ids)


async def _page(parts: Parts, *, after: str | None, limit: int) -> list[Chunk]:
    return await parts.contents.page(after, limit)


async def _update_metadata(
    parts: Parts, *, changes: dict[str, dict[str, str | int | float | None]]
) -> None:
    await parts.contents.update_metadata(changes)


def _check_name(name: str, value: object, *, most: int | None = None) -> None:
    """Refuse a name that PostgreSQL cannot keep, or would cut off.

    Raises:
        ConfigurationError: If it cannot.
    """
    try:
        size = len(value.encode()) if isinstance(value, str) and "\0" not in value else 0
    except UnicodeEncodeError:
        size = 0
    if not size or (most is not None and size > most):
        limit = f" of at most {most} bytes" if most else ""
        raise ConfigurationError(f"{name} must be a name{limit}, not {value!r}")
