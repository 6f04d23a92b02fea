"""The settings of Kafka's clients."""

import pytest
from confluent_kafka import KafkaException, Producer

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.kafka.settings import ClientSettings, explained


def test_the_environment_wins_over_what_is_given(tmp_path):
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    environ = {
        "AUTOPLAY_RAG_KAFKA_SASL_PASSWORD_FILE": str(secret),
        "AUTOPLAY_RAG_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "AUTOPLAY_RAG_READ_KEY": "x",
    }
    given = {"security.protocol": "PLAINTEXT", "session.timeout.ms": 3000, "debug": True}
    settings = ClientSettings(given, environ)
    assert settings.joined({"session.timeout.ms": 6000, "a": 1}, group_id="g") == {
        "sasl.password": "s3cret",
        "security.protocol": "SASL_SSL",
        "session.timeout.ms": "3000",
        "debug": "true",
        "a": 1,
        "group.id": "g",
    }
    assert settings.get("session.timeout.ms", 6000) == 3000
    assert settings.get("fetch.max.bytes", 7) == 7
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    "given",
    [
        {"group.id": "g"},
        {"enable.auto.commit": True},
        {"acks": 1},
        {"allow.auto.create.topics": True},
        {"sasl.password": ["s3cret"]},
    ],
)
def test_what_may_not_be_set_is_named(given):
    with pytest.raises(ConfigurationError, match=next(iter(given))) as caught:
        ClientSettings(given, {})
    assert "s3cret" not in str(caught.value)


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match=r"session\.timeout\.ms must be a number"):
        ClientSettings({"session.timeout.ms": "soon"}, {}).get("session.timeout.ms", 1)


@pytest.mark.parametrize(
    "properties",
    [
        {"security.protocol": "s3cret"},
        {"no.such.thing": "s3cret"},
        {"batch.size": "s3cret"},
        {"ssl.ca.location": "/s3cret", "security.protocol": "ssl"},
        {"ssl.key.pem": "s3cret", "security.protocol": "ssl"},
        {"sasl.mechanism": "s3cret", "security.protocol": "sasl_ssl"},
    ],
)
def test_a_refused_property_is_named_without_its_value(properties):
    with pytest.raises(KafkaException) as caught:
        Producer(properties)
    error = explained(caught.value)
    assert next(iter(properties)) in str(error)
    assert "s3cret" not in str(error)


def test_what_is_missing_is_named():
    with pytest.raises(KafkaException) as caught:
        Producer({"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN"})
    assert "(sasl.username, sasl.password)" in str(explained(caught.value))
