"""The reader of somebody's net: every decoder against a plain loop, non-square, and as ONNX Runtime runs it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.foreign.reader import FAR, NetReader
from alpose.trainer.foreign.spec import NetCrop, NetDecoder, NetInput, PoseSpec

SKELETON = Skeleton("three", ("nose", "left_hand", "right_hand"), ((0, 1), (0, 2)), ((1, 2),))
WIDTH, HEIGHT = 48, 64
JOINTS = len(SKELETON)


def spec_of(decoder: NetDecoder, **more: Any) -> PoseSpec:
    """A net of 64 x 48 pixels."""
    return PoseSpec(name="a net", input=NetInput(name="image", height_px=HEIGHT, width_px=WIDTH), crop=NetCrop(),
                    decoder=decoder, skeleton=SKELETON, **more)  # fmt: skip


def reader_of(spec: PoseSpec, *tensors: torch.Tensor) -> NetReader:
    """Built from the shapes of these tensors."""
    return NetReader(spec, {name: (None, *value.shape[1:]) for name, value in zip(spec.tensors, tensors, strict=True)})


def bells(points_NJ2: np.ndarray, height: int, width: int, stride: float, sigma: float = 1.5) -> np.ndarray:
    """Maps with a bell at each point, whose first cell's centre lies half a stride less half a pixel from the origin."""
    maps = np.zeros((*points_NJ2.shape[:2], height, width), np.float32)
    for n, j in np.ndindex(points_NJ2.shape[:2]):
        for y in range(height):
            for x in range(width):
                px, py = stride * x + stride / 2 - 0.5, stride * y + stride / 2 - 0.5
                square = ((px - points_NJ2[n, j, 0]) ** 2 + (py - points_NJ2[n, j, 1]) ** 2) / stride**2
                maps[n, j, y, x] = math.exp(-square / (2 * sigma**2))
    return maps


def some_points(seed: int = 0, images: int = 4) -> np.ndarray:
    """Inside, away from the edge."""
    return np.random.default_rng(seed).uniform((9, 9), (WIDTH - 10, HEIGHT - 10), (images, JOINTS, 2))


@pytest.mark.parametrize("refine", ["parabola", "dark"])
@pytest.mark.parametrize("last", [False, True])
def test_heatmaps_give_the_centre_of_a_bell(refine: Any, last: bool) -> None:
    """On a map that is not square, in either layout, with maps that are no joints behind."""
    points = some_points()
    maps = np.concatenate([bells(points, 16, 12, 4.0), np.ones((4, 2, 16, 12), np.float32)], axis=1)
    tensor = torch.from_numpy(maps.transpose(0, 2, 3, 1).copy() if last else maps)
    spec = spec_of(NetDecoder(kind="heatmaps", outputs=("maps",), refine=refine, points=5, score="peak"))
    reading = reader_of(spec, tensor)(tensor)
    assert np.abs(reading.keypoints_NJ2.numpy() - points).max() < (0.02 if refine == "parabola" else 0.15)
    assert reading.scores_NJ.numpy() == pytest.approx(maps[:, :JOINTS].max(axis=(2, 3)))


def test_highest_cells_without_a_refinement_and_with_stated_steps() -> None:
    """The plain cell, where stride and offset are the user's."""
    maps = np.random.default_rng(1).random((2, JOINTS, 9, 5), dtype=np.float32)
    decoder = NetDecoder(kind="heatmaps", outputs=("maps",), refine="none", stride=(7.0, 3.0), offset=(1.0, 2.0))
    reading = reader_of(spec_of(decoder), torch.from_numpy(maps))(torch.from_numpy(maps))
    for n, j in np.ndindex(2, JOINTS):
        y, x = np.unravel_index(maps[n, j].argmax(), (9, 5))
        assert reading.keypoints_NJ2[n, j].tolist() == pytest.approx([x * 7 + 1, y * 3 + 2])


