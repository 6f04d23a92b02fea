from __future__ import annotations

import pytest


@pytest.fixture
def server(embedding_server):
    """The name these tests have for it."""
    return embedding_server
