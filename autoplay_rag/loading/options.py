"""Arguments that loaders pass on: an unknown one is refused in the name of the loader."""

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
"""What a `LiveSource` takes besides url and token."""

LOADER_OPTIONS: Final = frozenset(inspect.signature(PayloadLoader).parameters) - {
    "source",
    "limits",
    "make",
}
"""What a `PayloadLoader` takes from a loader's user."""


def refuse_unknown(owner: type, given: Iterable[str], known: frozenset[str] = frozenset()) -> None:
    """Check the names of arguments before they are passed on.

    Args:
        owner: The class the user called.
        given: The names given beyond its own parameters.
        known: Those that somebody takes.

    Raises:
        TypeError: If one is unknown, as Python raises it for `owner` itself.

    Example:
        >>> refuse_unknown(PayloadLoader, ["max_docs"], CLIENT_OPTIONS)
        Traceback (most recent call last):
            ...
        TypeError: PayloadLoader() got an unexpected keyword argument 'max_docs'
    """
    for name in given:
        if name not in known:
            raise TypeError(f"{owner.__name__}() got an unexpected keyword argument {name!r}")
