"""The contract of journals, for the file and for the journal in memory."""

from __future__ import annotations

from functools import partial

import pytest

from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.testing import DurableJournalContract, JournalContract


class TestInAFile(DurableJournalContract):
    @pytest.fixture
    def make_journal(self, tmp_path):
        return partial(SqliteJournal, tmp_path / "journal.db")


class TestWithFullDurability(DurableJournalContract):
    @pytest.fixture
    def make_journal(self, tmp_path):
        return partial(SqliteJournal, tmp_path / "journal.db", durability="full")


class TestInMemory(JournalContract):
    @pytest.fixture
    def make_journal(self):
        return partial(SqliteJournal, None)
