"""Pytest fixtures and contracts for code that builds on this package.

Pytest finds the fixtures automatically if the package is installed: `local_connector` starts
connectors for a test, `make_payload` makes payloads.

A contract is a class of tests. Inherit from it and add the fixture or the methods in the table;
pytest then runs the tests. It needs pytest-asyncio with `asyncio_mode = "auto"`.

| contract | tests | add |
|---|---|---|
| `VectorStoreContract` | a `VectorStore` | a fixture `make_store` |
| `TextStoreContract` | a `TextStore` | a fixture `make_store` |
| `EmbedderContract` | an `Embedder` | a fixture `make_embedder` |
| `JournalContract`, `DurableJournalContract` | a `Journal` | a fixture `make_journal` |
| `LoaderContract` | a loader of streams | the methods `make` and `make_from_recording` |

Example:
    The whole test file of your own store::

        class TestMyStore(VectorStoreContract):
            @pytest.fixture
            def make_store(self, tmp_path):
                return lambda: MyStore(tmp_path / "store.db")
"""

# If the package is installed, pytest loads this module at every start. So it imports nothing
# heavy, and the contracts only on first use. It defines no `__dir__`, because pytest reads every
# name that `dir()` lists.
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from autoplay_rag.testing.fixtures import (
    MakePayload,
    RunningConnector,
    StartConnector,
    local_connector,
    make_payload,
)

if TYPE_CHECKING:
    from autoplay_rag.testing.embedders import EmbedderContract
    from autoplay_rag.testing.journals import DurableJournalContract, JournalContract
    from autoplay_rag.testing.loaders import LoaderContract
    from autoplay_rag.testing.stores import TextStoreContract, VectorStoreContract

__all__ = [
    "DurableJournalContract",
    "EmbedderContract",
    "JournalContract",
    "LoaderContract",
    "MakePayload",
    "RunningConnector",
    "StartConnector",
    "TextStoreContract",
    "VectorStoreContract",
    "local_connector",
    "make_payload",
]

_CONTRACTS = {
    "DurableJournalContract": "autoplay_rag.testing.journals",
    "EmbedderContract": "autoplay_rag.testing.embedders",
    "JournalContract": "autoplay_rag.testing.journals",
    "LoaderContract": "autoplay_rag.testing.loaders",
    "TextStoreContract": "autoplay_rag.testing.stores",
    "VectorStoreContract": "autoplay_rag.testing.stores",
}

# With this, a failed assertion of a contract shows its values, as in the user's own tests.
pytest.register_assert_rewrite(*sorted(set(_CONTRACTS.values())))


def __getattr__(name: str) -> Any:
    if name not in _CONTRACTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_CONTRACTS[name]), name)
