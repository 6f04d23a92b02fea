"""LangChain's `index()` and `aindex()` with the loader's documents, with and without a splitter."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from autoplay_rag.devserver import samples
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_autoplay import AutoplayLoader

RECIPE = Path(__file__).parents[3] / "docs" / "recipes" / "langchain-index.md"
ARGUMENTS = {"source_id_key": "chunk_id", "key_encoder": "sha256"}
MODES = [None, "incremental", "full", "scoped_full"]


def loaded(count: int, *, group_by="session", chunk_size: int | None = 100) -> list[Document]:
    loader = AutoplayLoader.from_recording(samples(), group_by=group_by, max_documents=count)
    if chunk_size is None:
        return loader.load()
    splitter = RecursiveCharacterTextSplitter(chunk_size=chunk_size, chunk_overlap=0)
    return splitter.split_documents(loader.load())


def texts(documents) -> Counter:
    return Counter((d.metadata["chunk_id"], d.page_content) for d in documents)


class Indexed:
    """A vector store and its record manager, filled by one of the two functions."""

    def __init__(self, embeddings, cleanup, function, **options) -> None:
        self.vectorstore = InMemoryVectorStore(embeddings)
        self.records = InMemoryRecordManager("visits")
        self.records.create_schema()
        self._function = function
        self._options = {"cleanup": cleanup, **ARGUMENTS, **options}

    async def run(self, documents) -> dict:
        given = (documents, self.records, self.vectorstore)
        if self._function is aindex:
            return await aindex(*given, **self._options)
        return index(*given, **self._options)

    @property
    def texts(self) -> Counter:
        entries = self.vectorstore.store.values()
        return Counter((e["metadata"]["chunk_id"], e["text"]) for e in entries)


@pytest.fixture(params=MODES, ids=str)
def cleanup(request):
    return request.param


@pytest.fixture(params=[index, aindex], ids=["index", "aindex"])
def make_indexed(request, embeddings, cleanup):
    return lambda **options: Indexed(embeddings, cleanup, request.param, **options)


@pytest.mark.parametrize(
    ("group_by", "chunk_size"),
    [("session", 60), ("session", 200), ("session", None), ("payload", 60), ("payload", None)],
)
async def test_every_piece_is_kept(make_indexed, group_by, chunk_size):
    pieces = loaded(30, group_by=group_by, chunk_size=chunk_size)
    assert len(pieces) > (30 if chunk_size == 60 else 29)
    indexed = make_indexed()
    await indexed.run(pieces)
    # Two pieces of one document with the same text count as one.
    assert indexed.texts == Counter(texts(pieces).keys())


async def test_the_same_again_changes_nothing(make_indexed):
    pieces = loaded(20)
    indexed = make_indexed(batch_size=len(pieces))
    await indexed.run(pieces)
    before = dict(indexed.vectorstore.store)
    result = await indexed.run(pieces)
    assert (result["num_added"], result["num_deleted"]) == (0, 0)
    assert indexed.vectorstore.store == before


async def test_batches_that_divide_a_document_lose_nothing(make_indexed):
    pieces = loaded(20)
    indexed = make_indexed(batch_size=7)
    for _ in range(2):
        await indexed.run(pieces)
        assert indexed.texts == Counter(texts(pieces).keys())


async def test_a_later_run_keeps_what_an_earlier_one_brought(make_indexed, cleanup):
    everything = loaded(40)
    first = loaded(20)
    later = everything[len(first) :]
    indexed = make_indexed()
    await indexed.run(first)
    await indexed.run(later)
    kept = later if cleanup == "full" else everything
    assert indexed.texts == Counter(texts(kept).keys())


async def test_an_event_delivered_again_takes_the_place_of_what_was_stored(make_indexed, cleanup):
    pieces = loaded(5)
    indexed = make_indexed()
    await indexed.run(pieces)
    for piece in pieces:
        piece.metadata["forwarded_at"] += 60.0
    await indexed.run(pieces)
    copies = 2 if cleanup is None else 1
    assert indexed.texts == Counter(dict.fromkeys(texts(pieces), copies))


@pytest.mark.skipif(
    not RECIPE.exists(), reason="the recipe is in the repository, not in the package's archive"
)
def test_the_recipe_runs_and_keeps_every_piece(capsys):
    [code] = re.findall(r"^```python\n(.*?)^```", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    names = {"__name__": "recipe"}
    exec(compile(code, str(RECIPE), "exec"), names)
    assert len(names["pieces"]) > len(names["documents"])
    stored = names["vectorstore"].store.values()
    assert len(stored) == len(texts(names["pieces"]))
    assert names["result"]["num_added"] == len(stored)
    assert capsys.readouterr().out.startswith(f"{len(names['documents'])} documents, ")
    for name, value in ARGUMENTS.items():
        assert f'{name}="{value}"' in code
