"""What users are doing right now, in your vector store seconds later."""

from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.live import LiveSessions
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload
from autoplay_rag.stores.base import Filter

__all__ = [
    "ActionsPayload",
    "ChatTurn",
    "Filter",
    "IngestPipeline",
    "LiveSessions",
    "SlimAction",
    "SummaryPayload",
]
