"""The common part of the LangChain and LlamaIndex loaders.

`PayloadLoader` reads a stream or a recording and yields texts with an id and metadata. Each loader
only converts these to the documents of its library. What else both integrations need is here too: a
pipeline or a served one, what a search found, what an agent's tools answer, the line that shows progress, the checks of arguments, and the rule that marks
text of pages as data.
"""

from autoplay_rag._checks import check_above
from autoplay_rag.content.filters import Moment
from autoplay_rag.content.marking import DATA_NOTE, as_data
from autoplay_rag.live.sessions import LiveSession
from autoplay_rag.loading.answers import AGENT_TOOLS, AgentTool, Argument, answer, answer_sync
from autoplay_rag.loading.found import Finder, FoundText, SearchBy, narrowed
from autoplay_rag.loading.limits import Limits
from autoplay_rag.loading.loader import GroupBy, PayloadLoader
from autoplay_rag.loading.options import CLIENT_OPTIONS, LOADER_OPTIONS, refuse_unknown
from autoplay_rag.loading.progress import Counted, shown_progress
from autoplay_rag.loading.pulling import PromptPull
from autoplay_rag.loading.reading import Reader, reader_of, shown_context, shown_context_sync
from autoplay_rag.loading.sources import GivenSource, LiveSource, RecordingSource
from autoplay_rag.loading.texts import LoadedText
from autoplay_rag.search.fusion import Mode
from autoplay_rag.search.searcher import Rerank

__all__ = [
    "AGENT_TOOLS",
    "CLIENT_OPTIONS",
    "DATA_NOTE",
    "LOADER_OPTIONS",
    "AgentTool",
    "Argument",
    "Counted",
    "Finder",
    "FoundText",
    "GivenSource",
    "GroupBy",
    "Limits",
    "LiveSession",
    "LiveSource",
    "LoadedText",
    "Mode",
    "Moment",
    "PayloadLoader",
    "PromptPull",
    "Reader",
    "RecordingSource",
    "Rerank",
    "SearchBy",
    "answer",
    "answer_sync",
    "as_data",
    "check_above",
    "narrowed",
    "reader_of",
    "refuse_unknown",
    "shown_context",
    "shown_context_sync",
    "shown_progress",
]
