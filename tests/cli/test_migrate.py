"""`autoplay-rag migrate`: one role makes the tables, another one uses them."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import psycopg
import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.cli.app import run
from autoplay_rag.errors import ConfigurationError, JournalVersionError
from autoplay_rag.stores import PgVectorStore

SECRET = "pa55word"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def schema(postgres):
    name = f"m_{uuid4().hex[:12]}"
    yield name
    postgres.run(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def roles(postgres):
    """A role that may create schemas, and one that may nothing. Returns their addresses."""
    postgres.run("CREATE EXTENSION IF NOT EXISTS vector")
    postgres.run("CREATE ROLE maker LOGIN")
    postgres.run("CREATE ROLE app LOGIN")
    postgres.run("GRANT CREATE ON DATABASE postgres TO maker")
    yield {
        name: f"postgresql://{name}@/postgres?host={postgres.socket_folder}"
        for name in ("maker", "app")
    }
    for name in ("app", "maker"):
        postgres.run(f"DROP OWNED BY {name} CASCADE")
        postgres.run(f"DROP ROLE {name}")


@pytest.fixture
def use_as(scripted_embedder, make_actions, schema):
    """Run a pipeline with the role of an address: store, search and forget."""

    async def use(dsn: str) -> None:
        store = PgVectorStore(dsn, schema=schema)
        async with IngestPipeline(store, scripted_embedder(), journal=dsn) as pipeline:
            for number in range(5):
                await pipeline.on_actions(make_actions(f"s{number}", f"t{number}", user="ann"))
            await pipeline.drain()
            assert pipeline.ledger.stored == 5
            (hit,) = await pipeline.search("t3", k=1)
            assert hit.session_id == "s3"
            receipt = await pipeline.forget(user_id="ann")
            assert receipt.payloads == 5

    return lambda dsn: asyncio.run(use(dsn))


def test_a_role_that_may_create_nothing_uses_what_another_made(roles, schema, use_as, capsys):
    with pytest.raises(ConfigurationError, match="autoplay-rag migrate --grant"):
        use_as(roles["app"])
    command = ["migrate", "--postgres", roles["maker"], "--schema", schema, "--grant", "app"]
    for _ in range(2):  # it may be repeated
        assert run(command) == 0
    assert f"the schema {schema} of postgres on" in capsys.readouterr().out
    use_as(roles["app"])


def test_the_printed_statements_do_the_same(roles, schema, use_as, capsys, postgres):
    assert run(["migrate", "--schema", schema, "--grant", "app", "--sql"]) == 0
    script = capsys.readouterr().out
    with psycopg.connect(roles["maker"], autocommit=True) as connection:
        connection.execute(script.encode())
    owners = postgres.run("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = %s", schema)
    assert owners == [("maker",)]
    assert run(["migrate", "--postgres", roles["maker"], "--schema", schema]) == 0
    use_as(roles["app"])


def test_both_ways_make_the_same_tables(roles, schema, postgres, capsys):
    assert run(["migrate", "--postgres", roles["maker"], "--schema", schema]) == 0
    other = f"{schema}_2"
    capsys.readouterr()
    assert run(["migrate", "--schema", other, "--sql"]) == 0
    with psycopg.connect(roles["maker"], autocommit=True) as connection:
        connection.execute(capsys.readouterr().out.encode())
    try:
        assert shape_of(postgres, other) == shape_of(postgres, schema)
    finally:
        postgres.run(f"DROP SCHEMA {other} CASCADE")


def test_the_index_is_built_by_the_owner_once_it_is_due(roles, schema, postgres, capsys):
    command = ["migrate", "--postgres", roles["maker"], "--schema", schema, "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["indexed"] is False
    postgres.run(f"UPDATE {schema}.store_collection SET model = 'm', dimension = 3")
    postgres.run(
        f"INSERT INTO {schema}.store_vector_1 SELECT number, '[1,0,0]' "
        "FROM generate_series(1, 10000) AS number"
    )
    for _ in range(2):
        assert run(command) == 0
        assert json.loads(capsys.readouterr().out)["indexed"] is True


def test_what_a_newer_version_made_is_refused(roles, schema, use_as, postgres, capsys):
    command = ["migrate", "--postgres", roles["maker"], "--schema", schema, "--grant", "app"]
    assert run(command) == 0
    postgres.run(f"UPDATE {schema}.meta SET value = '99' WHERE name = 'format'")
    assert run(command) == 1
    assert "format 99" in capsys.readouterr().err
    with pytest.raises(JournalVersionError, match="format 99"):
        use_as(roles["app"])


def test_a_role_that_is_not_there(roles, schema, capsys):
    command = ["migrate", "--postgres", roles["maker"], "--schema", schema, "--grant", "nobody"]
    assert run(command) == 2
    assert 'role "nobody" does not exist' in " ".join(capsys.readouterr().err.split())


def test_a_role_that_may_not_create(roles, schema, capsys):
    assert run(["migrate", "--postgres", roles["app"], "--schema", schema]) == 2
    assert "may not create" in capsys.readouterr().err


def test_a_password_in_the_address_is_refused(capsys):
    assert run(["migrate", "--postgres", f"postgresql://ann:{SECRET}@db.test/app"]) == 2
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err


def test_a_server_that_is_away(capsys, tmp_path):
    assert run(["migrate", "--postgres", f"postgresql://ann@/app?host={tmp_path}"]) == 1
    assert "was not migrated" in capsys.readouterr().err


def shape_of(postgres, schema: str) -> list[tuple]:
    """Columns, indexes, functions and triggers of a schema."""
    found = postgres.run(
        "SELECT table_name, column_name, data_type, is_nullable, generation_expression "
        "FROM information_schema.columns WHERE table_schema = %s ORDER BY 1, 2",
        schema,
    )
    for query in (
        "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = %s",
        "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = %s::regnamespace",
        (
            "SELECT event_object_table, action_statement FROM information_schema.triggers "
            "WHERE trigger_schema = %s"
        ),
        "SELECT cfgname FROM pg_ts_config WHERE cfgnamespace = %s::regnamespace",
    ):
        found += [
            tuple(str(cell).replace(schema, "SCHEMA") for cell in row)
            for row in sorted(postgres.run(query, schema))
        ]
    return found
