"""Just enough of ONNX's protocol buffers to write a small graph: the runtime does not depend on ``onnx``.

A message is a run of fields; a field is its number and kind, then a number (kind 0) or a length and as many bytes
(kind 2). The numbers of the fields are those of ``onnx.proto``. A test reads what this writes with ``onnx`` itself and
lets its checker judge it.

Writing the graph when it is needed, and not a prepared file beside the code: what runs can be read and searched here, and
cannot fall behind the code that feeds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

IR_VERSION, OPSET = 7, 13
"""The oldest in which the axes of a sum are an input: older runtimes than those we ask for read them."""

_TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int64): 7}
_INT = 2  # the kind of an attribute that is a whole number

Form = tuple[npt.DTypeLike, Sequence[str | int]]
"""A type, and for each axis its length, or a name where it is dynamic."""


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, Form],
    outputs: Mapping[str, Form],
    constants: Mapping[str, npt.NDArray[np.generic]],
) -> bytes:
    """A ModelProto. The nodes stand in an order in which they can run."""
    graph = [_bytes(1, node) for node in nodes]
    graph += [_text(2, "alpose")]
    graph += [_bytes(5, _tensor(name, value)) for name, value in constants.items()]
    graph += [_bytes(11, _value(name, *facts)) for name, facts in inputs.items()]
    graph += [_bytes(12, _value(name, *facts)) for name, facts in outputs.items()]
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "alpose") + _bytes(7, b"".join(graph)) + _bytes(8, opset)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    """A NodeProto with one output, named after it."""
    fields = [_text(1, name) for name in inputs]
    fields += [_text(2, output), _text(3, output), _text(4, kind)]
    for name, value in attributes.items():
        fields.append(_bytes(5, _text(1, name) + _number(3, value) + _number(20, _INT)))
    return b"".join(fields)


def type_number(dtype: npt.DTypeLike) -> int:
    """How ONNX numbers a type, as in the attribute ``to`` of Cast."""
    return _TYPES[np.dtype(dtype)]


def _value(name: str, dtype: npt.DTypeLike, axes: Sequence[str | int]) -> bytes:
    shape = b"".join(_bytes(1, _number(1, axis) if isinstance(axis, int) else _text(2, axis)) for axis in axes)
    tensor = _number(1, type_number(dtype)) + _bytes(2, shape)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _tensor(name: str, value: npt.NDArray[np.generic]) -> bytes:
    raw = value.astype(value.dtype.newbyteorder("<")).tobytes()
    dims = b"".join(_number(1, length) for length in value.shape)
    return dims + _number(2, type_number(value.dtype)) + _text(8, name) + _bytes(9, raw)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits in each byte, the lowest first; the eighth says that more follow. A negative number has 64 bits."""
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
