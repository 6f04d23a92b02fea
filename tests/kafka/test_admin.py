"""What the broker says about a topic."""

import asyncio
from pathlib import Path

import pytest

from autoplay_rag.errors import BrokerError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.settings import ClientSettings

NOTHING = ClientSettings({}, {})


async def test_a_topic_is_created_once_and_described(broker, topic):
    admin = TopicAdmin(TopicAddress(broker.bootstrap, topic), NOTHING)
    assert await admin.describe() is None
    await admin.create(3)
    first = await admin.describe()
    await admin.create(3)
    assert await admin.describe() == first
    assert first.partitions == 3
    assert first.id
    assert await admin.retention() is None


async def test_a_broker_that_is_away_is_said(unused_tcp_port):
    address = TopicAddress(f"127.0.0.1:{unused_tcp_port}", "events")
    settings = ClientSettings({"socket.connection.setup.timeout.ms": 1000}, {})
    with pytest.raises(BrokerError, match=f"topic events on 127.0.0.1:{unused_tcp_port}"):
        await TopicAdmin(address, settings, timeout=0.5).describe()


def threads_of_clients() -> int:
    """How many threads of librdkafka this process has."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("rdk:") for name in names)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it counts threads in /proc")
async def test_nothing_of_a_client_is_left_after_it_is_closed(unused_tcp_port):
    before = threads_of_clients()
    admin = TopicAdmin(TopicAddress(f"127.0.0.1:{unused_tcp_port}", "events"), NOTHING)
    asking = asyncio.create_task(admin.describe())
    while threads_of_clients() == before:  # noqa: ASYNC110 - a thread sends no event
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    await admin.close()
    # The kernel lists a thread for a moment after it was joined, and so perhaps one of an earlier test.
    async with asyncio.timeout(10):
        while threads_of_clients() > before:  # noqa: ASYNC110 - a thread sends no event
            await asyncio.sleep(0.01)
