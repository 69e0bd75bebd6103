"""What is known of deployed families of pose nets: how they are fed, cropped and decoded.

Only what a graph does not tell by itself: sizes, layouts, numbers, names and shapes are read from the file.
docs/models.md has the exact export command of each family's library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alpose.runtime.known_skeletons import BLAZEPOSE_33, FACE_468
from alpose.runtime.skeleton import COCO, Skeleton

from ..spec import Colour, Column, Decoding, NetCrop, Refinement, ScoreForm
from .graph import Graph
from .outputs import STRIDES, anchors

Cells = Literal["tile", "corner", "aligned"]
"""How maps lie on the input. ``tile``: cells tile it. ``corner``: cell c is the pixel c x stride. ``aligned``: first and last
cells are the first and last pixels, as UDP has it."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Shapes = Mapping[str, tuple[int, ...]]
"""Of the outputs, without their batch axis."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the nets of one family have in common."""

    title: str
    signature: Callable[[Graph, Shapes], bool]
    """Whether a graph is plainly of this family."""
    kind: Decoding
    crop: NetCrop = field(default_factory=NetCrop)
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    colour: Colour = "rgb"
    skeleton: Skeleton | None = None
    """Where all nets of the family have it."""
    decoder: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the decoder."""
    cells: Cells = "tile"
    outputs: tuple[str, ...] = ()
    """Patterns of the outputs that are decoded; empty: by their shapes."""
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Patterns of hidden tensors, by what they are."""
    logits: tuple[str, ...] = ()
    """Which of ``hidden`` are logits."""
    taps: tuple[str, ...] = ()
    """Patterns of the taps, finest first; empty: traced back from the outputs."""
    unsure: str = ""
    """What differs between the exporters of this family, to be looked at."""


def _sizes(shapes: Shapes) -> list[int]:
    return [math.prod(shape) for shape in shapes.values()]


def _movenet(graph: Graph, shapes: Shapes) -> bool:
    return list(shapes.values()) == [(1, 17, 3)] and graph.inputs[0].shape[-1:] == (3,)


def _multipose(_: Graph, shapes: Shapes) -> bool:
    return list(shapes.values()) == [(6, 56)]


def _blazepose(_: Graph, shapes: Shapes) -> bool:
    return 195 in _sizes(shapes) and 117 in _sizes(shapes)


def _facemesh(_: Graph, shapes: Shapes) -> bool:
    return 1404 in _sizes(shapes)


def _rtmpose(_: Graph, shapes: Shapes) -> bool:
    return {"simcc_x", "simcc_y"} <= set(shapes)


def _rtmo(_: Graph, shapes: Shapes) -> bool:
    return {"dets", "keypoints"} <= set(shapes)


def _vitpose(graph: Graph, shapes: Shapes) -> bool:
    named = {graph.inputs[0].name, *shapes} in ({"pixel_values", "heatmaps"}, {"input_0", "output_0"})
    return named and len(next(iter(shapes.values()))) == 3


def _yolo(graph: Graph, shapes: Shapes) -> bool:
    if graph.metadata.get("task") == "pose" and "ultralytics" in " ".join(graph.metadata.values()).lower():
        return not _yolo26(graph, shapes)
    size = [axis for axis in graph.inputs[0].shape[2:] if isinstance(axis, int)]
    if len(shapes) != 1 or len(size) != 2:
        return False
    shape = next(iter(shapes.values()))
    return len(shape) == 2 and shape[1] == anchors((size[0], size[1]), STRIDES[:3]) and shape[0] > 5


def _yolo26(_: Graph, shapes: Shapes) -> bool:
    shape = next(iter(shapes.values()))
    return len(shapes) == 1 and len(shape) == 2 and shape[0] == 300 and shape[1] > 6 and (shape[1] - 6) % 3 == 0


def _lightning_pose(graph: Graph, shapes: Shapes) -> bool:
    return graph.inputs[0].name == "images" and "heatmaps" in shapes


def _sleap(graph: Graph, shapes: Shapes) -> bool:
    return "peaks" in shapes and "peak_vals" in shapes


def _never(_: Graph, __: Shapes) -> bool:
    return False


_CALL = r"^StatefulPartitionedCall/"
_FEATURES = r"/model_1/"
_POINTS: tuple[Column, ...] = ("x", "y", "visibility")
_WHOLE = NetCrop(kind="letterbox", margin=1.0, fill=114)
_REFINE: Refinement = "dark"
_PEAK: ScoreForm = "peak"

_YOLO_TAPS = tuple(rf"/cv4\.{level}/.*/act/Mul_output_0$" for level in range(3))
"""What the points are read from, of each grid."""

