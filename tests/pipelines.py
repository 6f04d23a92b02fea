"""Shared by the ingest tests: a scripted embedder, and makers of payloads and pipelines."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.payloads import ActionsPayload, SlimAction
from autoplay_rag.stores import MemoryStore


class ScriptedEmbedder(Embedder):
    """Makes vectors from a hash of the text. `script` may raise or replace the answer."""

    model = "scripted"
    max_inputs = 64

    def __init__(self, dimension: int = 8) -> None:
        self.dimension = dimension
        self.requests: list[list[str]] = []
        self.script: Callable[[Sequence[str]], object] = lambda texts: None
        self.requested = asyncio.Event()

    async def embed(self, texts):
        self.requests.append(list(texts))
        self.requested.set()
        await asyncio.sleep(0)
        answer = self.script(texts)
        if asyncio.iscoroutine(answer):
            answer = await answer
        return [self.vector(text) for text in texts] if answer is None else answer

    def vector(self, text: str) -> array[float]:
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        source = random.Random(seed)
        return array("f", [source.uniform(-1, 1) for _ in range(self.dimension)])


@pytest.fixture
async def embedder() -> ScriptedEmbedder:
    return ScriptedEmbedder()


def make_actions(
    session: str | None, *titles: str, at: float = 1000.0, user: str | None = None
) -> ActionsPayload:
    """Make a batch of actions with these titles, a second apart."""
    actions = [
        SlimAction(title, title, "https://app.test/p", i, "click", at + i, at + i)
        for i, title in enumerate(titles)
    ]
    return ActionsPayload("acme", session, user, None, actions, len(actions), at + 10)


@pytest.fixture(name="make_actions")
def make_actions_fixture():
    return make_actions


def titles(payloads) -> str:
    """A `render` that keeps actions apart: one title per line."""
    return "\n".join(
        line
        for payload in payloads
        for line in (
            [action.title for action in payload.actions]
            if isinstance(payload, ActionsPayload)
            else [payload.to_text()]
        )
    )


@pytest.fixture(name="titles")
def titles_fixture():
    return titles


@pytest.fixture(scope="session")
def scripted_embedder():
    """The class itself, for tests that create several."""
    return ScriptedEmbedder


@pytest.fixture
def eventually():
    """Poll for something that has no event: a commit, or another process."""

    async def wait(condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def make_pipeline(embedder, titles):
    """Make pipelines whose chunks contain the titles of their actions, one per line."""

    def make(store=None, **options):
        given = {"render": titles, "batch_window": 0.0, **options}
        return IngestPipeline(store or MemoryStore(), given.pop("embedder", embedder), **given)

    return make


def copy_journal(journal: Path, folder: Path) -> Path:
    """Copy the journal as a kill at this moment would leave it."""
    folder.mkdir()
    for part in journal.parent.glob(journal.name + "*"):
        if not part.name.endswith(".lock"):
            (folder / part.name).write_bytes(part.read_bytes())
    return folder / journal.name
