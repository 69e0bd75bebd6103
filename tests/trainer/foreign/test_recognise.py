"""From an ONNX file alone to what a net takes and gives; and what is said where that is not enough."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from alpose.runtime.errors import CheckpointError, ConfigError, DataError, DataNotFoundError
from alpose.runtime.io import to_json
from alpose.runtime.known_skeletons import BLAZEPOSE_33, FACE_468, HAND_21
from alpose.runtime.skeleton import COCO, MPII
from alpose.trainer.foreign.net import open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.recognise import examine, recognise
from alpose.trainer.foreign.recognition.stated import Stated, read_spec_file
from alpose.trainer.foreign.spec import NetCrop, NetDecoder, NetInput, PoseSpec

from . import nets

Shape = tuple[int | None, ...]


def _taps(path: Path, spec: PoseSpec) -> dict[str, Shape]:
    """The taps with their shapes, as the net itself gives them."""
    net = open_net(path, spec)
    assert set(net.shapes) == set(spec.tensors)
    return {name: net.shapes[name] for name in spec.taps}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


def test_an_hourglass(path: Path) -> None:
    spec = recognise(nets.hourglass(path))
    assert (spec.decoder.kind, spec.decoder.outputs, spec.skeleton) == ("heatmaps", ("heatmaps",), MPII)
    assert spec.input == NetInput(
        name="image", height_px=64, width_px=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    taps = _taps(path, spec)
    assert next(iter(taps)) == "features"
    assert list(taps)[-1] == "bottom"
    assert [shape[2:] for shape in taps.values()] == [(16, 16), (8, 8), (4, 4)]


def test_a_net_for_crops_that_are_not_square(path: Path) -> None:
    spec = recognise(nets.hrnet(path))
    assert (spec.input.height_px, spec.input.width_px, spec.skeleton) == (256, 192, COCO)
    assert (spec.decoder.stride, spec.decoder.offset) == (None, None)
    assert _taps(path, spec)["features"] == (None, 16, 64, 48)
    like = recognise(path, like="hrnet")
    assert (like.decoder.stride, like.decoder.offset) == ((4, 4), (0, 0))
    aligned = recognise(path, like="vitpose")
    assert aligned.decoder.stride == pytest.approx((191 / 47, 255 / 63))
    assert aligned.decoder.refine == "dark"


def test_maps_whose_channels_come_last(path: Path) -> None:
    spec = recognise(nets.hrnet(path, channels_last=True))
    assert spec.decoder.channels_last
    assert spec.decoder.outputs == ("last",)


def test_simcc(path: Path) -> None:
    spec = recognise(nets.simcc(path))
    assert (spec.name, spec.decoder.outputs, spec.decoder.stride) == ("rtmpose", ("simcc_x", "simcc_y"), (0.5, 0.5))
    assert list(_taps(path, spec))[-1] == "deep"
    swapped = recognise(nets.simcc(path, names=("down", "along")))
    assert swapped.decoder.outputs == ("down", "along")  # by their lengths, whatever the names
    square = recognise(nets.simcc(path, size=(128, 128), names=("y", "x")))
    assert square.decoder.outputs == ("x", "y")  # by their names, as the lengths are the same


def _simcc_of(path: Path, along: int, down: int) -> Path:
    """Distributions over any bins, whose names say nothing, for crops of 256 x 192."""
    net = nets.Net((256, 192), image="input")
    rows = net.reshape(net.conv(net.block(net.stem(4), 32, 2), 17, kernel=1), 0, 17, 48)
    net.output(net.dense(rows, 48, along, "along"))
    net.output(net.dense(rows, 48, down, "down"))
    return net.save(path)


@pytest.mark.parametrize(("along", "down"), [(48, 64), (96, 64), (40, 90)])
def test_short_distributions_are_read_where_that_is_stated(path: Path, along: int, down: int) -> None:
    """(17, 48) is no list of 17 people with 14 joints, and x may have another number of bins a pixel than y."""
    spec = recognise(_simcc_of(path, along, down), decode="simcc")
    assert (spec.decoder.kind, spec.decoder.outputs, len(spec.skeleton)) == ("simcc", ("along", "down"), 17)


def test_short_distributions_with_the_names_of_a_family(path: Path) -> None:
    net = nets.Net((256, 192), image="input")
    rows = net.reshape(net.conv(net.block(net.stem(4), 32, 2), 17, kernel=1), 0, 17, 48)
    net.output(net.dense(rows, 48, 64, "simcc_y"))
    net.output(net.dense(rows, 48, 48, "simcc_x"))
    assert recognise(net.save(path)).decoder.outputs == ("simcc_x", "simcc_y")


@pytest.mark.parametrize("size", [(256, 192), (64, 64), (96, 128)])
@pytest.mark.parametrize("last", [False, True])
def test_maps_of_one_joint(path: Path, size: tuple[int, int], last: bool) -> None:
    """(1, 64, 48) is no list of 64 people; that it is a joint's map and no mask is a guess."""
    net = nets.Net(size)
    maps = net.conv(net.block(net.stem(), 24), 1, name="maps")
    net.output(net.add("Transpose", [maps], "last", perm=[0, 2, 3, 1]) if last else maps)
    found = examine(net.save(path))
    assert (found.spec.decoder.kind, len(found.spec.skeleton), found.spec.decoder.channels_last) == (
        "heatmaps",
        1,
        last,
    )
    decode = next(part for part in found.parts if part.name == "decode")
    assert (decode.origin, decode.why) == ("guess", "a single map: of one joint, or a mask")


