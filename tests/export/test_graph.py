from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.export.graph import UNCALIBRATED, MonitorGraph, TorchEngine
from alpose.export.graph_parts import Calibrate, Decode
from alpose.export.onnx_graph import BATCH, TENSORRT_OPERATORS, to_onnx
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.types import OUTPUT_NAMES, Outputs
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.heatmaps import decode, to_pixels
from alpose.trainer.models.heads import HeadConfig, HeadName, build_head
from alpose.trainer.models.hourglass import Features
from alpose.trainer.scoring import score

from ..fakes.people import made_people
from .conftest import CALIBRATION, DOTS, SIZE, blobs, settle

Frames = npt.NDArray[np.uint8]


def deviations(a: Outputs, b: Outputs) -> dict[str, float]:
    return {name: float(np.abs(a.named()[name] - b.named()[name]).max()) for name in OUTPUT_NAMES}


def as_crops(frames: Frames, model: PoseModel) -> Crops:
    count, joints = len(frames), len(model.skeleton)
    data = made_people(model.skeleton, np.zeros((count, joints, 2)))
    pad = model.crop.context_px
    pixels = np.pad(frames, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=77)
    return Crops(data, model.crop, pixels, np.arange(count), np.ones(count, dtype=np.float32), data.joints_NJ2, ())


# --- in PyTorch


