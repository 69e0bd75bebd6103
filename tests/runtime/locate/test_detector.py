"""People found by a YOLO file: the geometry there and back, and which boxes are people. The nets are a few nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime import YoloDetector
from alpose.runtime.engines.onnx_device import _bytes, _text, model, node
from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError
from alpose.runtime.locate.detector import class_names, guessed_classes, people_of

SIZE = 64


def net(
    path: Path, answer: npt.NDArray[np.float32], height: int = SIZE, width: int = SIZE,
    metadata: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A net that gives the same answer to every picture: it adds the mean of nothing but zeros."""
    constants = {"answer": answer, "nothing": np.array(0, np.float32)}
    nodes = [node("Mul", ["images", "nothing"], "zeros"), node("ReduceSum", ["zeros"], "zero", keepdims=0),
             node("Add", ["answer", "zero"], "output0")]  # fmt: skip
    given: Any = {"images": (np.float32, (1, 3, height, width))}
    props = b"".join(_bytes(14, _text(1, key) + _text(2, value)) for key, value in (metadata or {}).items())
    path.write_bytes(model(nodes, given, {"output0": (np.float32, answer.shape)}, constants) + props)
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


def test_only_persons_count_among_several_classes() -> None:
    out = np.zeros((1, 84, 100), np.float32)  # a plain detector of COCO's 80 classes
    out[0, :4, :4] = np.array([[20, 20, 10, 20], [50, 20, 10, 20], [20, 60, 10, 20], [50, 60, 10, 20]]).T
    out[0, 4, :4] = 0.9, 0.4, 0.0, 0.5
    out[0, 20, :4] = (
        0.1,
        0.8,
        0.95,
        0.5,
    )  # dogs: the second more than a person, the third only a dog, the fourth as much

    np.testing.assert_allclose(people_of(out, 0.3, 0.6)[:, 4], [0.9, 0.5], atol=1e-6)
    np.testing.assert_allclose(people_of(out, 0.3, 0.6, person=16)[:, 4], [0.95, 0.8, 0.5], atol=1e-6)


def test_a_pose_net_of_several_classes_says_how_many_it_has(tmp_path: Path) -> None:
    """17 joints and two classes: without the file's word the second score would be a coordinate."""
    out = candidates((20, 20, 10, 20, 0.9), (50, 20, 10, 20, 0.4), rows=57)
    out[0, 5, :6] = 0.1, 0, 0, 0.7, 0, 0
    out[0, 6:, :] = 40.0  # coordinates, not scores
    path = net(tmp_path / "n.onnx", out)
    said = net(tmp_path / "said.onnx", out, metadata={"names": "{0: 'person', 1: 'dog'}", "task": "pose"})
    frame = np.zeros((64, 64, 3), np.uint8)

    for find in (YoloDetector(said), YoloDetector(path, classes=2)):
        np.testing.assert_allclose(find(frame)[:, 4], [0.9], atol=1e-6)
    np.testing.assert_allclose(YoloDetector(said, person=1)(frame)[:, 4], [0.7], atol=1e-6)
    with pytest.raises(ConfigError, match="2 classes, and none has the number 2: 0 person, 1 dog"):
        YoloDetector(said, person=2)
    with pytest.raises(CheckpointError, match="state person= and classes="):
        YoloDetector(path, classes=60)(frame)


def test_a_file_that_calls_another_class_a_person_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = net(tmp_path / "n.onnx", np.zeros((1, 6, 100), np.float32), metadata={"names": "{0: 'dog', 1: 'person'}"})
    YoloDetector(path, person=1)
    assert not caplog.records
    YoloDetector(path)
    assert "calls class 0 'dog', which is taken for a person" in caplog.text


@pytest.mark.parametrize(("columns", "classes"), [(56, 1), (5, 1), (84, 80), (6, 2), (47, 1), (39, 1)])
def test_classes_are_guessed_by_the_columns(columns: int, classes: int) -> None:
    assert guessed_classes(columns) == classes


@pytest.mark.parametrize("names", ["{0: 'person'", "[1]", "__import__('os')", "7", "{'a': 1}", "{" * 5000])
def test_metadata_of_somebody_else_says_nothing(names: str) -> None:
    assert class_names({"names": names}) == {}


def test_a_candidate_that_is_not_finite_costs_no_other() -> None:
    out = candidates((20, 20, 10, 20, 0.9), (50, 20, 10, 20, 0.4))
    out[0, :5, 50:54] = np.array(
        [[np.nan, 1, 1, 1, 0.95], [1, 1, np.inf, 1, 0.95], [1, 1, 1, 1, np.nan], [9, 9, 5, 5, 0.1]]
    ).T

    found = people_of(out, 0.3, 0.6)
    assert {0.9, 0.4} <= set(found[:, 4].round(3).tolist())


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
