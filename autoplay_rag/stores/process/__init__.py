"""Any store that embeds for itself, in a worker process of its own.

| module | process | task |
|---|---|---|
| `store` | yours | `ProcessStore`: turns calls into requests |
| `calls` | both | a function with its arguments, as bytes |
| `frames` | both | requests and replies |
| `failures` | both | an error in the worker as a reply, and the reply as an error |
| `worker` | worker | makes the store, and answers requests |
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.stores.process.store import ProcessStore

__all__ = ["ProcessStore"]

# Loaded on demand: the worker imports this package too, and does not need `ProcessStore`.
__getattr__, __dir__ = lazy_exports(__name__, {"ProcessStore": "autoplay_rag.stores.process.store"})