def test_points_with_and_without_scores(path: Path) -> None:
    bare = recognise(nets.regression(path))
    assert (bare.decoder.columns, bare.decoder.unit, bare.decoder.score) == (("x", "y"), "share", "none")
    three = recognise(nets.regression(path, numbers=3))
    assert (three.decoder.columns, three.decoder.score) == (("x", "y", "score"), "probability")
    beside = recognise(nets.regression(path, flat=False, scores=True, pixels=True, batch=1))
    assert (beside.decoder.outputs, beside.decoder.unit, beside.input.batch) == (("points", "scores"), "pixels", 1)
    assert list(_taps(path, beside))[-1] == "deep"


def test_points_from_minus_one_to_one(path: Path) -> None:
    """As DSNT gives them: from the input's left or upper edge to the other."""
    net = nets.Net((96, 64))
    pooled = net.reshape(net.add("GlobalAveragePool", [net.block(net.stem(3), 32, 2)]), 0, 32)
    wide = net.add("Mul", [net.dense(pooled, 32, 34), net.weight(np.float32(30))])
    net.output(net.reshape(net.add("Tanh", [wide]), 0, 17, 2, name="points"))
    spec = recognise(net.save(path))
    assert (spec.decoder.unit, spec.decoder.columns) == ("centred", ("x", "y"))
    reader = NetReader(spec, {name: (None, 17, 2) if name == "points" else (None, 32) for name in spec.tensors})
    points_N17x2 = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])[:, None].expand(-1, 17, -1)
    tensors = [points_N17x2 if name == "points" else torch.zeros(3, 32) for name in spec.tensors]
    keypoints_N17x2 = reader(*tensors).keypoints_NJ2
    assert keypoints_N17x2[:, 0].tolist() == [[-0.5, -0.5], [31.5, 47.5], [63.5, 95.5]]


@pytest.mark.parametrize("rows", [False, True])
def test_candidates_of_a_detector(path: Path, rows: bool) -> None:
    spec = recognise(nets.yolo(path, rows=rows))
    assert (spec.decoder.kind, spec.decoder.columns, spec.decoder.unit) == ("yolo", ("x", "y", "visibility"), "corner")
    assert (spec.crop.kind, spec.crop.fill, spec.input.mean, spec.input.batch) == ("letterbox", 114, (0, 0, 0), 1)
    assert [shape[2] for shape in _taps(path, spec).values()] == [16, 8, 4, 2]


