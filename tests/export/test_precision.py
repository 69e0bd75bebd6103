from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpose.export import precision
from alpose.export.graph import MonitorGraph, TorchEngine
from alpose.export.parity import compare
from alpose.export.precision import (
    Int8Config,
    Int8Facts,
    float32_nodes,
    in_trunk,
    norms_as_convolutions,
    read_model,
    to_fp16,
    to_int8,
)
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from bench.int8 import QEMU, emulated, has_vnni

onnx: Any = pytest.importorskip("onnx")

Frames = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def half(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    facts = to_fp16(tiny_onnx, path)
    assert facts.converted > 1000
    assert facts.vanished == 0
    return path


@pytest.fixture(scope="module")
def quantised(tiny_onnx: Path, tiny_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Int8Facts]:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    return path, to_int8(tiny_onnx, path, tiny_frames, Int8Config(crops=12, smallest_map=0, fewest_channels=0))


def types(path: Path) -> Mapping[str, str]:
    """Element type of every tensor by name."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    values = {value.name: value.type.tensor_type.elem_type
              for value in (*graph.value_info, *graph.input, *graph.output)}  # fmt: skip
    values |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: onnx.TensorProto.DataType.Name(kind) for name, kind in values.items()}


# --- fp16


def test_the_trunk_is_half_and_all_behind_it_is_not(half: Path) -> None:
    kind, model = types(half), onnx.load(half)
    for node in model.graph.node:
        floats = {kind[name] for name in (*node.input, *node.output) if kind.get(name, "").startswith("FLOAT")}
        if not in_trunk(node):
            assert "FLOAT16" not in floats, node.name
        elif node.op_type == "Cast":
            assert floats == {"FLOAT", "FLOAT16"}
        elif node.op_type == "Resize":
            assert kind[node.input[0]] == kind[node.output[0]] == "FLOAT16"
            assert kind[node.input[2]] == "FLOAT"  # scales are float32 in every Resize
        else:
            assert floats == {"FLOAT16"}, node.name
    assert {kind[value.name] for value in model.graph.output} == {"FLOAT"}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["alpose.precision"] == "fp16"
    assert "alpose.skeleton" in facts


def test_half_answers_nearly_the_same(half: Path, tiny_graph: MonitorGraph, tiny_frames: Frames) -> None:
    figures = compare(TorchEngine(tiny_graph)(tiny_frames), OnnxEngine(half, threads=1)(tiny_frames))
    assert figures.keypoint_median_px is not None
    assert 0 < figures.keypoint_median_px < 0.05  # not 0: it did compute in half
    assert figures.score_max < 0.02
    assert figures.embedding_max < 0.01
    assert figures.loss_rank_correlation > 0.99


def test_half_is_about_half_the_size(half: Path, tiny_onnx: Path) -> None:
    def weights(path: Path) -> int:
        trunk = {name for node in onnx.load(path).graph.node if in_trunk(node) for name in node.input}
        return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer if tensor.name in trunk)

    assert weights(half) == pytest.approx(weights(tiny_onnx) / 2, rel=0.05)


def test_weights_beyond_half_are_refused_and_vanishing_ones_counted(
    tiny_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.load(tiny_onnx)
    weight = next(tensor for node in model.graph.node if node.name == "trunk/Conv_0"
                  for tensor in model.graph.initializer if tensor.name == node.input[1])  # fmt: skip
    values = onnx.numpy_helper.to_array(weight).copy()
    for value, path in ((1e5, "big.onnx"), (1e-9, "small.onnx")):
        values.flat[0] = value
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        (tmp_path / path).write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=rf"{re.escape(weight.name)} reaches 1e\+05, float16 ends at 65504"):
        to_fp16(tmp_path / "big.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    assert to_fp16(tmp_path / "small.onnx", tmp_path / "out.onnx").vanished == 1
    assert "1 of " in caplog.text


def test_a_damaged_file_or_a_strange_graph_is_named(tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(tiny_onnx.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"cut\.onnx is no whole ONNX file"):
        to_fp16(tmp_path / "cut.onnx", tmp_path / "out.onnx")
    model = onnx.load(tiny_onnx)
    for node in model.graph.node:
        node.name = node.name.replace("trunk/", "other/")
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"no node of the graph is called trunk/"):
        to_fp16(tmp_path / "other.onnx", tmp_path / "out.onnx")


# --- int8


def test_only_the_trunk_is_quantised_weights_by_channel(quantised: tuple[Path, Int8Facts]) -> None:
    path, facts = quantised
    model, kind = onnx.load(path), types(path)
    made = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    by_channel = 0
    for node in convolutions:
        from_int8 = [made[name] for name in node.input if name in made and made[name].op_type == "DequantizeLinear"]
        if not in_trunk(node):
            assert node.input[1] not in made, node.name  # its weights are as they were
        elif len(from_int8) > 1:
            weight = next(one for one in from_int8 if kind[one.input[0]] == "INT8")
            scale = next(tensor for tensor in model.graph.initializer if tensor.name == weight.input[1])
            by_channel += len(scale.dims) == 1
    assert by_channel == facts.quantised > 20
    assert facts.float32 == 0
    assert facts.crops == 12
    parts = {name.split("/")[0] for node in model.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
             for name in [node.name]}  # fmt: skip
    assert parts == {"normalise", "trunk", "head", "decode", "doubt", "embedding", "calibrate", "confidence", "graph"}
    assert model.producer_name == "alpose"
    facts_stored = {entry.key: entry.value for entry in model.metadata_props}
    assert facts_stored["alpose.precision"] == "int8"
    assert facts_stored["alpose.head"] == "ll++conv"


def test_no_pair_of_products_saturates_16_bits(quantised: tuple[Path, Int8Facts]) -> None:
    """Kernels for processors without VNNI add two products of a byte and a weight in 16 bits: right on every processor."""
    model = onnx.load(quantised[0])
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights_of = [values[node.input[0]] for node in model.graph.node
                  if node.op_type == "DequantizeLinear" and node.input[0] in values]  # fmt: skip
    weights = [weights for weights in weights_of if weights.dtype == np.int8 and weights.ndim == 4]
    assert len(weights) > 20
    assert max(int(np.abs(each.astype(int)).max()) for each in weights) * 255 * 2 <= np.iinfo(np.int16).max


def test_int8_still_answers(quantised: tuple[Path, Int8Facts], tiny_graph: MonitorGraph, tiny_frames: Frames) -> None:
    figures = compare(TorchEngine(tiny_graph)(tiny_frames), OnnxEngine(quantised[0], threads=1)(tiny_frames))
    assert figures.keypoint_median_px is not None
    assert 0 < figures.keypoint_median_px < 1.5
    assert figures.loss_rank_correlation > 0.8
    assert figures.probability_max > 0


def test_a_layer_without_a_histogram_is_measured_by_its_ends(
    tiny_onnx: Path,
    tiny_frames: Frames,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = precision._quantise

    def flat(before: Path, after: Path, frames: Any, kept: Any, config: Int8Config) -> None:
        if config.method != "minmax":
            raise ValueError("Too many bins for data range. Cannot create 2048 finite-sized bins.")
        real(before, after, frames, kept, config)

    monkeypatch.setattr(precision, "_quantise", flat)
    facts = to_int8(tiny_onnx, tmp_path / "out.onnx", tiny_frames[:2])
    assert facts.method == "minmax"
    assert "int8: ranges by percentile failed (Too many bins" in caplog.text
    assert np.isfinite(OnnxEngine(tmp_path / "out.onnx")(tiny_frames).predicted_loss_N).all()


def test_for_tensorrt_there_is_no_zero_point_and_no_unsigned_type(
    tiny_onnx: Path, tiny_frames: Frames, tmp_path: Path
) -> None:
    to_int8(tiny_onnx, tmp_path / "trt.onnx", tiny_frames, Int8Config(crops=4, method="minmax", for_tensorrt=True))
    model, kind = onnx.load(tmp_path / "trt.onnx"), types(tmp_path / "trt.onnx")
    zero = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantisers
    for node in quantisers:
        assert not zero[node.input[2]].any(), node.name
        assert kind[node.input[2]] == "INT8", node.name


def test_a_norm_becomes_the_convolution_that_it_is(tiny_onnx: Path, tiny_frames: Frames, tmp_path: Path) -> None:
    model = read_model(tiny_onnx)
    before = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert norms_as_convolutions(model) == before > 0
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    one, other = (
        OnnxEngine(tiny_onnx, threads=1)(tiny_frames),
        OnnxEngine(tmp_path / "model.onnx", threads=1)(tiny_frames),
    )
    np.testing.assert_allclose(one.scores_NJ, other.scores_NJ, atol=1e-4)
    np.testing.assert_allclose(one.embedding_ND, other.embedding_ND, atol=1e-4)


def test_small_maps_and_few_channels_stay_float32(tiny_onnx: Path) -> None:
    model = read_model(tiny_onnx)

    def kept(smallest_map: int, fewest_channels: int) -> set[str]:
        config = Int8Config(smallest_map=smallest_map, fewest_channels=fewest_channels)
        return {name for name in float32_nodes(model, config) if name.startswith("trunk/")}

    nothing = kept(smallest_map=0, fewest_channels=0)
    assert nothing == set()
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    few = {node.name for node in model.graph.node
           if node.op_type == "Conv" and in_trunk(node) and sizes[node.input[1]][1] < 4}  # fmt: skip
    assert "trunk/Conv_0" in few  # of three colours
    assert kept(smallest_map=0, fewest_channels=4) == few
    # 64 px: heatmaps of 16 cells, and two scales of 8 and 4 below.
    assert kept(smallest_map=5, fewest_channels=0) < kept(smallest_map=9, fewest_channels=0)
    assert {node.name for node in model.graph.node if not in_trunk(node)} <= set(float32_nodes(model, Int8Config()))


def test_int8_needs_real_crops_and_a_sound_config(tiny_onnx: Path, tmp_path: Path) -> None:
    for bad in (np.zeros((0, 64, 64, 3), dtype=np.uint8), np.zeros((2, 32, 32, 3), dtype=np.uint8)):
        with pytest.raises(DataError, match=r"int8 needs real crops: uint8 \(N, 64, 64, 3\)"):
            to_int8(tiny_onnx, tmp_path / "no.onnx", bad)
    with pytest.raises(ConfigError, match="method 'mean' is not one of minmax, percentile, entropy"):
        Int8Config(method="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"percentile must be in \[90, 100\]"):
        Int8Config(percentile=0.9)


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed (Debian: qemu-user)")
def test_int8_answers_are_the_same_on_a_processor_without_vnni_and_with_8_bits_they_are_not(
    quantised: tuple[Path, Int8Facts], tiny_onnx: Path, tiny_frames: Frames, tmp_path: Path
) -> None:
    """An emulated processor with AVX2 alone runs this interpreter and this ONNX Runtime, kernels of its own included."""
    few, extreme = tiny_frames[:2], np.where(tiny_frames[:1] > 127, 255, 0).astype(np.uint8)
    asked = np.concatenate([few, extreme])
    here, there = OnnxEngine(quantised[0], threads=1)(asked), emulated(quantised[0], asked)
    for name, value in here.named().items():
        np.testing.assert_allclose(there.named()[name], value, atol=1e-3, err_msg=name)
    eight = tmp_path / "eight.onnx"
    to_int8(tiny_onnx, eight, tiny_frames, Int8Config(crops=12, smallest_map=0, fewest_channels=0, weight_bits=8))
    apart = emulated(eight, asked).keypoints_NJ2 - OnnxEngine(eight, threads=1)(asked).keypoints_NJ2
    if has_vnni():
        assert np.abs(apart).max() > 1.0  # the fault that 7 bits avoid: px of a 64 px crop
