from __future__ import annotations

import pytest


@pytest.fixture
def server(embedding_server):
    """A shorter name for these tests."""
    return embedding_server
