"""Search with a vector in any LlamaIndex vector store."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from autoplay_rag import Filter
from autoplay_rag.errors import StoreError, StoreRejectedError
from autoplay_rag.stores import Match, Vector
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index.readers.autoplay.calls import CHROMA, StoreCalls
from llama_index.readers.autoplay.contents import text_of

__all__ = ["find", "metadata_filters"]


def metadata_filters(filter: Filter) -> MetadataFilters | None:
    """Translate a filter for LlamaIndex; None for an empty filter.

    Example:
        >>> found = metadata_filters(Filter(user_id="u1"))
        >>> [(f.key, f.operator.value, f.value) for f in found.filters]
        [('user_id', '==', 'u1')]
    """
    conditions = filter.conditions()
    if not conditions:
        return None
    return MetadataFilters(
        filters=[
            MetadataFilter(
                key=key,
                # Times are stored as floats; some stores compare only numbers of the same type.
                value=value if isinstance(value, str) else float(value),
                operator=FilterOperator(operator),
            )
            for key, operator, value in conditions
        ]
    )


async def find(
    calls: StoreCalls, docstore: BaseDocumentStore | None, vector: Vector, k: int, filter: Filter
) -> list[Match]:
    """Return the best node of each document among the `k` nearest that pass the filter.

    Args:
        calls: The store.
        docstore: Contains the nodes of stores that keep only vectors.
        vector: The vector of the question.
        k: The maximum number of nodes.
        filter: The conditions.

    Raises:
        StoreRejectedError: If `k` is less than 1.
        StoreError: If the store keeps no text and there is no docstore.
    """
    if k < 1:
        raise StoreRejectedError(f"k is {k}; a search asks for at least 1 hit")
    query = VectorStoreQuery(
        query_embedding=list(vector), similarity_top_k=k, filters=metadata_filters(filter)
    )
    result = await calls.query(query)
    nodes: Sequence[BaseNode | None] | None = result.nodes
    if nodes is None:
        if docstore is None:
            raise StoreError(
                f"{type(calls.vector_store).__name__} keeps vectors without their text; "
                "search through a VectorStoreIndex, or give LlamaIndexStore a docstore"
            )
        nodes = [await docstore.aget_document(node, raise_error=False) for node in result.ids or []]
    cosine = _cosine(calls.vector_store)
    hits: dict[str, Match] = {}
    for node, similarity in zip(nodes, result.similarities or [], strict=True):
        if node is not None:
            hit = _hit(node, cosine(float(similarity)))
            hits.setdefault(hit.id, hit)
    return list(hits.values())


def _hit(node: BaseNode, score: float) -> Match:
    owner = node.ref_doc_id or node.node_id
    return Match(owner, text_of(node), score, dict(node.metadata))


def _cosine(vector_store: BasePydanticVectorStore) -> Callable[[float], float]:
    """Return a function from the store's similarity to the cosine similarity, if known."""
    if vector_store.class_name() != CHROMA:
        return lambda similarity: similarity
    # LlamaIndex gives exp(-distance). The distance of vectors of length 1 follows from their
    # cosine: 1 - cosine ("cosine", "ip") or 2 - 2 * cosine ("l2", Chroma's default).
    configuration: Any = vector_store.client.configuration
    space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
    scale = 0.5 if space == "l2" else 1.0
    return lambda similarity: 1.0 + scale * math.log(similarity)
