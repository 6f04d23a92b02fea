"""From texts to vectors: reuse, checks of the vectors, tokens and their budget."""

from __future__ import annotations

import asyncio
from array import array
from datetime import UTC, datetime

import pytest

from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import EmbedderRejectedError, EmbedderUnavailableError
from autoplay_rag.ingest import embedding as embeddings
from autoplay_rag.ingest.embedding import PROBE, Embedding, TokenBudget, today


class Saved:
    """Receives what a budget saves."""

    def __init__(self):
        self.days = []

    async def __call__(self, day, tokens):
        self.days.append((day, tokens))


@pytest.fixture
def make_embedding(embedder):
    def make(per_day=None, *, spent=0, remembered=100, given=embedder, save=None):
        return Embedding(given, TokenBudget(per_day, spent, save or Saved()), remembered)

    return make


def items(*texts, tokens=10):
    return [(text, tokens) for text in texts]


async def test_one_vector_for_each_text_in_their_order(make_embedding, embedder):
    embedding = make_embedding()
    vectors = await embedding.request(items("one", "two", "three"))
    assert vectors == [embedder.vector(text) for text in ("one", "two", "three")]
    assert (embedding.requests, embedding.texts, embedding.tokens) == (1, 3, 30)
    assert embedding.reused == 0


async def test_equal_texts_are_embedded_once(make_embedding, embedder):
    embedding = make_embedding()
    first = await embedding.request(items("one", "two", "one"))
    assert first[0] == first[2]
    again = await embedding.request(items("two", "three"))
    assert again[0] == first[1]
    assert embedder.requests == [["one", "two"], ["three"]]
    assert (embedding.requests, embedding.texts, embedding.reused) == (2, 3, 2)
    await embedding.request(items("one"))
    assert embedding.requests == 2  # no texts, no request


async def test_only_so_many_vectors_are_remembered_the_latest_used(make_embedding, embedder):
    embedding = make_embedding(remembered=2)
    await embedding.request(items("one", "two"))
    await embedding.request(items("one"))
    await embedding.request(items("three"))  # evicts two
    await embedding.request(items("one", "two"))
    assert embedder.requests == [["one", "two"], ["three"], ["two"]]


async def test_without_memory_equal_texts_of_one_request_still_go_once(make_embedding, embedder):
    embedding = make_embedding(remembered=0)
    await embedding.request(items("one", "one"))
    await embedding.request(items("one"))
    assert embedder.requests == [["one"], ["one"]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "returned 0 vectors for 1 texts"),
        ([[1.0], [2.0]], "returned 2 vectors for 1 texts"),
        ([[]], "returned an empty vector"),
        ([[1.0, float("nan")]], "returned NaN or infinity"),
        ([[float("inf"), 1.0]], "returned NaN or infinity"),
        ([[float("inf"), float("-inf")]], "returned NaN or infinity"),
        ([["1.0"]], "not a vector of numbers"),
        ([None], "not a vector of numbers"),
    ],
)
async def test_a_wrong_answer_is_a_rejection_and_is_not_remembered(
    make_embedding, embedder, answer, message
):
    embedding = make_embedding()
    embedder.script = lambda texts: answer
    with pytest.raises(EmbedderRejectedError, match=message):
        await embedding.request(items("one"))
    embedder.script = lambda texts: None
    assert await embedding.request(items("one")) == [embedder.vector("one")]


async def test_all_vectors_have_the_dimension_of_the_first(make_embedding, embedder):
    embedding = make_embedding()
    await embedding.request(items("one"))
    embedder.script = lambda texts: [[1.0, 2.0] for _ in texts]
    with pytest.raises(EmbedderRejectedError, match="2 dimensions; earlier vectors have 8"):
        await embedding.request(items("two"))
    with pytest.raises(EmbedderRejectedError, match="2 dimensions; earlier vectors have 8"):
        await embedding.probe()


async def test_vectors_become_arrays_and_arrays_stay_as_they_are(make_embedding, embedder):
    given = array("f", [0.5, 0.25])
    embedder.script = lambda texts: [(1.0, 2.0), given]
    listed, kept = await make_embedding().request(items("one", "two"))
    assert (listed.typecode, list(listed)) == ("f", [1.0, 2.0])
    assert kept is given


async def test_the_probe_is_checked_and_not_counted(make_embedding, embedder):
    embedding = make_embedding()
    await embedding.probe()
    assert embedder.requests == [[PROBE]]
    assert (embedding.requests, embedding.texts, embedding.tokens) == (0, 0, 0)
    embedder.script = lambda texts: []
    with pytest.raises(EmbedderRejectedError):
        await embedding.probe()


async def test_other_tasks_get_a_turn_while_many_vectors_are_checked(make_embedding, embedder):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    vectors = [[1.0, 2.0]] * 1000
    embedder.script = lambda texts: vectors
    counting = asyncio.create_task(count())
    await make_embedding().request(items(*map(str, range(1000))))
    counting.cancel()
    await asyncio.wait([counting])
    assert turns >= 1000 // 64


