"""The core's `Filter` in the words of vector stores. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoplay_rag import Filter
from langchain_core.documents import Document

__all__ = ["operators", "over_documents", "over_metadata"]

_OPERATORS = {"==": "$eq", ">=": "$gte", "<=": "$lte"}


def operators(filter: Filter) -> dict[str, Any] | None:
    """As Chroma and PGVector take it; None where nothing is asked, for both reject `{}`.

    Example:
        >>> operators(Filter(user_id="u1", since=5.0))
        {'$and': [{'user_id': {'$eq': 'u1'}}, {'ended_at': {'$gte': 5.0}}]}
    """
    found = [{key: {_OPERATORS[op]: value}} for key, op, value in filter.conditions()]
    return {"$and": found} if len(found) > 1 else next(iter(found), None)


def over_documents(filter: Filter) -> Callable[[Document], bool] | None:
    """As the in-memory store takes it."""
    return (lambda document: filter.matches(document.metadata)) if filter.conditions() else None


def over_metadata(filter: Filter) -> Callable[[Mapping[str, Any]], bool] | None:
    """As FAISS takes it."""
    return filter.matches if filter.conditions() else None