def test_a_quarter_of_a_cell_towards_the_higher_neighbour_away_from_the_edge() -> None:
    maps = torch.zeros(1, JOINTS, 9, 5)
    maps[0, 0, 4, 2], maps[0, 0, 4, 1], maps[0, 0, 5, 2] = 1.0, 0.5, 0.25  # left and below are higher
    maps[0, 1, 4, 2] = 1.0  # as high on both sides
    maps[0, 2, 4, 1], maps[0, 2, 5, 1] = 1.0, 0.5  # next to the edge HRNet moves nothing, in neither direction
    decoder = NetDecoder(kind="heatmaps", outputs=("maps",), refine="quarter", stride=(4.0, 4.0), offset=(0.0, 0.0))
    found = reader_of(spec_of(decoder), maps)(maps).keypoints_NJ2[0]
    assert found[:3].tolist() == [[7.0, 17.0], [8.0, 16.0], [4.0, 16.0]]


def test_dark_is_the_newton_step_of_the_blurred_map() -> None:
    """A slow twin in numpy with scipy's blur, on maps that are no bells."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(2)
    maps = bells(some_points(2, images=6), 16, 12, 4.0) + 0.5 * bells(some_points(3, images=6), 16, 12, 4.0, sigma=2.5)
    maps += random.random(maps.shape, dtype=np.float32) * 0.05
    decoder = NetDecoder(kind="heatmaps", outputs=("maps",), refine="dark", stride=(1.0, 1.0), offset=(0.0, 0.0))
    spec = spec_of(decoder)
    found = reader_of(spec, torch.from_numpy(maps))(torch.from_numpy(maps)).keypoints_NJ2.numpy()
    checked = 0
    for n, j in np.ndindex(6, JOINTS):
        y, x = np.unravel_index(maps[n, j].argmax(), (16, 12))
        if not (0 < y < 15 and 0 < x < 11):
            continue
        log = np.log(np.clip(gaussian_filter(maps[n, j], 0.8, mode="nearest", radius=3), 1e-3, 50))
        p = np.pad(log, 1, mode="edge")[y : y + 3, x : x + 3]
        gradient = np.array([p[1, 2] - p[1, 0], p[2, 1] - p[0, 1]]) / 2
        xy = (p[2, 2] - p[1, 2] - p[2, 1] + 2 * p[1, 1] - p[1, 0] - p[0, 1] + p[0, 0]) / 2
        bend = np.array([[p[1, 2] - 2 * p[1, 1] + p[1, 0], xy], [xy, p[2, 1] - 2 * p[1, 1] + p[0, 1]]])
        step = -np.linalg.solve(bend, gradient)
        if np.linalg.det(bend) > 1e-6 and bend[0, 0] < 0 and np.abs(step).max() < 1:
            checked += 1
            assert found[n, j] == pytest.approx([x + step[0], y + step[1]], abs=1e-3)
    assert checked > 3


def test_simcc_reads_two_distributions() -> None:
    """Two bins a pixel; the lower of the two peaks is the score, as in mmpose."""
    random = np.random.default_rng(3)
    across, down = (random.random((4, JOINTS, 2 * side)).astype(np.float32) for side in (WIDTH, HEIGHT))
    decoder = NetDecoder(kind="simcc", outputs=("x", "y"), refine="none", offset=(0.0, 0.0))
    reading = reader_of(spec_of(decoder), torch.from_numpy(across), torch.from_numpy(down))(
        torch.from_numpy(across), torch.from_numpy(down)
    )
    for n, j in np.ndindex(4, JOINTS):
        assert reading.keypoints_NJ2[n, j].tolist() == [across[n, j].argmax() / 2, down[n, j].argmax() / 2]
        assert float(reading.scores_NJ[n, j]) == min(across[n, j].max(), down[n, j].max())


def test_simcc_by_a_parabola_finds_the_middle_between_bins() -> None:
    """Of a bell, to a hundredth of a pixel."""
    points = some_points(4)
    across, down = (
        np.exp(-(((np.arange(2 * side) + 0.5) / 2 - 0.5 - points[..., axis, None]) ** 2) / 8).astype(np.float32)
        for axis, side in enumerate((WIDTH, HEIGHT))
    )
    tensors = torch.from_numpy(across), torch.from_numpy(down)
    reading = reader_of(spec_of(NetDecoder(kind="simcc", outputs=("x", "y"))), *tensors)(*tensors)
    assert np.abs(reading.keypoints_NJ2.numpy() - points).max() < 0.01


def test_points_in_any_order_of_columns() -> None:
    """Shares of the input, logits, and points behind the joints."""
    raw = np.random.default_rng(5).random((2, 1, 5, 4)).astype(np.float32)
    decoder = NetDecoder(kind="keypoints", outputs=("points",), columns=("y", "x", "other", "visibility"), unit="share",
                         points=5, score="logit")  # fmt: skip
    tensor = torch.from_numpy(raw)
    reader = reader_of(spec_of(decoder), tensor)
    reading = reader(tensor)
    for n, j in np.ndindex(2, JOINTS):
        y, x, _, seen = raw[n, 0, j]
        assert reading.keypoints_NJ2[n, j].tolist() == pytest.approx([x * WIDTH - 0.5, y * HEIGHT - 0.5], abs=1e-4)
        assert float(reading.scores_NJ[n, j]) == pytest.approx(1 / (1 + math.exp(-seen)))
        assert float(reading.evidence_NJD[n, j, reader.facts.index("visibility")]) == pytest.approx(seen)


@pytest.mark.parametrize("form", ["columns", "classes", "rows", "two outputs"])
def test_yolo_takes_the_best_candidate(form: str) -> None:
    """As the graph gives them before NMS, with two classes, after NMS with the class's number, and as RTMO does."""
    random = np.random.default_rng(6)
    boxes, points = random.uniform(1, 40, (3, 7, 4)), random.uniform(0, 40, (3, 7, JOINTS, 3))
    score = random.random((3, 7, 1))
    if form == "classes":
        score = np.concatenate([score * 0.5, score], axis=2)
    middle = [score, np.zeros_like(score)] if form == "rows" else [score]
    rows = np.concatenate([boxes, *middle, points.reshape(3, 7, -1)], axis=2).astype(np.float32)
    if form == "two outputs":
        tensors = [torch.from_numpy(rows[:, :, :5]), torch.from_numpy(points.astype(np.float32))]
    else:
        tensors = [torch.from_numpy(rows if form == "rows" else rows.transpose(0, 2, 1).copy())]
    names = ("boxes", "points")[: len(tensors)]
    reader = reader_of(spec_of(NetDecoder(kind="yolo", outputs=names)), *tensors)
    reading = reader(*tensors)
    for n in range(3):
        best = score[n, :, -1].argmax()
        assert reading.keypoints_NJ2[n].numpy() == pytest.approx(points[n, best, :, :2], rel=1e-5)
        assert reading.scores_NJ[n].numpy() == pytest.approx(points[n, best, :, 2], rel=1e-5)
        candidate = reading.evidence_NJD[n, 0, reader.facts.index("candidate")]
        assert float(candidate) == pytest.approx(score[n, best, -1], rel=1e-5)


