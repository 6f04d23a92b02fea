"""Sources: where payloads come from besides the stream."""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.sources.activity import LiveActivitySource
    from autoplay_rag.sources.activity_client import PullCounts
    from autoplay_rag.sources.amplitude import from_amplitude
    from autoplay_rag.sources.base import Source
    from autoplay_rag.sources.cutting import DeviceSessions
    from autoplay_rag.sources.posthog import from_posthog
    from autoplay_rag.sources.segment import from_segment

__all__ = [
    "DeviceSessions",
    "LiveActivitySource",
    "PullCounts",
    "Source",
    "from_amplitude",
    "from_posthog",
    "from_segment",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DeviceSessions": "autoplay_rag.sources.cutting",
        "LiveActivitySource": "autoplay_rag.sources.activity",
        "PullCounts": "autoplay_rag.sources.activity_client",
        "Source": "autoplay_rag.sources.base",
        "from_amplitude": "autoplay_rag.sources.amplitude",
        "from_posthog": "autoplay_rag.sources.posthog",
        "from_segment": "autoplay_rag.sources.segment",
    },
)
