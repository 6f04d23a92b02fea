"""The core's store contract, applied to LangChain's stores."""

from __future__ import annotations

import pytest
from autoplay_rag.testing import TextStoreContract

from langchain_autoplay import LangChainStore


class _Contract(TextStoreContract):
    name: str
    keeps_model = False  # the vector store embeds and does not name its model

    @pytest.fixture
    def make_store(self, new_vectorstore):
        return lambda: LangChainStore(new_vectorstore(self.name))


class TestInMemory(_Contract):
    name = "memory"


class TestChroma(_Contract):
    name = "chroma"


class TestChromaByCosine(_Contract):
    name = "chroma-cosine"


class TestFaiss(_Contract):
    name = "faiss"
