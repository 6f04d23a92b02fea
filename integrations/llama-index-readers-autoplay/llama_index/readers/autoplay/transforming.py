"""Runs a target's transformations without blocking the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from autoplay_rag.errors import StoreRejectedError
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

from llama_index.readers.autoplay.embedder import LlamaIndexEmbedder

__all__ = ["check_embedded", "embed", "transform"]


async def transform(
    nodes: Sequence[BaseNode], transformations: Sequence[TransformComponent]
) -> Sequence[BaseNode]:
    """Apply transformations one after another, uncached.

    LlamaIndex's cache is not used: its key is a whole batch, which never repeats in a stream, and in
    memory it grows forever.
    """
    for component in transformations:
        if isinstance(component, BaseEmbedding):
            nodes = await embed(nodes, component)
        elif _blocks(component):
            nodes = await asyncio.to_thread(component, list(nodes))
        else:
            nodes = await component.acall(list(nodes))
    return nodes


async def embed(nodes: Sequence[BaseNode], embed_model: BaseEmbedding) -> Sequence[BaseNode]:
    """Embed the nodes that have no embedding."""
    missing = [node for node in nodes if node.embedding is None]
    if missing:
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in missing]
        vectors = await LlamaIndexEmbedder(embed_model).embed(texts)
        if len(vectors) != len(texts):
            raise StoreRejectedError(
                f"{type(embed_model).__name__} returned {len(vectors)} vectors for {len(texts)} texts"
            )
        for node, vector in zip(missing, vectors, strict=True):
            node.embedding = list(vector)
    return nodes


def check_embedded(nodes: Sequence[BaseNode]) -> None:
    """Refuse invalid vectors, before old nodes are deleted.

    Raises:
        StoreRejectedError: If a vector is empty or contains NaN, or dimensions differ.
    """
    dimension: int | None = None
    for node in nodes:
        if not node.embedding or not math.isfinite(sum(node.embedding)):
            raise StoreRejectedError(
                f"the vector of a node of document {node.ref_doc_id} is empty or holds NaN"
            )
        if dimension not in (None, len(node.embedding)):
            raise StoreRejectedError(
                f"a batch has vectors of dimension {dimension} and {len(node.embedding)}"
            )
        dimension = len(node.embedding)


def _blocks(component: TransformComponent) -> bool:
    """Whether it has only LlamaIndex's default async method, which blocks the loop."""
    if isinstance(component, NodeParser):
        return type(component)._aparse_nodes is NodeParser._aparse_nodes  # noqa: SLF001 - the one that tells
    return type(component).acall is TransformComponent.acall
