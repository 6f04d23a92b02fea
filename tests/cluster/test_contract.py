"""The contract of journals, for PostgreSQL."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import pytest

from autoplay_rag.cluster import PostgresCatalog, PostgresJournal, PostgresQueue
from autoplay_rag.journal.base import Catalog, Queue
from autoplay_rag.testing import DurableJournalContract


class TestInPostgres(DurableJournalContract):
    @pytest.fixture
    def make_journal(self, postgres):
        return partial(PostgresJournal, postgres.dsn, schema=f"t_{uuid4().hex[:12]}")


def test_one_class_is_queue_and_catalog():
    assert PostgresQueue is PostgresCatalog is PostgresJournal
    assert issubclass(PostgresQueue, Queue)
    assert issubclass(PostgresCatalog, Catalog)