def test_a_detector_of_several_classes_says_how_many_joints_it_has(path: Path) -> None:
    spec = recognise(nets.yolo(path, joints=9, classes=80))
    assert (spec.name, len(spec.skeleton), spec.decoder.columns) == ("yolo-pose", 9, ("x", "y", "visibility"))


def test_tokens_of_a_transformer(path: Path) -> None:
    assert _taps(path, recognise(nets.transformer(path))) == {"tokens": (None, 12, 32)}


def test_bytes_with_the_normalisation_inside(path: Path) -> None:
    spec = recognise(nets.uint8_nhwc(path))
    assert (spec.input.number, spec.input.layout, spec.input.scale, spec.input.batch) == ("uint8", "nhwc", 1, 1)
    assert (spec.skeleton, spec.decoder.channels_last) == (HAND_21, True)
    assert _taps(path, spec) == {"features": (None, 24, 16, 16)}


def test_nets_of_animal_laboratories(path: Path) -> None:
    lightning = recognise(nets.lightning_pose(path))
    assert (lightning.name, lightning.crop.kind, len(lightning.skeleton)) == ("lightning-pose", "whole", 9)
    sleap = recognise(nets.sleap(path))
    assert (sleap.name, sleap.decoder.outputs, sleap.crop.kind) == ("sleap", ("peaks", "peak_vals"), "whole")
    assert (sleap.input.number, sleap.decoder.score) == ("uint8", "probability")


def test_a_torch_net_by_its_own_exporter(path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, 2, 1), torch.nn.SiLU(),
        torch.nn.Conv2d(16, 14, 1),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own remarks on pytrees
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, 64, 48),), str(path), dynamo=True, verbose=False,
                          dynamic_shapes=({0: torch.export.Dim("n")},))  # fmt: skip
    spec = recognise(path)
    assert (spec.decoder.kind, len(spec.skeleton), spec.input.batch) == ("heatmaps", 14, None)
    assert list(_taps(path, spec).values()) == [(None, 16, 16, 12)]


def test_what_is_stated_comes_first_and_what_is_guessed_is_told(path: Path) -> None:
    found = examine(
        nets.hrnet(path), Stated(colour="bgr", mean=(1, 2, 3), crop="letterbox", taps=("features",), margin=2.0)
    )
    origin = {part.name: part.origin for part in found.parts}
    assert found.spec.input.colour == "bgr"
    assert found.spec.input.mean == (1, 2, 3)
    assert (found.spec.crop, found.spec.taps) == (NetCrop(kind="letterbox", margin=2.0), ("features",))
    assert {name: origin[name] for name in ("colour", "mean", "std", "size", "taps", "skeleton")} == {
        "colour": "stated", "mean": "stated", "std": "guess", "size": "graph", "taps": "stated", "skeleton": "guess",
    }  # fmt: skip
    assert {part.name for part in found.guesses()} >= {"std", "scale", "skeleton"}


def test_a_spec_goes_through_a_file_and_back(path: Path, tmp_path: Path) -> None:
    spec = recognise(nets.regression(path, flat=False, scores=True), colour="bgr", skeleton="coco", margin=1.5)
    whole = tmp_path / "spec.json"
    whole.write_text(json.dumps(to_json(spec)))
    assert recognise(path, spec=read_spec_file(whole)) == spec
    part = tmp_path / "spec.toml"
    part.write_text('[input]\ncolour = "bgr"\n[crop]\nmargin = 1.5\n')
    assert recognise(path, spec=read_spec_file(part)) == spec
    assert recognise(path, spec=read_spec_file(part), margin=2.0).crop.margin == 2.0
    part.write_text('[input]\ncolor = "bgr"\n')
    with pytest.raises(DataError, match=r"unknown input\.color"):
        read_spec_file(part)
    part.write_text("[input\n")
    with pytest.raises(DataError, match=r"spec\.toml"):
        read_spec_file(part)


