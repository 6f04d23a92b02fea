"""The recipe of a plain LangGraph graph runs unchanged, with a chat model from a script."""

from __future__ import annotations

import builtins
import re
import sys
import types
from pathlib import Path

import pytest
from autoplay_rag import IngestPipeline
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples
from autoplay_rag.stores import MemoryStore
from langchain_core.messages import AIMessage

RECIPE = Path(__file__).parents[3] / "docs" / "recipes" / "langgraph.md"
pytestmark = pytest.mark.skipif(
    not RECIPE.exists(), reason="the recipe is in the repository, not in the package's archive"
)


@pytest.fixture
def recipe(monkeypatch):
    [code] = re.findall(r"^```python\n(.*?)^```", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("recipe_graph")
    monkeypatch.setitem(sys.modules, "recipe_graph", module)
    exec(compile(code, str(RECIPE), "exec"), vars(module))
    return module


@pytest.fixture
async def pipeline(embeddings):
    async with IngestPipeline(MemoryStore(), embeddings, batch_window=0) as running:
        for payload in read_recording(samples()):
            await running.accept(payload)
        await running.drain()
        yield running


def called(name: str, **arguments) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": name}])


async def test_the_graph_knows_who_asks_reads_and_remembers(recipe, pipeline, scripted):
    model = scripted(
        called("search_sessions", query="card declined", user_id="u_003"),
        called("user_history"),
        "Try another card.",
        "As I said.",
    )
    graph = recipe.build_graph(pipeline, model)
    session = pipeline.live.get(user_id="u_002").session_id
    asker = recipe.Asker("u_002", session)
    assert await recipe.ask(graph, pipeline, asker, "Why was my card declined?") == (
        "Try another card."
    )
    first, second, third = model.seen
    for messages in (first, second, third):
        known, question = messages[0], messages[1]
        assert known.text.startswith("<user_activity>")
        assert "declined" in known.text
        assert question.text == "Why was my card declined?"
    assert "declined" in second[-1].text
    assert session in third[-1].text

    assert await recipe.ask(graph, pipeline, asker, "Again?") == "As I said."
    last = model.seen[-1]
    assert [
        message.text.startswith("<user_activity>\nWhat the user did in") for message in last
    ] == [
        *[False] * (len(last) - 2),
        True,
        False,
    ], "the activity is not in the state, and stands before the question"

    await pipeline.drain()
    turns = await pipeline.search("card declined", kind="chat", user_id="u_002")
    assert "Try another card." in "".join(turn.text for turn in turns)
    assert {turn.session_id for turn in turns} == {session}


@pytest.fixture
def stream(local_connector, tmp_path, monkeypatch) -> None:
    """What the recipe's first lines of shell set up."""
    connector = local_connector(samples(), token="uk_live_recipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPLAY_STREAM_URL", connector.url)
    monkeypatch.setenv("AUTOPLAY_APP_UNKEY_TOKEN", "uk_live_recipe")


@pytest.mark.usefixtures("stream")
async def test_its_main_runs(recipe, scripted, monkeypatch, capsys):
    recipe.init_chat_model = lambda name: scripted("Under Reports.")
    questions = iter(["Where is the export?", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(questions))
    await recipe.main()
    assert capsys.readouterr().out == "Under Reports.\n"
