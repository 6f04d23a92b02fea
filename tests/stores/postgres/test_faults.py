"""Servers that stop, connections that are cut, statements that are cancelled, rights that lack."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psycopg
import pytest
from store_helpers import ALL, EAST, chunk, ids

from autoplay_rag.errors import (
    ConfigurationError,
    StoreMismatchError,
    StoreUnavailableError,
)
from autoplay_rag.stores import Filter, PgVectorStore
from autoplay_rag.stores.postgres import tables


@pytest.fixture
async def store(make_pg_store):
    store = make_pg_store()
    await store.start("model-a")
    await store.upsert([chunk("a", user_id="u1")], [EAST])
    yield store
    await store.aclose()


def end_connections(postgres):
    postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'autoplay-rag'"
    )
    while postgres.run("SELECT 1 FROM pg_stat_activity WHERE application_name = 'autoplay-rag'"):
        pass


async def blocked(postgres):
    """Wait until a call of a store waits for a lock."""
    async with asyncio.timeout(30):
        while not postgres.run(  # noqa: ASYNC110 - it has no event
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'autoplay-rag' "
            "AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.02)


class Holding:
    """Another session that holds a lock on the table of chunks."""

    def __init__(self, postgres, store):
        self._connection = psycopg.connect(postgres.dsn)
        self._table = f"{store._schema}.store_chunk_1"

    def __enter__(self):
        self._connection.execute(f"LOCK TABLE {self._table} IN ACCESS EXCLUSIVE MODE")
        return self

    def __exit__(self, *_):
        with suppress(psycopg.Error):
            self._connection.rollback()
        self._connection.close()


async def test_idle_connections_that_were_ended_are_not_used(store, postgres):
    await asyncio.gather(*(store.count() for _ in range(4)))
    end_connections(postgres)
    assert await store.count() == 1


async def test_a_connection_cut_during_a_call_is_an_outage(store, postgres):
    with Holding(postgres, store):
        call = asyncio.create_task(store.upsert([chunk("b")], [EAST]))
        await blocked(postgres)
        end_connections(postgres)
        with pytest.raises(StoreUnavailableError, match="terminating connection"):
            await call
    assert await store.count() == 1
    await store.upsert([chunk("b")], [EAST])
    assert await store.count() == 2


async def test_a_statement_cancelled_by_an_operator_is_an_outage(store, postgres):
    with Holding(postgres, store):
        call = asyncio.create_task(store.query(EAST, 1, ALL))
        await blocked(postgres)
        postgres.run(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'autoplay-rag'"
        )
        with pytest.raises(StoreUnavailableError, match="canceling statement"):
            await call
    assert ids(await store.query(EAST, 1, ALL)) == ["a"]


async def test_a_cancelled_caller_cancels_the_statement(store, postgres):
    with Holding(postgres, store):
        call = asyncio.create_task(store.upsert([chunk("b")], [EAST]))
        await blocked(postgres)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert postgres.run(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'autoplay-rag' "
            "AND wait_event_type = 'Lock'"
        ) == [(0,)]
    assert ids(await store.get(["a", "b"])) == ["a"]


async def test_a_call_that_takes_too_long_is_an_outage(make_pg_store, store, postgres):
    hasty = make_pg_store(schema=store._schema, timeout=0.3)
    too_late = pytest.raises(StoreUnavailableError, match=r"within 0.3 s|statement timeout")
    with Holding(postgres, store), too_late:
        await hasty.count()
    assert await hasty.count() == 1
    await hasty.aclose()


async def test_no_more_connections_than_allowed(make_pg_store, postgres):
    store = make_pg_store(pool_size=2)
    await store.start("model-a")
    await store.upsert([chunk("a")], [EAST])
    pids = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'autoplay-rag'"
    with Holding(postgres, store):
        calls = [asyncio.create_task(store.count()) for _ in range(6)]
        await blocked(postgres)
        assert postgres.run(pids)[0][0] <= 2
    assert await asyncio.gather(*calls) == [1] * 6
    await store.aclose()


async def test_closing_waits_for_running_calls(make_pg_store, store, postgres):
    other = make_pg_store(schema=store._schema)
    with Holding(postgres, store):
        call = asyncio.create_task(other.upsert([chunk("b")], [EAST]))
        await blocked(postgres)
        closing = asyncio.create_task(other.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
    await closing
    await call
    assert await store.count() == 2


async def test_nothing_is_left_on_the_server_after_closing(make_pg_store, store, postgres):
    await asyncio.gather(*(store.count() for _ in range(4)))
    await store.aclose()
    async with asyncio.timeout(30):
        while postgres.run(  # noqa: ASYNC110 - it has no event
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'autoplay-rag'"
        ):
            await asyncio.sleep(0.02)


async def test_a_table_that_was_deleted_behind_the_store_is_created_by_a_start(store, postgres):
    postgres.run(f"DROP SCHEMA {store._schema} CASCADE")
    with pytest.raises(StoreUnavailableError, match="start the store again"):
        await store.count()
    await store.start("model-b")
    assert await store.count() == 0


async def test_tables_of_a_newer_version_are_refused(store, postgres):
    postgres.run(f"UPDATE {store._schema}.store_collection SET format = 2")
    with pytest.raises(StoreMismatchError, match="newer version of autoplay-rag"):
        await store.start("model-a")


async def test_an_old_pgvector_is_refused(make_pg_store, monkeypatch):
    monkeypatch.setattr(tables, "_OLDEST_PGVECTOR", (99, 0))
    store = make_pg_store()
    with pytest.raises(ConfigurationError, match="ALTER EXTENSION vector UPDATE"):
        await store.start("model-a")
    await store.aclose()


@pytest.fixture
def role(postgres):
    """A role without rights."""
    postgres.run("CREATE ROLE limited LOGIN")
    yield f"host={postgres.socket_folder} dbname=postgres user=limited"
    postgres.run("DROP OWNED BY limited")
    postgres.run("DROP ROLE limited")


async def test_a_role_that_may_not_create_the_schema(role, make_pg_store):
    store = make_pg_store(dsn=role)
    with pytest.raises(ConfigurationError) as error:
        await store.start("model-a")
    await store.aclose()
    assert f'CREATE SCHEMA IF NOT EXISTS "{store._schema}" AUTHORIZATION "limited"' in str(
        error.value
    )


async def test_what_the_error_names_is_enough(role, make_pg_store, postgres):
    store = make_pg_store(dsn=role)
    postgres.run(f'CREATE SCHEMA IF NOT EXISTS "{store._schema}" AUTHORIZATION "limited"')
    await store.start("model-a")
    await store.upsert([chunk("a")], [EAST])
    assert await store.build_index()
    other = store.sibling("other")
    await other.start("model-b")
    await store.exchange("other")
    await other.drop()
    await store.drop()
    await store.aclose()
    await other.aclose()


async def test_a_role_that_may_only_read_and_write_rows(role, make_pg_store, store, postgres):
    """Another role made the tables. This one needs no rights on the schema but to use it."""
    schema = store._schema
    postgres.run(f"GRANT USAGE ON SCHEMA {schema} TO limited")
    postgres.run(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO limited"
    )
    other = make_pg_store(schema=schema, dsn=role)
    await other.start("model-a")
    await other.upsert([chunk("b", user_id="u2")], [EAST])
    assert ids(await other.query(EAST, 1, Filter(user_id="u2"))) == ["b"]
    await other.delete(["b"])
    with pytest.raises(StoreUnavailableError, match="as the role that owns the tables"):
        await other.build_index()
    await other.aclose()


async def test_reads_need_no_transaction_that_writes(role, make_pg_store, store, postgres):
    """As on a read replica."""
    schema = store._schema
    postgres.run(f"GRANT USAGE ON SCHEMA {schema} TO limited")
    postgres.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO limited")
    reader = make_pg_store(
        schema=schema, dsn=f"{role} options='-c default_transaction_read_only=on'"
    )
    assert ids(await reader.query(EAST, 1, Filter(user_id="u1"))) == ["a"]
    assert [found.id for found in await reader.get(["a", "b"])] == ["a"]
    assert [[found.id for found in page] async for page in reader.scan()] == [["a"]]
    assert await reader.count() == 1
    with pytest.raises(StoreUnavailableError, match="read-only transaction"):
        await reader.delete(["a"])
    await reader.aclose()


async def test_an_exchange_waits_for_writes(store, make_pg_store, postgres):
    """And a write that waits for an exchange does not store vectors of the old model."""
    other = store.sibling("other")
    await other.start("model-b")
    await other.upsert([chunk("of b")], [EAST])
    with Holding(postgres, store):
        write = asyncio.create_task(store.upsert([chunk("b")], [EAST]))
        await blocked(postgres)
        third = store.sibling("third")
        await third.exchange("fourth")  # of other collections: does not wait
        exchange = asyncio.create_task(store.exchange("other"))
        await asyncio.sleep(0.1)
        assert not exchange.done()
    await write
    await exchange
    with pytest.raises(StoreMismatchError, match=r"'model-b'.*'model-a'.*rebuild"):
        await store.upsert([chunk("c")], [EAST])
    await other.aclose()
    await third.aclose()


async def test_calls_leave_nothing_in_the_connection(make_pg_store, postgres):
    """A pooler in transaction mode gives the next transaction another connection."""
    store = make_pg_store(pool_size=1)
    await store.start("model-a")
    for number in range(8):  # psycopg prepares a statement at the fifth time
        await store.upsert([chunk(f"c{number}", user_id="u1")], [EAST])
        await store.query(EAST, 1, Filter(user_id="u1"))
        await store.update_metadata({f"c{number}": {"kind": "chat"}})
        await store.get([f"c{number}"])
    await store.build_index()
    await store.query(EAST, 1, ALL)
    link = store._opened().link

    async def left():
        async with link.transaction() as connection:
            cursor = await connection.execute(
                "SELECT name FROM pg_settings WHERE source = 'session' UNION ALL "
                "SELECT name FROM pg_prepared_statements UNION ALL "
                "SELECT locktype FROM pg_locks WHERE locktype = 'advisory' UNION ALL "
                "SELECT relname FROM pg_class WHERE relpersistence = 't'"
            )
            return [name for (name,) in await cursor.fetchall()]

    assert await link.run(left) == []
    await store.aclose()


async def test_pgvector_may_be_in_any_schema(make_pg_store, postgres):
    """As with services that keep extensions out of the search path."""
    postgres.run("CREATE DATABASE elsewhere")
    dsn = f"host={postgres.socket_folder} user=postgres dbname=elsewhere"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "Ext"')
        connection.execute('CREATE EXTENSION vector SCHEMA "Ext"')
    store = make_pg_store(dsn=dsn)
    await store.start("model-a")
    for _ in range(2):
        await store.upsert([chunk("a", user_id="u1"), chunk("b")], [EAST, [0.0, 1.0, 0.0]])
        await store.build_index()
    assert ids(await store.query(EAST, 1, ALL)) == ["a"]
    assert ids(await store.query(EAST, 2, Filter(user_id="u1"))) == ["a"]
    assert await store.score(EAST, ["b"]) == {"b": 0}
    await store.aclose()
    postgres.run("DROP DATABASE elsewhere WITH (FORCE)")


def test_a_store_can_be_used_by_many_loops_at_once(postgres, make_pg_store):
    from concurrent.futures import ThreadPoolExecutor

    store: PgVectorStore = make_pg_store()
    asyncio.run(store.start("model-a"))

    def use(number):
        async def run():
            await store.upsert([chunk(f"c{number}")], [EAST])
            return len(await store.get([f"c{number}"]))

        return asyncio.run(run())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(use, range(12))) == [1] * 12
    assert asyncio.run(store.count()) == 12
    asyncio.run(store.aclose())
