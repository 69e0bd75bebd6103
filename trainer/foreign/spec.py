"""What has to be known of a pose net that somebody else trained, to feed it and to read its answer.

A :class:`PoseSpec` is plain data: JSON in a checkpoint and in a bundle, TOML or JSON in a file of the user's. Nothing here
runs a net. Names of tensors are those of the ONNX graph.

Coordinates: the centre of the input's first pixel is (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import Skeleton

Layout = Literal["nchw", "nhwc"]
Colour = Literal["rgb", "bgr"]
Number = Literal["float32", "float16", "uint8", "int32"]
CropKind = Literal["box", "turned", "letterbox", "whole"]
Decoding = Literal["heatmaps", "simcc", "keypoints", "yolo"]
Refinement = Literal["parabola", "quarter", "dark", "none"]
Column = Literal["x", "y", "z", "score", "visibility", "presence", "other"]
ScoreForm = Literal["probability", "logit", "peak", "none"]
Unit = Literal["pixels", "corner", "share", "centred"]
SHORTEST_PX, LONGEST_PX = 8, 8192
"""Of an input."""

COLUMNS: dict[str, str] = {"x": "x", "y": "y", "z": "z", "s": "score", "v": "visibility", "p": "presence", "-": "other"}
"""Letters for the command line: ``yxs`` is y, x, score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetInput:
    """The image that a net takes.

    A pixel p, 0 to 255, enters as ``(p * scale - mean) / std``, cast to ``number``.
    """

    name: str
    height_px: int
    width_px: int
    layout: Layout = "nchw"
    colour: Colour = "rgb"
    number: Number = "float32"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the net's own order of colours, as ``std``."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    batch: int | None = None
    """Images of one call where the graph fixes it; None where it takes any."""

    def __post_init__(self) -> None:
        if not all(SHORTEST_PX <= length <= LONGEST_PX for length in (self.height_px, self.width_px)):
            raise ConfigError(
                f"input: height and width are {SHORTEST_PX} to {LONGEST_PX} px, got {self.height_px} x {self.width_px}"
            )
        numbers = (self.scale, *self.mean, *self.std)
        if not all(math.isfinite(value) for value in numbers) or self.scale <= 0 or min(self.std) <= 0:
            raise ConfigError(
                f"input: scale and std are positive, mean is finite, got {self.scale}, {self.std}, {self.mean}"
            )
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"input: a fixed batch is at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetCrop:
    """Which part of a frame becomes the input.

    ``box``: the person's box times ``margin``, widened to the input's aspect ratio. ``turned``: the same, turned so that the
    body's axis (middle of the hips to middle of the shoulders) points up. ``letterbox``: the whole frame, its aspect kept, the
    rest filled. ``whole``: the whole frame, stretched.
    """

    kind: CropKind = "box"
    margin: float = 1.25
    fill: int = 0
    """Grey level of what lies outside the frame."""

    def __post_init__(self) -> None:
        if not 1 <= self.margin <= 4 or not 0 <= self.fill <= 255:
            raise ConfigError(f"crop: margin is 1 to 4 and fill 0 to 255, got {self.margin} and {self.fill}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetDecoder:
    """How a net's outputs become keypoints in pixels of the input, and scores.

    ``heatmaps``: one map per joint, ``outputs = (maps,)``. ``simcc``: two distributions per joint, ``outputs = (x, y)``.
    ``keypoints``: the net's own points, ``outputs = (points,)``, laid out by ``columns``; or ``outputs = (points, scores)``
    with a score (N, J) for each, which then is no column. ``yolo``: boxes with points, one
    column or row per candidate, ``outputs = (candidates,)``: box (4), score, then ``columns`` per joint; or
    ``outputs = (boxes, points)``, (N, A, 5) and (N, A, J, columns); or, with ``box_last``, rows of points and behind them the box as
    y0, x0, y1, x1 and its score.
    """

    kind: Decoding
    outputs: tuple[str, ...]
    channels_last: bool = False
    """Heatmaps are (N, H, W, J) in place of (N, J, H, W)."""
    box_last: bool = False
    """Candidates are as those of MoveNet MultiPose: points first."""
    refine: Refinement = "parabola"
    """Of the highest cell: by a parabola through the logarithms of its neighbours, by a quarter of a cell towards the higher
    neighbour (Newell et al., ECCV 2016), DARK (Zhang et al., CVPR 2020), or not."""
    stride: tuple[float, float] | None = None
    """Input pixels per cell or bin, (x, y), of hidden maps too; None: the input's size over the map's."""
    offset: tuple[float, float] | None = None
    """Input pixels of the first cell's centre, (x, y); None: half a stride less half a pixel, where cells tile the input."""
    columns: tuple[Column, ...] = ("x", "y", "score")
    unit: Unit = "pixels"
    """Of x and y. ``pixels``: of the input, the first one's centre is 0. ``corner``: pixels from the input's corner, the first
    one's centre is 0.5, so that 0.5 is taken off. ``share``: shares of its width and height, ``share * width - 0.5``. ``centred``: from -1 at the
    input's left or upper edge to 1 at the other (DSNT, Nibali et al., arXiv:1801.07372), ``(x + 1) / 2 * width - 0.5``."""
    points: int | None = None
    """Points in the output, where it has more than the skeleton has joints: the first ones are the joints."""
    score: ScoreForm = "probability"
    peak: float = 1.0
    """Height that heatmaps or distributions were trained towards; with ``score="peak"`` a score is a share of it."""

    def __post_init__(self) -> None:
        wanted = 2 if self.kind == "simcc" or (self.kind in ("yolo", "keypoints") and len(self.outputs) == 2) else 1
        if len(self.outputs) != wanted or not all(self.outputs):
            raise ConfigError(f"decoder {self.kind}: name {wanted} output{'s' * (wanted > 1)}, got {self.outputs}")
        if self.kind in ("keypoints", "yolo") and not {"x", "y"} <= set(self.columns):
            raise ConfigError(f"decoder {self.kind}: columns must have x and y, got {self.columns}")
        if not 0 < self.peak < math.inf:
            raise ConfigError(f"decoder: peak must be positive, got {self.peak}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseSpec:
    """One pose net of somebody else's."""

    name: str
    input: NetInput
    crop: NetCrop
    decoder: NetDecoder
    skeleton: Skeleton
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Tensors inside the graph that speak of the answer, by what they are: ``heatmaps`` (J maps, or more where ``decoder.points``
    says so), ``centre`` (one map), ``flag`` (one number: is anybody there), ``regression.x`` and ``regression.y`` (a second guess
    of every joint, J numbers each, in cells of the hidden heatmaps). More of one kind: ``heatmaps.2`` …"""
    logits: tuple[str, ...] = ()
    """Hidden tensors, and heatmaps among the outputs, that a sigmoid turns into probabilities."""
    taps: tuple[str, ...] = ()
    """Feature tensors (N, C, h, w), (N, h, w, C) or tokens (N, h·w, C), finest first; read at the joints and by loss heads."""
    embedding: str | None = None
    """The tensor whose average describes the image; the last (deepest) tap unless named."""

    def __post_init__(self) -> None:
        kinds = {name.split(".")[0] for name in self.hidden}
        if not kinds <= {"heatmaps", "centre", "flag", "regression"}:
            raise ConfigError(
                f"hidden tensors are heatmaps, centre, flag or regression, got {', '.join(sorted(kinds))}"
            )
        if unread := set(self.logits) - {*self.hidden.values(), *self.decoder.outputs}:
            raise ConfigError(f"logits name hidden tensors or outputs, got {', '.join(sorted(unread))}")
        if len(set(self.taps)) != len(self.taps):
            raise ConfigError(f"a tap is named twice: {', '.join(self.taps)}")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor of the graph that is read, each once, outputs first."""
        extra = (*self.hidden.values(), *self.taps, *((self.embedding,) if self.embedding else ()))
        return tuple(dict.fromkeys((*self.decoder.outputs, *extra)))
