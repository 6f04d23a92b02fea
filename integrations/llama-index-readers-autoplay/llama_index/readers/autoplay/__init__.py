"""What users are doing right now, in LlamaIndex."""

from llama_index.readers.autoplay.base import AutoplayReader
from llama_index.readers.autoplay.embedder import LlamaIndexEmbedder
from llama_index.readers.autoplay.embedding import LocalEmbedding
from llama_index.readers.autoplay.memory import SessionContextBlock
from llama_index.readers.autoplay.retriever import AutoplayRetriever
from llama_index.readers.autoplay.searching import metadata_filters
from llama_index.readers.autoplay.store import LlamaIndexStore
from llama_index.readers.autoplay.streaming import LiveIngestion, stream_into
from llama_index.readers.autoplay.tools import autoplay_tools

__all__ = [
    "AutoplayReader",
    "AutoplayRetriever",
    "LiveIngestion",
    "LlamaIndexEmbedder",
    "LlamaIndexStore",
    "LocalEmbedding",
    "SessionContextBlock",
    "autoplay_tools",
    "metadata_filters",
    "stream_into",
]
