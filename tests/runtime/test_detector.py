"""People found by a YOLO file: the geometry there and back, and which boxes are people. The nets are a few nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime import YoloDetector
from alpose.runtime.detector import people_of
from alpose.runtime.engines.onnx_device import model, node
from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError

SIZE = 64


def net(path: Path, answer: npt.NDArray[np.float32], height: int = SIZE, width: int = SIZE) -> Path:
    """A net that gives the same answer to every picture: it adds the mean of nothing but zeros."""
    constants = {"answer": answer, "nothing": np.array(0, np.float32)}
    nodes = [node("Mul", ["images", "nothing"], "zeros"), node("ReduceSum", ["zeros"], "zero", keepdims=0),
             node("Add", ["answer", "zero"], "output0")]  # fmt: skip
    given: Any = {"images": (np.float32, (1, 3, height, width))}
    path.write_bytes(model(nodes, given, {"output0": (np.float32, answer.shape)}, constants))
    return path


def candidates(*boxes: tuple[float, ...], rows: int = 56) -> npt.NDArray[np.float32]:
    """(1, rows, 100): centre, size and score of each; the others score nothing."""
    out = np.zeros((1, rows, 100), np.float32)
    for column, (x, y, wide, high, score) in enumerate(boxes):
        out[0, :5, 3 * column] = x, y, wide, high, score
    return out


@pytest.fixture(autouse=True)
def _needs_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")


def test_boxes_come_back_into_the_frame(tmp_path: Path) -> None:
    """A frame of 128 x 64 on 64 x 64: half as large, with 16 rows of grey above and below."""
    find = YoloDetector(net(tmp_path / "n.onnx", candidates((32, 32, 20, 10, 0.9))))

    found = find(np.zeros((64, 128, 3), np.uint8))

    # x 22 to 42 of the input is 44 to 84 of the frame, y 27 to 37 is 22 to 42; edges of pixels, counted from centres.
    np.testing.assert_allclose(found, [[43.5, 21.5, 83.5, 41.5, 0.9]], atol=1e-4)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (33, 65)])
def test_a_person_in_a_frame_of_any_shape_is_where_they_are(size: tuple[int, int], tmp_path: Path) -> None:
    height, width = size
    scale = max(width / 96, height / SIZE)
    x, y = 0.25 * width, 0.75 * height  # from the frame's corner
    centre = ((x - width / 2) / scale + 48, (y - height / 2) / scale + 32)
    find = YoloDetector(net(tmp_path / "n.onnx", candidates((*centre, 8, 8, 0.5)), width=96))

    (found,) = find(np.zeros((height, width, 3), np.uint8))

    np.testing.assert_allclose((found[:2] + found[2:4]) / 2, [x - 0.5, y - 0.5], atol=1e-2)
    np.testing.assert_allclose(found[2:4] - found[:2], 8 * scale, rtol=1e-4)


def test_of_boxes_of_one_person_the_surest_is_kept() -> None:
    found = people_of(candidates((20, 20, 10, 20, 0.7), (21, 20, 10, 20, 0.9), (50, 20, 10, 20, 0.4), (9, 9, 5, 5, 0.2)),
                      0.3, 0.6)  # fmt: skip

    np.testing.assert_allclose(found, [[16, 10, 26, 30, 0.9], [45, 10, 55, 30, 0.4]], atol=1e-6)


def test_an_end_to_end_net_has_its_own_boxes_and_classes() -> None:
    out = np.zeros((1, 300, 57), np.float32)
    out[0, 0, :6] = 1, 2, 11, 22, 0.8, 0
    out[0, 1, :6] = 1, 2, 11, 22, 0.9, 0
    out[0, 2, :6] = 5, 5, 9, 9, 0.95, 16  # a dog
    out[0, 3, :6] = 5, 5, 9, 9, 0.1, 0

    np.testing.assert_allclose(people_of(out, 0.3, 0.6), [[1, 2, 11, 22, 0.9], [1, 2, 11, 22, 0.8]], atol=1e-6)


def test_nobody_is_no_boxes(tmp_path: Path) -> None:
    find = YoloDetector(net(tmp_path / "n.onnx", candidates()))

    assert find(np.zeros((10, 10, 3), np.uint8)).shape == (0, 5)


def test_what_is_no_yolo_net_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="does not exist"):
        YoloDetector(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="does not load"):
        YoloDetector(tmp_path / "bad.onnx")
    with pytest.raises(ConfigError, match="0 to 1"):
        YoloDetector(net(tmp_path / "n.onnx", candidates()), least=2)
    with pytest.raises(CheckpointError, match=r"got \(1, 3, 100\)"):
        YoloDetector(net(tmp_path / "n.onnx", np.zeros((1, 3, 100), np.float32)))(np.zeros((9, 9, 3), np.uint8))
