"""The address of a topic."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from autoplay_rag.cluster.address import JournalAddress
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.kafka.settings import ClientSettings, require_client

__all__ = ["KafkaAddress", "TopicAddress", "is_topic"]

_PREFIX: Final = "kafka:"
_FORM: Final = "kafka://HOST:PORT[,HOST:PORT]/TOPIC?group=GROUP"
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_HOST: Final = re.compile(r"([^\s/@?#,:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def is_topic(value: str) -> bool:
    """Whether the name of a journal is the address of a topic.

    Example:
        >>> is_topic("kafka://broker.test:9092/events?group=rag"), is_topic("events.db")
        (True, False)
    """
    return value.startswith(_PREFIX)


@dataclass(frozen=True, slots=True)
class TopicAddress:
    """Names a topic, and the group that reads it.

    Attributes:
        bootstrap: The brokers to ask first: `host:port`, with commas between several. Without a
            port it is 9092.
        topic: The name of the topic.
        group: The consumer group; "" for who only writes.

    Raises:
        ConfigurationError: If a name cannot be that of a broker or a topic.

    Example:
        >>> str(TopicAddress("broker.test:9092", "events", "rag"))
        'topic events on broker.test:9092'
    """

    bootstrap: str
    topic: str
    group: str = ""

    def __post_init__(self) -> None:
        for host in self.bootstrap.split(","):
            if not _HOST.fullmatch(host):
                # Not quoted: somebody may have put a password there.
                raise ConfigurationError(
                    "a Kafka broker must have the form HOST:PORT; a user and a password are "
                    "settings of the client (AUTOPLAY_RAG_KAFKA_SASL_USERNAME and _SASL_PASSWORD)"
                )
        if not _TOPIC.fullmatch(self.topic) or self.topic in (".", ".."):
            raise ConfigurationError(
                f"{self.topic!r} cannot be the name of a topic: it has up to 249 letters, digits, "
                "dots, underscores and hyphens"
            )

    @classmethod
    def parse(cls, text: str) -> TopicAddress:
        """Read an address.

        Args:
            text: `kafka://host:port/topic?group=name`; several brokers have commas between them.

        Raises:
            ConfigurationError: If it does not have this form, or names no group.

        Example:
            >>> TopicAddress.parse("kafka://one.test:9092,two.test:9092/events?group=rag").group
            'rag'
        """
        parts = urlsplit(text)
        options = parse_qsl(parts.query, keep_blank_values=True)
        groups = [value for name, value in options if name == "group" and value]
        if parts.scheme != "kafka" or len(groups) != 1 or len(options) != 1 or parts.fragment:
            raise ConfigurationError(f"the address of a topic must have the form {_FORM}")
        return cls(parts.netloc, parts.path.removeprefix("/"), groups[0])

    @property
    def url(self) -> str:
        """The address as text, for `parse`.

        Example:
            >>> TopicAddress("broker.test:9092", "events", "rag").url
            'kafka://broker.test:9092/events?group=rag'
        """
        return f"kafka://{self.bootstrap}/{self.topic}?{urlencode({'group': self.group})}"

    def __str__(self) -> str:
        return f"topic {self.topic} on {self.bootstrap}"


@dataclass(frozen=True, slots=True)
class KafkaAddress(JournalAddress):
    """Names a topic as the queue, and PostgreSQL as the catalog.

    Attributes:
        topic: The topic and the group.
        settings: The properties of Kafka's clients. Not shown.
    """

    topic: TopicAddress = field(kw_only=True)
    settings: ClientSettings = field(kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not `super()`: slots make the class anew, which breaks it.
        JournalAddress.__post_init__(self)
        require_client()

    def __str__(self) -> str:
        return f"{self.topic}, {JournalAddress.__str__(self)}"
