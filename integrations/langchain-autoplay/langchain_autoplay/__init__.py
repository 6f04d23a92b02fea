"""What users are doing right now, in LangChain."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from langchain_autoplay.callbacks import AutoplayCallbackHandler, SyncAutoplayCallbackHandler
from langchain_autoplay.embeddings import LocalEmbeddings
from langchain_autoplay.loader import AutoplayLoader
from langchain_autoplay.retriever import AutoplayRetriever
from langchain_autoplay.store import LangChainStore
from langchain_autoplay.tools import autoplay_tools

if TYPE_CHECKING:
    from langchain_autoplay.middleware import SessionContextMiddleware

__all__ = [
    "AutoplayCallbackHandler",
    "AutoplayLoader",
    "AutoplayRetriever",
    "LangChainStore",
    "LocalEmbeddings",
    "SyncAutoplayCallbackHandler",
    "autoplay_tools",
]
# The middleware needs `langchain`; everything else does with `langchain-core`.
if find_spec("langchain"):
    __all__ += ["SessionContextMiddleware"]


def __getattr__(name: str) -> Any:
    if name == "SessionContextMiddleware":
        from langchain_autoplay.middleware import SessionContextMiddleware

        return SessionContextMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
