"""The contract of journals, for a journal that a topic brings payloads to."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import pytest

from autoplay_rag.kafka import KafkaQueue
from autoplay_rag.testing import DurableJournalContract


class TestWithATopic(DurableJournalContract):
    @pytest.fixture
    def make_journal(self, postgres, broker, topic):
        schema = f"t_{uuid4().hex[:12]}"
        return partial(
            KafkaQueue,
            broker.bootstrap,
            topic,
            "rag",
            dsn=postgres.dsn,
            schema=schema,
            lease_seconds=None,
        )
