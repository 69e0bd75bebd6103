"""Graphs that nobody's family describes, but somebody may well have: each is read, or the refusal says what to state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alpose.runtime.errors import ConfigError
from alpose.trainer.foreign.net import open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.recognise import examine, recognise
from alpose.trainer.foreign.spec import PoseSpec
from alpose.trainer.foreign.trial import try_net

from . import nets

Make = Callable[[Path], Any]


def _pooled(net: nets.Net) -> str:
    return net.reshape(net.add("GlobalAveragePool", [net.block(net.stem(3), 32, 2)]), 0, 32)


def _opset_11(path: Path) -> None:
    """Resize needed a region of interest then, as older exporters write it."""
    net = nets.Net((256, 192))
    coarse = net.block(net.block(net.stem(), 24), 24, 2)
    scales = net.weight(np.array([1, 1, 2, 2], np.float32))
    fine = net.add("Resize", [coarse, net.weight(np.zeros(0, np.float32)), scales], mode="nearest")
    net.output(net.conv(fine, 17, name="output"))
    net.output(net.conv(fine, 38, name="output_1"))
    net.save(path, opset=11)


def _last(path: Path) -> None:
    net = nets.Net((256, 192), layout="nhwc")
    maps = net.add("Sigmoid", [net.conv(net.block(net.stem(), 24, name="features"), 17)])
    net.output(net.add("Transpose", [maps], "output", perm=[0, 2, 3, 1]))
    net.save(path)


def _half(path: Path) -> None:
    """float16 throughout, the scales of Resize excepted."""
    nets.hrnet(path)
    model = onnx.load(path)
    scales = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and tensor.name not in scales:
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)


def _two_scales(path: Path) -> None:
    net = nets.Net((256, 256))
    features = net.block(net.stem(), 24, name="features")
    net.output(net.conv(features, 34, name="low"))  # maps and tags
    net.output(net.conv(net.up(features), 17, name="high"))
    net.save(path)


def _with_score(path: Path, *, logit: bool) -> None:
    net = nets.Net((96, 96))
    pooled = _pooled(net)
    share = net.add("Sigmoid", [net.dense(pooled, 32, 34)])
    places = net.reshape(net.add("Mul", [share, net.weight(np.float32(96))]), 0, 17, 2)
    raw = net.add("Mul", [net.dense(pooled, 32, 17), net.weight(np.float32(9))])
    scores = net.reshape(raw if logit else net.add("Sigmoid", [raw]), 0, 17, 1)
    net.output(net.add("Concat", [places, scores], "points", axis=2))
    net.save(path)


def _soft_argmax(path: Path) -> None:
    """DSNT: the maps are softmaxed and their mean place, from -1 to 1, is the answer."""
    net = nets.Net((256, 192))
    maps = net.conv(net.block(net.stem(), 24, name="features"), 17)
    sharp = net.add("Mul", [net.reshape(maps, 0, 17, 3072), net.weight(np.float32(50))])
    soft = net.add("Softmax", [sharp], axis=2)
    cells = np.stack(np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 64)), -1).reshape(-1, 2)
    net.output(net.add("MatMul", [soft, net.weight(cells.astype(np.float32))], "coordinates"))
    net.output(net.reshape(soft, 0, 17, 64, 48, name="heatmaps"))
    net.save(path)


def _bytes(path: Path) -> None:
    net = nets.Net((64, 64), number="uint8", layout="nhwc")
    net.output(net.conv(net.block(net.stem(), 24, name="features"), 17, name="maps"))
    net.save(path)


READ: dict[str, tuple[Make, dict[str, Any], dict[str, Any]]] = {
    "opset 11": (_opset_11, {}, {"kind": "heatmaps", "outputs": ("output",)}),
    "joints last, after a sigmoid": (_last, {}, {"kind": "heatmaps", "channels_last": True}),
    "free height and width": (lambda p: nets.hrnet(p, free=True), {"size": (256, 192)}, {"kind": "heatmaps"}),
    "float16": (_half, {}, {"kind": "heatmaps", "outputs": ("maps",)}),
    "two scales": (_two_scales, {}, {"kind": "heatmaps", "outputs": ("high",)}),
    "distributions by number": (lambda p: nets.simcc(p, names=("output", "output_1")), {}, {"kind": "simcc", "outputs": ("output", "output_1")}),
    "points in a row": (nets.regression, {}, {"kind": "keypoints", "columns": ("x", "y"), "unit": "share"}),
    "points with probabilities": (lambda p: _with_score(p, logit=False), {}, {"columns": ("x", "y", "score"), "score": "probability"}),
    "points with logits": (lambda p: _with_score(p, logit=True), {"columns": ("x", "y", "score")}, {"score": "logit", "unit": "pixels"}),
    "soft argmax": (_soft_argmax, {}, {"kind": "keypoints", "unit": "centred", "outputs": ("coordinates",)}),
    "bytes": (_bytes, {}, {"kind": "heatmaps", "outputs": ("maps",)}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_it_is_read(case: str, tmp_path: Path) -> None:
    """Recognised, opened, and answered with points within the picture."""
    make, stated, wanted = READ[case]
    make(tmp_path / "net.onnx")
    spec: PoseSpec = recognise(tmp_path / "net.onnx", **stated)
    assert {name: getattr(spec.decoder, name) for name in wanted} == wanted
    assert len(spec.skeleton) == 17
    assert spec.taps
    net = open_net(tmp_path / "net.onnx", spec)
    found = try_net(net, NetReader(spec, net.shapes).eval())
    assert not any(word in " ".join(found.warnings) for word in ("outside the input", "NaN", "no probabilities"))


def _scales_alike(path: Path) -> None:
    net = nets.Net((256, 256))
    features = net.block(net.stem(), 24)
    for name, values in (("low", features), ("first", net.up(features)), ("second", net.up(features))):
        net.output(net.conv(values, 17, name=name))
    net.save(path)


def _two_inputs(path: Path) -> None:
    net = nets.Net((256, 192))
    net.inputs.append(helper.make_tensor_value_info("orig_size", TensorProto.INT64, [2]))
    scale = net.add("ReduceSum", [net.add("Cast", ["orig_size"], to=TensorProto.FLOAT)], keepdims=1)
    net.output(net.add("Mul", [net.conv(net.block(net.stem(), 24), 17), scale], "maps"))
    net.save(path)


def _whole_numbers(path: Path) -> None:
    net = nets.Net((64, 64), number="uint8")
    net.inputs[0].type.tensor_type.elem_type = TensorProto.INT64
    net.output(net.conv(net.block(net.stem(), 24), 17))
    net.save(path)


SAID: dict[str, tuple[Make, str]] = {
    "free height and width": (lambda p: nets.hrnet(p, free=True), "height and width are free. State --size HxW"),
    "stages alike": (_scales_alike, "State which, usually the last and finest, --outputs second: --outputs NAME"),
    "a second input": (_two_inputs, r"orig_size int64 \(2\).*or fold them into the file: docs/models.md shows how"),
    "whole numbers of 64 bits": (_whole_numbers, "an image is float32, float16, uint8, int32. Export the net with a cast in front"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_to_state_is_said(case: str, tmp_path: Path) -> None:
    make, message = SAID[case]
    make(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=message):
        recognise(tmp_path / "net.onnx")


def test_the_recipe_for_a_second_input_works(tmp_path: Path) -> None:
    """As docs/models.md has it."""
    _two_inputs(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.array([256, 192]), "orig_size"))
    model.graph.input.remove(next(one for one in model.graph.input if one.name == "orig_size"))
    onnx.save(model, tmp_path / "folded.onnx")
    assert recognise(tmp_path / "folded.onnx").decoder.outputs == ("maps",)


def test_a_third_number_that_may_be_a_logit_is_asked_about(tmp_path: Path) -> None:
    _with_score(tmp_path / "net.onnx", logit=True)
    columns = next(part for part in examine(tmp_path / "net.onnx").parts if part.name == "columns")
    assert columns.value == "x, y, z"
    assert columns.why.endswith("if the last is the logit of a score, state --columns xys --score logit")
