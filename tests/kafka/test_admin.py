"""What the broker says about a topic."""

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
