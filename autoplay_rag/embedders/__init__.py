"""Embedders: from text to vectors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autoplay_rag.embedders.base import Embedder, as_embedder

if TYPE_CHECKING:
    from autoplay_rag.embedders.local import LocalEmbedder
    from autoplay_rag.embedders.openai import OpenAIEmbedder

__all__ = ["Embedder", "LocalEmbedder", "OpenAIEmbedder", "as_embedder"]

_LAZY = {
    "LocalEmbedder": "autoplay_rag.embedders.local",
    "OpenAIEmbedder": "autoplay_rag.embedders.openai",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
