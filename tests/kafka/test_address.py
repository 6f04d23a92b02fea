"""The address of a topic."""

import pytest

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.kafka.address import TopicAddress, is_topic


def test_an_address_names_brokers_topic_and_group():
    found = TopicAddress.parse("kafka://a.test:9092,b.test:9093/events.v1?group=my%20rag")
    assert found == TopicAddress("a.test:9092,b.test:9093", "events.v1", "my rag")
    assert TopicAddress.parse("kafka://[::1]:9092/e?group=a").bootstrap == "[::1]:9092"
    assert TopicAddress.parse("kafka://a.test/e?group=a").bootstrap == "a.test"


@pytest.mark.parametrize(
    "text",
    [
        "kafka://a.test:9092/events",
        "kafka://a.test:9092/events?group=",
        "kafka://a.test:9092/events?group=a&group=b",
        "kafka://a.test:9092/events?group=a&password=s3cret",
        "kafka://a.test:9092/?group=a",
        "kafka://a.test:9092/a/b?group=a",
        "kafka://a.test:9092/..?group=a",
        "kafka://a.test:/events?group=a",
        "kafka://::1/events?group=a",
        "kafka:///events?group=a",
        "kafka://ann:s3cret@a.test:9092/events?group=a",
        "kafka://a.test:9092/events?group=a#b",
        "kafka:",
    ],
)
def test_what_is_no_address_is_refused_without_a_secret(text):
    with pytest.raises(ConfigurationError) as caught:
        TopicAddress.parse(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("name", "expected"), [("kafka://a", True), ("./kafka", False)])
def test_is_topic(name, expected):
    assert is_topic(name) is expected


def test_an_address_can_be_written_and_read_again():
    address = TopicAddress("a.test:9092,[::1]:9092", "events", "a group & more")
    assert TopicAddress.parse(address.url) == address
