"""Nets of other people run as they are, whatever they are fed with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from alpose.runtime.errors import CheckpointError, ConfigError, DataError, DataNotFoundError
from alpose.runtime.known_skeletons import numbered
from alpose.trainer.foreign.net import open_net, prepare
from alpose.trainer.foreign.recognition.recognise import recognise
from alpose.trainer.foreign.spec import NetCrop, NetDecoder, NetInput, PoseSpec

HEIGHT, WIDTH = 16, 24
NUMBER = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
}


def _echo(folder: Path, given: NetInput) -> Path:
    """A net whose output is its input as float32, and whose hidden tensor ``twice`` is the double of it."""
    shape = [3, HEIGHT, WIDTH] if given.layout == "nchw" else [HEIGHT, WIDTH, 3]
    batch: Any = given.batch or "N"
    nodes = [
        helper.make_node("Cast", ["image"], ["echo"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["echo", "echo"], ["twice"]),
        helper.make_node("Identity", ["twice"], ["other"]),
    ]
    graph = helper.make_graph(
        nodes,
        "echo",
        [helper.make_tensor_value_info("image", NUMBER[given.number], [batch, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape]) for name in ("echo", "other")],
    )
    path = folder / "echo.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _spec(given: NetInput, **more: Any) -> PoseSpec:
    decoder = NetDecoder(kind="heatmaps", outputs=("echo",))
    return PoseSpec(name="echo", input=given, crop=NetCrop(), decoder=decoder, skeleton=numbered(3), **more)


def _crops(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize(
    "given",
    [
        NetInput(name="image", height_px=HEIGHT, width_px=WIDTH, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        NetInput(name="image", height_px=HEIGHT, width_px=WIDTH, scale=1.0, mean=(103, 116, 123), colour="bgr"),
        NetInput(name="image", height_px=HEIGHT, width_px=WIDTH, layout="nhwc", number="uint8", scale=1.0, batch=1),
        NetInput(name="image", height_px=HEIGHT, width_px=WIDTH, layout="nhwc", number="int32", scale=1.0, batch=4),
        NetInput(name="image", height_px=HEIGHT, width_px=WIDTH, number="float16", scale=2 / 255, mean=(1.0, 1.0, 1.0)),
    ],
)
def test_a_net_is_fed_with_its_own_convention(tmp_path: Path, given: NetInput) -> None:
    net = open_net(_echo(tmp_path, given), _spec(given, taps=("twice",)))
    crops = _crops(6)
    answers = net(crops)
    colours = crops[..., ::-1] if given.colour == "bgr" else crops
    expected = (colours.astype(np.float64) * given.scale - given.mean) / given.std
    if given.layout == "nchw":
        expected = expected.transpose(0, 3, 1, 2)
    tolerance = 2e-3 if given.number == "float16" else 1e-5
    np.testing.assert_allclose(answers["echo"], expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(answers["twice"], 2 * answers["echo"])
    assert set(answers) == {"echo", "twice"}
    assert net.shapes == dict.fromkeys(("echo", "twice"), (None, *expected.shape[1:]))
    assert net.path.read_bytes() == _echo(tmp_path, given).read_bytes()


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    given = NetInput(name="image", height_px=HEIGHT, width_px=WIDTH)
    path = _echo(tmp_path, given)
    with pytest.raises(ConfigError, match=r"no tensor twicee; near it are twice"):
        open_net(path, _spec(given, taps=("twicee",)))
    other = NetInput(name="picture", height_px=HEIGHT, width_px=WIDTH)
    with pytest.raises(ConfigError, match="takes image; the spec echo feeds picture"):
        open_net(path, _spec(other))
    with pytest.raises(CheckpointError, match="does not answer 1 crops of 32 x 24 px"):
        open_net(path, _spec(NetInput(name="image", height_px=32, width_px=WIDTH)))
    with pytest.raises(DataNotFoundError, match="does not exist"):
        open_net(tmp_path / "none.onnx", _spec(given))
    path.write_bytes(b"not a graph")
    with pytest.raises(CheckpointError):
        open_net(path, _spec(given))
    with pytest.raises(DataError, match=r"crops are uint8 \(N, 16, 24, 3\)"):
        prepare(_crops(1)[:, :-1], given)


@pytest.mark.real_models
@pytest.mark.parametrize("name", ["movenet-lightning", "movenet-thunder", "blazepose-full", "facemesh"])
def test_real_nets_answer_as_without_us(name: str) -> None:
    """The keypoints are the file's own, bit for bit, whatever else is read beside them."""
    folder = os.environ.get("ALPOSE_MODELS")
    if not folder:
        pytest.skip("ALPOSE_MODELS is not set: it names the folder of the real nets")
    path = Path(folder) / f"{name}.onnx"
    spec = recognise(path)
    given = spec.input
    crops = np.random.default_rng(0).integers(0, 256, (2, given.height_px, given.width_px, 3), np.uint8)
    net = open_net(path, spec)
    answers = net(crops)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    bare = onnxruntime.InferenceSession(str(net.path), options, providers=["CPUExecutionProvider"])
    for row, crop in enumerate(crops):
        values = (
            crop[None].astype(np.int32)
            if given.number == "int32"
            else crop[None].astype(np.float32) * np.float32(1 / 255)
        )
        expected = bare.run(list(spec.decoder.outputs), {given.name: values})[0]
        np.testing.assert_array_equal(answers[spec.decoder.outputs[0]][row], expected[0])
    assert all(value.dtype == np.float32 and len(value) == 2 for value in answers.values())