def test_the_graph_answers_what_scoring_says(
    tiny_model: PoseModel, tiny_graph: MonitorGraph, tiny_frames: Frames
) -> None:
    scored = score(tiny_model, as_crops(tiny_frames, tiny_model), DeviceContext(torch.device("cpu"), torch.float32))
    engine = TorchEngine(tiny_graph, batch=7)
    answer, evidence = engine(tiny_frames), engine.evidence(tiny_frames)
    # The two run at different batch sizes and memory layouts, which changes the order of sums.
    np.testing.assert_allclose(answer.keypoints_NJ2, scored.predicted_NJ2, atol=0.02)
    np.testing.assert_allclose(answer.scores_NJ, scored.peak_NJ, atol=1e-4)
    np.testing.assert_allclose(answer.predicted_loss_N, scored.predicted_loss["ll++conv"], atol=1e-5)
    np.testing.assert_allclose(evidence[:, 0], scored.predicted_loss["ll++conv"], atol=1e-5)
    np.testing.assert_allclose(evidence[:, 1], scored.entropy_N, atol=1e-3)
    np.testing.assert_allclose(evidence[:, 2], 1 - scored.peak_NJ.mean(axis=1), atol=1e-4)
    unit = scored.embedding_ND / np.linalg.norm(scored.embedding_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(answer.embedding_ND, unit, atol=1e-4)
    np.testing.assert_allclose(answer.failure_probability_N, CALIBRATION.probability(evidence), atol=1e-6)
    assert answer.predicted_loss_N.std() > 0
    assert np.ptp(answer.failure_probability_N) > 0.05


@pytest.mark.parametrize("cells", [16, 12, 32])
def test_decoding_is_the_trainers_bit_for_bit(cells: int) -> None:
    generator = torch.Generator().manual_seed(cells)
    maps = torch.randn(60, 5, cells, cells, generator=generator) * 3 + 1
    maps[:8] = 0  # a plateau
    maps[8:16] = -1.0  # no positive value anywhere
    edge = cells - 1
    for row, (y, x) in enumerate([(0, 0), (0, edge), (edge, 0), (edge, edge), (0, 5), (7, 0), (edge, 3), (4, edge)]):
        maps[16 + row, :, y, x] = 50
    maps[30:40] = maps[30:40].abs().cumsum(dim=2)
    keypoints, scores, height = Decode(4.0, 30.0, cells)(maps)
    place, peak = decode(maps)
    assert torch.equal(keypoints, to_pixels(place, 4))
    assert torch.equal(scores, peak / 30.0)
    assert torch.equal(height[..., 0], peak)


def test_the_calibration_is_its_numpy_twin_and_constant_beyond_its_ends() -> None:
    rng = np.random.default_rng(0)
    evidence = np.concatenate([rng.normal(0, 3, (500, 3)), [[-1e6, 0, 0], [1e6, 1e3, 1e3]]]).astype(np.float32)
    given = Calibrate(CALIBRATION)(torch.from_numpy(evidence)).numpy()
    np.testing.assert_allclose(given, CALIBRATION.probability(evidence), atol=2e-6)
    assert given[-2:].tolist() == pytest.approx([0.02, 0.97])


def test_without_a_calibration_doubt_stands_in(tiny_model: PoseModel, tiny_frames: Frames) -> None:
    graph = MonitorGraph.from_model(tiny_model, "ll")
    answer = TorchEngine(graph)(tiny_frames)
    assert graph.calibration is None
    np.testing.assert_allclose(answer.failure_probability_N, (1 - answer.scores_NJ.mean(axis=1)).clip(0, 1), atol=1e-6)
    calibrated = graph.with_calibration(CALIBRATION)
    assert calibrated.calibration is CALIBRATION
    assert graph.calibration is None
    other = TorchEngine(calibrated)
    np.testing.assert_allclose(other(tiny_frames).failure_probability_N,
                               CALIBRATION.probability(other.evidence(tiny_frames)), atol=1e-6)  # fmt: skip
    assert UNCALIBRATED.probability(np.array([[9.0, 9.0, 0.25]])) == pytest.approx(0.25)


def test_the_model_is_copied_not_taken(tiny_model: PoseModel, tiny_frames: Frames) -> None:
    tiny_model.pose.train()
    try:
        graph = MonitorGraph.from_model(tiny_model, "ll++conv", CALIBRATION)
        assert tiny_model.pose.training
        assert not any(part.training for part in graph.modules())
        before = {key: value.clone() for key, value in tiny_model.pose.state_dict().items()}
        TorchEngine(graph)(tiny_frames)
        assert all(torch.equal(value, before[key]) for key, value in tiny_model.pose.state_dict().items())
    finally:
        tiny_model.pose.eval()


def test_damaged_weights_and_wrong_choices_are_refused(tiny_model: PoseModel, tiny_graph: MonitorGraph) -> None:
    with pytest.raises(ConfigError, match=r"has the loss heads ll\+\+conv, ll, asked for None"):
        MonitorGraph.from_model(tiny_model)
    with pytest.raises(ConfigError, match="asked for 'll-gap'"):
        MonitorGraph.from_model(tiny_model, "ll-gap")
    weight = tiny_model.pose.get_parameter("hourglasses.0.low1.conv2.weight")
    kept = weight.data.clone()
    weight.data[0, 0, 0, 0] = float("nan")
    try:
        with pytest.raises(
            CheckpointError, match=r"1 of 144 numbers of trunk\.net\.hourglasses\.0\.low1\.conv2\.weight"
        ):
            MonitorGraph.from_model(tiny_model, "ll")
    finally:
        weight.data.copy_(kept)
    engine = TorchEngine(tiny_graph)
    with pytest.raises(DataError, match=r"frames are uint8 \(N, 64, 64, 3\)"):
        engine(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="float32"):
        engine(np.zeros((1, 64, 64, 3), dtype=np.float32))


# --- in ONNX


@pytest.mark.parametrize("batch", range(1, 9))
def test_onnx_answers_what_torch_answers_at_every_batch(
    tiny_graph: MonitorGraph, tiny_onnx: Path, tiny_frames: Frames, batch: int
) -> None:
    frames = tiny_frames[5 : 5 + batch]
    found = deviations(OnnxEngine(tiny_onnx, threads=1)(frames), TorchEngine(tiny_graph)(frames))
    assert found["keypoints"] < 0.02
    assert max(found[name] for name in OUTPUT_NAMES[1:]) < 1e-4


def test_the_file_says_what_it_is(tiny_onnx: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    content = tiny_onnx.read_bytes()
    model = onnx.load_model_from_string(content)

    def shape(value: Any) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert [(value.name, shape(value)) for value in model.graph.input] == [("frames", [BATCH, 64, 64, 3])]
    assert {value.name: shape(value) for value in model.graph.output} == {
        "keypoints": [BATCH, 3, 2], "scores": [BATCH, 3], "predicted_loss": [BATCH], "failure_probability": [BATCH],
        "embedding": [BATCH, 8], "confidence": [BATCH, 3],
    }  # fmt: skip
    symbols = {dim.dim_param for value in model.graph.value_info for dim in value.type.tensor_type.shape.dim}
    assert symbols <= {BATCH, ""}
    assert model.producer_name == "alpose"
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert all(key.startswith("alpose.") for key in facts)
    assert json.loads(facts["alpose.skeleton"])["joints"] == list(DOTS.joints)
    assert json.loads(facts["alpose.calibration"]) == CALIBRATION.to_json()
    assert (facts["alpose.precision"], facts["alpose.head"]) == ("fp32", "ll++conv")


def test_no_path_of_this_machine_is_in_the_file(tiny_onnx: Path) -> None:
    content = tiny_onnx.read_bytes()
    assert not re.search(rb"\.py|/home|/work|/root|Traceback|site-packages", content)


def test_every_node_is_named_by_its_part_and_known_to_tensorrt(tiny_onnx: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    model = onnx.load(tiny_onnx)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    parts = {name.split("/")[0] for name in names}
    assert parts == {"normalise", "trunk", "head", "decode", "doubt", "embedding", "calibrate", "confidence", "graph"}
    operators = {node.op_type for node in model.graph.node}
    assert operators <= TENSORRT_OPERATORS
    assert not operators & {"Loop", "If", "Scan", "NonZero", "Shape"}
    # TensorRT takes uint8 at the border of a graph alone: the very first node must leave it.
    readers = [node for node in model.graph.node if "frames" in node.input]
    assert [node.op_type for node in readers] == ["Cast"]
    # Norms that follow a convolution are folded into it; of a pre-activation block one stays.
    convolutions = {name for node in model.graph.node if node.op_type == "Conv" for name in node.output}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert norms
    assert not {node.input[0] for node in norms} & convolutions


def test_the_same_graph_gives_the_same_bytes(tiny_graph: MonitorGraph, tiny_onnx: Path, tmp_path: Path) -> None:
    to_onnx(tiny_graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == tiny_onnx.read_bytes()


# --- anybody's net


class Block(nn.Module):
    """Post-activation, as torchvision's ResNets have it."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class ResNetPose(nn.Module):
    """A small ResNet with a deconvolution head that answers a dict, as torchvision's keypoint nets do."""

    def __init__(self, joints: int, answer: str = "dict") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 8, 2))
        self.layer3 = nn.Sequential(Block(8, 8, 2))
        self.deconv = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 4, 2, 1),
                                    nn.ReLU())  # fmt: skip
        self.predict = nn.Conv2d(12, joints, 1)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        heatmaps = self.predict(self.deconv(self.layer3(self.layer2(self.layer1(x)))))
        return {"heatmaps": heatmaps} if self.answer == "dict" else heatmaps


