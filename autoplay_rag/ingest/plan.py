"""The plan of a batch: what will be stored for it, settled before anything is embedded. Pure.

The plan is committed to the journal first. After a crash it is carried out as it stands, so
that what was half stored is overwritten and never doubled, whatever the settings are by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag.content.chunks import Accepted, draft_chunks, metadata_of
from autoplay_rag.content.render import Render
from autoplay_rag.stores.base import Chunk

__all__ = ["Batch", "Planned", "PlannedChunk", "Planner"]


class PlannedChunk(msgspec.Struct, frozen=True):
    """A chunk with where it came from.

    Attributes:
        id: The chunk's id.
        text: What is embedded.
        metadata: Flat.
        sources: (sequence number, payload key) of each payload in it, in order.
        tokens: What embedding it costs, as the embedder counts.
    """

    id: str
    text: str
    metadata: dict[str, str | int | float]
    sources: list[tuple[int, str]]
    tokens: int

    def as_chunk(self) -> Chunk:
        """The chunk as stores take it."""
        return Chunk(self.id, self.text, self.metadata)


class Batch(msgspec.Struct):
    """The chunks of one session that go on together.

    Attributes:
        id: Its number in the journal.
        lane: The session's lane.
        model: The embedder's name when it was planned.
        chunks: In the session's order.
        unplanned: (sequence number, error) of payloads that could not be rendered.
        replayed: Whether it was acknowledged before and is stored again, to be safe.
    """

    id: int
    lane: int
    model: str
    chunks: list[PlannedChunk]
    unplanned: list[tuple[int, str]] = []
    replayed: bool = False

    @property
    def seqs(self) -> set[int]:
        """The sequence numbers of all its payloads."""
        planned = {seq for chunk in self.chunks for seq, _ in chunk.sources}
        return planned | {seq for seq, _ in self.unplanned}


Planned = tuple[list[PlannedChunk], list[tuple[int, str]]]


@dataclass(frozen=True, slots=True)
class Planner:
    """How payloads become planned chunks.

    Attributes:
        render: Makes a chunk's text.
        count_tokens: What a text costs.
        max_actions: The most actions in one chunk.
        include_email: Whether addresses go into the store.
        model: The embedder's name.
    """

    render: Render
    count_tokens: Callable[[str], int]
    max_actions: int
    include_email: bool
    model: str

    def plan(self, accepted: Sequence[Accepted]) -> Planned:
        """Plan one session's payloads, in order.

        A payload that `render` fails on costs only itself: it is left out, with the error.
        """
        chunks: list[PlannedChunk] = []
        failed: dict[int, str] = {}
        for draft in draft_chunks(accepted, self.max_actions):
            try:
                chunks.append(self._planned(draft.id, draft.payloads, draft.sources))
            except BaseException as error:  # noqa: BLE001 - `render` is the user's own code, in a thread
                if len(draft.sources) > 1:
                    alone = [self.plan([source]) for source in draft.sources]
                    chunks += [chunk for part, _ in alone for chunk in part]
                    failed |= {seq: why for _, part in alone for seq, why in part}
                else:
                    failed[draft.sources[0].seq] = f"render failed: {describe(error)}"
        # A payload of several chunks dies whole.
        chunks = [chunk for chunk in chunks if chunk.sources[0][0] not in failed]
        return chunks, list(failed.items())

    def recounted(self, batch: Batch) -> Batch:
        """A plan that was made for another embedder, with what it costs this one."""
        if batch.model == self.model:
            return batch
        chunks = [
            msgspec.structs.replace(chunk, tokens=int(self.count_tokens(chunk.text)))
            for chunk in batch.chunks
        ]
        return msgspec.structs.replace(batch, model=self.model, chunks=chunks)

    def _planned(
        self, id: str, payloads: Sequence[Any], sources: Sequence[Accepted]
    ) -> PlannedChunk:
        text = self.render(payloads)
        if not text.strip():
            raise ValueError("it returned an empty text")
        text.encode()  # a lone surrogate is no text that can be kept
        return PlannedChunk(
            id=id,
            text=text,
            metadata=dict(
                metadata_of(payloads, people=sources[-1].people, include_email=self.include_email)
            ),
            sources=[(source.seq, source.key) for source in sources],
            tokens=int(self.count_tokens(text)),
        )
