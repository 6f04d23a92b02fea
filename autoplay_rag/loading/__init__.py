"""A stream or a recording as documents: what the loaders of LangChain and LlamaIndex share.

`PayloadLoader` gives texts with an id and metadata; each loader turns those into its own
library's documents and adds nothing else.
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