FIVE = Skeleton("five", ("a", "b", "c", "d", "e"), (), ())
TAPS: Mapping[str, Any] = {"taps": ("layer1", "layer2", "layer3"), "penultimate": "deconv"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def own_net(answer: str = "dict") -> tuple[ResNetPose, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = ResNetPose(5, answer)
        head = build_head(HeadConfig(name="ll++conv", channels=8, sizes=(16, 8, 4)))
    settle(net, torch.from_numpy(blobs()).permute(0, 3, 1, 2) / 255)
    with torch.no_grad():
        net.predict.weight.mul_(30.0)
    return net, head


def monitor(net: nn.Module, head: nn.Module, **changes: Any) -> MonitorGraph:
    arguments: dict[str, Any] = {"skeleton": FIVE, "size_px": SIZE, "peak": 1.0, "heatmaps": "predict", **TAPS}
    return MonitorGraph.from_modules(net, head, **{**arguments, **changes})


@pytest.mark.parametrize("name", ["epck", "epck-slim"])
def test_the_head_that_ships_reads_the_heatmaps_of_anybodys_net(name: HeadName, tiny_frames: Frames) -> None:
    net, _ = own_net("tensor")
    head = build_head(HeadConfig(name=name, channels=8, sizes=(16, 8, 4), joints=5, peak=1.0))
    answer = TorchEngine(monitor(net, head, heatmaps=None))(tiny_frames)
    assert np.isfinite(answer.predicted_loss_N).all()
    assert np.ptp(answer.predicted_loss_N) > 0


def test_anybodys_net_is_tapped_by_name_exported_and_right(tmp_path: Path, tiny_frames: Frames) -> None:
    net, head = own_net()
    graph = monitor(net, head, mean=MEAN, std=STD, calibration=CALIBRATION)
    assert (graph.stride, graph.spec.dimensions, graph.spec.head) == (4.0, 12, "ConvHead")
    # What its owner would have written by hand.
    net.eval()
    head.eval()
    kept: dict[str, Tensor] = {}
    for name in ("layer1", "layer2", "layer3", "deconv"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
    images = torch.from_numpy(tiny_frames).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        maps = net((images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])["heatmaps"]
        loss = head(Features((kept["layer1"], kept["layer2"], kept["layer3"]), kept["deconv"]))
        cells, peak = decode(maps)
        embedding = functional.normalize(kept["deconv"].mean(dim=(2, 3)), dim=1)
    answer = TorchEngine(graph)(tiny_frames)
    np.testing.assert_allclose(answer.keypoints_NJ2, to_pixels(cells, 4).numpy(), atol=0.02)
    np.testing.assert_allclose(answer.scores_NJ, peak.numpy(), atol=1e-4)
    np.testing.assert_allclose(answer.predicted_loss_N, loss.numpy(), atol=1e-5)
    np.testing.assert_allclose(answer.embedding_ND, embedding.numpy(), atol=1e-5)

    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    facts = to_onnx(graph, tmp_path / "own.onnx")
    assert not facts.outside_tensorrt
    assert "BatchNormalization" not in facts.operators  # every norm follows a convolution here
    engine = OnnxEngine(tmp_path / "own.onnx", threads=1)
    for batch in (1, 3, 24):
        found = deviations(engine(tiny_frames[:batch]), TorchEngine(graph)(tiny_frames[:batch]))
        assert found["keypoints"] < 0.02
        assert max(found[name] for name in OUTPUT_NAMES[1:]) < 1e-4


def test_a_net_that_returns_heatmaps_needs_no_name_for_them(tiny_frames: Frames) -> None:
    net, head = own_net("plain")
    named = TorchEngine(monitor(net, head))(tiny_frames[:2])
    returned = TorchEngine(monitor(net, head, heatmaps=None))(tiny_frames[:2])
    assert max(deviations(named, returned).values()) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ("layer1", "layr2", "layer3")}, "ResNetPose has no module 'layr2': did you mean layer2"),
        ({"penultimate": "deconv.9"}, r"no module 'deconv\.9': did you mean deconv"),
        ({"heatmaps": None}, "ResNetPose returns a dict, not one tensor of heatmaps: name the module"),
        ({"taps": ()}, "taps names no module"),
        ({"taps": ("layer3", "layer2", "layer1")}, r"finest to the coarsest scale, their \(C, h, w\) are"),
        ({"taps": ("layer1", "layer2")}, r"the loss head does not take features|this head was built for"),
        ({"taps": ("layer1.0.relu", "layer2", "layer3")}, r"'layer1\.0\.relu' runs 2 times in a forward pass"),
        ({"skeleton": DOTS}, r"heatmaps of 3 joints \(dots\).* the net gives \(2, 5, 16, 16\)"),
        ({"size_px": 72}, r"does not take features of \(C, h, w\) \[\(8, 18, 18\), \(8, 9, 9\), \(8, 5, 5\)\]"),
        ({"heatmaps": "deconv"}, r"heatmaps of 5 joints .* gives \(2, 12, 16, 16\)"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"peak": 0.0}, "peak must be positive"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    net, head = own_net()
    with pytest.raises(ConfigError, match=message):
        monitor(net, head, **changes)


def test_a_stride_that_is_not_whole_must_be_stated(tiny_frames: Frames) -> None:
    net, _ = own_net()
    head = build_head(HeadConfig(name="ll++", channels=12, sizes=(16,)))
    with pytest.raises(
        ConfigError, match="a crop of 72 px and heatmaps of 20 cells give no whole stride: state stride="
    ):
        monitor(net, head, size_px=72)
    assert monitor(net, head, size_px=72, stride=4).stride == 4


def test_heads_and_modules_of_another_form_are_named() -> None:
    net, head = own_net()

    class Pairs(nn.Module):
        def forward(self, features: Features) -> Tensor:
            return features.penultimate_BCHW.mean(dim=(2, 3))[:, :2]

    with pytest.raises(ConfigError, match=r"one number per image, shape \(N,\), it gives a tensor of shape \(2, 2\)"):
        monitor(net, Pairs())

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ResNetPose(5)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    with pytest.raises(ConfigError, match="module 'inner' gives a dict, a tap needs one tensor"):
        monitor(Halves(), head, taps=("inner",), penultimate="inner.deconv", heatmaps="inner.predict")


def test_a_net_that_looks_at_values_or_the_batch_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")

    class Fickle(ResNetPose):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x if x.sum() > 0 else x + 1)

    _, head = own_net()
    with pytest.raises(ConfigError, match="cannot be exported with a dynamic batch"):
        to_onnx(monitor(Fickle(5), head), tmp_path / "no.onnx")

    class Fixed(ResNetPose):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.reshape(2, 3, SIZE, SIZE))

    with pytest.raises(ConfigError, match="cannot be exported with a dynamic batch"):
        to_onnx(monitor(Fixed(5), head), tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()
