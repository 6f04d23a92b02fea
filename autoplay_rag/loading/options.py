"""Keyword arguments that loaders pass on. An unknown one raises an error that names the loader."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Final

from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.loading.loader import PayloadLoader

__all__ = ["CLIENT_OPTIONS", "LOADER_OPTIONS", "refuse_unknown"]

CLIENT_OPTIONS: Final = frozenset(inspect.signature(AsyncConnectorClient).parameters) - {
    "url",
    "token",
    "overflow",
}
"""The arguments of a `LiveSource` other than url and token."""

LOADER_OPTIONS: Final = frozenset(inspect.signature(PayloadLoader).parameters) - {
    "source",
    "limits",
    "make",
}
"""The arguments of a `PayloadLoader` that a loader's user may set."""


def refuse_unknown(owner: type, given: Iterable[str], known: frozenset[str] = frozenset()) -> None:
    """Check the names of arguments before they are passed on.

    Args:
        owner: The class that the user called.
        given: The names given in addition to its own parameters.
        known: The names that are accepted.

    Raises:
        TypeError: If a name is unknown. The message is Python's own for `owner`.

    Example:
        >>> refuse_unknown(PayloadLoader, ["max_docs"], CLIENT_OPTIONS)
        Traceback (most recent call last):
            ...
        TypeError: PayloadLoader() got an unexpected keyword argument 'max_docs'
    """
    for name in given:
        if name not in known:
            raise TypeError(f"{owner.__name__}() got an unexpected keyword argument {name!r}")
