from __future__ import annotations

import pytest

from autoplay_rag.testing import VectorStoreContract


class TestContract(VectorStoreContract):
    score_tolerance = 5e-4  # half precision, in three dimensions

    @pytest.fixture
    def make_store(self, make_pg_store):
        return make_pg_store