def test_a_hidden_map_of_a_net_that_gives_points(path: Path) -> None:
    net = nets.Net((64, 64))
    features = net.block(net.stem(), 24, name="features")
    maps = net.add("Sigmoid", [net.conv(features, 17)], "maps")
    place = net.add("ArgMax", [net.reshape(maps, 0, 17, 256)], axis=2, keepdims=1)
    points = net.add("Cast", [place], to=TensorProto.FLOAT)
    net.output(net.add("Concat", [points, points], "points", axis=2))
    spec = recognise(net.save(path))
    assert spec.hidden == {"heatmaps": "maps"}
    assert spec.logits == ()
    assert _taps(path, spec) == {"features": (None, 24, 16, 16)}


# --- What stops a user is said before anything costly


def _with_two_maps(path: Path) -> Path:
    net = nets.Net((64, 64))
    features = net.block(net.stem(), 24)
    for name in ("first", "second"):
        net.output(net.conv(features, 17, name=name))
    return net.save(path)


def _five_axes(path: Path) -> Path:
    net = nets.Net((64, 64))
    net.output(net.reshape(net.conv(net.block(net.stem(), 24), 34, name="maps"), 0, 2, 17, 16, 16, name="stages"))
    return net.save(path)


def _grey(path: Path) -> Path:
    net = nets.Net((64, 64))
    net.inputs[0].type.tensor_type.shape.dim[1].dim_value = 1
    net.channels[net.image] = 1
    net.output(net.conv(net.block(net.stem(), 24), 17))
    return net.save(path)


def _two_inputs(path: Path) -> Path:
    net = nets.Net((64, 64))
    net.inputs.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    net.output(net.add("Mul", [net.conv(net.block(net.stem(), 24), 17), "scale"]))
    return net.save(path)


def _classifier(path: Path) -> Path:
    net = nets.Net((64, 64))
    net.output(net.dense(net.reshape(net.add("GlobalAveragePool", [net.stem()]), 0, 16), 16, 1000))
    return net.save(path)


def _control_flow(path: Path) -> Path:
    net = nets.Net((64, 64))
    maps = net.conv(net.block(net.stem(), 24), 17, name="maps")
    branches = [
        helper.make_graph([helper.make_node("Identity", [maps], [f"{name}_out"])], name, [],
                          [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)])
        for name in ("yes", "no")
    ]  # fmt: skip
    condition = net.weight(np.array(True))
    net.nodes.append(
        helper.make_node("If", [condition], ["out"], name="choice", then_branch=branches[0], else_branch=branches[1])
    )
    net.output("out")
    return net.save(path)


def _custom(path: Path) -> Path:
    net = nets.Net((64, 64))
    net.output(net.add("TRTBatchedNMS", [net.conv(net.block(net.stem(), 24), 17)], domain="mmdeploy"))
    model = net.model()
    model.opset_import.append(helper.make_opsetid("mmdeploy", 1))
    onnx.save(model, path)
    return path


def _quantised(path: Path) -> Path:
    net = nets.Net((64, 64))
    maps = net.conv(net.block(net.stem(), 24), 17)
    scale, zero = net.weight(np.float32(0.1)), net.weight(np.uint8(0))
    net.output(net.add("DequantizeLinear", [net.add("QuantizeLinear", [maps, scale, zero]), scale, zero]))
    return net.save(path)


def _new_opset(path: Path) -> Path:
    nets.hourglass(path)
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)
    return path


