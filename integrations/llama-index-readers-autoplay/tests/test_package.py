from __future__ import annotations

import ast
import tomllib
from importlib import import_module
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


def test_it_uses_the_cores_public_names_alone():
    used = 0
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("autoplay_rag") for name in node.names), path
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "autoplay_rag"
            ):
                assert "._" not in str(node.module), path
                public = import_module(str(node.module)).__all__
                assert {name.name for name in node.names} <= set(public), f"{path}:{node.lineno}"
                used += 1
    assert used > 10


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
