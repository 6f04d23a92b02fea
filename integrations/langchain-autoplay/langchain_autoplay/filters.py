"""Translations of `autoplay_rag.Filter` for vector stores. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoplay_rag import Filter
from langchain_core.documents import Document

__all__ = ["operators", "over_documents", "over_metadata", "qdrant"]

_OPERATORS = {"==": "$eq", ">=": "$gte", "<=": "$lte"}


def operators(filter: Filter) -> dict[str, Any] | None:
    """The filter for Chroma and PGVector; None for an empty filter, because both reject `{}`.

    Example:
        >>> operators(Filter(user_id="u1", since=5.0))
        {'$and': [{'user_id': {'$eq': 'u1'}}, {'ended_at': {'$gte': 5.0}}]}
    """
    found = [{key: {_OPERATORS[op]: value}} for key, op, value in filter.conditions()]
    return {"$and": found} if len(found) > 1 else next(iter(found), None)


def over_documents(filter: Filter) -> Callable[[Document], bool] | None:
    """The filter for the in-memory store; None for an empty filter."""
    return (lambda document: filter.matches(document.metadata)) if filter.conditions() else None


def over_metadata(filter: Filter) -> Callable[[Mapping[str, Any]], bool] | None:
    """The filter for FAISS; None for an empty filter."""
    return filter.matches if filter.conditions() else None


def qdrant(filter: Filter, metadata_key: str = "metadata") -> Any:
    """The filter for Qdrant, a `qdrant_client.models.Filter`; None for an empty filter.

    Args:
        filter: The filter to translate.
        metadata_key: The payload key that contains the metadata, as in the store's
            `metadata_payload_key`. "" if the metadata is the payload itself.

    Example:
        >>> found = qdrant(Filter(user_id="u1", since=5.0))
        >>> [(condition.key, condition.match, condition.range) for condition in found.must]
        [('metadata.user_id', MatchValue(value='u1'), None), ('metadata.ended_at', None, Range(lt=None, gt=None, gte=5.0, lte=None))]
    """
    conditions = filter.conditions()
    if not conditions:
        return None
    from qdrant_client import models

    prefix = f"{metadata_key}." if metadata_key else ""
    comparisons: dict[str, Callable[[Any], Any]] = {
        "==": lambda value: {"match": models.MatchValue(value=value)},
        ">=": lambda value: {"range": models.Range(gte=value)},
        "<=": lambda value: {"range": models.Range(lte=value)},
    }
    return models.Filter(
        must=[
            models.FieldCondition(key=f"{prefix}{key}", **comparisons[op](value))
            for key, op, value in conditions
        ]
    )
