from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    SentenceSplitter,
    SentenceWindowNodeParser,
    TokenTextSplitter,
)
from llama_index.core.schema import Document, MetadataMode, TextNode

from llama_index.readers.autoplay.nodes import make_document, make_node, node_id, settle

LONG = " ".join(f"clicked button number {n}." for n in range(200))
METADATA = {
    "session_id": "s1",
    "user_id": "u1",
    "started_at": 1700000000.5,
    "urls": "https://app.example/" + "x" * 3000,
}


@given(st.text(min_size=1), st.integers(0, 10_000), st.text(min_size=1), st.integers(0, 10_000))
def test_ids_are_uuids_and_differ_where_anything_differs(one, at, other, elsewhere):
    assert str(UUID(node_id(one, at))) == node_id(one, at)
    assert (node_id(one, at) == node_id(other, elsewhere)) == ((one, at) == (other, elsewhere))


@pytest.mark.parametrize("mode", [MetadataMode.EMBED, MetadataMode.LLM])
def test_metadata_is_neither_embedded_nor_shown(mode: MetadataMode):
    assert make_document("d1", "clicked Export", METADATA).get_content(mode) == "clicked Export"
    node = make_node("d1", "clicked Export", METADATA, [1.0])
    assert node.get_content(mode) == "clicked Export"
    assert node.metadata == METADATA
    assert node.ref_doc_id == "d1"


@pytest.mark.parametrize("splitter", [SentenceSplitter, TokenTextSplitter])
def test_long_metadata_breaks_no_splitter(splitter):
    nodes = splitter(chunk_size=64, chunk_overlap=0)([make_document("d1", LONG, METADATA)])
    assert len(nodes) > 5
    assert all(node.metadata == METADATA for node in nodes)
    assert all(node.get_content(MetadataMode.EMBED) == node.text for node in nodes)


def test_a_splitters_nodes_get_the_same_ids_each_time():
    def split() -> list[TextNode]:
        documents = [make_document("d1", LONG, {}), make_document("d2", LONG, {})]
        return settle(SentenceSplitter(chunk_size=64, chunk_overlap=0)(documents))

    first, second = split(), split()
    assert [node.node_id for node in first] == [node.node_id for node in second]
    assert len({node.node_id for node in first}) == len(first)
    assert first[0].node_id == node_id("d1", 0)
    assert first[1].node_id == node_id("d1", 1)
    assert {node.ref_doc_id for node in first} == {"d1", "d2"}


@pytest.mark.parametrize(
    "parsers",
    [
        [HierarchicalNodeParser.from_defaults([256, 64])],
        [SentenceWindowNodeParser.from_defaults()],
        [SentenceSplitter(chunk_size=128, chunk_overlap=0), TokenTextSplitter(chunk_size=64)],
    ],
)
def test_nodes_of_other_and_of_several_parsers_get_the_same_ids_too(parsers):
    runs = []
    for _ in range(2):
        nodes = [make_document("d1", LONG, {})]
        for parser in parsers:
            nodes = parser(nodes)
        runs.append([(node.node_id, node.ref_doc_id) for node in settle(nodes)])
    assert runs[0] == runs[1]
    assert len(dict(runs[0])) == len(runs[0])
    assert {owner for _, owner in runs[0]} == {"d1"}


def test_neighbours_still_know_each_other():
    nodes = settle(
        SentenceSplitter(chunk_size=64, chunk_overlap=0)([make_document("d1", LONG, {})])
    )
    assert nodes[0].next_node.node_id == nodes[1].node_id
    assert nodes[1].prev_node.node_id == nodes[0].node_id


def test_parents_still_know_their_children():
    nodes = settle(HierarchicalNodeParser.from_defaults([256, 64])([make_document("d1", LONG, {})]))
    by_id = {node.node_id: node for node in nodes}
    [parent, *_] = [node for node in nodes if node.child_nodes]
    for child in parent.child_nodes:
        assert by_id[child.node_id].parent_node.node_id == parent.node_id


def test_an_undivided_document_becomes_a_node_of_its_own():
    document = make_document("d1", "clicked Export", METADATA)
    document.embedding = [1.0]
    [node] = settle([document])
    assert isinstance(node, TextNode)
    assert (node.node_id, node.ref_doc_id) == (node_id("d1"), "d1")
    assert (node.text, node.metadata, node.embedding) == ("clicked Export", METADATA, [1.0])
    assert node.get_content(MetadataMode.EMBED) == "clicked Export"


def test_a_node_without_a_document_is_known_by_its_content():
    [one, other] = [settle([TextNode(text=text)])[0] for text in ("a", "b")]
    [again] = settle([TextNode(text="a")])
    assert one.node_id == again.node_id != other.node_id


def test_documents_made_twice_are_equal():
    one, other = (make_document("d1", "clicked Export", METADATA) for _ in range(2))
    assert isinstance(one, Document)
    assert one.hash == other.hash
