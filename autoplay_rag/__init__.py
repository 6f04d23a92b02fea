"""What users are doing right now, in your vector store seconds later.

Stores, embedders and the local connector have rooms of their own: `autoplay_rag.stores`,
`autoplay_rag.embedders`, `autoplay_rag.devserver`.
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoplay_rag.connector.client import AsyncConnectorClient
    from autoplay_rag.connector.sync import ConnectorClient
    from autoplay_rag.connector.webhook import WebhookReceiver, webhook_app
    from autoplay_rag.content.chunks import Chunk
    from autoplay_rag.content.pii import PiiRedactor
    from autoplay_rag.content.render import Render
    from autoplay_rag.frames import to_frame
    from autoplay_rag.ingest.dead_letters import DeadLetters
    from autoplay_rag.ingest.follow import follow_journal
    from autoplay_rag.ingest.pipeline import IngestPipeline
    from autoplay_rag.ingest.store_copy import copy_store
    from autoplay_rag.journal.base import DeadLetter, Health
    from autoplay_rag.journal.ledger import Ledger
    from autoplay_rag.journal.reader import JournalReader
    from autoplay_rag.live import LiveSessions
    from autoplay_rag.payloads import (
        ActionsPayload,
        AnyPayload,
        ChatTurn,
        Payload,
        SlimAction,
        SummaryPayload,
    )
    from autoplay_rag.remote.client import ServeClient
    from autoplay_rag.search.hits import Hit, Hits, Matched, SessionHit
    from autoplay_rag.search.timeline import (
        Actions,
        SessionEvent,
        Sessions,
        SessionSummary,
        WholeSession,
    )
    from autoplay_rag.stores.base import Filter

__all__ = [
    "Actions",
    "ActionsPayload",
    "AnyPayload",
    "AsyncConnectorClient",
    "ChatTurn",
    "Chunk",
    "ConnectorClient",
    "DeadLetter",
    "DeadLetters",
    "Filter",
    "Health",
    "Hit",
    "Hits",
    "IngestPipeline",
    "JournalReader",
    "Ledger",
    "LiveSessions",
    "Matched",
    "Payload",
    "PiiRedactor",
    "Render",
    "ServeClient",
    "SessionEvent",
    "SessionHit",
    "SessionSummary",
    "Sessions",
    "SlimAction",
    "SummaryPayload",
    "WebhookReceiver",
    "WholeSession",
    "__version__",
    "copy_store",
    "follow_journal",
    "to_frame",
    "webhook_app",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Actions": "autoplay_rag.search.timeline",
        "ActionsPayload": "autoplay_rag.payloads",
        "AnyPayload": "autoplay_rag.payloads",
        "AsyncConnectorClient": "autoplay_rag.connector.client",
        "ChatTurn": "autoplay_rag.payloads",
        "Chunk": "autoplay_rag.content.chunks",
        "ConnectorClient": "autoplay_rag.connector.sync",
        "DeadLetter": "autoplay_rag.journal.base",
        "DeadLetters": "autoplay_rag.ingest.dead_letters",
        "Filter": "autoplay_rag.stores.base",
        "Health": "autoplay_rag.journal.base",
        "Hit": "autoplay_rag.search.hits",
        "Hits": "autoplay_rag.search.hits",
        "IngestPipeline": "autoplay_rag.ingest.pipeline",
        "JournalReader": "autoplay_rag.journal.reader",
        "Ledger": "autoplay_rag.journal.ledger",
        "LiveSessions": "autoplay_rag.live",
        "Matched": "autoplay_rag.search.hits",
        "Payload": "autoplay_rag.payloads",
        "PiiRedactor": "autoplay_rag.content.pii",
        "Render": "autoplay_rag.content.render",
        "ServeClient": "autoplay_rag.remote.client",
        "SessionEvent": "autoplay_rag.search.timeline",
        "SessionHit": "autoplay_rag.search.hits",
        "SessionSummary": "autoplay_rag.search.timeline",
        "Sessions": "autoplay_rag.search.timeline",
        "SlimAction": "autoplay_rag.payloads",
        "SummaryPayload": "autoplay_rag.payloads",
        "WebhookReceiver": "autoplay_rag.connector.webhook",
        "WholeSession": "autoplay_rag.search.timeline",
        "copy_store": "autoplay_rag.ingest.store_copy",
        "follow_journal": "autoplay_rag.ingest.follow",
        "to_frame": "autoplay_rag.frames",
        "webhook_app": "autoplay_rag.connector.webhook",
    },
)
