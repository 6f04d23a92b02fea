from __future__ import annotations

import tomllib
from pathlib import Path

import llama_index.core
from llama_index.core.readers.base import BasePydanticReader, BaseReader

import llama_index.readers.autoplay as package

ROOT = Path(__file__).parent.parent


def test_class():
    names_of_base_classes = [base.__name__ for base in package.AutoplayReader.__mro__]
    assert BaseReader.__name__ in names_of_base_classes
    assert BasePydanticReader.__name__ in names_of_base_classes


def test_the_public_names():
    assert package.__all__ == [
        "AutoplayReader",
        "LiveIngestion",
        "LlamaIndexEmbedder",
        "LlamaIndexStore",
        "SessionContextBlock",
        "metadata_filters",
        "stream_into",
    ]
    assert all(getattr(package, name).__doc__ for name in package.__all__)


def test_it_leaves_the_namespace_to_all():
    folder = Path(package.__file__).parent
    assert (folder / "py.typed").exists()
    assert not (folder.parent / "__init__.py").exists()
    assert not (folder.parent.parent / "__init__.py").exists()
    assert llama_index.core.__version__


def test_the_metadata_llamahub_asks_for():
    hub = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["llamahub"]
    assert hub["import_path"] == "llama_index.readers.autoplay"
    assert all(hasattr(package, name) for name in hub["class_authors"])
