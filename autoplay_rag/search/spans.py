"""The attributes of spans, named as OpenTelemetry's conventions for generative AI have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from autoplay_rag._tracing import Attribute, Span
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.search.hits import Hit, Hits, SessionHit

__all__ = ["embedding_attributes", "record", "retrieval_attributes"]

_DOCUMENTS: Final = 20
_DOCUMENT_CHARACTERS: Final = 2_000
"""The most documents of a span, and characters of each. Exporters refuse what is too large."""


def retrieval_attributes(
    source: str, k: int, mode: str, embedder: Embedder | None
) -> dict[str, Attribute]:
    """Return what is known when a search begins."""
    found: dict[str, Attribute] = {
        "gen_ai.operation.name": "retrieval",
        "gen_ai.data_source.id": source,
        "gen_ai.retrieval.top_k": k,
        "openinference.span.kind": "RETRIEVER",
        "autoplay_rag.search.mode": mode,
    }
    if embedder is not None:
        found["gen_ai.request.model"] = embedder.model
    return found


def embedding_attributes(model: str, texts: int = 1) -> dict[str, Attribute]:
    """Return what is known when a request to the embedder begins."""
    return {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": model,
        "openinference.span.kind": "EMBEDDING",
        "autoplay_rag.texts": texts,
    }


def record(
    span: Span, question: str, found: Hits[Hit] | Hits[SessionHit], *, content: bool
) -> None:
    """Set what is known when a search ends.

    Args:
        span: The span of the search.
        question: The question.
        found: The answer.
        content: Whether the question and the documents are recorded.
    """
    if not span.is_recording():
        return
    span.set_attribute("autoplay_rag.search.hits", len(found))
    # The reason may name services, and is in the log.
    span.set_attribute("autoplay_rag.search.degraded", found.problem is not None)
    if content:
        span.set_attribute("gen_ai.retrieval.query.text", question)
        documents = msgspec.json.encode(list(_documents(found))).decode()
        span.set_attribute("gen_ai.retrieval.documents", documents)


def _documents(found: Hits[Hit] | Hits[SessionHit]) -> Iterator[dict[str, str | float]]:
    for one in found[:_DOCUMENTS]:
        hit = one.hits[0] if isinstance(one, SessionHit) else one
        yield {"id": hit.id, "score": one.score, "content": one.text[:_DOCUMENT_CHARACTERS]}