def _external(path: Path) -> Path:
    nets.hourglass(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return path


def _without_weights(path: Path) -> Path:
    _external(path)
    (path.parent / "weights.bin").unlink()
    return path


def _short_weights(path: Path) -> Path:
    _external(path)
    weights = path.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    return path


def _outside(path: Path) -> Path:
    _external(path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.external_data:
            tensor.external_data[0].value = "../weights.bin"
    onnx.save(model, path)
    return path


def _written(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def _truncated(path: Path) -> Path:
    nets.hourglass(path)
    path.write_bytes(path.read_bytes()[:-3000])
    return path


Make = Callable[[Path], Path]
REFUSED: dict[str, tuple[Make, dict[str, Any], type[Exception], str]] = {
    "two candidates": (_with_two_maps, {}, ConfigError, r"first \(17 joints\); or heatmaps in second \(17 joints\).* --outputs NAME"),
    "five axes": (_five_axes, {}, ConfigError, r"stages has five axes: .* --outputs NAME"),
    "free size": (lambda p: nets.hrnet(p, free=True), {}, ConfigError, "height and width are free. State --size HxW"),
    "another size": (nets.hrnet, {"size": (192, 256)}, ConfigError, "its size is 256x192, stated was 192, 256"),
    "grey": (_grey, {}, ConfigError, "no axis, or more than one, has the three colours. Nets of grey pictures"),
    "two inputs": (_two_inputs, {}, ConfigError, r"takes image float32 \(batch, 3, 64, 64\), scale float32 \(1\); expected one input"),
    "no pose": (_classifier, {}, ConfigError, r"matmul_\d+ \(N, 1000\)\) cannot be read. Expected heatmaps"),
    "control flow": (_control_flow, {}, ConfigError, r"has control flow \(If; the first is choice\).*onnxsim"),
    "custom operators": (_custom, {}, ConfigError, "does not bring along: mmdeploy::TRTBatchedNMS"),
    "quantised": (_quantised, {}, ConfigError, r"quantised weights \(QuantizeLinear, DequantizeLinear\): give the float net"),
    "opset": (_new_opset, {}, ConfigError, r"is of opset 999; 7 to \d+ can be read"),
    "weights missing": (_without_weights, {}, DataNotFoundError, r"weights in weights\.bin, which is not beside it"),
    "weights cut short": (_short_weights, {}, CheckpointError, r"weights\.bin was cut short: 100 bytes of at least \d+"),
    "weights elsewhere": (_outside, {}, CheckpointError, r"weights from '\.\./weights\.bin', outside its own folder"),
    "tap that does not exist": (nets.hourglass, {"taps": ("featurs",)}, ConfigError, "no tensor featurs; near it are features"),
    "tap named twice": (nets.hourglass, {"taps": ("features", "features")}, ConfigError, "a tap is named twice"),
    "output that does not exist": (nets.hourglass, {"outputs": ("heatmap",)}, ConfigError, "no tensor heatmap; it gives heatmaps .*Near it"),
    "unknown family": (nets.hourglass, {"like": "hrnett"}, ConfigError, "no such family: did you mean hrnet"),
    "unknown skeleton": (nets.hourglass, {"skeleton": "coco17"}, ConfigError, "no skeleton 'coco17'; known are"),
    "skeleton too large": (nets.hourglass, {"skeleton": "wholebody-133"}, ConfigError, "answers 16 points; the skeleton wholebody-133 has 133"),
    "columns": (nets.regression, {"columns": ("x", "y", "score"), "decode": "keypoints"}, ConfigError, "has 2 numbers a point, stated were 3"),
    "skeleton too small": (nets.hrnet, {"skeleton": "lsp"}, ConfigError, r"the skeleton lsp has only 14 joints.*\(coco has as many\).*--points 17 too"),
    "points that it does not have": (nets.hrnet, {"points": 99}, ConfigError, r"--points 99: .* answers 17 points"),
    "peak of nothing": (nets.hrnet, {"peak": 0}, ConfigError, "--peak 0: expected a positive number"),
    "size that no net has": (lambda p: nets.hrnet(p, free=True), {"size": (4, 9000)}, ConfigError, "--size 4x9000: height and width are 8 to 8192"),
    "size in words": (nets.hrnet, {"size": "256x192"}, ConfigError, r"size 256x192: expected \(height, width\)"),
    "mean of two colours": (nets.hrnet, {"mean": (0.5, 0.5)}, ConfigError, "--mean 0.5,0.5: expected three numbers"),
    "deviation of nothing": (nets.hrnet, {"std": (1, 1, 0)}, ConfigError, "--std 1.0,1.0,0.0: the image is divided by it"),
    "deviation of nothing in a file": (nets.hrnet, {"spec": {"input": {"std": [1, 1, 0]}}}, DataError, "spec: input: input: scale and std are positive"),
    "word for a number in a file": (nets.hrnet, {"spec": {"crop": {"margin": "wide"}}}, DataError, "spec: crop.margin must be a number, got 'wide'"),
    "colour that is none": (nets.hrnet, {"colour": "rbg"}, ConfigError, "--colour rbg: expected rgb, bgr"),
    "option of another decoder": (nets.regression, {"refine": "dark"}, ConfigError, "--refine dark: .* is read as keypoints; this option is for heatmaps and simcc"),
    "peak of points": (nets.regression, {"peak": 2.0}, ConfigError, "--peak 2: it was stated, but does not fit"),
    "spec of another net": (nets.hrnet, {"spec": {"input": {"number": "uint8"}}}, ConfigError, "input.number of the spec is uint8; .* is float32: is it the spec of another net"),
    "embedding that does not exist": (nets.hourglass, {"embedding": "botom"}, ConfigError, "no tensor botom; near it are bottom"),
    "no such keyword": (nets.hourglass, {"skeletn": "coco"}, ConfigError, "skeletn: nothing of this name .* did you mean skeleton"),
    "short distributions": (lambda p: _simcc_of(p, 48, 64), {}, ConfigError, r"cannot be read.* If they are simcc in along, down \(17 joints\), state --decode simcc"),
    "other decoder": (nets.hourglass, {"decode": "simcc"}, ConfigError, r"heatmaps \(N, 16, 16, 16\)\) cannot be read as simcc"),
    "no file": (lambda p: p, {}, DataNotFoundError, "does not exist"),
    "empty": (_written(b""), {}, CheckpointError, "is empty"),
    "weights of PyTorch": (_written(b"PK\x03\x04" + bytes(99)), {}, CheckpointError, r"not an ONNX file but a zip, .*torch\.onnx\.export"),
    "TensorFlow Lite": (_written(b"\x1c\0\0\0TFL3" + bytes(99)), {}, CheckpointError, "not an ONNX file but a TensorFlow Lite file: .*tf2onnx"),
    "Git LFS": (_written(b"version https://git-lfs.github.com/spec/v1"), {}, CheckpointError, "git lfs pull"),
    "noise": (_written(bytes(range(256))), {}, CheckpointError, "is not an ONNX file"),
    "truncated": (_truncated, {}, CheckpointError, "is not an ONNX file, or it was cut short"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_a_sentence(path: Path, case: str) -> None:
    make, stated, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as raised:
        recognise(make(path), **stated)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_one_of_two_candidates_is_taken_when_it_is_stated(path: Path) -> None:
    assert recognise(_with_two_maps(path), outputs=("second",)).decoder.outputs == ("second",)


def test_a_tensor_inside_the_graph_can_be_the_answer(path: Path) -> None:
    spec = recognise(_five_axes(path), outputs=("maps",), points=34, skeleton="coco")
    assert spec.decoder == NetDecoder(kind="heatmaps", outputs=("maps",), points=34, score="peak")


def test_weights_beside_the_file(path: Path) -> None:
    spec = recognise(_external(path))
    answers = open_net(path, spec)(np.zeros((2, 64, 64, 3), np.uint8))
    assert answers["heatmaps"].shape == (2, 16, 16, 16)


def test_a_free_batch_that_does_not_hold_is_one_at_a_time(path: Path) -> None:
    net = nets.Net((64, 64))
    maps = net.conv(net.block(net.stem(), 24), 17)
    net.output(net.reshape(maps, 1, 17, 16, 16, name="maps"))
    found = examine(net.save(path))
    assert found.spec.input.batch == 1
    assert next(part for part in found.parts if part.name == "batch").why.startswith("its batch axis is free, but")
    assert open_net(path, found.spec)(np.zeros((3, 64, 64, 3), np.uint8))["maps"].shape == (3, 17, 16, 16)


# --- Real nets


@pytest.mark.real_models
@pytest.mark.parametrize(("name", "size"), [("movenet-lightning", 192), ("movenet-thunder", 256)])
def test_movenet(models: Path, name: str, size: int) -> None:
    found = examine(models / f"{name}.onnx")
    assert found.family == "movenet"
    spec = found.spec
    call = "StatefulPartitionedCall/"
    features = f"{call}center_net_mobile_net_v2fpn_feature_extractor/model_1/"
    assert spec.input == NetInput(
        name="input:0", height_px=size, width_px=size, layout="nhwc", number="int32", scale=1.0, batch=1
    )
    assert spec.decoder == NetDecoder(
        kind="keypoints", outputs=("Identity:0",), columns=("y", "x", "score"), unit="share", offset=(-0.5, -0.5)
    )
    assert (spec.crop, spec.skeleton) == (NetCrop(kind="box", margin=1.25), COCO)
    assert spec.hidden == {"heatmaps": f"{call}Sigmoid:0", "centre": f"{call}Sigmoid_1:0",
                           "regression.x": f"{call}add_3:0", "regression.y": f"{call}add_2:0"}  # fmt: skip
    assert spec.taps == (f"{features}re_lu_2/Relu_Relu__101:0", f"{features}re_lu_1/Relu_Relu__99:0",
                         f"{features}re_lu/Relu_Relu__97:0", f"{features}model/out_relu/Relu6_Relu6__94:0")  # fmt: skip


@pytest.mark.real_models
def test_blazepose(models: Path) -> None:
    spec = recognise(models / "blazepose-full.onnx")
    assert (spec.skeleton, spec.crop.kind, spec.decoder.unit) == (BLAZEPOSE_33, "turned", "corner")
    assert (spec.decoder.outputs, spec.decoder.points, spec.decoder.score) == (("Identity",), 39, "logit")
    assert spec.hidden == {"heatmaps": "Identity_3_raw_output___9:0", "flag": "Identity_1"}
    assert spec.logits == ("Identity_3_raw_output___9:0",)
    assert spec.taps == ("model_1/model/add_11/add", "Relu6__106:0", "Relu6__179:0")
    assert (spec.input.scale, spec.input.mean, spec.input.batch) == (1 / 255, (0, 0, 0), 1)


@pytest.mark.real_models
def test_facemesh(models: Path) -> None:
    spec = recognise(models / "facemesh.onnx")
    assert (spec.skeleton, spec.decoder.outputs, spec.decoder.score) == (FACE_468, ("output_mesh",), "none")
    assert (spec.hidden, spec.input.batch) == ({"flag": "output_faceflag"}, None)
    assert len(spec.taps) == 4


@pytest.mark.real_models
def test_a_real_net_whose_family_is_not_known(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced back from MoveNet's only output is what its authors named: the maps, and one tap of each resolution."""
    known = recognise(models / "movenet-lightning.onnx")
    monkeypatch.setattr("alpose.trainer.foreign.recognition.examination.FAMILIES", {})
    guessed = recognise(models / "movenet-lightning.onnx", columns=("y", "x", "score"))
    assert guessed.taps == known.taps
    assert guessed.hidden == {"heatmaps": known.hidden["heatmaps"]}
    assert guessed.decoder == replace(known.decoder, offset=None)
    with pytest.raises(ConfigError, match=r"keypoints in Identity \(39 joints x 5 numbers\)"):
        recognise(models / "blazepose-full.onnx")
