"""The README's code runs unchanged, one block after another."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.llms import MockLLM

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL
)


@pytest.fixture
def settings(embed_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that a reader of the README has set up."""
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", embed_model)


@pytest.mark.usefixtures("settings")
async def test_all_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(BLOCKS) == 8
    for number, block in enumerate(BLOCKS):
        code = compile(block, f"README block {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        found = eval(code, names)
        if inspect.iscoroutine(found):
            await found
    await names["memory"].sql_store._async_engine.dispose()
    assert names["ingestion"].ledger.stored == 369
    sources = names["response"].source_nodes
    assert {source.metadata["user_id"] for source in sources} == {"u_030"}
    assert "promo code" in str(names["response"]).lower()
    assert {hit.metadata["user_id"] for hit in names["hits"]} == {"u_030"}
    printed = capsys.readouterr().out
    assert "visits, each as one document" in printed
    assert "None" not in printed
    # The model repeats its input: the block comes before the question.
    block = "<recent_user_activity>", "</recent_user_activity>", "</memory>"
    assert all(tag in printed for tag in block)
    assert "</memory>\nWhy does my promo code not work?" in printed
