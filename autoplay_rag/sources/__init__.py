"""Sources: where payloads come from, besides the stream.

`IngestPipeline.attach` takes any source, also several at once.
"""

from autoplay_rag.sources.activity import LiveActivitySource
from autoplay_rag.sources.activity_client import PullCounts
from autoplay_rag.sources.base import Source

__all__ = ["LiveActivitySource", "PullCounts", "Source"]
