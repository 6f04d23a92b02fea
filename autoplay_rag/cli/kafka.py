"""Options about Kafka, shared by `serve` and `relay`."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from autoplay_rag.cli.config import Config
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.kafka.address import TopicAddress

__all__ = ["GroupOption", "KafkaOption", "TopicOption", "topic_of"]

DEFAULT_GROUP: Final = "autoplay-rag"

KafkaOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Kafka's brokers, with commas between several. Encryption and credentials come from "
        "variables such as AUTOPLAY_RAG_KAFKA_SECURITY_PROTOCOL and "
        "AUTOPLAY_RAG_KAFKA_SASL_PASSWORD_FILE, or from the table kafka_client of the settings file.",
    ),
]
TopicOption = Annotated[
    str | None, typer.Option(metavar="TOPIC", help="The topic with the payloads; needs --kafka.")
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        metavar="GROUP",
        help=f"The consumer group of the servers that read the topic; by default {DEFAULT_GROUP}.",
    ),
]


def topic_of(
    kafka: str | None, topic: str | None, group: str | None, file: Config
) -> TopicAddress | None:
    """Return the topic that the options and the settings name; None if they name none.

    Args:
        kafka: The option.
        topic: The option.
        group: The option.
        file: The settings.

    Raises:
        ConfigurationError: If one is missing, or cannot be used.
    """
    kafka, topic = kafka or file.get("kafka"), topic or file.get("topic")
    group = group or file.get("group")
    if kafka is None:
        if topic or group:
            raise ConfigurationError(
                f"{'topic' if topic else 'group'} needs --kafka HOST:PORT, the brokers of the topic"
            )
        return None
    if topic is None:
        raise ConfigurationError("kafka needs --topic TOPIC beside it")
    return TopicAddress(kafka, topic, group or DEFAULT_GROUP)
