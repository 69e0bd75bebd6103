"""Where to cut crops: on the processor in numpy, or inside a graph. One crop of one frame in both.

Shapes: S crop side, H W frame, K taps of the filter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from alpose.export.onnx_graph import import_onnx
from alpose.runtime.crop import cut, square_crop
from alpose.runtime.errors import ConfigError
from alpose.runtime.resampling import AFTER, BETWEEN, Axis, taps

from .export_contestants import noise, session
from .measure import Task

FRAME_HW = (480, 640)
PERSON = (210.0, 40.0, 400.0, 450.0)
"""Box of a standing person in the frame."""


def cropping(folder: Path, size_px: int, threads: int) -> dict[str, Task]:
    """One crop of one frame in numpy, and the same resampling as two matrix products in ONNX Runtime.

    The weights of the products are inputs: a graph has one shape and every box its own weights. Making them is part of
    the work on both sides.
    """
    frame_HW3, crop = noise((*FRAME_HW, 3)), square_crop(PERSON, margin=1.25, size_px=size_px)
    path = folder / "crop.onnx"
    path.write_bytes(crop_graph(size_px))
    running = session(path, threads)

    def in_graph() -> npt.NDArray[np.uint8]:
        given = {"frame": frame_HW3, "rows": weights(crop.down, FRAME_HW[0]),
                 "columns": weights(crop.across, FRAME_HW[1])}  # fmt: skip
        return running.run(None, given)[0]

    worst = int(np.abs(in_graph().astype(int) - cut(frame_HW3, crop)).max())
    if worst:  # the arithmetic is exact: see alpose.runtime.crop
        raise ConfigError(
            f"the crop in the graph differs from alpose.runtime.cut by {worst} levels: it is not the same work"
        )
    return {"crop in numpy": lambda: cut(frame_HW3, crop), "crop in the graph": in_graph}


def weights(axis: Axis, length: int) -> npt.NDArray[np.float32]:
    """The resampling filter along one axis as a dense matrix (S, length)."""
    tap_KS, weight_KS = taps(axis, length)
    dense = np.zeros((axis.samples, length), dtype=np.float32)
    np.add.at(dense, (np.broadcast_to(np.arange(axis.samples), tap_KS.shape), tap_KS), weight_KS)
    return dense


def crop_graph(size_px: int) -> bytes:
    """frame uint8 (H, W, 3), rows (S, H), columns (S, W) to uint8 (S, S, 3)."""
    onnx = import_onnx()
    helper, kinds = onnx.helper, onnx.TensorProto
    height, width = FRAME_HW
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=kinds.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["lines"]),
        helper.make_node("MatMul", ["rows", "lines"], ["rows_sum"]),
        helper.make_node("Div", ["rows_sum", "between"], ["rows_share"]),
        helper.make_node("Add", ["rows_share", "half"], ["rows_up"]),
        helper.make_node("Floor", ["rows_up"], ["short"]),
        helper.make_node("Reshape", ["short", "split"], ["parted"]),
        helper.make_node("MatMul", ["columns", "parted"], ["sum"]),
        helper.make_node("Div", ["sum", "after"], ["share"]),
        helper.make_node("Add", ["share", "half"], ["up"]),
        helper.make_node("Floor", ["up"], ["level"]),
        helper.make_node("Cast", ["level"], ["crop"], to=kinds.UINT8),
    ]
    constants = {"flat": np.array([height, width * 3]), "split": np.array([size_px, width, 3]),
                 "half": np.float32(0.5), "between": np.float32(BETWEEN), "after": np.float32(AFTER)}  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("frame", kinds.UINT8, (height, width, 3)),
        helper.make_tensor_value_info("rows", kinds.FLOAT, (size_px, height)),
        helper.make_tensor_value_info("columns", kinds.FLOAT, (size_px, width)),
    ]
    output = helper.make_tensor_value_info("crop", kinds.UINT8, (size_px, size_px, 3))
    initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "crop", inputs, [output], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())
