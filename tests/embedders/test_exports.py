from __future__ import annotations

import subprocess
import sys

import pytest

from autoplay_rag import embedders

CODE = """
import sys
import autoplay_rag.embedders
from autoplay_rag.embedders import OpenAIEmbedder
OpenAIEmbedder(api_key="k")
print(*(n for n in ("numpy", "onnxruntime", "openai", "tokenizers") if n in sys.modules))
"""


def test_importing_loads_none_of_the_optional_packages():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_is_there():
    assert {name: hasattr(embedders, name) for name in embedders.__all__} == dict.fromkeys(
        ["Embedder", "LocalEmbedder", "OpenAIEmbedder", "as_embedder"], True
    )
    assert dir(embedders) == embedders.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = embedders.Nothing
