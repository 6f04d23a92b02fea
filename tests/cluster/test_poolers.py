"""What a pooler in transaction mode needs: no state of a session, and no notifications."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from uuid import uuid4

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.cluster.notices import Notices
from autoplay_rag.stores import PgVectorStore

pytestmark = pytest.mark.timeout(120)

STATE = re.compile(
    r"(?i)\b(SET (?!LOCAL\b|[\w\"]+ =)\w|(PREPARE|DECLARE|CREATE TEMP|CREATE TEMPORARY|DISCARD)\b"
    r"|pg_(try_)?advisory_lock|set_config\([^)]*false\))"
)
"""What changes a session beyond the end of a transaction. An UPDATE has `SET column =`."""


@pytest.fixture
def role(postgres):
    """A role all of whose statements the server logs."""
    name = f"pooled_{uuid4().hex[:8]}"
    postgres.run("CREATE EXTENSION IF NOT EXISTS vector")
    postgres.run(f"CREATE ROLE {name} LOGIN")
    postgres.run(f"GRANT CREATE ON DATABASE postgres TO {name}")
    postgres.run(f"ALTER ROLE {name} SET log_statement = 'all'")
    yield name
    postgres.run(f"DROP OWNED BY {name} CASCADE")
    postgres.run(f"DROP ROLE {name}")


async def use(one: IngestPipeline, two: IngestPipeline, make_actions) -> None:
    """Let each accept payloads for both, search, forget, and end."""
    async with one, two:
        for number in range(40):
            user = f"u{number % 10 % 4}"
            await (one, two)[number % 2].on_actions(
                make_actions(f"s{number % 10}", f"t{number}", user=user, at=1000.0 + number)
            )
        await one.drain()
        await two.drain()
        assert one.ledger.stored == 40
        for pipeline in (one, two):
            assert (await pipeline.search("t7", k=1))[0].session_id == "s7"
        assert (await two.forget(user_id="u1")).payloads == 12
        chunks = [chunk async for page in one._run._store.scan(100) for chunk in page]
        lines = Counter(line for chunk in chunks for line in chunk.text.split("\n"))
        assert lines == Counter(f"t{number}" for number in range(40) if number % 10 % 4 != 1)


@pytest.fixture
def two_pipelines(make_pipeline, scripted_embedder):
    def make(dsn: str):
        schema = f"t_{uuid4().hex[:12]}"
        return [
            make_pipeline(
                PgVectorStore(dsn, schema=schema), journal=dsn, embedder=scripted_embedder()
            )
            for _ in range(2)
        ]

    return make


async def test_no_statement_leaves_anything_in_its_session(
    role, postgres, two_pipelines, make_actions
):
    before = len(postgres.log())
    dsn = f"postgresql://{role}@/postgres?host={postgres.socket_folder}"
    await use(*two_pipelines(dsn), make_actions)
    said = [line for line in postgres.log()[before:].splitlines() if "LOG:" in line]
    statements = [line for line in said if "statement:" in line or "execute " in line]
    assert len(statements) > 100
    assert [line for line in statements if STATE.search(line)] == []
    # A prepared statement would have a name: it is unknown on the next connection of a pooler.
    named = [line for line in statements if re.search(r"execute (?!<unnamed>)\S+:", line)]
    assert named == []


async def test_polling_alone_is_enough(postgres, two_pipelines, make_actions, monkeypatch):
    async def deaf(self) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Notices, "run", deaf)
    await use(*two_pipelines(postgres.dsn), make_actions)


@pytest.mark.parametrize(
    ("statement", "is_state"),
    [
        ("SET search_path TO x", True),
        ("SET SESSION statement_timeout = 1", True),
        ("PREPARE one AS SELECT 1", True),
        ("SELECT pg_advisory_lock(1)", True),
        ("SELECT set_config('a', 'b', false)", True),
        ("CREATE TEMPORARY TABLE x ()", True),
        ("SET LOCAL search_path TO x", False),
        ("SELECT set_config('a', 'b', true)", False),
        ("UPDATE counts SET discarded = discarded + 1", False),
        ("UPDATE progress SET last_seq = 1", False),
        ('UPDATE visit SET "user" = 1', False),
        ("SELECT pg_advisory_xact_lock_shared(1)", False),
    ],
)
def test_what_counts_as_state(statement, is_state):
    assert bool(STATE.search(statement)) == is_state
