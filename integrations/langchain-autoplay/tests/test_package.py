from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import langchain_autoplay as package


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
