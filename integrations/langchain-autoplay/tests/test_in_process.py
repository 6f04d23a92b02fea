"""`LangChainStore.in_process`: a real Chroma in a worker process of its own."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from autoplay_rag import ActionsPayload, Chunk, Filter, IngestPipeline, SlimAction
from autoplay_rag.devserver import samples
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.testing import TextStoreContract

from langchain_autoplay import AutoplayRetriever, LangChainStore

sys.path.insert(0, str(Path(__file__).parent))  # the worker gets the same path

import chroma_on_disk


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A folder whose worker stays for all tests: starting one takes seconds."""
    path = str(tmp_path_factory.mktemp("chroma"))
    keeper = LangChainStore.in_process(chroma_on_disk.make_chroma, path)
    asyncio.run(keeper.start("m"))
    yield path
    asyncio.run(keeper.aclose())


@pytest.fixture
def make_store(path):
    asyncio.run(LangChainStore.in_process(chroma_on_disk.make_chroma, path).drop())
    return lambda: LangChainStore.in_process(chroma_on_disk.make_chroma, path)


class TestChromaInAProcess(TextStoreContract):
    keeps_model = False

    @pytest.fixture
    def make_store(self, make_store):
        return make_store


async def test_a_pipeline_and_its_searches_work_over_it(make_store, tmp_path):
    store = make_store()
    async with IngestPipeline(store, journal=tmp_path / "journal.db") as pipeline:
        for number in range(30):
            click = SlimAction("Export", f"Clicked export {number}")
            payload = ActionsPayload("acme", f"s{number}", f"u{number % 3}", actions=[click])
            await pipeline.on_actions(payload)
        await pipeline.drain(30)
        assert pipeline.ledger.stored == await store.count() == 30
        store._worker._process.kill()
        await pipeline.on_actions(ActionsPayload("acme", "late", "u1", actions=[click]))
        await pipeline.drain(30)
        assert pipeline.ledger.stored == await store.count() == 31
        assert pipeline.ledger.dead == 0
        retriever = AutoplayRetriever(pipeline, scope="user_id", mode="dense", k=20)
        found = await retriever.ainvoke("Export", {"configurable": {"user_id": "u1"}})
        assert {document.metadata["user_id"] for document in found} == {"u1"}
        assert len(found) == 11
        assert {"scan", "identity", "drop"} <= store.capabilities


async def test_a_filter_builder_goes_along(make_store, path):
    store = LangChainStore.in_process(
        chroma_on_disk.make_chroma, path, filter_builder=chroma_on_disk.user_alone
    )
    await store.add([Chunk("a", "one", {"user_id": "u1"}), Chunk("b", "one", {"user_id": "u2"})])
    # The builder leaves out the session.
    found = await store.search("one", 5, Filter(user_id="u2", session_id="s9"))
    assert [match.id for match in found] == ["b"]
    await store.aclose()


async def test_a_vector_store_in_memory_is_refused():
    store = LangChainStore.in_process(chroma_on_disk.make_in_memory)
    with pytest.raises(ConfigurationError, match="LangChainStore of InMemoryVectorStore"):
        await store.start("m")
    await store.aclose()


def test_what_is_no_function_of_a_module_is_refused(make_store):
    with pytest.raises(ConfigurationError, match="top level of a module"):
        LangChainStore.in_process(lambda: None)
    with pytest.raises(
        ConfigurationError, match=r"LangChainStore\.in_process\(\.\.\., python=PATH\)"
    ):
        LangChainStore.in_process(chroma_on_disk.make_in_memory, python="/nowhere/python3")
    with pytest.raises(ConfigurationError, match="max_batch"):
        LangChainStore.in_process(chroma_on_disk.make_in_memory, max_batch=0)


RECIPE = Path(__file__).parents[3] / "docs" / "recipes" / "langchain-process.md"


@pytest.mark.slow  # loads Chroma twice
@pytest.mark.skipif(not RECIPE.exists(), reason="the recipe is in the repository alone")
async def test_the_program_of_the_recipe_runs(local_connector, tmp_path):
    [code] = re.findall(r"^```python\n(.*?)^```", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    code = code.replace("https://connector.example.com/stream/acme", local_connector(samples()).url)
    (tmp_path / "app.py").write_text(code.replace("idle_seconds=60", "idle_seconds=2"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "app.py", cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    found = [line for line in out.decode().splitlines() if line.startswith("2026-03-03T")]
    assert 1 <= len(found) <= 3, out.decode()
    assert "Traceback" not in out.decode()
