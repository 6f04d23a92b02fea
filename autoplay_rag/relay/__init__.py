"""The relay: payloads of streams, pulls, webhooks and chats go into a topic of Kafka.

| module | task |
|---|---|
| `relay` | `Relay`, the public face |
| `outbox` | the bounded file with what is not delivered yet |
| `worker` | the thread that owns outbox and producer |
| `sender` | sends in order, and sends again what was not confirmed |
| `watch` | whether the broker answers, and the topic is there |
| `readers` | what the readers of the topic have in their journal |
| `app`, `metrics` | the HTTP interface: webhooks, chat turns, health, metrics |
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.relay.app import create_relay_app
    from autoplay_rag.relay.outbox import OutboxCounts
    from autoplay_rag.relay.relay import Relay

__all__ = ["OutboxCounts", "Relay", "create_relay_app"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "OutboxCounts": "autoplay_rag.relay.outbox",
        "Relay": "autoplay_rag.relay.relay",
        "create_relay_app": "autoplay_rag.relay.app",
    },
)
