from __future__ import annotations

import pytest

from autoplay_rag.embedders.named import check_embedder_name, make_embedder
from autoplay_rag.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("local", "local:all-MiniLM-L6-v2-int8"),
        ("local:fp32", "local:all-MiniLM-L6-v2-int8"),
        ("local:int8", "local:all-MiniLM-L6-v2-w8a8"),
        ("openai:text-embedding-3-small", "text-embedding-3-small"),
    ],
)
def test_a_name_gives_its_embedder(name, model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
    check_embedder_name(name)
    assert make_embedder(name).model.removeprefix("openai:") == model


@pytest.mark.parametrize("name", ["", "bert", "local:", "local:int4", "Local", "open:x"])
def test_another_name_is_refused(name):
    for use in (check_embedder_name, make_embedder):
        with pytest.raises(ConfigurationError, match=r"local, local:int8 or openai:MODEL"):
            use(name)
