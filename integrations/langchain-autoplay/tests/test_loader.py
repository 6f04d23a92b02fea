from __future__ import annotations

import uuid

import faiss
import pytest
from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.devserver import samples
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.testing import LoaderContract
from langchain_chroma import Chroma
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_core.document_loaders import BaseLoader
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.load import dumps
from langchain_core.prompts import PromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pydantic import SecretStr

from langchain_autoplay import AutoplayLoader


class TestContract(LoaderContract):
    def make(self, url, **options):
        return AutoplayLoader(url, **options)

    def make_from_recording(self, path, **options):
        return AutoplayLoader.from_recording(path, **options)


def test_it_is_a_loader_that_langchain_knows(local_connector):
    loader = AutoplayLoader(local_connector().url, max_documents=3)
    assert isinstance(loader, BaseLoader)
    assert len(loader.load_and_split(RecursiveCharacterTextSplitter(chunk_size=4_000))) == 3


def test_a_secret_token_is_taken_and_written_nowhere(local_connector, make_payload):
    connector = local_connector([make_payload("Clicked Save")], token="uk_live_secret")
    loader = AutoplayLoader(connector.url, SecretStr("uk_live_secret"), max_documents=1)
    assert len(loader.load()) == 1
    assert "uk_live_secret" not in dumps(loader)
    assert repr(loader) == f"AutoplayLoader('{connector.url}')"


def test_what_a_splitter_keeps_still_says_where_it_is_from():
    loader = AutoplayLoader.from_recording(samples(), group_by="session", max_documents=5)
    documents = loader.load()
    parts = RecursiveCharacterTextSplitter(chunk_size=100, chunk_overlap=0).split_documents(
        documents
    )
    assert {part.metadata["chunk_id"] for part in parts} == {document.id for document in documents}


def test_the_warning_of_an_empty_load_points_to_the_caller(local_connector):
    loader = AutoplayLoader(local_connector([]).url, max_seconds=0.05)
    with pytest.warns(UserWarning, match="no history") as warned:
        loader.load()
    assert warned[0].filename == __file__


async def test_the_warning_of_an_empty_aload_does_so_too(local_connector):
    loader = AutoplayLoader(local_connector([]).url, max_seconds=0.05)
    with pytest.warns(UserWarning, match="no history") as warned:
        await loader.aload()
    assert warned[0].filename == __file__


def test_client_options_are_checked_when_the_loader_is_made():
    with pytest.raises(ConfigurationError, match="max_retries"):
        AutoplayLoader("http://127.0.0.1:9/stream/x", max_retries=-1)


@pytest.mark.parametrize("make", [AutoplayLoader, AutoplayLoader.from_recording])
def test_an_unknown_argument_is_refused_in_the_loaders_name(make):
    message = r"^AutoplayLoader\(\) got an unexpected keyword argument 'max_docs'$"
    with pytest.raises(TypeError, match=message):
        make("http://127.0.0.1:9/stream/x", max_docs=3)


@pytest.mark.parametrize("kind", ["memory", "chroma", "faiss"])
def test_documents_go_into_a_store_as_they_are(kind, embeddings):
    documents = AutoplayLoader.from_recording(samples()).load()
    if kind == "memory":
        store = InMemoryVectorStore(embeddings)
    elif kind == "chroma":
        store = Chroma(f"loaded-{uuid.uuid4()}", embedding_function=embeddings)
    else:
        store = FAISS(embeddings, faiss.IndexFlatL2(64), InMemoryDocstore(), {})
    ids = store.add_documents(documents, ids=[document.id for document in documents])
    assert ids == [document.id for document in documents]
    longest = max(documents, key=lambda document: len(document.page_content))
    [found] = store.similarity_search(longest.page_content, k=1)
    assert (found.page_content, found.metadata) == (longest.page_content, longest.metadata)


async def test_a_chain_over_live_documents(local_connector, make_payload):
    connector = local_connector([make_payload("Clicked Export"), make_payload(summary="Exported.")])
    prompt = PromptTemplate.from_template("Title this: {activity}")
    loader = AutoplayLoader(connector.url, max_documents=2)
    prompts = [
        (await prompt.ainvoke({"activity": document.page_content})).to_string()
        async for document in loader.alazy_load()
    ]
    assert prompts[1] == "Title this: Exported."


@pytest.mark.parametrize("cleanup", [None, "incremental", "scoped_full"])
def test_the_indexing_api_keeps_what_earlier_runs_brought(
    tmp_path, make_payload, embeddings, cleanup
):
    store, records = InMemoryVectorStore(embeddings), InMemoryRecordManager("autoplay")
    records.create_schema()
    path = tmp_path / "live.jsonl"  # one source, like a stream, with other content in each run
    loader = AutoplayLoader.from_recording(path)

    def run(*payloads, source_id_key="chunk_id"):
        path.unlink(missing_ok=True)
        with RecordingWriter(path) as recording:
            for payload in payloads:
                recording.write(payload)
        return index(
            loader,
            records,
            store,
            cleanup=cleanup,
            source_id_key=source_id_key,
            key_encoder=lambda document: document.id,
        )

    first = [
        make_payload("Clicked Export", session_id="s1"),
        make_payload("Clicked", session_id=""),
    ]
    assert run(*first)["num_added"] == 2
    ids = set(store.store)
    assert ids == {document.id for document in loader.load()}
    assert run(make_payload("Clicked Save", session_id="s2"))["num_deleted"] == 0
    assert len(store.store) == 3
    assert run(*first)["num_skipped"] == 2
    assert ids < set(store.store)
    if cleanup:  # shows why `source_id_key` is not "source"
        run(make_payload("Clicked Send", session_id="s3"), source_id_key="source")
        run(make_payload("Clicked Back", session_id="s4"), source_id_key="source")
        assert "Clicked Send" not in str(store.store)
