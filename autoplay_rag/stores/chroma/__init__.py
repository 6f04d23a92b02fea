"""Chroma as a vector store: embedded, on disk, in a worker process of its own.

| module | process | task |
|---|---|---|
| `store` | yours | `ChromaStore`: makes requests of calls |
| `shared` | yours | one worker for each folder, shared by all stores |
| `process` | yours | one run of the worker: start, ask, end |
| `frames` | both | the requests and replies, and their bytes on the pipe |
| `worker` | worker | the main loop: lock the folder, answer requests |
| `folder` | worker | the only module that imports Chroma |
| `mirror` | worker | a copy of each vector index, in case of a kill |
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.stores.chroma.store import ChromaStore

__all__ = ["ChromaStore"]

# Loaded on demand: the worker imports this package too, and needs nothing of the other side.
__getattr__, __dir__ = lazy_exports(__name__, {"ChromaStore": "autoplay_rag.stores.chroma.store"})
