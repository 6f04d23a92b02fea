from __future__ import annotations

import asyncio
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autoplay_rag.devserver import samples
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.testing import LoaderContract
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.readers.base import ReaderConfig
from llama_index.core.schema import Document, MetadataMode
from llama_index.core.storage.docstore import SimpleDocumentStore
from pydantic import ValidationError

from llama_index.readers.autoplay import AutoplayReader

URL = "https://connector.example/stream/acme"


class TestContract(LoaderContract):
    """The reader passes the contract of LangChain's loader."""

    def make(self, url: str, **options: Any) -> AutoplayReader:
        return AutoplayReader(url, **options)

    def make_from_recording(self, path: Path, **options: Any) -> AutoplayReader:
        return AutoplayReader.from_recording(path, **options)

    def lazy(self, loader: AutoplayReader) -> Iterator[Document]:
        return loader.lazy_load_data()

    def alazy(self, loader: AutoplayReader):
        return loader.alazy_load_data()

    def load(self, loader: AutoplayReader) -> list[Document]:
        return loader.load_data()

    async def aload(self, loader: AutoplayReader) -> list[Document]:
        return await loader.aload_data()

    def read(self, document: Document) -> tuple[str, str, dict[str, Any]]:
        return document.id_, document.text, document.metadata


def test_limits_are_arguments_of_the_load_methods_too(local_connector):
    reader = AutoplayReader(local_connector().url, max_documents=50)
    assert len(reader.load_data(max_documents=3)) == 3
    assert len(asyncio.run(reader.aload_data(max_documents=4))) == 4
    assert len(list(reader.lazy_load_data(max_documents=5))) == 5
    assert len(reader.load_data()) == 50
    endless = AutoplayReader(local_connector().url)
    assert len(endless.load_data(idle_seconds=2)) > 300
    with pytest.raises(ConfigurationError, match="max_documents must be a whole number above 0"):
        endless.load_data(max_documents=0)


def test_what_is_given_by_position_is_refused_not_passed_over(record, make_payload):
    reader = AutoplayReader.from_recording(record([make_payload("clicked")]))
    for load in (
        reader.load_data,
        lambda *args: list(reader.lazy_load_data(*args)),
        lambda *args: asyncio.run(_aload(reader, *args)),
        lambda *args: asyncio.run(anext(reader.alazy_load_data(*args))),
    ):
        with pytest.raises(TypeError, match="take only limits, by name"):
            load("other.jsonl", 3)


def test_it_is_immutable_because_changes_would_have_no_effect():
    reader = AutoplayReader.from_recording("visits.jsonl")
    for name, value in (("max_chars", 10), ("group_by", "session"), ("max_documents", 3)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(reader, name, value)


def test_an_empty_load_points_to_its_caller(record, make_payload):
    reader = AutoplayReader.from_recording(record([make_payload("clicked")]), include=("chat",))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader.load_data()
        asyncio.run(_aload(reader))
    assert [warning.filename for warning in caught] == [__file__, __file__]


async def _aload(reader: AutoplayReader, *args: Any) -> list[Document]:
    return await reader.aload_data(*args)


def test_metadata_is_there_but_neither_embedded_nor_shown(record, make_payload):
    [document] = AutoplayReader.from_recording(
        record([make_payload("Exported the report", user_id="u1")])
    ).load_data()
    assert document.metadata["user_id"] == "u1"
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        shown = document.get_content(mode)
        assert shown == document.text
        assert "u1" not in shown
        assert document.id_ not in shown


def test_a_round_trip_keeps_all_but_the_token(token):
    reader = AutoplayReader(
        URL, token, max_seconds=5, group_by="session", include={"summary"}, max_chars=500,
        read_timeout=3.0,
    )  # fmt: skip
    data = reader.to_dict()
    assert token not in json.dumps(data)
    again = AutoplayReader.from_dict(data)
    assert again.to_dict() == data
    assert again.source_options == {"read_timeout": 3.0}
    assert AutoplayReader.from_json(reader.to_json()).to_dict() == data
    assert token not in f"{reader!r} {reader} {reader.model_dump()} {reader.to_json()}"
    assert token.encode() not in pickle.dumps(reader)


def redact(payload):
    return payload


def test_a_function_must_be_given_again(token):
    reader = AutoplayReader(URL, token, redact=redact, on_drop=print)
    data = reader.to_dict()
    assert list(data["left_out"]) == ["redact", "on_drop"]
    with pytest.raises(ConfigurationError, match=r"made with `redact`.*redact=\.\.\."):
        AutoplayReader.from_dict(data)
    again = AutoplayReader.from_dict(data, redact=redact, on_drop=print)
    assert again.pipeline_options()["redact"] is redact


def test_a_pickle_keeps_what_it_can_and_says_what_it_cannot(token):
    reader = AutoplayReader(URL, token, redact=redact)
    again = pickle.loads(pickle.dumps(reader))
    assert again.pipeline_options()["redact"] is redact
    assert again.to_dict() == reader.to_dict()
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(AutoplayReader(URL, token, redact=lambda payload: payload))


def test_the_token_is_not_in_a_log_nor_in_an_error(token, caplog, local_connector):
    caplog.set_level(logging.DEBUG)
    connector = local_connector([], token="another")
    with pytest.raises(Exception, match="401") as raised:
        AutoplayReader(connector.url, token, max_seconds=5).load_data()
    assert token not in f"{raised.value!r} {caplog.text}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a url or a recording"),
        ({"url": URL, "recording": "visits.jsonl"}, "a url or a recording"),
        ({"url": "connector"}, "must start with http"),
        ({"url": URL, "include": ()}, "include takes"),
    ],
)
def test_what_can_never_work_is_refused_at_once(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AutoplayReader(**options)


def test_an_unknown_argument_is_refused():
    message = r"^AutoplayReader\(\) got an unexpected keyword argument 'nonsense'$"
    with pytest.raises(TypeError, match=message):
        AutoplayReader(URL, nonsense=1)
    with pytest.raises(TypeError, match=message):
        AutoplayReader.from_recording("visits.jsonl", nonsense=1)


def test_it_says_what_it_is(token):
    reader = AutoplayReader(url=URL, token=token)
    assert (reader.class_name(), reader.is_remote) == ("AutoplayReader", True)
    assert repr(reader) == f"AutoplayReader({URL!r})"
    assert AutoplayReader.from_recording("visits.jsonl").is_remote is False
    assert AutoplayReader("https://me:secret@connector.example/stream/acme").to_dict()["url"]
    assert "secret" not in repr(AutoplayReader("https://me:secret@connector.example/stream/acme"))


def test_a_pipeline_reads_from_it():
    reader = AutoplayReader.from_recording(samples())
    config = ReaderConfig(reader=reader, reader_kwargs={"max_documents": 5})
    nodes = IngestionPipeline(transformations=[SentenceSplitter()], readers=[config]).run()
    assert len({node.ref_doc_id for node in nodes}) == 5


def test_a_document_that_changed_replaces_the_old_one(record, make_payload, embed_model, chroma):
    clicks = make_payload("Opened the reports")
    first, second = make_payload(summary="Looked around."), make_payload(summary="Exported all.")
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), embed_model],
        vector_store=chroma,
        docstore=SimpleDocumentStore(),
        disable_cache=True,
    )
    for summary in (first, first, second):
        path = record([clicks, summary])
        [document] = AutoplayReader.from_recording(path, group_by="session").load_data()
        document.metadata.pop("source")  # differs between test files
        pipeline.run(documents=[document])
    [node] = chroma.get_nodes(None)
    assert "Exported all." in node.text
    assert len(embed_model.texts) == 2
