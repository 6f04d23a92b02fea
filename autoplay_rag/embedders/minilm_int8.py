"""all-MiniLM-L6-v2 with multiplications of integers, from the int8 weights of its file.

The file has int8 weights, one scale per column, and multiplies floats. This graph multiplies the
same int8 weights with activations that are quantised to 8 bits when it runs (W8A8). So no weight is
quantised again, and there is nothing to compute ahead or to keep in a cache.

A cache of a quantised file would need a hash, locks between processes and 23 MB on disk. The graph is
written in 0.1 s instead, each time the model is loaded, from the file that was just verified.

onnxruntime chooses the range of the activations for all rows of a matrix. The graph therefore takes
one text at a time: otherwise the vector of a text would depend on the other texts of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoplay_rag.embedders.onnx_file import FLOAT, INT32, INT64, UINT8, Graph, read_tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LEAVE_OUT", "int8_model", "products_saturate"]

LEAVE_OUT = ("SkipLayerNormFusion",)
"""Optimisers of onnxruntime to switch off.

This one joins addition and LayerNormalization to a kernel that takes more time than the two: with it
7,500 tokens per CPU second, without it 9,200 (measured beside other programs).
"""
_LAYERS = 6
_HEADS = 12
_WIDTH = 384
_EPSILON = 1e-12
_MICROSOFT = "com.microsoft"


def int8_model(content: bytes, max_tokens: int, *, signed: bool) -> bytes:
    """Return an ONNX file with the weights of `content`, the file of `LocalEmbedder`.

    Its input `input_ids` has the shape (1, tokens), and its output the shape (1, tokens, 384).

    Args:
        content: The file with the weights.
        max_tokens: The most tokens of a text.
        signed: Whether weights are int8. Otherwise they are uint8 with the zero point 128. The
            products are the same, but onnxruntime multiplies them with another kernel. Choose it
            if `products_saturate`.
    """
    return _Model(content, max_tokens, signed=signed).serialise()


def products_saturate() -> bool:
    """Whether products of uint8 and int8 matrices saturate on this processor.

    On x86 without VNNI, onnxruntime adds two products in 16 bits. Large ones are cut off there, and
    the vectors would differ from those of other processors.
    """
    import numpy as np
    import onnxruntime

    rows, inner, columns = 8, 64, 32
    graph = Graph()
    largest = graph.constant(np.full((inner, columns), 127, np.int8))
    product = graph.node("MatMulInteger", ["left", largest])
    content = graph.serialise({"left": (UINT8, [rows, inner])}, {product: (INT32, [rows, columns])})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"left": np.full((rows, inner), 255, np.uint8)})
    return bool((found != 255 * 127 * inner).any())


class _Model:
    """The graph, and the weights it is made of."""

    def __init__(self, content: bytes, max_tokens: int, *, signed: bool) -> None:
        import numpy as np

        self._weights = read_tensors(content)
        # In the file's order: query, key, value, attention output, intermediate, output.
        self._matrices = [
            name.removesuffix("_q")
            for name in self._weights
            if name.startswith("val_") and name.endswith("_q")
        ]
        self._max_tokens = max_tokens
        self._graph = Graph()
        self._signed = signed
        self._zero = self._graph.constant(self._shifted(np.zeros((), np.int8)))

    def serialise(self) -> bytes:
        states = self._embeddings("input_ids")
        for layer in range(_LAYERS):
            states = self._layer(layer, states)
        return self._graph.serialise(
            {"input_ids": (INT64, [1, "tokens"])}, {states: (FLOAT, [1, "tokens", _WIDTH])}
        )

    def _embeddings(self, ids: str) -> str:
        import numpy as np

        graph, prefix = self._graph, "inner.embeddings."
        rows, scales = (
            graph.node("Gather", [self._constant(f"{prefix}word_embeddings.weight_{part}"), ids])
            for part in ("q", "scale")
        )
        words = graph.node("Mul", [graph.node("Cast", [rows], to=FLOAT), scales])
        # All tokens have type 0.
        places = (
            self._weights[f"{prefix}position_embeddings.weight_q"].astype(np.float32)
            * self._weights[f"{prefix}position_embeddings.weight_scale"]
            + self._weights[f"{prefix}token_type_embeddings.weight"][0]
        )[: self._max_tokens]
        zero = graph.constant(np.zeros(1, np.int64))
        count = graph.node("Shape", [ids], start=1)
        used = graph.node("Slice", [graph.constant(places), zero, count])
        return self._normalised(graph.node("Add", [words, used]), f"{prefix}LayerNorm")

    def _layer(self, layer: int, states: str) -> str:
        import numpy as np

        graph, prefix = self._graph, f"inner.encoder.layer.{layer}."
        query, key, value, attended, wide, narrow = self._matrices[6 * layer : 6 * layer + 6]
        # One multiplication for the three: the activations are quantised once.
        self_attention = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
        joined = self._multiplied(states, [query, key, value], self_attention)
        thirds = graph.constant(np.full(3, _WIDTH, np.int64))
        parts = graph.nodes("Split", [joined, thirds], 3, axis=2)
        seen = graph.node("MultiHeadAttention", parts, domain=_MICROSOFT, num_heads=_HEADS)
        seen = self._multiplied(seen, [attended], [f"{prefix}attention.output.dense"])
        seen = self._normalised(
            graph.node("Add", [seen, states]), f"{prefix}attention.output.LayerNorm"
        )
        hidden = self._multiplied(seen, [wide], [f"{prefix}intermediate.dense"])
        hidden = graph.node("Gelu", [hidden], domain=_MICROSOFT)
        hidden = self._multiplied(hidden, [narrow], [f"{prefix}output.dense"])
        return self._normalised(graph.node("Add", [hidden, seen]), f"{prefix}output.LayerNorm")

    def _multiplied(self, states: str, matrices: list[str], biases: list[str]) -> str:
        graph = self._graph
        weights = graph.constant(self._shifted(self._joined([f"{name}_q" for name in matrices])))
        scales = graph.constant(self._joined([f"{name}_scale" for name in matrices]))
        bias = graph.constant(self._joined([f"{name}.bias" for name in biases]))
        inputs = [states, weights, scales, self._zero, bias]
        return graph.node("DynamicQuantizeMatMul", inputs, domain=_MICROSOFT)

    def _normalised(self, states: str, name: str) -> str:
        inputs = [states, self._constant(f"{name}.weight"), self._constant(f"{name}.bias")]
        return self._graph.node("LayerNormalization", inputs, epsilon=_EPSILON)

    def _shifted(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return int8 as they are, or as uint8 that are larger by 128."""
        return numbers if self._signed else numbers.view("u1") ^ 128

    def _constant(self, name: str) -> str:
        return self._graph.constant(self._weights[name])

    def _joined(self, names: list[str]) -> np.ndarray[Any, Any]:
        """Return tensors side by side. Scales are rows of a matrix in the file."""
        import numpy as np

        joined: np.ndarray[Any, Any] = np.concatenate(
            [self._weights[name] for name in names], axis=-1
        )
        return joined.reshape(-1) if len(joined) == 1 else joined
