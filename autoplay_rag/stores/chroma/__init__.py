"""Chroma as a vector store, embedded and on disk, in a separate worker process.

`autoplay_rag.stores.workers` starts, asks and ends the worker.

| module | process | task |
|---|---|---|
| `store` | yours | `ChromaStore`: turns calls into requests |
| `shared` | yours | the worker of a folder: how it starts, and what is being scanned |
| `frames` | both | requests and replies |
| `worker` | worker | the main loop: lock the folder, answer requests |
| `folder` | worker | the only module that imports Chroma |
| `copies` | both | copies of the folder, for backups |
| `mirror` | worker | a copy of each vector index, for recovery after a kill |
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.stores.chroma.store import ChromaStore

__all__ = ["ChromaStore"]

# Loaded on demand: the worker imports this package too, and does not need `ChromaStore`.
__getattr__, __dir__ = lazy_exports(__name__, {"ChromaStore": "autoplay_rag.stores.chroma.store"})
