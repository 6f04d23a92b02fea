"""Embedders turn texts into vectors."""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.embedders.base import Embedder, as_embedder
    from autoplay_rag.embedders.local import LocalEmbedder
    from autoplay_rag.embedders.openai import OpenAIEmbedder

__all__ = ["Embedder", "LocalEmbedder", "OpenAIEmbedder", "as_embedder"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Embedder": "autoplay_rag.embedders.base",
        "LocalEmbedder": "autoplay_rag.embedders.local",
        "OpenAIEmbedder": "autoplay_rag.embedders.openai",
        "as_embedder": "autoplay_rag.embedders.base",
    },
)
