"""Short names that many tests of stores use."""

from __future__ import annotations

from autoplay_rag.stores import Chunk, Filter

ALL = Filter()
EAST, NORTH = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]


def chunk(id: str, text: str = "", **metadata: str | float) -> Chunk:
    return Chunk(id, text or f"text of {id}", metadata)


def ids(found) -> list[str]:
    return [item.id for item in found]
