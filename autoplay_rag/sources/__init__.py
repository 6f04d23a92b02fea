"""Sources: where payloads come from besides the stream."""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.sources.activity import LiveActivitySource
    from autoplay_rag.sources.activity_client import PullCounts
    from autoplay_rag.sources.base import Source

__all__ = ["LiveActivitySource", "PullCounts", "Source"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LiveActivitySource": "autoplay_rag.sources.activity",
        "PullCounts": "autoplay_rag.sources.activity_client",
        "Source": "autoplay_rag.sources.base",
    },
)