def bilinear(map_HW: np.ndarray, x: float, y: float) -> float:
    """One value at a place in cells, read at the edge where it lies outside."""
    height, width = map_HW.shape
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = map_HW[top, left] * (1 - x + left) + map_HW[top, right] * (x - left)
    lower = map_HW[bottom, left] * (1 - x + left) + map_HW[bottom, right] * (x - left)
    return float(upper * (1 - y + top) + lower * (y - top))


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens", "tokens with a class token"])
def test_features_are_read_at_the_joint(layout: str) -> None:
    """Bilinearly, whatever the layout of the tap; a point outside reads the edge."""
    random = np.random.default_rng(7)
    points = random.uniform(-5, 70, (2, JOINTS, 2)).astype(np.float32)
    maps = random.random((2, 6, 8, 6)).astype(np.float32)  # 8 px a cell
    tap = maps if layout == "nchw" else maps.transpose(0, 2, 3, 1)
    if layout.startswith("tokens"):
        tap = tap.reshape(2, 48, 6)
    if layout.endswith("class token"):
        tap = np.concatenate([np.full((2, 1, 6), 99, np.float32), tap], axis=1)
    tensors = torch.from_numpy(points), torch.from_numpy(np.ascontiguousarray(tap))
    spec = spec_of(NetDecoder(kind="keypoints", outputs=("points",), columns=("x", "y"), score="none"), taps=("tap",))
    reader = reader_of(spec, *tensors)
    reading = reader(*tensors)
    assert reader.facts[reader.count :] == tuple(f"tap[{channel}]" for channel in range(6))
    for n, j, c in np.ndindex(2, JOINTS, 6):
        wanted = bilinear(maps[n, c], (points[n, j, 0] + 0.5) / 8 - 0.5, (points[n, j, 1] + 0.5) / 8 - 0.5)
        assert float(reading.evidence_NJD[n, j, reader.count + c]) == pytest.approx(wanted, abs=1e-5)
    assert reading.embedding_NE.numpy() == pytest.approx(maps.mean(axis=(2, 3)), abs=1e-5)
    assert reader.maps(tensors)[0].numpy() == pytest.approx(maps)
    assert (reading.scores_NJ == 1).all()


