"""Kafka as the queue: payloads come out of a topic, and the journal in PostgreSQL takes them in.

| module | task |
|---|---|
| `queue` | `KafkaQueue`: a journal in PostgreSQL that takes payloads out of a topic |
| `address` | the address of a topic |
| `settings` | the settings of Kafka's clients |
| `messages` | a payload as a message, and back |
| `admin` | what the broker says about a topic |
| `consumer` | the client of a consumer group |
| `reading` | the member of a group: the assignment of partitions, and a topic that changes |
| `standing_in` | reading for a process that has ended, until the group assigns its partitions |
| `taking` | from messages to the journal |
| `trying` | repeating what fails for as long as a broker or a database is away |

Owners and offsets of partitions are rows of the journal; see `autoplay_rag/cluster/topic_rows.py`.
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.kafka.address import TopicAddress
    from autoplay_rag.kafka.queue import KafkaQueue
    from autoplay_rag.kafka.settings import ClientSettings

__all__ = ["ClientSettings", "KafkaQueue", "TopicAddress"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ClientSettings": "autoplay_rag.kafka.settings",
        "KafkaQueue": "autoplay_rag.kafka.queue",
        "TopicAddress": "autoplay_rag.kafka.address",
    },
)
