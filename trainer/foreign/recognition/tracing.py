"""What a graph tells on the way from the image to the answers: its own normalisation, hidden maps of the joints, feature tensors.

Nothing is run here: shapes that ONNX's inference leaves open are measured elsewhere and handed in.

Shapes: N images, J joints, H W the input's height and width, h w a map's, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..spec import Decoding, Layout
from .families import IMAGENET_MEAN, IMAGENET_STD
from .graph import Graph
from .outputs import same_aspect

MOST_TAPS = 4
LEAST_CHANNELS = 8
LEAST_CELLS = 8
"""Of a hidden map along each axis."""
AFTER_FEATURES = frozenset({
    "Relu", "Clip", "PRelu", "LeakyRelu", "HardSwish", "HardSigmoid", "Elu", "Selu", "Gelu", "Mish", "Mul", "Add", "Concat", "Sum",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "Reshape", "Transpose", "MaxPool",
    "AveragePool", "Resize", "Conv", "ConvTranspose", "DepthToSpace", "SkipLayerNormalization", "FusedConv",
})  # fmt: skip
_RAW = frozenset({"Conv", "ConvTranspose", "Reshape", "Transpose", "Resize"})
"""Taken as features only where nothing behind them has the same size."""
_SQUASHED = frozenset({"Sigmoid", "Softmax", "Relu", "Clip"})


@dataclass(frozen=True)
class Traced:
    """A graph whose tensors have known shapes for one call."""

    graph: Graph
    measured: Mapping[str, tuple[int, ...]]
    """Shapes as a run gave them; they come before those that ONNX infers."""
    image: str
    """The input's name."""
    batch: int
    """Images of one call."""
    size: tuple[int, int]
    """Height and width of the input in pixels."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor; None where any of its axes is not known."""
        shape = self.measured.get(name) or self.graph.shape(name)
        return None if shape is None or None in shape else tuple(int(axis or 0) for axis in shape)

    def hidden_heatmaps(self, joints: int) -> str | None:
        """The finest maps of so many joints, of those the last: what a net that gives points decodes them from."""
        fine = {name: shape for name, shape in self._maps(self.graph.tensors).items()
                if shape[1] == joints and min(shape[2:]) >= LEAST_CELLS}  # fmt: skip
        most = max((math.prod(shape[2:]) for shape in fine.values()), default=0)
        return next((name for name in reversed(fine) if math.prod(fine[name][2:]) == most), None)

    def is_logit(self, name: str) -> bool:
        """Whether nothing has squashed a map into probabilities."""
        return self.graph.tensors[name].operator not in _SQUASHED

    def taps(self, kind: Decoding, joints: int, answers: Sequence[str]) -> tuple[str, ...]:
        """One feature tensor of each resolution, the last before the heads; finest first, the deepest last.

        Args:
            kind: how the outputs are decoded.
            joints: how many points the outputs have: maps of as many channels are answers.
            answers: outputs and hidden tensors, which the features lie in front of.
        """
        behind = self.graph.ancestors(answers)
        counts = {joints * times for times in (1, 2, 3)} | set(range(LEAST_CHANNELS))
        maps = {
            name: shape
            for name, shape in self._maps(behind).items()
            if self.graph.tensors[name].operator in AFTER_FEATURES
            and shape[1] not in counts
            and shape[2] * 2 <= self.size[0]
        }
        by_cells: dict[int, list[str]] = {}
        for name, shape in maps.items():
            by_cells.setdefault(math.prod(shape[2:]), []).append(name)
        tokens = self._tokens(behind, joints) if kind != "yolo" else ()
        last_map = max((self.graph.tensors[name].place for name in maps), default=-1)
        if tokens and self.graph.tensors[tokens[0]].place > last_map and len(self.shape(tokens[0]) or ()) == 3:
            return tokens
        if not by_cells:
            return tokens
        must = self._passed_by_all(list(maps), answers)
        shared = self.graph.ancestors(must[-1:]) if must else behind
        taps = []
        for cells in sorted(by_cells, reverse=True):
            level = [name for name in by_cells[cells] if name in shared] or by_cells[cells]
            active = [name for name in level if self.graph.tensors[name].operator not in _RAW]
            taps.append((active or level)[-1])
        coarse = [tap for tap in taps if maps[tap][2] * 4 <= self.size[0]]
        taps = coarse or taps
        return tuple(taps if len(taps) <= MOST_TAPS else [taps[0], *taps[-(MOST_TAPS - 1) :]])

    def _maps(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Tensors (N, C, h, w) that lie on the input at a lower resolution, in the order of the graph."""
        found: dict[str, tuple[int, ...]] = {}
        for name in sorted(names, key=lambda name: self.graph.tensors[name].place):
            shape = self.shape(name)
            if shape is None or len(shape) != 4 or shape[0] != self.batch or not self.graph.tensors[name].operator:
                continue
            if shape[2] * shape[3] > 1 and same_aspect((shape[2], shape[3]), self.size):
                found[name] = shape
        return found

    def _passed_by_all(self, maps: Sequence[str], answers: Sequence[str]) -> list[str]:
        """Maps without which no answer can be computed: every way from the image to every answer goes through them."""
        users: dict[str, list[str]] = {}
        for name, sources in self.graph.sources.items():
            for source in sources:
                users.setdefault(source, []).append(name)
        behind = self.graph.ancestors(answers)
        found = []
        for name in maps:
            reached, todo = set(), [self.image]
            while todo:
                one = todo.pop()
                if one == name or one in reached:
                    continue
                reached.add(one)
                todo.extend(user for user in users.get(one, ()) if user in behind)
            if not reached & set(answers):
                found.append(name)
        return found

    def _tokens(self, behind: set[str], joints: int) -> tuple[str, ...]:
        """The last tokens (N, h·w, C) of a transformer, or the last features (N, C) of a net without maps."""
        grids = {math.ceil(self.size[0] / stride) * math.ceil(self.size[1] / stride) for stride in (8, 14, 16, 32)}
        tokens, vectors = [], []
        for name in sorted(behind, key=lambda name: self.graph.tensors[name].place):
            shape, operator = self.shape(name), self.graph.tensors[name].operator
            if not shape or shape[0] != self.batch or operator not in AFTER_FEATURES:
                continue
            rows = shape[1] if len(shape) == 3 and shape[2] >= LEAST_CHANNELS and operator not in _RAW else joints
            if rows != joints and any(0 <= rows - grid <= 8 for grid in grids):
                tokens.append(name)
            if len(shape) == 2 and shape[1] >= 16 and name not in self.graph.outputs:
                vectors.append(name)
        return tuple((tokens or vectors)[-1:])


# --- Normalisation inside the graph


def guessed_normalisation(
    graph: Graph, image: str, layout: Layout, integer: bool
) -> tuple[float, tuple[float, ...], tuple[float, ...], str]:
    """Scale, mean and std, from the first arithmetic that the graph does with the image."""
    nothing, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if integer:
        return 1.0, nothing, one, "the graph takes whole numbers: pixels as they are"
    found = _first_constant(graph, image)
    if found is not None:
        operator, value = found
        if (
            (operator == "Div" and value > 2)
            or (operator == "Mul" and value < 0.1)
            or (operator in ("Sub", "Add") and abs(value) > 2)
        ):
            return 1.0, nothing, one, f"the graph itself begins with {operator} {value:.4g}"
        return 1 / 255, nothing, one, f"the graph itself begins with {operator} {value:.4g}"
    if layout == "nhwc":
        return 1 / 255, nothing, one, "usual for nets of TensorFlow"
    return 1 / 255, IMAGENET_MEAN, IMAGENET_STD, "ImageNet's, usual for nets of PyTorch"


def _first_constant(graph: Graph, image: str) -> tuple[str, float] | None:
    """The arithmetic with a constant that comes first on the image's way, behind casts and transpositions."""
    import onnx

    weights = {tensor.name: tensor for tensor in graph.proto.graph.initializer}
    constants = {node.output[0]: node.attribute[0].t for node in graph.proto.graph.node
                 if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"}  # fmt: skip
    name = image
    for node in graph.proto.graph.node:
        if name not in node.input:
            continue
        if node.op_type in ("Cast", "Transpose", "Identity"):
            name = node.output[0]
            continue
        if node.op_type not in ("Sub", "Div", "Mul", "Add") or len(node.input) != 2:
            return None
        other = next((one for one in node.input if one != name), "")
        tensor = weights.get(other) or constants.get(other)
        if tensor is None or tensor.data_location == tensor.EXTERNAL:
            return None
        return node.op_type, float(np.mean(onnx.numpy_helper.to_array(tensor)))
    return None
