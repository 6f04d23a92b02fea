"""Nodes with deterministic ids (pure).

LlamaIndex's splitters use random node ids, so a document that is ingested twice is stored twice. Here
a node's id is derived from the id of its document and its position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid5

from autoplay_rag.stores import Changes, Metadata
from llama_index.core.schema import (
    BaseNode,
    Document,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)

__all__ = ["change_metadata", "make_document", "make_node", "node_id", "settle"]

# Some stores (Qdrant, Weaviate) accept only UUIDs as ids.
_NAMESPACE = UUID("6d1a2f0e-95c1-5b0c-9c55-5d0a7a4f6f3b")


def node_id(document_id: str, position: int = 0) -> str:
    """Return the id of a document's node: a UUID.

    Args:
        document_id: The document's id.
        position: The position of the node in the document, from 0.

    Example:
        >>> node_id("d41d8cd98f00b204e9800998ecf8427e")
        'aaad4d14-5b95-5d5b-9931-277636578d79'
    """
    return str(uuid5(_NAMESPACE, f"{position}/{document_id}"))


def make_document(id: str, text: str, metadata: Metadata) -> Document:
    """Make a document whose metadata is for filters: not embedded and not shown to a model.

    Ids, times and addresses cost tokens and do not describe what a user did. A splitter that reserves
    space for long metadata fails.
    """
    return Document(
        id_=id,
        text=text,
        metadata=dict(metadata),
        excluded_embed_metadata_keys=list(metadata),
        excluded_llm_metadata_keys=list(metadata),
    )


def make_node(id: str, text: str, metadata: Metadata, embedding: Sequence[float]) -> TextNode:
    """Make the only node of a document, with its vector; metadata as in `make_document`."""
    return TextNode(
        id_=node_id(id),
        text=text,
        metadata=dict(metadata),
        embedding=list(embedding),
        excluded_embed_metadata_keys=list(metadata),
        excluded_llm_metadata_keys=list(metadata),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=id)},
    )


def change_metadata(node: BaseNode, changes: Changes) -> None:
    """Change a node's metadata, also in its relationships.

    A new key is not embedded and not shown to a model, as in `make_document`.

    Args:
        node: The node, which is changed in place.
        changes: The keys to set; None removes a key.

    Example:
        >>> node = make_node("c1", "Opened billing", {"email": "a@b.example"}, [0.6, 0.8])
        >>> change_metadata(node, {"user_id": "u1", "email": None})
        >>> node.metadata, node.excluded_llm_metadata_keys
        ({'user_id': 'u1'}, ['email', 'user_id'])
    """
    node.metadata = _changed(node.metadata, changes)
    for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
        keys.extend(key for key in changes if key not in keys)
    for related in node.relationships.values():
        for info in [related] if isinstance(related, RelatedNodeInfo) else related:
            if info.metadata:
                info.metadata = _changed(info.metadata, changes)


def _changed(metadata: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    merged = {**metadata, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def settle(nodes: Iterable[BaseNode]) -> list[BaseNode]:
    """Give nodes deterministic ids, and update the relationships between them.

    A document that was not split becomes one node. A node without a document is identified by its
    content.

    Args:
        nodes: The result of transformations; the nodes of a document are in order.
    """
    settled = [_as_node(node) for node in nodes]
    counts: dict[str, int] = {}
    renamed: dict[str, str] = {}
    for node in settled:
        owner = node.ref_doc_id or node.hash
        position = counts.get(owner, 0)
        counts[owner] = position + 1
        renamed[node.node_id] = node_id(owner, position)
    for node in settled:
        node.id_ = renamed[node.node_id]
        for kind, related in node.relationships.items():
            if kind is not NodeRelationship.SOURCE:
                _rename(related, renamed)
    return settled


def _as_node(node: BaseNode) -> BaseNode:
    if not isinstance(node, Document) or node.ref_doc_id is not None:
        return node
    return TextNode(
        id_=node.id_,
        text=node.get_content(metadata_mode=MetadataMode.NONE),
        metadata=node.metadata,
        embedding=node.embedding,
        excluded_embed_metadata_keys=node.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=node.excluded_llm_metadata_keys,
        relationships={
            **node.relationships,
            NodeRelationship.SOURCE: node.as_related_node_info(),
        },
    )


def _rename(
    related: RelatedNodeInfo | Iterable[RelatedNodeInfo], renamed: Mapping[str, str]
) -> None:
    for info in [related] if isinstance(related, RelatedNodeInfo) else related:
        info.node_id = renamed.get(info.node_id, info.node_id)
