"""The README's code runs unchanged against the local connector."""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
from pathlib import Path

import pytest
from autoplay_rag.devserver import samples
from fastapi.testclient import TestClient

README = Path(__file__).parents[1] / "README.md"
BLOCKS = {
    title: code
    for section in re.split(r"^## ", README.read_text(), flags=re.MULTILINE)[1:]
    for title in [section.partition("\n")[0]]
    for code in re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
}


async def run(code: str, names: dict[str, object]) -> dict[str, object]:
    compiled = compile(code, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = types.FunctionType(compiled, names)()
    if inspect.isawaitable(running):
        await running
    return names


@pytest.fixture
def names(local_connector, embeddings, scripted) -> dict[str, object]:
    return {
        "__name__": "readme",
        "URL": local_connector(samples()).url,
        "model": scripted("Under Reports."),
        "embeddings": embeddings,
    }


@pytest.mark.parametrize("title", list(BLOCKS))
async def test_each_block_runs(title, names, capsys):
    found = await run(BLOCKS[title], names)
    if app := found.get("app"):
        with TestClient(app):
            assert app.state.pipeline.health.state == "ok"
    else:
        printed = capsys.readouterr().out
        assert len(printed) > 10
        assert "None" not in printed


@pytest.fixture
def anonymous(tmp_path) -> Path:
    """A recording of the samples without a session id; the first samples have one."""
    recording = tmp_path / "anonymous.jsonl"
    lines = Path(samples()).read_text().splitlines(keepends=True)
    recording.write_text("".join(line for line in lines if not json.loads(line).get("session_id")))
    return recording


async def test_a_visit_without_a_session_is_printed_as_anonymous(names, anonymous, capsys):
    code = BLOCKS["Load the stream in a chain"].replace(
        "AutoplayLoader(URL,", "AutoplayLoader.from_recording(RECORDING,"
    )
    await run(code, {**names, "RECORDING": anonymous})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all(line.startswith("anonymous: Under") for line in printed)


def test_there_are_the_blocks_that_newcomers_look_for():
    assert len(BLOCKS) == 5
    assert max(len(block.splitlines()) for block in BLOCKS.values()) <= 14


async def test_the_agent_of_the_readme_knows_what_was_done(names):
    await run(BLOCKS["An agent that knows what the user did"], names)
    said = names["model"].seen[0][0].text
    assert said.startswith("<user_activity>")
    assert "declined" in said
