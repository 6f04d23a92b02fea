from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import llama_index.core
import pytest
from llama_index.core.readers.base import BasePydanticReader, BaseReader

import llama_index.readers.autoplay as package

ROOT = Path(__file__).parent.parent
SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
PUBLIC = {
    "autoplay_rag",
    "autoplay_rag.devserver",
    "autoplay_rag.embedders",
    "autoplay_rag.errors",
    "autoplay_rag.loading",
    "autoplay_rag.sources",
    "autoplay_rag.stores",
}


def test_class():
    names_of_base_classes = [base.__name__ for base in package.AutoplayReader.__mro__]
    assert BaseReader.__name__ in names_of_base_classes
    assert BasePydanticReader.__name__ in names_of_base_classes


def test_the_public_names():
    assert package.__all__ == [
        "AutoplayReader",
        "AutoplayRetriever",
        "LiveIngestion",
        "LlamaIndexEmbedder",
        "LlamaIndexStore",
        "LocalEmbedding",
        "SessionContextBlock",
        "autoplay_tools",
        "metadata_filters",
        "stream_into",
    ]
    assert all(getattr(package, name).__doc__ for name in package.__all__)


def core_imports(code: str) -> Iterator[tuple[str, str]]:
    """Module and name of everything that the code imports from the core."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names if _is_core(name.name))
        elif isinstance(node, ast.ImportFrom) and _is_core(node.module or ""):
            yield from ((str(node.module), name.name) for name in node.names)


def _is_core(module: str) -> bool:
    return module.partition(".")[0] == "autoplay_rag"


def examples(path: Path) -> str:
    """The first lines of the import statements in a page or in docstrings."""
    found = re.findall(
        r"^(?:\s*>>> )?(from autoplay_rag\S* import [\w, ]+)$", path.read_text(), re.MULTILINE
    )
    return "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_package_uses_public_names_of_the_core_alone(path):
    for code in (path.read_text(), examples(path)):
        for module, name in core_imports(code):
            assert module in PUBLIC, f"{path} imports {module}"
            assert name in import_module(module).__all__, f"{module}.{name} is not public"


def test_the_readme_uses_public_names_of_the_core_alone():
    found = list(core_imports(examples(ROOT / "README.md")))
    assert found
    for module, name in found:
        assert module in PUBLIC
        assert name in import_module(module).__all__


def test_the_check_sees_imports_at_every_depth():
    code = (
        "import autoplay_rag.live\nif 1:\n def f():\n  from autoplay_rag.content.render import a, b"
    )
    assert list(core_imports(code)) == [
        ("autoplay_rag.live", ""),
        ("autoplay_rag.content.render", "a"),
        ("autoplay_rag.content.render", "b"),
    ]
    assert sum(len(list(core_imports(path.read_text()))) for path in SOURCES) > 20


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


CONSTRAINTS = ROOT.parents[1] / "constraints.txt"


@pytest.mark.skipif(
    not CONSTRAINTS.exists(), reason="the pins are in the repository, not in the package's archive"
)
def test_the_readme_names_the_versions_that_were_tried():
    """The range goes from the oldest allowed version to the pinned one."""
    name = "llama-index-core"
    [oldest] = re.findall(rf'"{name}>=(\d+\.\d+),', (ROOT / "pyproject.toml").read_text())
    [pinned] = re.findall(rf"^{name}==(\d+\.\d+)", CONSTRAINTS.read_text(), re.MULTILINE)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{name} {oldest} to {pinned}" in readme
