"""A broker that speaks Kafka's protocol, and topics on it."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from benchmarks import broker as started


class Broker(started.Broker):
    """A broker on loopback with everything in memory. A test may kill and start it: then it is empty."""

    def address(self, topic: str, group: str = "") -> str:
        """The address of a topic, as `journal` takes it.

        The group is called as the topic by default. This broker hands out no partitions any more in a
        group of which a member left while it joined, and tests are quick.
        """
        return f"kafka://{self.bootstrap}/{topic}?group={group or topic}"


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker for all tests of one process."""
    with Broker() as broker:
        yield broker


@pytest.fixture
def topic() -> str:
    """The name of a topic that no other test uses."""
    return f"events-{uuid4().hex[:12]}"