# -- tokens -----------------------------------------------------------------------------------


class CountingEmbedder(Embedder):
    """Reports the exact usage: `per_text` tokens per text."""

    model = "counting"

    def __init__(self, per_text, used=0):
        self.per_text = per_text
        self.tokens_used = used

    async def embed(self, texts):
        self.tokens_used += self.per_text * len(texts)
        return [[1.0, 2.0] for _ in texts]


async def test_tokens_are_counted_as_the_embedder_says(make_embedding):
    embedding = make_embedding(given=CountingEmbedder(7, used=1000))
    await embedding.request(items("one", "two"))
    await embedding.request(items("three"))
    assert embedding.tokens == 21


async def test_tokens_are_estimated_where_the_embedder_says_nothing(make_embedding):
    embedding = make_embedding(given=CountingEmbedder(0))
    await embedding.request(items("one", "two"))
    assert embedding.tokens == 20


async def test_the_budget_is_kept_and_saved(make_embedding):
    saved = Saved()
    embedding = make_embedding(25, save=saved)
    await embedding.request(items("one", "two"))
    with pytest.raises(EmbedderUnavailableError, match="max_embed_tokens_per_day=25") as caught:
        await embedding.request(items("three"))
    assert 0 < caught.value.retry_after <= 86_400
    assert embedding.requests == 1
    await embedding.request(items("one"))  # a reused vector costs nothing
    assert saved.days == [(today(), 20)]


async def test_what_was_spent_before_counts(make_embedding):
    embedding = make_embedding(100, spent=95)
    with pytest.raises(EmbedderUnavailableError):
        await embedding.request(items("one"))


async def test_one_request_a_day_passes_however_large_it_is(make_embedding, embedder):
    embedding = make_embedding(5)
    await embedding.request(items("one"))
    assert embedder.requests == [["one"]]


async def test_a_request_that_failed_spends_nothing(make_embedding, embedder):
    saved = Saved()
    embedding = make_embedding(10, save=saved)
    answers = iter([ConnectionError("down")])

    def script(texts):
        if failure := next(answers, None):
            raise failure

    embedder.script = script
    with pytest.raises(ConnectionError):
        await embedding.request(items("one"))
    assert saved.days == []
    await embedding.request(items("one"))
    assert saved.days == [(today(), 10)]


async def test_requests_in_flight_count_before_they_end(make_embedding, embedder):
    release = asyncio.Event()
    embedder.script = lambda texts: _wait(release)
    embedding = make_embedding(15)
    running = asyncio.create_task(embedding.request(items("one")))
    await embedder.requested.wait()
    with pytest.raises(EmbedderUnavailableError):
        await embedding.request(items("two"))
    release.set()
    await running


async def _wait(event):
    await event.wait()


async def test_a_cancelled_request_gives_its_tokens_back(make_embedding, embedder):
    embedder.script = lambda texts: _wait(asyncio.Event())
    embedding = make_embedding(10)
    running = asyncio.create_task(embedding.request(items("one")))
    await embedder.requested.wait()
    running.cancel()
    await asyncio.wait([running])
    embedder.script = lambda texts: None
    await embedding.request(items("two"))
    assert embedding.tokens == 10


async def test_estimates_are_corrected_by_what_was_spent(make_embedding):
    embedding = make_embedding(100, given=CountingEmbedder(40))
    await embedding.request(items("one"))  # estimated 10, spent 40
    with pytest.raises(EmbedderUnavailableError):
        await embedding.request(items("two", "three"))  # estimated 20, expected 80


async def test_a_new_day_has_a_new_budget(make_embedding, monkeypatch):
    saved = Saved()
    embedding = make_embedding(15, save=saved)
    await embedding.request(items("one"))
    monkeypatch.setattr(embeddings, "today", lambda: "2999-01-01")
    await embedding.request(items("two"))
    assert saved.days[-1] == ("2999-01-01", 10)


async def test_a_reservation_of_yesterday_is_not_returned_to_today(monkeypatch):
    saved = Saved()
    budget = TokenBudget(100, 0, saved)
    monkeypatch.setattr(embeddings, "today", lambda: "2999-01-01")
    yesterday = budget.reserve(40)
    monkeypatch.setattr(embeddings, "today", lambda: "2999-01-02")
    budget.reserve(10)
    budget.release(yesterday)
    await budget.settle(budget.reserve(20), 25)
    assert saved.days == [("2999-01-02", 35)]


async def test_without_a_budget_nothing_is_saved(make_embedding):
    saved = Saved()
    await make_embedding(save=saved).request(items("one"))
    assert saved.days == []


def test_today_is_a_day_in_utc():
    before, found, after = datetime.now(UTC), today(), datetime.now(UTC)
    assert found in {before.date().isoformat(), after.date().isoformat()}
