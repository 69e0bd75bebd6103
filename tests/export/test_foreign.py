"""Graphs of nets that somebody else made, merged with what reads them: same answers, same bits, or a reason why not.

Shapes: N images, H W the input, J joints.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from alpose.export import merge
from alpose.export.foreign import ForeignGraph, export_uncalibrated, in_net, seen_turns
from alpose.export.precision import to_fp16, to_int8
from alpose.export.verify import verify
from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError
from alpose.runtime.types import Outputs
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.crops import crop_config, label_turns
from alpose.trainer.foreign.heads import HeadKind, build_detector
from alpose.trainer.foreign.learning import config_of
from alpose.trainer.foreign.net import open_net, prepare
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.recognise import recognise
from alpose.trainer.foreign.spec import NetInput, PoseSpec
from alpose.trainer.measures.joint_calibration import JointCalibration

from ..trainer.foreign import nets
from .conftest import CALIBRATION

Make = Callable[[Path], Path]
NETS: dict[str, tuple[Make, dict[str, Any]]] = {
    "heatmaps": (nets.hrnet, {"like": "vitpose"}),
    "channels last": (lambda path: nets.hrnet(path, channels_last=True), {"colour": "bgr"}),
    "simcc": (nets.simcc, {"like": "rtmpose"}),
    "points": (lambda path: nets.regression(path, numbers=3, batch=1), {}),
    "candidates, one image": (lambda path: nets.yolo(path, rows=True), {}),
    "bytes in": (nets.uint8_nhwc, {}),
    "tokens": (nets.transformer, {}),
}


def frames_for(spec: PoseSpec, count: int = 3) -> npt.NDArray[np.uint8]:
    """Smooth pictures of the input's size."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 8, 8)).astype(np.float32))
    size = (spec.input.height_px, spec.input.width_px)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def graph_of(
    path: Path, stated: dict[str, Any], kind: HeadKind = "facts"
) -> tuple[ForeignGraph, npt.NDArray[np.uint8]]:
    """With a detector whose weights are drawn."""
    spec = recognise(path, **stated)
    net = open_net(path, spec)
    reader = NetReader(spec, net.shapes)
    joints = tuple(range(1, len(spec.skeleton)))
    torch.manual_seed(0)
    detector = build_detector(config_of(kind, reader, joints), len(spec.skeleton)).eval()
    for name, value in detector.named_buffers():
        if name.endswith("directions_CK"):
            value.copy_(torch.randn_like(value) / 30)
    frames = frames_for(spec)
    graph = ForeignGraph(net, reader, detector, head_name=kind, frames_NHW3=frames)
    joint = JointCalibration(np.full(len(spec.skeleton), 1.2), np.full(len(spec.skeleton), -0.3),
                             np.ones(len(spec.skeleton), dtype=np.bool_))  # fmt: skip
    return graph.with_calibration(CALIBRATION, joint), frames


