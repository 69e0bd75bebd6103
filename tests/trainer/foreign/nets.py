"""Small nets with the inputs and outputs of deployed families, made of a few ONNX nodes each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMBER = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
}


class Net:
    """Writes a graph node by node; every method returns the name of its output."""

    def __init__(
        self, size: tuple[int, int], *, image: str = "image", batch: Any = "batch", layout: str = "nchw",
        number: str = "float32", free: bool = False,
    ) -> None:  # fmt: skip
        axes: list[Any] = ["height", "width"] if free else list(size)
        shape = [batch, 3, *axes] if layout == "nchw" else [batch, *axes, 3]
        self.image, self.size = image, size
        self.inputs = [helper.make_tensor_value_info(image, NUMBER[number], shape)]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.metadata: dict[str, str] = {}
        self.random = np.random.default_rng(0)
        self.channels: dict[str, int] = {image: 3}
        self.start = image
        if number != "float32":
            self.start = self.add("Cast", [image], to=TensorProto.FLOAT)
            self.channels[self.start] = 3
        if layout == "nhwc":
            self.start = self.add("Transpose", [self.start], perm=[0, 3, 1, 2])
            self.channels[self.start] = 3

    def add(self, operator: str, inputs: Sequence[str], name: str = "", outputs: int = 1, **attributes: Any) -> str:
        name = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        if inputs and inputs[0] in self.channels:
            self.channels[name] = self.channels[inputs[0]]
        return name

    def weight(self, value: Any) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(self, x: str, channels: int, stride: int = 1, name: str = "", kernel: int = 3) -> str:
        scale = 1 / np.sqrt(self.channels[x] * kernel * kernel)
        values = self.random.normal(0, scale, (channels, self.channels[x], kernel, kernel)).astype(np.float32)
        pad = kernel // 2
        made = self.add("Conv", [x, self.weight(values)], name, strides=[stride, stride], pads=[pad] * 4,
                        kernel_shape=[kernel, kernel])  # fmt: skip
        self.channels[made] = channels
        return made

    def block(self, x: str, channels: int, stride: int = 1, name: str = "") -> str:
        return self.add("Relu", [self.conv(x, channels, stride)], name)

    def up(self, x: str) -> str:
        return self.add("Resize", [x, "", self.weight(np.array([1, 1, 2, 2], np.float32))], mode="nearest")

    def stem(self, levels: int = 2, channels: int = 16) -> str:
        x = self.start
        for _ in range(levels):
            x = self.block(x, channels, 2)
        return x

    def reshape(self, x: str, *shape: int, name: str = "") -> str:
        return self.add("Reshape", [x, self.weight(np.array(shape, np.int64))], name)

    def dense(self, x: str, wide: int, to: int, name: str = "") -> str:
        values = self.random.normal(0, 1 / np.sqrt(wide), (wide, to)).astype(np.float32)
        return self.add("MatMul", [x, self.weight(values)], name)

    def output(self, name: str, number: str = "float32") -> None:
        self.outputs.append(helper.make_tensor_value_info(name, NUMBER[number], None))

    def model(self, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        helper.set_model_props(model, self.metadata)
        return model

    def save(self, path: Path, opset: int = 17) -> Path:
        onnx.save(self.model(opset), path)
        return path


def hourglass(path: Path, joints: int = 16, size: tuple[int, int] = (64, 64)) -> Path:
    """A down-and-up net with a skip; its heatmaps have a stride of 4."""
    net = Net(size)
    fine = net.block(net.stem(), 24, name="before")
    deep = net.block(net.block(fine, 24, 2), 24, 2, name="bottom")
    back = net.add("Add", [net.up(net.up(deep)), fine])
    features = net.block(back, 24, name="features")
    net.output(net.conv(features, joints, name="heatmaps"))
    return net.save(path)


def hrnet(path: Path, *, free: bool = False, channels_last: bool = False) -> Path:
    """Two branches of different resolution for crops of 256 x 192; the answer has a stride of 4."""
    net = Net((256, 192), image="input", free=free)
    fine = net.stem()
    coarse = net.block(fine, 32, 2)
    for _ in range(2):
        up = net.up(net.conv(coarse, 16, kernel=1))
        down = net.conv(fine, 32, 2)
        fine, coarse = (
            net.add("Relu", [net.add("Add", [fine, up])]),
            net.add("Relu", [net.add("Add", [coarse, down])]),
        )
    fused = net.add("Add", [fine, net.up(net.conv(coarse, 16, kernel=1))], "fused")
    maps = net.conv(net.add("Relu", [fused], "features"), 17, name="maps", kernel=1)
    net.output(net.add("Transpose", [maps], "last", perm=[0, 2, 3, 1]) if channels_last else maps)
    return net.save(path)


def simcc(
    path: Path, joints: int = 17, size: tuple[int, int] = (256, 192), names: tuple[str, str] = ("simcc_x", "simcc_y")
) -> Path:
    """RTMPose's head: one row of features a joint, two distributions with two bins a pixel."""
    net = Net(size, image="input")
    deep = net.block(net.stem(4), 32, 2, name="deep")
    cells = (size[0] // 32) * (size[1] // 32)
    rows = net.reshape(net.conv(deep, joints, kernel=1), 0, joints, cells)
    net.output(net.dense(rows, cells, size[1] * 2, names[0]))
    net.output(net.dense(rows, cells, size[0] * 2, names[1]))
    return net.save(path)


def regression(path: Path, *, numbers: int = 2, joints: int = 17, flat: bool = True, scores: bool = False, batch: Any = "batch",
               pixels: bool = False) -> Path:  # fmt: skip
    """Points from pooled features; with a second output of scores where asked for."""
    net = Net((96, 96), batch=batch)
    deep = net.block(net.stem(3), 32, 2, name="deep")
    pooled = net.reshape(net.add("GlobalAveragePool", [deep]), 0, 32, name="pooled")
    points = net.add("Sigmoid", [net.dense(pooled, 32, joints * numbers)])
    if pixels:
        points = net.add("Mul", [points, net.weight(np.float32(96))])
    net.output(
        net.add("Identity", [points], "points") if flat else net.reshape(points, 0, joints, numbers, name="points")
    )
    if scores:
        net.output(net.add("Sigmoid", [net.dense(pooled, 32, joints)], "scores"))
    return net.save(path)


def yolo(path: Path, size: int = 64, joints: int = 17, rows: bool = False, classes: int = 1) -> Path:
    """One candidate for each cell of three grids: box, score, points."""
    net = Net((size, size), image="images", batch=1)
    columns = 4 + classes + 3 * joints
    net.metadata = {"task": "pose", "author": "Ultralytics", "kpt_shape": f"[{joints}, 3]"} if classes > 1 else {}
    levels, x = [], net.stem(3)
    for level in range(3):
        x = net.block(x, 16, 1 if level == 0 else 2)
        cells = (size // (8 << level)) ** 2
        levels.append(net.reshape(net.conv(x, columns, kernel=1), 1, columns, cells))
    together = net.add("Concat", levels, axis=2)
    scaled = net.add("Mul", [together, net.weight(np.float32(size))], "" if rows else "output0")
    net.output(net.add("Transpose", [scaled], "output0", perm=[0, 2, 1]) if rows else scaled)
    return net.save(path)


PEOPLE_FORMS = ("yolo-pose", "yolo26-pose", "rtmo", "movenet-multipose")


def people(path: Path, form: str, size: int = 64, batch: Any = 1) -> Path:
    """A net of each form that finds several people: a red cell of 8 px is one, as sure as it is red, 2 cells wide and 3 high,
    with 17 joints on a line down its middle."""
    cells, joints = size // 8, 17
    bgr, bytes_in = form == "rtmo", form in ("rtmo", "movenet-multipose")
    layout, number = ("nhwc", "int32") if form == "movenet-multipose" else ("nchw", "float32")
    net = Net((size, size), image="images", batch=batch, layout=layout, number=number)
    channel = 2 if bgr else 0
    ends = [np.array([value], np.int64) for value in (channel, channel + 1, 1)]
    red = net.add("Slice", [net.start, *map(net.weight, ends)])
    green = net.add("Slice", [net.start, *map(net.weight, [np.array([value], np.int64) for value in (1, 2, 1)])])
    red = net.add("Relu", [net.add("Sub", [red, green])])
    if bytes_in:
        red = net.add("Mul", [red, net.weight(np.float32(1 / 255))])
    pooled = net.add("AveragePool", [red], kernel_shape=[8, 8], strides=[8, 8])
    score = net.reshape(pooled, 0, 1, cells * cells)
    nothing = net.add("Mul", [score, net.weight(np.float32(0))])
    y, x = (axis.reshape(-1) * 8 + 4.0 for axis in np.mgrid[0:cells, 0:cells].astype(np.float32))

    def fixed(*rows: Any) -> str:
        """Numbers (1, rows, cells) that are the same on every picture."""
        return net.add(
            "Add", [nothing, net.weight(np.stack([np.broadcast_to(row, x.shape) for row in rows])[None].astype("f4"))]
        )

    lines = [(x, y - 10 + 20 * joint / (joints - 1)) for joint in range(joints)]
    sure = [value for x_J, y_J in lines for value in (x_J, y_J, 0.9)]
    if form == "yolo-pose":
        found = net.add("Concat", [fixed(x, y, 16, 24), score, fixed(*sure)], axis=1)
        rest = sum((size // stride) ** 2 for stride in (16, 32))
        pads = net.weight(np.array([0, 0, 0, 0, 0, rest], np.int64))
        net.add("Pad", [found, pads], "output0")
        net.metadata = {"task": "pose", "author": "Ultralytics", "kpt_shape": "[17, 3]", "names": "{0: 'person'}"}
        net.output("output0")
        return net.save(path)
    corners = (x - 8, y - 12, x + 8, y + 12)
    if form == "yolo26-pose":
        rows = net.add("Concat", [fixed(*corners), score, fixed(0, *sure)], axis=1)
        turned = net.add("Transpose", [rows], perm=[0, 2, 1])
        net.add("Pad", [turned, net.weight(np.array([0, 0, 0, 0, 300 - cells * cells, 0], np.int64))], "output0")
        net.metadata = {"task": "pose", "author": "Ultralytics", "kpt_shape": "[17, 3]"}
        net.output("output0")
        return net.save(path)
    if form == "rtmo":  # with its suppression inside, and a last row that is nobody, so that there is always one
        boxes = net.add("Transpose", [net.add("Concat", [fixed(*corners), score], axis=1)], perm=[0, 2, 1])
        points = net.add("Transpose", [fixed(*sure)], perm=[0, 2, 1])
        four = [np.array([value], np.int64) for value in (0, 4, 2)]
        limits = [net.weight(np.array(value)) for value in (np.int64(20), np.float32(0.5), np.float32(0.3))]
        chosen = net.add("NonMaxSuppression", [net.add("Slice", [boxes, *map(net.weight, four)]), score, *limits])
        rows = net.add("Gather", [chosen, net.weight(np.int64(2))], axis=1)
        for name, value, last in (("dets", boxes, 5), ("keypoints", points, 3 * joints)):
            kept = net.add("Gather", [value, rows], axis=1)
            padded = net.add(
                "Pad", [kept, net.weight(np.array([0, 0, 0, 0, 1, 0], np.int64))], name if last == 5 else ""
            )
            if last != 5:
                net.reshape(padded, 0, -1, joints, 3, name=name)
            net.output(name)
        return net.save(path)
    y0, x0, y1, x1 = (edge / size for edge in (y - 12, x - 8, y + 12, x + 8))
    shares = [value for x_J, y_J in lines for value in (y_J / size, x_J / size, 0.9)]
    rows = net.add("Transpose", [net.add("Concat", [fixed(*shares, y0, x0, y1, x1), score], axis=1)], perm=[0, 2, 1])
    net.nodes.append(helper.make_node("TopK", [net.reshape(score, 0, cells * cells), net.weight(np.array([6], np.int64))],
                                      ["best", "places"], name="best"))  # fmt: skip
    wide = net.add("Expand", [net.add("Unsqueeze", ["places", net.weight(np.array([2], np.int64))]),
                              net.weight(np.array([1, 1, 56], np.int64))])  # fmt: skip
    net.add("GatherElements", [rows, wide], "output_0", axis=1)
    net.output("output_0")
    return net.save(path)


def transformer(path: Path, joints: int = 17) -> Path:
    """Patches of 16 px, one mixing layer, and points from the average token: no map of features anywhere behind the patches."""
    net = Net((64, 48))
    patches = net.conv(net.start, 32, 1, kernel=1)
    whole = net.add("AveragePool", [patches], kernel_shape=[16, 16], strides=[16, 16])
    tokens = net.add("Transpose", [net.reshape(whole, 0, 32, 12)], perm=[0, 2, 1])
    mixed = net.add("Add", [tokens, net.dense(tokens, 32, 32)], "tokens")
    mean = net.add("ReduceMean", [mixed], axes=[1], keepdims=0)
    net.output(net.reshape(net.dense(mean, 32, joints * 2), 0, joints, 2, name="points"))
    return net.save(path)


def uint8_nhwc(path: Path, joints: int = 21) -> Path:
    """A hand net as TensorFlow exports it: bytes in, normalised inside, one image at a time."""
    net = Net((64, 64), batch=1, layout="nhwc", number="uint8")
    scaled = net.add("Sub", [net.start, net.weight(np.float32(127.5))])
    net.channels[scaled] = 3
    net.start = net.add("Mul", [scaled, net.weight(np.float32(1 / 127.5))])
    net.channels[net.start] = 3
    features = net.block(net.stem(), 24, name="features")
    maps = net.add("Sigmoid", [net.conv(features, joints)])
    net.output(net.add("Transpose", [maps], "heatmaps", perm=[0, 2, 3, 1]))
    return net.save(path)


def lightning_pose(path: Path, joints: int = 9) -> Path:
    net = Net((128, 128), image="images")
    net.output(net.conv(net.block(net.stem(), 24, name="features"), joints, name="heatmaps"))
    return net.save(path)


def sleap(path: Path, joints: int = 13) -> Path:
    """Points and their values, decoded inside."""
    net = Net((96, 96), image="image", number="uint8")
    pooled = net.reshape(net.add("GlobalAveragePool", [net.block(net.stem(), 24, name="features")]), 0, 24)
    points = net.add("Mul", [net.add("Sigmoid", [net.dense(pooled, 24, joints * 2)]), net.weight(np.float32(96))])
    net.output(net.reshape(points, 0, joints, 2, name="peaks"))
    net.output(net.add("Sigmoid", [net.dense(pooled, 24, joints)], "peak_vals"))
    return net.save(path)
