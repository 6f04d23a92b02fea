"""Reads the weights of an ONNX file, and writes a graph to a new one.

An ONNX file is a protobuf message. The package `onnx` reads and writes all of the format, but it
takes 40 MB with what it needs. `LocalEmbedder` needs tensors and nodes with numbers as attributes.
Field numbers are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FLOAT", "INT32", "INT64", "UINT8", "Graph", "Shape", "read_tensors"]

FLOAT: Final = 1
UINT8: Final = 2
INT32: Final = 6
INT64: Final = 7
_DTYPES: Final = {FLOAT: "<f4", UINT8: "|u1", 3: "|i1", INT32: "<i4", INT64: "<i8", 9: "|b1"}
"""The element types of TensorProto, as numpy names them."""
_KINDS: Final = {dtype: kind for kind, dtype in _DTYPES.items()}
_IR_VERSION = 8
_OPSETS = {"": 17, "com.microsoft": 1}
_GRAPH, _INITIALIZER = 7, 5
"""The fields of ModelProto and GraphProto that `read_tensors` follows."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Shape: TypeAlias = "Sequence[int | str]"
"""A string stands for any size."""
_Field: TypeAlias = "tuple[int, int | float | str | bytes]"
"""A field's number and value."""


def read_tensors(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Return the constant tensors of an ONNX file by name, in the file's order.

    The arrays are read-only views of `content`.

    Raises:
        KeyError: If a tensor's elements have another type than those of `_DTYPES`.
    """
    tensors = {}
    for number, graph in _read(memoryview(content)):
        if number == _GRAPH:
            for inner, tensor in _read(graph):
                if inner == _INITIALIZER:
                    name, array = _read_tensor(tensor)
                    tensors[name] = array
    return tensors


def _read_tensor(data: memoryview) -> tuple[str, np.ndarray[Any, Any]]:
    import numpy as np

    shape: list[int] = []
    dtype, name, raw = "", "", memoryview(b"")
    for number, value in _read(data):
        match number:
            case 1:
                shape.append(value)
            case 2:
                dtype = _DTYPES[value]
            case 8:
                name = str(value, "utf-8")
            case 9:
                raw = value
    return name, np.frombuffer(raw, dtype).reshape(shape)


def _read(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field: an int, or a view of bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[kind]
        yield tag >> 3, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7


class Graph:
    """An ONNX graph that is being written. Each method returns the name of what it added.

    Example:
        >>> import numpy as np
        >>> graph = Graph()
        >>> doubled = graph.node("Mul", ["x", graph.constant(np.float32([2]))])
        >>> content = graph.serialise({"x": (FLOAT, [1])}, {doubled: (FLOAT, [1])})
        >>> list(read_tensors(content).values())
        [array([2.], dtype=float32)]
    """

    def __init__(self) -> None:
        self._fields: list[_Field] = []

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Add a constant tensor.

        Raises:
            KeyError: If its elements have another type than those of `_DTYPES`.
        """
        name = f"constant_{len(self._fields)}"
        shape = [(1, size) for size in array.shape]
        self._fields.append(
            (
                _INITIALIZER,
                _message([*shape, (2, _KINDS[array.dtype.str]), (8, name), (9, array.tobytes())]),
            )
        )
        return name

    def node(
        self, kind: str, inputs: Sequence[str], *, domain: str = "", **attributes: float
    ) -> str:
        """Add a node with one output. An input "" is one that is left out."""
        return self.nodes(kind, inputs, 1, domain=domain, **attributes)[0]

    def nodes(
        self, kind: str, inputs: Sequence[str], count: int, *, domain: str = "", **attributes: float
    ) -> list[str]:
        """Add a node with `count` outputs."""
        outputs = [f"{kind}_{len(self._fields)}_{i}" for i in range(count)]
        self._fields.append(
            (
                1,
                _message(
                    [
                        *((1, name) for name in inputs),
                        *((2, name) for name in outputs),
                        (4, kind),
                        *((5, _attribute(name, value)) for name, value in attributes.items()),
                        (7, domain),
                    ]
                ),
            )
        )
        return outputs

    def serialise(
        self,
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, tuple[int, Shape]],
    ) -> bytes:
        """Return the file's content.

        Args:
            inputs: By name the type (such as `FLOAT`) and the shape of each input.
            outputs: The same for the outputs.
        """
        graph = _message(
            [
                *self._fields,
                (2, "graph"),
                *((11, _value_info(name, *found)) for name, found in inputs.items()),
                *((12, _value_info(name, *found)) for name, found in outputs.items()),
            ]
        )
        opsets = [(8, _message([(1, name), (2, version)])) for name, version in _OPSETS.items()]
        return _message([(1, _IR_VERSION), (_GRAPH, graph), *opsets])


def _attribute(name: str, value: float) -> bytes:
    if isinstance(value, int):
        return _message([(1, name), (3, value), (20, 2)])
    return _message([(1, name), (2, value), (20, 1)])


def _value_info(name: str, kind: int, shape: Shape) -> bytes:
    dimensions = [(1, _message([(2 if isinstance(size, str) else 1, size)])) for size in shape]
    tensor = _message([(1, kind), (2, _message(dimensions))])
    return _message([(1, name), (2, _message([(1, tensor)]))])


def _message(fields: Iterable[_Field]) -> bytes:
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3 | _VARINT), _varint(value)]
        elif isinstance(value, float):
            parts += [_varint(number << 3 | _FIXED32), struct.pack("<f", value)]
        else:
            data = value.encode() if isinstance(value, str) else value
            parts += [_varint(number << 3 | _BYTES), _varint(len(data)), data]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >> 7:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