def one_by_one(engine: OnnxEngine, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
    said = [engine(frames_NHW3[row : row + 1]).named() for row in range(len(frames_NHW3))]
    return Outputs(*(np.concatenate([each[name] for each in said]) for name in said[0]))


@pytest.mark.parametrize(("name", "kind"), [*((name, "facts") for name in NETS), ("heatmaps", "epck"), ("tokens", "epck"),
                                            ("heatmaps", "ll++conv"), ("simcc", "ll++")])  # fmt: skip
def test_the_merged_graph_answers_as_its_slow_twin_with_the_keypoints_of_the_file_alone(
    name: str, kind: HeadKind, tmp_path: Path
) -> None:
    make, stated = NETS[name]
    graph, frames = graph_of(make(tmp_path / "net.onnx"), stated, kind)
    facts = graph.write(tmp_path / "model.onnx")
    assert facts.opset >= 18
    engine = OnnxEngine(tmp_path / "model.onnx", threads=1)
    given, expected = one_by_one(engine, frames), graph.reference()(frames)
    for output, value in expected.named().items():
        np.testing.assert_allclose(given.named()[output], value, atol=2e-4, err_msg=output)
    np.testing.assert_array_equal(given.keypoints_NJ2, graph.alone(frames))
    assert graph.parity_rows(frames, given)["their_file_alone_max_px"]["value"] == 0
    np.testing.assert_allclose(np.linalg.norm(given.embedding_ND, axis=1), 1, atol=1e-5)
    if graph.theirs.dynamic:  # rows of a batch do not touch
        np.testing.assert_allclose(engine(frames).keypoints_NJ2, given.keypoints_NJ2, atol=1e-3)


def test_weights_and_operators_are_theirs_bit_for_bit(tmp_path: Path) -> None:
    graph, _ = graph_of(nets.hrnet(tmp_path / "net.onnx"), {"like": "hrnet"})
    graph.write(tmp_path / "model.onnx")
    theirs, merged = onnx.load(tmp_path / "net.onnx"), onnx.load(tmp_path / "model.onnx")
    ours = {tensor.name: tensor for tensor in merged.graph.initializer}
    for tensor in theirs.graph.initializer:
        assert (
            onnx.numpy_helper.to_array(ours[f"net/{tensor.name}"]).tobytes()
            == onnx.numpy_helper.to_array(tensor).tobytes()
        )
    trunk = [node.op_type for node in merged.graph.node if node.name.startswith("trunk/")]
    assert trunk == [node.op_type for node in theirs.graph.node]


def test_a_batch_of_one_is_opened_only_where_two_images_give_the_same_bits(tmp_path: Path) -> None:
    opened, _ = graph_of(nets.regression(tmp_path / "open.onnx", numbers=3, batch=1), {})
    assert opened.theirs.dynamic
    net = nets.Net((32, 32), batch=1)
    first = net.add("Gather", [net.block(net.stem(), 16), net.weight(np.array([0]))], axis=0)  # of any batch, the first
    pooled = net.reshape(net.add("GlobalAveragePool", [first]), 1, 16)
    net.output(net.reshape(net.dense(pooled, 16, 34), 1, 17, 2, name="points"))
    closed, _ = graph_of(net.save(tmp_path / "closed.onnx"), {"skeleton": "coco"})
    assert not closed.theirs.dynamic
    assert closed.spec.batch == 1


@pytest.mark.parametrize("number", ["float32", "float16", "uint8", "int32"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_feeding_in_the_graph_is_the_one_in_numpy(number: Any, layout: Any, tmp_path: Path) -> None:
    plain = number in ("uint8", "int32")
    given = NetInput(name="x", height_px=8, width_px=12, layout=layout, number=number, colour="bgr",
                     scale=1.0 if plain else 1 / 255, mean=(0, 0, 0) if plain else (0.4, 0.5, 0.6),
                     std=(1, 1, 1) if plain else (0.2, 0.3, 0.25))  # fmt: skip
    nodes, constants = merge.feeding(given, "x")
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8,
             "int32": TensorProto.INT32}  # fmt: skip
    graph = helper.make_graph(nodes, "feeding", [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 8, 12, 3])],
                              [helper.make_tensor_value_info("x", kinds[number], None)], constants)  # fmt: skip
    path = tmp_path / "feeding.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    import onnxruntime

    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"frames": frames})[0]
    wanted = prepare(frames, given)
    assert made.dtype == wanted.dtype
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_touch_their_nodes_alone(precision: str, tmp_path: Path) -> None:
    graph, frames = graph_of(nets.hourglass(tmp_path / "net.onnx"), {})
    path = tmp_path / "model.onnx"
    graph.write(path)
    exact = OnnxEngine(path)(frames)
    if precision == "fp16":
        to_fp16(path, path)
    else:
        to_int8(path, path, frames)
    lower = OnnxEngine(path)(frames)
    assert np.median(np.linalg.norm(lower.keypoints_NJ2 - exact.keypoints_NJ2, axis=2)) < 1
    assert not np.array_equal(lower.scores_NJ, exact.scores_NJ)
    model = onnx.load(path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    behind = [name for node in model.graph.node if node.name.startswith(("reader/", "head/", "calibrate/", "confidence/"))
              for name in node.input]  # fmt: skip
    assert TensorProto.FLOAT16 not in {kinds.get(name) for name in behind}
    assert TensorProto.INT8 not in {kinds.get(name) for name in behind}


# --- without labels


def test_a_net_without_labels_becomes_a_bundle_that_says_so_and_verifies(tmp_path: Path) -> None:
    path = nets.regression(tmp_path / "net.onnx", numbers=2, scores=True, flat=False)
    out = export_uncalibrated(path, tmp_path / "net.alpose")
    bundle = Bundle.open(out)
    assert bundle.calibration is None
    assert bundle.manifest.head == "none"
    assert bundle.manifest.parity["their_file_alone_max_px"]["value"] == 0
    assert bundle.manifest.provenance["net"]["file"] == "net.onnx"
    assert verify(out).passed
    said = OnnxEngine(bundle)(bundle.golden.frames_GHW3)
    np.testing.assert_allclose(said.failure_probability_N, 1 - said.scores_NJ.mean(axis=1), atol=1e-5)
    assert said.confidence_NJ is not None
    np.testing.assert_allclose(said.confidence_NJ, said.scores_NJ.clip(1e-3, 1 - 1e-3), atol=1e-5)
    card = (out / "card.html").read_text()
    assert "exported without labelled data" in card


# --- refused


def loaded(path: Path) -> merge.Theirs:
    return merge.load(path, recognise(nets.hourglass(path.parent / "sound.onnx")))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    model = onnx.load(nets.hourglass(tmp_path / "sound.onnx"))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert loaded(path).opset == 17
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(DataNotFoundError, match=r"has its weights in weights\.bin"):
        loaded(path)


def test_control_flow_strange_operators_and_damage_are_refused(tmp_path: Path) -> None:
    model = onnx.load(nets.hourglass(tmp_path / "sound.onnx"))
    path = tmp_path / "net.onnx"
    node = model.graph.node.add()
    node.op_type, node.domain = "Guess", "acme"
    node.input.append("image")
    node.output.append("guessed")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"operators acme\.Guess"):
        loaded(path)
    node.op_type, node.domain = "Loop", ""
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="control flow Loop"):
        loaded(path)
    path.write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        loaded(path)


@pytest.mark.real_models
@pytest.mark.real_data
def test_a_calibration_turns_crops_as_a_device_does_by_the_nets_own_pose(data_root: Path, tmp_path: Path) -> None:
    models = os.environ.get("ALPOSE_MODELS")
    if not models or not (data_root / "lsp").is_dir():
        pytest.skip("ALPOSE_MODELS, which names the folder of the real nets, is not set, or LSP is not there")
    path = Path(models) / "blazepose-full.onnx"
    net = open_net(path, recognise(path))
    people = open_dataset("lsp", data_root).test.subset(np.arange(0, 400, 20))

    turn_N = seen_turns(net, in_net(people, net.spec, None), crop_config(net.spec), tmp_path)

    apart_N = np.abs((turn_N - label_turns(people) + np.pi) % (2 * np.pi) - np.pi)
    assert np.isfinite(turn_N).all()
    assert np.nanmedian(apart_N) < 0.2  # LSP's people are upright or nearly so, most of them
    assert (apart_N > 0.01).any()  # and it is not the labels that say so