def hidden_net() -> tuple[PoseSpec, tuple[torch.Tensor, ...], np.ndarray]:
    """A net of points that hides maps, a centre, a flag and a second guess; and its points."""
    points = some_points(9).astype(np.float32)
    tensors = (
        torch.from_numpy(np.concatenate([points, np.full((4, JOINTS, 1), 0.5, np.float32)], axis=2)),
        torch.from_numpy(bells(some_points(8), 16, 12, 4.0)),
        torch.rand(4, 16, 12, 1), torch.rand(4, 1), torch.rand(4, JOINTS) * 12, torch.rand(4, JOINTS) * 16,
    )  # fmt: skip
    hidden = {"heatmaps": "maps", "centre": "centre", "flag": "flag", "regression.x": "rx", "regression.y": "ry"}
    return spec_of(NetDecoder(kind="keypoints", outputs=("points",)), hidden=hidden), tensors, points


def test_what_a_net_hides() -> None:
    """Each fact against its definition; the mirror partner's behind it."""
    spec, tensors, points = hidden_net()
    reader = reader_of(spec, *tensors)
    reading = reader(*tensors)
    maps, rx, ry = tensors[1].numpy(), tensors[4].numpy(), tensors[5].numpy()

    def fact(name: str, n: int, j: int) -> float:
        return float(reading.evidence_NJD[n, j, reader.facts.index(name)])

    for n, j in np.ndindex(4, JOINTS):
        mirror, (x, y) = (0, 2, 1)[j], points[n, j]
        cell = ((x + 0.5) / 4 - 0.5, (y + 0.5) / 4 - 0.5)
        second = np.array([rx[n, j] * 4 + 1.5, ry[n, j] * 4 + 1.5])
        row, column = np.unravel_index(maps[n, j].argmax(), (16, 12))
        peak = np.array([column * 4 + 1.5, row * 4 + 1.5])
        wanted = {
            "x": 2 * x / WIDTH - 1,
            "map's peak": maps[n, j].max(),
            "map at the point": bilinear(maps[n, j], *cell),
            "mirror's map at the point": bilinear(maps[n, mirror], *cell),
            "distance to the map's peak": np.log1p(np.hypot(*(peak - points[n, j])) / (FAR * HEIGHT)),
            "distance to the regression": np.log1p(np.hypot(*(second - points[n, j])) / (FAR * HEIGHT)),
            "distance to mirror": np.log1p(np.hypot(*(points[n, mirror] - points[n, j])) / (FAR * HEIGHT)),
            "flag": float(tensors[3][n, 0]),
            "centre": float(tensors[2][n].max()),
        }
        for name, value in wanted.items():
            assert fact(name, n, j) == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("what", ["dark", "simcc", "yolo", "hidden"])
