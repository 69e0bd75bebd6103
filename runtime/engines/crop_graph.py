"""The crop as a graph for ONNX Runtime, so that a frame on a GPU is cut there: bit for bit what ``crop.cut`` gives.

Every number in it is a whole number that float32 holds exactly, sums included (below 2^24), so neither the order of a
sum nor fused operations can change a bit. That is also why it multiplies and sums and does not use a matrix product,
which would be shorter: an NVIDIA GPU may round the factors of one to TF32, 11 bits, and a weight has up to 14.

Inputs, for each plane (one for RGB and BGR; luma and chroma of NV12), their names ending with its number:

- ``pixels`` uint8 (L,): the frame's own bytes, from the first pixel that a tap reads to the last.
- ``gap`` uint8 (G,): what is missing to whole rows, zeros; ``layout`` int64 (2,): rows and bytes of each.
- ``bytes`` int64 (1,): the bytes of a row that are pixels of the crop.
- ``rows`` int64 (K, R), ``row_weights`` float32 (K, R, 1): the taps of R rows of the crop.
- ``columns`` int64 (M, S), ``column_weights`` float32 (M, S, 1): those of its S columns.

Output: ``crop`` uint8 (R, S, 3), RGB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..crop import AFTER, BETWEEN
from ..frames import CHROMA_GREY, LUMA_BLACK, RGB_OF_YUV, YUV_UNIT, FrameFormat
from .proto import Form, model, node, type_number

_INPUTS: dict[str, Form] = {
    "pixels": (np.uint8, ("L",)),
    "gap": (np.uint8, ("G",)),
    "layout": (np.int64, (2,)),
    "bytes": (np.int64, (1,)),
    "rows": (np.int64, ("K", "R")),
    "row_weights": (np.float32, ("K", "R", 1)),
    "columns": (np.int64, ("M", "S")),
    "column_weights": (np.float32, ("M", "S", 1)),
}


def crop_graph(form: FrameFormat) -> bytes:
    """The ModelProto for frames of a form."""
    planes = ((1, LUMA_BLACK), (2, CHROMA_GREY)) if form is FrameFormat.NV12 else ((3, 0),)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "axis0": np.array([0], np.int64),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "axis3": np.array([3], np.int64),
        "half": np.array(0.5, np.float32),
        "of_between": np.array(1 / BETWEEN, np.float32),
        "of_after": np.array(1 / AFTER, np.float32),
        "of_yuv": np.array(1 / YUV_UNIT, np.float32),
        "rgb_of_yuv": RGB_OF_YUV.astype(np.float32),
        "darkest": np.array(0, np.float32),
        "brightest": np.array(255, np.float32),
        "backwards": np.array([2, 1, 0], np.int64),
    }
    nodes: list[bytes] = []
    for plane, (channels, black) in enumerate(planes):
        constants[f"black{plane}"] = np.array(black, np.float32)
        constants[f"split{plane}"] = np.array([0, -1, channels], np.int64)
        nodes += _plane(plane, black)
    if form is FrameFormat.NV12:
        nodes += _to_rgb()
    elif form is FrameFormat.BGR:
        nodes.append(node("Gather", ["levels0", "backwards"], "rgb", axis=2))
    else:
        nodes.append(node("Identity", ["levels0"], "rgb"))
    nodes.append(node("Cast", ["rgb"], "crop", to=type_number(np.uint8)))
    inputs = {f"{name}{plane}": _form(name, plane) for plane in range(len(planes)) for name in _INPUTS}
    return model(nodes, inputs, {"crop": (np.uint8, ("R", "S", 3))}, constants)


def _form(name: str, plane: int) -> Form:
    """Luma and chroma have axes of their own, but for the samples that both make."""
    dtype, axes = _INPUTS[name]
    return dtype, tuple(f"{axis}{plane}" if axis in ("L", "G", "K", "M") else axis for axis in axes)


def copy_graph() -> bytes:
    """``pixels`` to ``copy``, uint8 (L,): how a frame that is kept comes to the host."""
    return model([node("Identity", ["pixels"], "copy")], {"pixels": _INPUTS["pixels"]}, {"copy": _INPUTS["pixels"]}, {})


def _plane(number: int, black: int) -> list[bytes]:
    """From the bytes of one plane to ``levels`` (R, S, channels): levels above black, whole, as float32."""

    def own(*names: str) -> list[str]:
        return [f"{name}{number}" for name in names]

    float32 = type_number(np.float32)
    # Another pass over the largest array there is, so not where black is 0.
    above = "above_black" if black else "tapped_f"
    subtract = [node("Sub", own("tapped_f", "black"), f"{above}{number}")] if black else []
    return [
        node("Concat", own("pixels", "gap"), f"whole{number}", axis=0),
        node("Reshape", own("whole", "layout"), f"grid{number}"),
        node("Slice", [f"grid{number}", "axis0", f"bytes{number}", "axis1"], f"region{number}"),
        node("Gather", own("region", "rows"), f"tapped{number}", axis=0),
        node("Cast", own("tapped"), f"tapped_f{number}", to=float32),
        *subtract,
        node("Mul", own(above, "row_weights"), f"weighed{number}"),
        node("ReduceSum", [f"weighed{number}", "axis0"], f"summed{number}", keepdims=0),
        *_round(f"summed{number}", "of_between", f"between{number}"),
        node("Reshape", own("between", "split"), f"coloured{number}"),
        node("Gather", own("coloured", "columns"), f"across{number}", axis=1),
        node("Mul", own("across", "column_weights"), f"weighed_across{number}"),
        node("ReduceSum", [f"weighed_across{number}", "axis1"], f"crossed{number}", keepdims=0),
        *_round(f"crossed{number}", "of_after", f"levels{number}"),
    ]


def _to_rgb() -> list[bytes]:
    """From the levels of luma and chroma to ``rgb`` (R, S, 3), as frames.py has it."""
    return [
        node("Concat", ["levels0", "levels1"], "yuv", axis=2),
        node("Unsqueeze", ["yuv", "axis2"], "yuv_each"),
        node("Mul", ["yuv_each", "rgb_of_yuv"], "shares"),
        node("ReduceSum", ["shares", "axis3"], "mixed", keepdims=0),
        *_round("mixed", "of_yuv", "unclipped"),
        node("Clip", ["unclipped", "darkest", "brightest"], "rgb"),
    ]


def _round(source: str, factor: str, output: str) -> list[bytes]:
    """Scale by a power of two and round halves up: all of it exact."""
    return [
        node("Mul", [source, factor], f"{output}_scaled"),
        node("Add", [f"{output}_scaled", "half"], f"{output}_raised"),
        node("Floor", [f"{output}_raised"], output),
    ]