FAMILIES: dict[str, Family] = {
    "movenet": Family(
        title="MoveNet SinglePose (Lightning, Thunder), by tf2onnx",
        signature=_movenet,
        kind="keypoints",
        scale=1.0,
        skeleton=COCO,
        # A cell of its maps answers with its corner: cell k is k * stride from the input's corner.
        decoder={"columns": ("y", "x", "score"), "unit": "share", "offset": (-0.5, -0.5), "score": "probability"},
        hidden={
            "heatmaps": _CALL + r"Sigmoid:0$",
            "centre": _CALL + r"Sigmoid_1:0$",
            "regression.x": _CALL + r"add_3:0$",
            "regression.y": _CALL + r"add_2:0$",
        },
        taps=(
            _FEATURES + r"re_lu_2/Relu_Relu",
            _FEATURES + r"re_lu_1/Relu_Relu",
            _FEATURES + r"re_lu/Relu_Relu",
            _FEATURES + r"model/out_relu/Relu6_Relu6",
        ),
    ),
    "movenet-multipose": Family(
        title="MoveNet MultiPose Lightning, by tf2onnx",
        signature=_multipose,
        kind="yolo",
        crop=NetCrop(kind="letterbox", margin=1.0),
        scale=1.0,
        skeleton=COCO,
        decoder={"columns": ("y", "x", "score"), "unit": "share", "score": "probability"},
    ),
    "blazepose": Family(
        title="BlazePose landmarks of MediaPipe (lite, full, heavy), by tf2onnx",
        signature=_blazepose,
        kind="keypoints",
        crop=NetCrop(kind="turned"),
        skeleton=BLAZEPOSE_33,
        decoder={
            "columns": ("x", "y", "z", "visibility", "presence"),
            "unit": "corner",
            "points": 39,
            "score": "logit",
        },
        hidden={"heatmaps": r"^Identity_3_raw_output", "flag": r"^Identity_1$"},
        logits=("heatmaps",),
        taps=(r"^model_1/model/add_11/add$", r"^Relu6__106:0$", r"^Relu6__179:0$"),
    ),
    "facemesh": Family(
        title="Face mesh of MediaPipe, by tf2onnx",
        signature=_facemesh,
        kind="keypoints",
        crop=NetCrop(margin=1.5),
        skeleton=FACE_468,
        decoder={"columns": ("x", "y", "z"), "unit": "corner", "score": "none"},
        hidden={"flag": r"flag"},
        taps=tuple(rf"/p_re_lu_{block}/Relu:0$" for block in (6, 9, 12, 15)),
    ),
    "rtmpose": Family(
        title="RTMPose, RTMW, DWPose, by mmdeploy",
        signature=_rtmpose,
        kind="simcc",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        decoder={"refine": "none", "score": _PEAK},
        cells="corner",
        unsure="the order of colours differs between exporters",
    ),
    "rtmo": Family(
        title="RTMO, by mmdeploy",
        signature=_rtmo,
        kind="yolo",
        crop=_WHOLE,
        scale=1.0,
        colour="bgr",
        decoder={"columns": ("x", "y", "score")},
    ),
    "vitpose": Family(
        title="ViTPose, by transformers or easy_ViTPose",
        signature=_vitpose,
        kind="heatmaps",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        decoder={"refine": _REFINE, "score": _PEAK},
        cells="aligned",
    ),
    "hrnet": Family(
        title="HRNet, SimpleBaseline, by mmdeploy",
        signature=_never,
        kind="heatmaps",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        decoder={"refine": "quarter", "score": _PEAK},
        cells="corner",
    ),
    "yolo-pose": Family(
        title="YOLOv8-pose, YOLO11-pose, by ultralytics, without NMS",
        signature=_yolo,
        kind="yolo",
        crop=_WHOLE,
        decoder={"columns": _POINTS, "unit": "corner", "score": "probability"},
        taps=_YOLO_TAPS,
    ),
    "yolo26-pose": Family(
        title="YOLO26-pose, by ultralytics, end to end",
        signature=_yolo26,
        kind="yolo",
        crop=_WHOLE,
        decoder={"columns": _POINTS, "unit": "corner", "score": "probability"},
        taps=_YOLO_TAPS,
    ),
    "lightning-pose": Family(
        title="Lightning Pose",
        signature=_lightning_pose,
        kind="heatmaps",
        crop=NetCrop(kind="whole", margin=1.0),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        decoder={"score": _PEAK},
    ),
    "sleap": Family(
        title="sleap-nn",
        signature=_sleap,
        kind="keypoints",
        crop=NetCrop(kind="whole", margin=1.0),
        outputs=(r"^peaks$", r"^peak_vals$"),
        decoder={"columns": ("x", "y")},
    ),
}
"""By the name that ``--like`` takes."""


def find(pattern: str, names: list[str], *, last: bool = False) -> str | None:
    """Return the only name that a pattern fits; with ``last`` the last of them."""
    found = [name for name in names if re.search(pattern, name)]
    return found[-1] if found and (last or len(found) == 1) else None
