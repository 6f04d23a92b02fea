"""The common part of the LangChain and LlamaIndex loaders.

`PayloadLoader` reads a stream or a recording and yields texts with an id and metadata. Each loader
only converts these to the documents of its library.
"""

from autoplay_rag.loading.limits import Limits
from autoplay_rag.loading.loader import GroupBy, PayloadLoader
from autoplay_rag.loading.options import CLIENT_OPTIONS, LOADER_OPTIONS, refuse_unknown
from autoplay_rag.loading.sources import LiveSource, RecordingSource
from autoplay_rag.loading.texts import LoadedText

__all__ = [
    "CLIENT_OPTIONS",
    "LOADER_OPTIONS",
    "GroupBy",
    "Limits",
    "LiveSource",
    "LoadedText",
    "PayloadLoader",
    "RecordingSource",
    "refuse_unknown",
]