def test_the_exported_graph_gives_the_same_for_any_batch(what: str, tmp_path: Path) -> None:
    """By ONNX Runtime, exported at another batch; also where a map is constant or not a number."""
    torch.manual_seed(10)
    tap = torch.rand(4, 5, 8, 6)
    if what == "dark":
        tensors: tuple[torch.Tensor, ...] = (torch.rand(4, JOINTS, 16, 12), tap)
        spec = spec_of(NetDecoder(kind="heatmaps", outputs=("maps",), refine="dark"), taps=("tap",))
    elif what == "simcc":
        tensors = (torch.rand(4, JOINTS, 96), torch.rand(4, JOINTS, 128), tap)
        spec = spec_of(NetDecoder(kind="simcc", outputs=("x", "y")), taps=("tap",))
    elif what == "yolo":
        tensors = (torch.rand(4, 5 + 3 * JOINTS, 21) * 40, tap)
        spec = spec_of(NetDecoder(kind="yolo", outputs=("rows",)), taps=("tap",))
    else:
        spec, tensors, _ = hidden_net()
        tensors[1][1, 0] = 0.0  # a map that says nothing
    reader = reader_of(spec, *tensors).eval()
    path, names = tmp_path / "reader.onnx", [f"in{place}" for place in range(len(tensors))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its exporter
        torch.onnx.export(
            reader, tensors, path, dynamo=True, input_names=names, verbose=False,
            dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in tensors),),
            output_names=["keypoints", "scores", "evidence", "embedding"],
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    for rows in (slice(0, 1), slice(0, 3), slice(0, 4)):
        given = tuple(value[rows] for value in tensors)
        answer = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
        for got, wanted in zip(answer, reader(*given), strict=True):
            assert np.isfinite(got).all()
            assert got == pytest.approx(wanted.numpy(), abs=2e-4)


def test_a_net_that_answers_with_nan_is_read_without_one_in_the_evidence() -> None:
    """The keypoints stay NaN: whoever asks must see that; the evidence and the places that are read are numbers."""
    spec, tensors, _ = hidden_net()
    for value in tensors:
        value[0] = float("nan")
    reading = reader_of(spec, *tensors)(*tensors)
    assert torch.isnan(reading.keypoints_NJ2[0]).all()
    assert torch.isfinite(reading.evidence_NJD).all()
    assert torch.isfinite(reading.embedding_NE).all()


@pytest.mark.parametrize(
    ("decoder", "shape", "says"),
    [
        (NetDecoder(kind="heatmaps", outputs=("out",)), (None, 17, 16, 12), "expected 3 heatmaps"),
        (NetDecoder(kind="keypoints", outputs=("out",)), (None, 12), "not 3 points of 3 numbers"),
        (NetDecoder(kind="yolo", outputs=("out",)), (None, 6, 6), "do not hold a box, a score and 9 numbers"),
    ],
)
def test_an_output_that_does_not_fit(decoder: NetDecoder, shape: tuple[int | None, ...], says: str) -> None:
    """One sentence with the shape that was found, when the reader is built."""
    with pytest.raises(ConfigError, match=says):
        NetReader(spec_of(decoder), {"out": shape})


def test_logits_become_probabilities_and_scores_may_stand_apart() -> None:
    """Hidden logits are told as probabilities; the scores are an output of their own."""
    points, maps = torch.rand(2, JOINTS, 2) * 40, torch.randn(2, JOINTS, 16, 12)
    decoder = NetDecoder(kind="keypoints", outputs=("points", "scores"), columns=("x", "y"), unit="corner")
    spec = spec_of(decoder, hidden={"heatmaps": "maps"}, logits=("maps",))
    tensors = points, torch.rand(2, JOINTS), maps
    reader = reader_of(spec, *tensors)
    reading = reader(*tensors)
    assert (reading.scores_NJ == tensors[1]).all()
    assert torch.equal(reading.keypoints_NJ2, points - 0.5)
    peak_NJ = reading.evidence_NJD[..., reader.facts.index("map's peak")]
    assert torch.allclose(peak_NJ, torch.sigmoid(maps.amax(dim=(2, 3))))
