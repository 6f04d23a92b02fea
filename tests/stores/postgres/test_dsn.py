"""Where the password comes from, and that it is shown nowhere."""

from __future__ import annotations

import logging
import traceback

import pytest
from store_helpers import EAST, chunk

from autoplay_rag.errors import ConfigurationError, StoreUnavailableError
from autoplay_rag.stores import PgVectorStore
from autoplay_rag.stores.named import make_store
from autoplay_rag.stores.postgres.dsn import parameters_of, place_of, public_dsn

SECRET = "pa55word"
VARIABLE = "AUTOPLAY_RAG_POSTGRES_DSN"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in (VARIABLE, f"{VARIABLE}_FILE", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_whole_dsn_from_the_environment():
    env = {VARIABLE: f"postgresql://ann:{SECRET}@db.test:6432/app?sslmode=require"}
    assert parameters_of("postgresql:", env) == {
        "user": "ann",
        "password": SECRET,
        "host": "db.test",
        "port": "6432",
        "dbname": "app",
        "sslmode": "require",
    }


def test_a_dsn_from_a_file(tmp_path):
    path = tmp_path / "dsn"
    path.write_text(f"postgresql://ann:{SECRET}@db.test/app\n")
    found = parameters_of("host=db.test dbname=app", {f"{VARIABLE}_FILE": str(path)})
    assert (found["user"], found["password"]) == ("ann", SECRET)
    with pytest.raises(ConfigurationError, match="both set"):
        parameters_of("postgresql:", {VARIABLE: "x", f"{VARIABLE}_FILE": str(path)})


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://other.test/app",
        "postgresql://db.test/other",
        "postgresql://bob@db.test/app",
        "postgresql://db.test:6432/app",
    ],
)
def test_a_password_is_sent_to_no_other_server_database_or_user(dsn):
    env = {VARIABLE: f"postgresql://ann:{SECRET}@db.test/app"}
    assert "password" not in parameters_of(dsn, env)


@pytest.mark.parametrize(
    "dsn", [f"postgresql://ann:{SECRET}@[::1/app", f"password={SECRET} host", "\0"]
)
def test_what_cannot_be_parsed_is_not_quoted(dsn):
    with pytest.raises(ConfigurationError, match="cannot be parsed") as error:
        PgVectorStore(dsn)
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_a_named_store_takes_no_password():
    with pytest.raises(ConfigurationError, match=f"{VARIABLE}_FILE") as error:
        make_store(f"postgresql://ann:{SECRET}@db.test/app")
    assert SECRET not in str(error.value)
    assert public_dsn("postgresql://ann@db.test/app") == "postgresql://ann@db.test/app"


def test_stores_by_name(monkeypatch):
    store = make_store("postgresql://ann@db.test/app")
    assert repr(store) == "<PgVectorStore: table 'chunks' in schema 'autoplay' of app on db.test>"
    assert make_store("postgresql://ann@db.test/app", "large").collection == "large"
    monkeypatch.setenv(VARIABLE, f"postgresql://ann:{SECRET}@db.test/app")
    assert make_store("postgresql:") == store


def test_what_is_shown_has_no_secret():
    store = PgVectorStore(f"postgresql://ann:{SECRET}@db.test:6432/app")
    assert SECRET not in repr(store)
    assert SECRET not in place_of(parameters_of(f"host=h password={SECRET}"))
    assert place_of({}) == "the default database on the default host"


def test_stores_are_equal_if_they_name_the_same_table():
    dsn = "postgresql://ann@db.test/app"
    assert PgVectorStore(dsn) == PgVectorStore("host=db.test dbname=app user=ann")
    assert hash(PgVectorStore(dsn)) == hash(PgVectorStore(dsn, pool_size=2))
    assert PgVectorStore(dsn) != PgVectorStore(dsn, table="other")
    assert PgVectorStore(dsn) != PgVectorStore(dsn, schema="other")
    assert PgVectorStore(dsn) != "store"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": "ivfflat"}, "index must be 'hnsw' or 'none'"),
        ({"pool_size": 0}, "pool_size must be at least 1"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"schema": ""}, "schema must be a name of at most 63 bytes"),
        ({"schema": "ü" * 32}, "schema must be a name of at most 63 bytes"),
        ({"schema": "100%"}, "schema must be a name without %"),
        ({"table": "a\0b"}, "table must be a name"),
        ({"table": "\ud800"}, "table must be a name"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PgVectorStore("postgresql://db.test/app", **options)


async def test_an_error_of_the_connection_names_the_place_and_no_password(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    store = PgVectorStore(f"postgresql://ann:{SECRET}@/app?host={tmp_path}")
    for call in (store.start("model-a"), store.upsert([chunk("a")], [EAST])):
        with pytest.raises(StoreUnavailableError, match=f"app on {tmp_path}") as error:
            await call
        assert SECRET not in "".join(traceback.format_exception(error.value))
    await store.aclose()
    assert SECRET not in caplog.text
