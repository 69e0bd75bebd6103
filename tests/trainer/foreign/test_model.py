"""A foreign net with its detector: written, read, and refused when a file is not the one that was written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from alpose.runtime.errors import CheckpointError
from alpose.runtime.skeleton import COCO
from alpose.trainer.foreign.heads import Detector, DetectorConfig, build_detector
from alpose.trainer.foreign.model import FACTS, NET, WEIGHTS, ForeignModel, Readout, is_foreign, load, save
from alpose.trainer.foreign.spec import NetCrop, NetDecoder, NetInput, PoseSpec

JOINTS = tuple(range(5, 17))
SHAPES = {"points": (None, 17, 3), "maps": (None, 17, 12, 12), "tap": (None, 6, 12, 12)}


def spec() -> PoseSpec:
    """A net of points that hides maps."""
    return PoseSpec(name="net", input=NetInput(name="image", height_px=48, width_px=48), crop=NetCrop(), skeleton=COCO,
                    decoder=NetDecoder(kind="keypoints", outputs=("points",)), hidden={"heatmaps": "maps"}, taps=("tap",))  # fmt: skip


def configs() -> list[DetectorConfig]:
    """One of every kind."""
    return [
        DetectorConfig(kind="free", joints=JOINTS, fact=2, sign=-1),
        DetectorConfig(kind="facts", joints=JOINTS, facts=8),
        DetectorConfig(kind="epck", joints=JOINTS, facts=8, channels=6, components=4),
        DetectorConfig(kind="facts+features", joints=JOINTS, facts=8, channels=6, components=4),
        DetectorConfig(kind="ll", joints=JOINTS, pooled=(6,), fact=2),
        DetectorConfig(kind="ll++", joints=JOINTS, pooled=(6,), fact=2),
        DetectorConfig(kind="ll++conv", joints=JOINTS, pooled=(6,), sides=(6,), fact=2),
    ]


def detector_of(config: DetectorConfig) -> Detector:
    """With numbers of its own everywhere."""
    detector = build_detector(config, 17)
    torch.manual_seed(1)
    for value in detector.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.1)
    return detector.eval()


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Some ONNX file."""
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "net", [value],
                              [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])])  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "mine.onnx")
    return tmp_path / "mine.onnx"


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.kind)
def test_a_model_comes_back_as_it_was(config: DetectorConfig, net: Path, tmp_path: Path) -> None:
    """The net's bytes, every field, and the same answers; joints without labels enter none."""
    model = ForeignModel(spec(), net, SHAPES, detector_of(config), {"labelled_ids": ["a", "b"]})
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert is_foreign(tmp_path / "model")
    assert again.net.read_bytes() == net.read_bytes()
    assert (again.spec, again.facts, asdict(again.detector.config)) == (model.spec, model.facts, asdict(config))
    torch.manual_seed(2)
    tensors = [torch.rand(3, *(size or 1 for size in shape[1:])) * 40 for shape in SHAPES.values()]
    first, second = model.readout()(*tensors), again.readout()(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.predicted_loss_N.shape == (3,)
    assert first.confidence_NJ.shape == (3, 17)
    assert ((first.confidence_NJ >= 0) & (first.confidence_NJ <= 1)).all()
    taught = first.confidence_NJ[:, list(JOINTS)].mean(dim=1)
    assert torch.allclose(first.confidence_NJ[:, 0], taught)
    tensors[0][:, :5] = 7.0  # the nose, eyes and ears, which have no labels, go elsewhere
    tensors[1][:, :5] = 0.0
    assert torch.equal(model.readout()(*tensors).predicted_loss_N, first.predicted_loss_N)


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.kind)
def test_a_graph_reads_less_and_answers_the_same(config: DetectorConfig, net: Path) -> None:
    """Components of whole maps, scaling in the weights, two heads in one, nothing that nobody looks at."""
    readout = ForeignModel(spec(), net, SHAPES, detector_of(config), {}).readout()
    reader, detector = readout.detector.for_graph(readout.reader)
    assert len(reader.facts) < len(readout.reader.facts)
    torch.manual_seed(2)
    tensors = [torch.rand(3, *(size or 1 for size in shape[1:])) * 40 for shape in SHAPES.values()]
    for value in tensors[1:]:
        value /= 40
    with torch.no_grad():
        whole, less = readout(*tensors), Readout(reader, detector)(*tensors)
    for name, one, other in zip(whole._fields, whole, less, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", [NET, WEIGHTS])
def test_another_file_in_its_place_is_refused_by_name(name: str, net: Path, tmp_path: Path) -> None:
    """Also a missing one."""
    save(ForeignModel(spec(), net, SHAPES, detector_of(configs()[1]), {}), tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=f"{name} is not the file"):
        load(tmp_path / "model")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} does not exist"):
        load(tmp_path / "model")


def test_what_is_no_model_is_not_taken_for_one(tmp_path: Path) -> None:
    """An empty folder, and JSON of another kind."""
    assert not is_foreign(tmp_path)
    (tmp_path / FACTS).write_text('{"kind": "alpose pose model", "schema": 1}')
    assert not is_foreign(tmp_path)
    with pytest.raises(CheckpointError, match="does not describe"):
        load(tmp_path)
