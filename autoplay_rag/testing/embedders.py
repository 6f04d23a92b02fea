"""The contract of embedders: what every `Embedder` must do.

Example:
    The whole test file of your own embedder::

        class TestMyEmbedder(EmbedderContract):
            @pytest.fixture
            def make_embedder(self):
                return MyEmbedder
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from autoplay_rag.embedders.base import Embedder, as_embedder
from autoplay_rag.errors import EmbedderRejectedError

__all__ = ["EmbedderContract"]

_TEXTS = [
    'Reports\nclicked the "Export as CSV" button',
    "Invited a colleague",
    "日本語のテキスト 🎉",
    "a",
    "visited the pricing page " * 40,
]
_FAR = 1e-3
_LARGE_BATCH = 64


def _assert_same(found: Sequence[float], expected: Sequence[float]) -> None:
    """Compare approximately: in another batch, the last digits of a float may differ."""
    assert list(found) == pytest.approx(list(expected), abs=_FAR, rel=_FAR)


class EmbedderContract:
    """What every `Embedder` must do.

    Add a fixture `make_embedder`: a function that makes an embedder. `as_embedder` wraps an object
    with LangChain's methods.

    Example:
        >>> import pytest
        >>> class TestMyEmbedder(EmbedderContract):
        ...     @pytest.fixture
        ...     def make_embedder(self):
        ...         return MyEmbedder
    """

    @pytest.fixture
    async def embedder(self, make_embedder: Callable[[], Any]) -> AsyncIterator[Embedder]:
        """An embedder, closed after the test."""
        embedder = as_embedder(make_embedder())
        yield embedder
        await embedder.aclose()

    async def test_its_attributes(
        self, embedder: Embedder, make_embedder: Callable[[], Any]
    ) -> None:
        assert embedder.max_inputs >= 1
        assert embedder.max_request_tokens >= 1
        assert isinstance(embedder.model, str)
        assert embedder.model
        again = as_embedder(make_embedder())
        assert again.model == embedder.model, "a model's name must not change between two runs"
        await again.aclose()

    async def test_each_text_gets_a_vector_of_one_dimension(self, embedder: Embedder) -> None:
        vectors = await embedder.embed(_TEXTS[: embedder.max_inputs])
        assert len(vectors) == len(_TEXTS[: embedder.max_inputs])
        assert len({len(vector) for vector in vectors}) == 1
        assert len(vectors[0]) >= 1
        assert all(math.isfinite(value) for vector in vectors for value in vector)

    async def test_different_texts_get_different_vectors(self, embedder: Embedder) -> None:
        [one] = await embedder.embed([_TEXTS[0]])
        [other] = await embedder.embed([_TEXTS[1]])
        assert list(one) != list(other)

    async def test_vectors_come_in_the_order_of_their_texts(self, embedder: Embedder) -> None:
        texts = _TEXTS[: embedder.max_inputs]
        together = await embedder.embed(texts)
        for text, vector in zip(texts, together, strict=True):
            [alone] = await embedder.embed([text])
            _assert_same(vector, alone)
        for vector, expected in zip(await embedder.embed(texts[::-1]), together[::-1], strict=True):
            _assert_same(vector, expected)

    async def test_a_large_request(self, embedder: Embedder) -> None:
        size = min(embedder.max_inputs, _LARGE_BATCH)
        texts = [f"clicked item {number}" for number in range(size)]
        assert sum(map(embedder.count_tokens, texts)) <= embedder.max_request_tokens
        vectors = await embedder.embed(texts)
        assert len(vectors) == size
        _assert_same(vectors[-1], (await embedder.embed([texts[-1]]))[0])

    async def test_a_question_has_the_dimension_of_a_text(self, embedder: Embedder) -> None:
        [vector] = await embedder.embed(["exported a report"])
        question = await embedder.embed_query("who exported a report?")
        assert len(question) == len(vector)
        assert all(math.isfinite(value) for value in question)

    async def test_a_long_text_is_embedded_or_rejected(self, embedder: Embedder) -> None:
        try:
            [vector] = await embedder.embed(["clicked the next button, " * 4_000])
        except EmbedderRejectedError:
            vector = []
        assert all(math.isfinite(value) for value in vector)
        assert len(await embedder.embed(["after it"])) == 1

    async def test_a_lone_surrogate_is_embedded_or_rejected(self, embedder: Embedder) -> None:
        try:
            vectors = await embedder.embed(["broken \ud800 text"])
        except ValueError:
            vectors = [[0.0]]
        assert len(vectors) == 1
        assert len(await embedder.embed(["after it"])) == 1

    async def test_tokens_grow_with_the_text(self, embedder: Embedder) -> None:
        counts = [embedder.count_tokens("clicked Export " * times) for times in (1, 10, 100)]
        assert 1 <= counts[0] < counts[1] < counts[2]

    async def test_used_tokens_are_counted_or_unknown(self, embedder: Embedder) -> None:
        await embedder.embed(["clicked Export"])
        before = embedder.tokens_used
        await embedder.embed(["clicked Export"])
        after = embedder.tokens_used
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert 0 < before < after

    async def test_requests_at_once_do_not_disturb_each_other(self, embedder: Embedder) -> None:
        texts = [f"clicked item {number}" for number in range(8)]
        alone = [(await embedder.embed([text]))[0] for text in texts]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(embedder.embed([text])) for text in texts]
        for task, expected in zip(tasks, alone, strict=True):
            _assert_same(task.result()[0], expected)

    async def test_a_cancelled_request_leaves_the_embedder_usable(self, embedder: Embedder) -> None:
        task = asyncio.create_task(_embed(embedder, ["clicked Export"]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert len(await embedder.embed(["clicked Export"])) == 1

    async def test_two_event_loops_may_use_it_at_once(
        self, make_embedder: Callable[[], Any]
    ) -> None:
        embedder = as_embedder(make_embedder())
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            there = asyncio.run_coroutine_threadsafe(_embed(embedder, ["clicked Export"]), loop)
            [here] = await embedder.embed(["clicked Export"])
            _assert_same((await asyncio.wrap_future(there))[0], here)
            await embedder.aclose()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def test_closing_twice_or_unused_is_fine(self, make_embedder: Callable[[], Any]) -> None:
        embedder = as_embedder(make_embedder())
        await embedder.aclose()
        await embedder.aclose()


async def _embed(embedder: Embedder, texts: list[str]) -> Any:
    return await embedder.embed(texts)
