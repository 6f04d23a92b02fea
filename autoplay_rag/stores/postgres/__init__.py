"""PostgreSQL with pgvector as a vector store.

| module | task |
|---|---|
| `store` | `PgVectorStore`: checks arguments, and runs each call in the store's own thread |
| `dsn` | connection strings: where the password may come from, what may be shown |
| `parts` | what a store has while it is open |
| `link` | the thread, the connections, and the errors of one store |
| `failures` | PostgreSQL's errors as errors of stores |
| `tables` | what is in the schema, and which tables a collection has |
| `contents` | writing, reading and searching one collection |
| `encoding` | chunks and vectors in the form in which PostgreSQL keeps them |
| `conditions` | a filter as SQL |
| `indexing` | when the vector index is built |
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.store import PgVectorStore

__all__ = ["PgVectorStore"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"PgVectorStore": "autoplay_rag.stores.postgres.store"}
)
