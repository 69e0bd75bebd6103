"""From an ONNX file alone to a :class:`~.spec.PoseSpec`: what the graph tells, what its family adds, what was stated.

A part is stated (by the user), read in the graph, known of the family, or guessed; :class:`Recognised` says which, so that a
guess can be looked at. What cannot be told is an error that lists what was found and what to state.

Shapes: N images, J joints, H W the input's height and width, h w a map's, C channels.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.io import from_json, read_json, to_json
from alpose.runtime.known_skeletons import KNOWN, known_skeleton, numbered
from alpose.runtime.skeleton import Skeleton

from . import families
from .families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD, Family
from .graph import Graph, GraphInput, read_graph
from .net import run_once
from .outputs import Candidate, candidates, guessed_columns, same_aspect, scores_beside
from .spec import (
    COLUMNS,
    Colour,
    Column,
    CropKind,
    Decoding,
    Layout,
    NetCrop,
    NetDecoder,
    NetInput,
    Number,
    PoseSpec,
    Refinement,
    ScoreForm,
)  # fmt: skip

Origin = Literal["stated", "graph", "family", "guess"]
MOST_TAPS = 4
LEAST_CHANNELS = 8
COMMON_COUNTS = {17: "coco", 16: "mpii", 14: "lsp", 26: "halpe-26", 133: "wholebody-133", 33: "blazepose-33", 68: "face-68",
                 468: "face-468", 21: "hand-21"}  # fmt: skip
SKELETON_OF = {len(skeleton): name for name, skeleton in KNOWN.items()}
_AFTER_FEATURES = frozenset({
    "Relu", "Clip", "PRelu", "LeakyRelu", "HardSwish", "HardSigmoid", "Elu", "Selu", "Gelu", "Mish", "Mul", "Add", "Concat", "Sum",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "Reshape", "Transpose", "MaxPool",
    "AveragePool", "Resize", "Conv", "ConvTranspose", "DepthToSpace", "SkipLayerNormalization", "FusedConv",
})  # fmt: skip
_RAW = frozenset({"Conv", "ConvTranspose", "Reshape", "Transpose", "Resize"})
"""Taken as features only where nothing behind them has the same size."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a user states of a net; None leaves it to the file, to its family, or to a guess."""

    like: str | None = None
    """A family: :data:`~.families.FAMILIES`."""
    size: tuple[int, int] | None = None
    """Height and width of the input in pixels."""
    layout: Layout | None = None
    colour: Colour | None = None
    scale: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop: CropKind | None = None
    margin: float | None = None
    fill: int | None = None
    decode: Decoding | None = None
    outputs: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    unit: Literal["pixels", "corner", "share"] | None = None
    refine: Refinement | None = None
    score: ScoreForm | None = None
    peak: float | None = None
    points: int | None = None
    skeleton: Skeleton | str | None = None
    hidden: Mapping[str, str] | None = None
    taps: tuple[str, ...] | None = None
    embedding: str | None = None
    spec: Mapping[str, Any] | None = None
    """Parts of a :class:`PoseSpec` as its JSON has them; each option above comes before them."""


@dataclass(frozen=True)
class Part:
    """One thing that is known of a net, and how."""

    name: str
    value: str
    origin: Origin
    why: str = ""


@dataclass(frozen=True)
class Recognised:
    """A net's spec, and where each part of it comes from."""

    spec: PoseSpec
    parts: tuple[Part, ...]
    family: str | None
    graph: Graph = field(repr=False, compare=False)

    def guesses(self) -> tuple[Part, ...]:
        """What should be looked at."""
        return tuple(part for part in self.parts if part.origin == "guess")


def recognise(path: str | Path, **stated: Any) -> PoseSpec:
    """Return the spec of a pose net in an ONNX file; see :func:`examine`, which also tells where each part comes from."""
    return examine(path, Stated(**stated)).spec


def examine(path: str | Path, stated: Stated | None = None) -> Recognised:
    """Tell what a pose net takes and gives.

    The net runs on two or three pictures of noise: shapes that ONNX's inference leaves open, and whether it takes several
    images at once, are measured.

    Args:
        path: the ONNX file.
        stated: what is known of it.

    Raises:
        DataNotFoundError, CheckpointError: see :func:`~.graph.read_graph`.
        ConfigError: the file cannot be used, or something has to be stated; the message lists what was found.
    """
    stated = stated or Stated()
    if stated.like is not None and stated.like not in FAMILIES:
        near = difflib.get_close_matches(stated.like, FAMILIES, 3, 0.4)
        hint = f": did you mean {', '.join(near)}?" if near else ";"
        raise ConfigError(f"--like {stated.like}: no such family{hint} known are {', '.join(FAMILIES)}")
    return _Examination(Path(path), stated).result()


class _Examination:
    """One file on its way to a spec; parts are noted as they become known."""

    def __init__(self, path: Path, stated: Stated) -> None:
        self.path, self.stated = path, stated
        self.given: Mapping[str, Any] = stated.spec or {}
        self.parts: list[Part] = []
        self.size_stated = stated.size or self._size_of_file()
        self.graph = read_graph(path, self.size_stated)
        self.image = self._image()
        self.layout, self.size = self._layout_and_size()
        self.batch = self._batch()
        self.answers, self.low, self.high = self._measure()
        self.shapes = {name: value.shape[1:] for name, value in self.answers.items()}
        self.family_name, self.family = self._family()

    def result(self) -> Recognised:
        found = self._candidate()
        decoder, skeleton = self._decoder(found)
        hidden, logits = self._hidden(found, decoder)
        taps = self._taps(found, decoder, hidden)
        spec = PoseSpec(
            name=self.given.get("name") or self.family_name or self.path.stem,
            input=self._input(),
            crop=self._crop(),
            decoder=decoder,
            skeleton=skeleton,
            hidden=hidden,
            taps=taps,
            logits=logits,
            embedding=self.stated.embedding or self.given.get("embedding"),
        )
        self._check_tensors(spec)
        return Recognised(spec, tuple(self.parts), self.family_name, self.graph)

    # --- What is stated comes first, then the graph, the family, a guess

    def _note(self, name: str, value: Any, origin: Origin, why: str = "") -> None:
        self.parts.append(Part(name, _shown(value), origin, why))

    def _choose(self, name: str, option: Any, place: tuple[str, str], family: Any, guess: Any, why: str = "") -> Any:
        """Return the stated value, else the spec file's, the family's (unless None), or the guess."""
        given = self.given.get(place[0], {}).get(place[1]) if isinstance(self.given.get(place[0]), Mapping) else None
        for value, origin in ((option, "stated"), (given, "stated"), (family, "family"), (guess, "guess")):
            if value is not None:
                value = tuple(value) if isinstance(value, list) else value
                from_graph = origin == "guess" and why.startswith("the graph")
                self._note(
                    name, value, "graph" if from_graph else cast(Origin, origin), why if origin == "guess" else ""
                )
                return value
        return None

    # --- Input

    def _size_of_file(self) -> tuple[int, int] | None:
        part = self.given.get("input", {})
        return (part["height_px"], part["width_px"]) if {"height_px", "width_px"} <= set(part) else None

    def _image(self) -> GraphInput:
        inputs = self.graph.inputs
        said = ", ".join(f"{one.name} {one.number} {_axes(one.shape)}" for one in inputs) or "none"
        images = [one for one in inputs if len(one.shape) == 4]
        if len(inputs) != 1 or len(images) != 1:
            raise ConfigError(
                f"{self.path} takes {said}; expected one input, an image of four axes. Export the net with the other inputs "
                "folded in as constants"
            )
        if images[0].number not in get_args(Number):
            raise ConfigError(f"{self.path} takes {said}; an image is {', '.join(get_args(Number))}")
        return images[0]

    def _layout_and_size(self) -> tuple[Layout, tuple[int, int]]:
        shape = self.image.shape
        said = f"{self.path} takes {self.image.name} {self.image.number} {_axes(shape)}"
        fits: list[Layout] = [layout for layout, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] == 3]  # type: ignore[misc]
        free = not any(isinstance(shape[axis], int) for axis in (1, 3))
        layout = self.stated.layout or self.given.get("input", {}).get("layout")
        if layout is None:
            if len(fits) != 1 and not free:
                grey = 1 in (shape[1], shape[3])
                raise ConfigError(
                    f"{said}: no axis, or more than one, has the three colours. "
                    + ("Nets of grey pictures are fed with three colours: put a convolution of 3 to 1 before it" if grey
                       else "State --layout nchw or nhwc")
                )  # fmt: skip
            layout = fits[0] if fits else "nchw"
        axes = (2, 3) if layout == "nchw" else (1, 2)
        stated = [axis for axis in (shape[axes[0]], shape[axes[1]]) if isinstance(axis, int)]
        if self.size_stated:
            if len(stated) == 2 and tuple(stated) != tuple(self.size_stated):
                raise ConfigError(f"{said}: its size is {stated[0]}x{stated[1]}, stated was {_shown(self.size_stated)}")
            size = self.size_stated
        elif len(stated) == 2:
            size = (stated[0], stated[1])
        else:
            raise ConfigError(
                f"{said}: height and width are free. State --size HxW, the size that the net was trained for; 256x192 is "
                "common for people that are cropped, 640x640 for whole frames"
            )
        self._note("layout", layout, "stated" if self.stated.layout else "graph" if fits else "guess")
        self._note("size", f"{size[0]}x{size[1]}", "graph" if len(stated) == 2 else "stated")
        self._note("number", self.image.number, "graph")
        return layout, (int(size[0]), int(size[1]))

    def _batch(self) -> int | None:
        first = self.image.shape[0]
        return first if isinstance(first, int) else None

    def _blank_input(self, count: int) -> npt.NDArray[Any]:
        height, width = self.size
        shape = (count, 3, height, width) if self.layout == "nchw" else (count, height, width, 3)
        noise = np.random.default_rng(count).integers(0, 256, shape)
        if self.image.number in ("uint8", "int32"):
            return noise.astype(self.image.number)
        return (noise / 255).astype(self.image.number)

    def _measure(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """Answer noise: shapes, ranges of the outputs' last axes, and whether two images at once are taken."""
        names = list(self.graph.outputs)
        unknown = [tensor.name for tensor in self.graph.tensors.values()
                   if tensor.operator in _AFTER_FEATURES and (tensor.shape is None or None in tensor.shape)]  # fmt: skip
        answers = run_once(
            self.path, self.graph, self.image.name, self._blank_input(self.batch or 1), [*names, *unknown]
        )
        self.measured = {name: value.shape for name, value in answers.items()}
        if self.batch is None:
            try:
                run_once(self.path, self.graph, self.image.name, self._blank_input(2), names)
            except CheckpointError:
                self.batch = 1
                self._note(
                    "batch", 1, "graph", "its batch axis is free, but it does not answer two images: fed one at a time"
                )
            else:
                self._note("batch", "any", "graph")
        else:
            why = "the graph fixes it; images are fed one after the other" if self.batch == 1 else "the graph fixes it"
            self._note("batch", self.batch, "graph", why)
        outputs = {name: answers[name] for name in names}
        for name, value in outputs.items():
            if value.ndim == 0 or (len(value) != (self.batch or 1)):
                if value.ndim and self.batch == 1:
                    continue
                del answers[name]
        outputs = {name: value for name, value in outputs.items() if name in answers}
        if not outputs:
            raise ConfigError(f"{self.path}: no output has a batch axis; it gives {self._said()}")
        columns = {
            name: value.reshape(-1, value.shape[-1]) if value.size else np.zeros((1, 1))
            for name, value in outputs.items()
        }
        return outputs, {k: v.min(axis=0) for k, v in columns.items()}, {k: v.max(axis=0) for k, v in columns.items()}

    def _said(self) -> str:
        return "; ".join(f"{name} {self.measured.get(name, '')}" for name in self.graph.outputs)

    def _family(self) -> tuple[str | None, Family | None]:
        if self.stated.like:
            self._note("family", self.stated.like, "stated", FAMILIES[self.stated.like].title)
            return self.stated.like, FAMILIES[self.stated.like]
        for name, family in FAMILIES.items():
            if family.signature(self.graph, self.shapes):
                self._note("family", name, "graph", family.title)
                return name, family
        return None, None

    def _input(self) -> NetInput:
        family, integer = self.family, self.image.number in ("uint8", "int32")
        scale, mean, std, why = _guessed_normalisation(self.graph, self.image.name, self.layout, integer)
        known = family if family and not integer else None
        if self.parts_value("decode") == "yolo" and not integer:
            mean, std, why = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "usual for detectors"
        part = ("input", "scale")
        scale = self._choose("scale", self.stated.scale, part, known and known.scale, scale, why)
        mean = self._choose("mean", self.stated.mean, ("input", "mean"), known and known.mean, mean, why)
        std = self._choose("std", self.stated.std, ("input", "std"), known and known.std, std, why)
        colour = self._choose("colour", self.stated.colour, ("input", "colour"), family and family.colour, "rgb",
                              "not told by the graph")  # fmt: skip
        if family and family.unsure and self.parts[-1].origin == "family":
            self.parts[-1] = dataclasses.replace(self.parts[-1], why=family.unsure)
        return NetInput(
            name=self.image.name, height_px=self.size[0], width_px=self.size[1], layout=self.layout, colour=colour,
            number=cast(Number, self.image.number), scale=float(scale), mean=_three(mean), std=_three(std), batch=self.batch,
        )  # fmt: skip

    def _crop(self) -> NetCrop:
        family = self.family.crop if self.family else None
        whole = self.parts_value("decode") == "yolo"
        kind = self._choose("crop", self.stated.crop, ("crop", "kind"), family and family.kind, "letterbox" if whole else "box",
                            "usual for such outputs")  # fmt: skip
        boxed = kind in ("box", "turned")
        margin = self._choose("margin", self.stated.margin, ("crop", "margin"), (family and boxed and family.margin) or None,
                              1.25 if boxed else 1.0, "usual")  # fmt: skip
        fill = self._choose(
            "fill", self.stated.fill, ("crop", "fill"), family and family.fill, 114 if whole else 0, "usual"
        )
        return NetCrop(kind=kind, margin=float(margin), fill=int(fill))

    def parts_value(self, name: str) -> str:
        """The value of a part that was noted."""
        return next((part.value for part in self.parts if part.name == name), "")

    # --- Outputs

    def _candidate(self) -> Candidate:
        """The reading of the outputs."""
        wanted = self.stated.outputs or tuple(self.given.get("decoder", {}).get("outputs", ()))
        decode = self.stated.decode or self.given.get("decoder", {}).get("kind")
        origin: Origin = "stated" if wanted or decode else "graph"
        if not wanted and self.family and self.family.outputs:
            names = [families.find(pattern, list(self.graph.outputs)) for pattern in self.family.outputs]
            wanted = tuple(name for name in names if name)
        for name in wanted:
            if name not in self.graph.tensors:
                near = difflib.get_close_matches(name, list(self.graph.tensors), 3, 0.5)
                raise ConfigError(f"{self.path} has no tensor {name}; it gives {self._said()}"
                                  + (f". Near it are {', '.join(near)}" if near else ""))  # fmt: skip
        inside = [name for name in wanted if name not in self.shapes]
        if inside:
            more = run_once(self.path, self.graph, self.image.name, self._blank_input(self.batch or 1), inside)
            self.shapes |= {name: value.shape[1:] for name, value in more.items()}
            self.answers |= more
            for name, value in more.items():
                rows = value.reshape(-1, value.shape[-1])
                self.low[name], self.high[name] = rows.min(axis=0), rows.max(axis=0)
        looked = {name: self.shapes[name] for name in wanted} if wanted else dict(self.shapes)
        joints = self._joints()
        found = [
            one
            for one in candidates(
                looked, self.size, () if joints is None else (joints,), self._point_shape(), self._loose(decode)
            )
            if decode in (None, one.kind)
        ]
        if self.family and not decode:
            found = [one for one in found if one.kind == self.family.kind] or found
        found = self._narrowed(found, wanted)
        if len(found) != 1:
            self._refuse(found, looked, decode)
        chosen = found[0]
        self._note("decode", chosen.kind, "stated" if decode else origin)
        self._note("outputs", chosen.outputs, "stated" if wanted and self.stated.outputs else origin)
        return chosen

    def _loose(self, decode: str | None) -> tuple[Decoding, ...]:
        """Kinds of outputs that are taken at the user's word."""
        placed = "stride" in self.given.get("decoder", {})
        return tuple(kind for kind, said in (("heatmaps", placed), ("simcc", decode == "simcc")) if said)  # type: ignore[misc]

    def _narrowed(self, found: list[Candidate], wanted: Sequence[str]) -> list[Candidate]:
        """Leave out readings that what is known speaks against, one reason after the other, as long as one is left."""
        joints = self._joints()
        columns = self.stated.columns or self.given.get("decoder", {}).get("columns")
        columns = columns or (self.family.decoder.get("columns") if self.family else None)
        if wanted:
            found = [one for one in found if set(one.outputs) <= set(wanted)]
        reasons: list[Callable[[Candidate], bool]] = [
            lambda one: joints is None or one.joints == joints,
            lambda one: not columns or not one.numbers or one.numbers == len(columns),
            lambda one: one.kind != "heatmaps" or one.joints > 1,
            lambda one: not (one.kind == "keypoints" and any(set(one.outputs) & set(other.outputs) and other.sure for other in found)),
            lambda one: not any(other.kind == "simcc" for other in found) or one.kind == "simcc",
            # A net's own decoding is kept: its heatmaps are hidden tensors then.
            lambda one: one.kind != "heatmaps" or not any(
                other.kind == "keypoints" and other.joints == one.joints for other in found),
            # 17 maps beside 34 offsets and 38 limbs are the joints.
            lambda one: one.joints in SKELETON_OF or len({other.kind for other in found}) > 1,
            lambda one: one.kind != "keypoints" or one.numbers > 2 or one.joints in COMMON_COUNTS,
        ]  # fmt: skip
        for reason in reasons:
            found = [one for one in found if reason(one)] or found
        return found

    def _point_shape(self) -> tuple[int, int] | None:
        """Joints and numbers of a point, as ultralytics writes them into its files."""
        found = re.fullmatch(r"\[(\d+), (\d+)\]", self.graph.metadata.get("kpt_shape", ""))
        return (int(found[1]), int(found[2])) if found else None

    def _joints(self) -> int | None:
        """How many points the outputs have, where that is known before they are looked at."""
        stated = self._stated_skeleton()
        family = self.family
        counts = (
            self.stated.points or self.given.get("decoder", {}).get("points"),
            family.decoder.get("points") if family else None,
            len(stated) if stated else None,
            len(family.skeleton) if family and family.skeleton else None,
        )
        return next((count for count in counts if count is not None), None)

    def _refuse(self, found: list[Candidate], looked: Mapping[str, tuple[int, ...]], decode: str | None) -> None:
        said = "; ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in looked.items())
        if found:
            readings = "; or ".join(str(one) for one in found[:6])
            raise ConfigError(
                f"{self.path}: its outputs ({said}) can be read as {readings}. State which: --outputs NAME, --decode "
                f"{'|'.join(get_args(Decoding))}, --skeleton NAME (its number of joints) or --columns (the numbers of a point)"
            )
        stacked = [name for name, shape in looked.items() if len(shape) == 4]
        hint = (
            f" {stacked[0]} has five axes: name the tensor inside the graph that is its last stage, --outputs NAME."
            if stacked
            else ""
        )
        asked = f" as {decode}" if decode else ""
        joints = self._joints()
        loose = candidates(looked, self.size, () if joints is None else (joints,), loose=("heatmaps", "simcc"))
        for one in loose:
            if one.joints != joints or decode not in (None, one.kind):
                continue
            state = {
                "simcc": "--decode simcc",
                "heatmaps": "where their cells lie, which their aspect does not tell: decoder.stride and decoder.offset, (x, y) in pixels of "
                "the input, in a file for --spec",
            }
            hint += f" If they are {one}, state {state[one.kind]}."
        raise ConfigError(
            f"{self.path}: its outputs ({said}) cannot be read{asked}. Expected heatmaps (N, J, h, w) of the input's aspect, SimCC "
            f"(N, J, bins) twice, points (N, J, 2 to 5) or (N, J x numbers) of a known skeleton, or a detector's candidates.{hint} State "
            "--outputs, --decode and --skeleton, or export the net up to such a tensor"
        )

    def _stated_skeleton(self) -> Skeleton | None:
        stated = self.stated.skeleton if self.stated.skeleton is not None else self.given.get("skeleton")
        if stated is None or isinstance(stated, Skeleton):
            return stated
        if isinstance(stated, Mapping):
            return Skeleton.from_json(stated, "the spec's skeleton")
        if stated.endswith(".json"):
            return Skeleton.from_json(read_json(Path(stated)), stated)
        return known_skeleton(stated)

    def _skeleton(self, joints: int) -> Skeleton:
        stated = self._stated_skeleton()
        if stated is not None:
            self._note("skeleton", f"{stated.name} ({len(stated)})", "stated")
            if len(stated) > joints:
                raise ConfigError(
                    f"{self.path} answers {joints} points; the skeleton {stated.name} has {len(stated)} joints"
                )
            return stated
        if self.family and self.family.skeleton and len(self.family.skeleton) <= joints:
            self._note("skeleton", f"{self.family.skeleton.name} ({len(self.family.skeleton)})", "family")
            return self.family.skeleton
        if joints in SKELETON_OF:
            found = known_skeleton(SKELETON_OF[joints])
            self._note("skeleton", f"{found.name} ({joints})", "guess", f"it has {joints} joints")
            return found
        self._note("skeleton", f"{joints} numbered joints", "guess", "no known skeleton has as many: state --skeleton")
        return numbered(joints)

    def _decoder(self, found: Candidate) -> tuple[NetDecoder, Skeleton]:
        known = dict(self.family.decoder) if self.family and self.family.kind == found.kind else {}
        file = dict(self.given.get("decoder", {}))
        skeleton = self._skeleton(found.joints)
        more: dict[str, Any] = {"kind": found.kind, "outputs": found.outputs, "channels_last": found.channels_last}
        if found.joints != len(skeleton):
            more["points"] = found.joints
            self._note("points", found.joints, "graph", f"the first {len(skeleton)} are the joints")
        if found.kind in ("heatmaps", "simcc"):
            more["refine"] = self._choose("refine", self.stated.refine, ("decoder", "refine"), known.get("refine"),
                                          "parabola" if found.kind == "heatmaps" else "none", "usual")  # fmt: skip
            more["score"] = self._choose(
                "score", self.stated.score, ("decoder", "score"), known.get("score"), "peak", "usual"
            )
            more["peak"] = float(
                self._choose("peak", self.stated.peak, ("decoder", "peak"), known.get("peak"), 1.0, "usual")
            )
            more |= self._cells(found, file)
        else:
            more |= self._points(found, known)
        try:
            return NetDecoder(**more), skeleton
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None

    def _cells(self, found: Candidate, file: Mapping[str, Any]) -> dict[str, Any]:
        """How cells or bins lie on the input, where they do not tile it."""
        if "stride" in file or "offset" in file:
            return {name: tuple(file[name]) for name in ("stride", "offset") if file.get(name)}
        cells = self.family.cells if self.family else "tile"
        if cells == "tile":
            return {}
        shape = self.shapes[found.outputs[0]]
        if found.kind == "simcc":
            counts = (shape[1], self.shapes[found.outputs[1]][1])
        else:
            counts = (shape[1], shape[0]) if found.channels_last else (shape[2], shape[1])
        size = (self.size[1], self.size[0])
        less = 1 if cells == "aligned" else 0
        stride = tuple((length - less) / (count - less) for length, count in zip(size, counts, strict=True))
        self._note("cells", cells, "family", f"stride {_shown(stride)} px, the first one at pixel 0")
        return {"stride": stride, "offset": (0.0, 0.0)}

    def _points(self, found: Candidate, known: Mapping[str, Any]) -> dict[str, Any]:
        """Columns, unit and scores of a net that gives points."""
        name = found.outputs[-1] if found.kind == "yolo" else found.outputs[0]
        value, numbers = self.answers[name], found.numbers
        more: dict[str, Any] = {}
        columns = known.get("columns")
        if columns is not None and len(columns) != numbers:
            columns = columns[:2] if numbers == 2 else None
        if found.kind == "keypoints":
            rows = value.reshape(-1, found.joints, numbers).reshape(-1, numbers)
            low, high = rows.min(axis=0), rows.max(axis=0)
            guess = guessed_columns(numbers, tuple(low), tuple(high))
            why = f"from their ranges over noise: {', '.join(f'{a:.2g} to {b:.2g}' for a, b in zip(low, high, strict=True))}"
        else:
            guess, why = (("x", "y", "visibility") if numbers == 3 else ("x", "y")), "usual"
        columns = self._choose("columns", self.stated.columns, ("decoder", "columns"), columns, guess, why)
        if any(columns.count(axis) != 1 for axis in "xy"):
            raise ConfigError(f"--columns: x and y once each, got {', '.join(columns)}")
        if len(columns) != numbers:
            raise ConfigError(
                f"{self.path}: {name} has {numbers} numbers a point, stated were {len(columns)}: {', '.join(columns)}"
            )
        more["columns"] = tuple(columns)
        offset = self.given.get("decoder", {}).get("offset") or known.get("offset")
        if offset:
            more["offset"] = tuple(offset)
        share = False
        if found.kind == "keypoints":
            places = [columns.index(axis) for axis in "xy"]
            share = float(np.abs(rows[:, places]).max()) <= 2
        more["unit"] = self._choose("unit", self.stated.unit, ("decoder", "unit"), known.get("unit"),
                                    "share" if share else "corner" if found.kind == "yolo" else "pixels", "from their ranges over noise")  # fmt: skip
        scored = {"score", "visibility", "presence"} & set(columns)
        beside = None
        if found.kind == "keypoints" and not scored:
            beside = scores_beside(found, self.shapes)
            if beside and (self.stated.outputs is None or beside in self.stated.outputs):
                more["outputs"] = (*found.outputs, beside)
                self._note("scores", beside, "graph", "one number for each joint")
            else:
                beside = None
        guess_score: ScoreForm = "none"
        why = "no column is one"
        if beside or scored or found.kind == "yolo":
            if beside:
                low_s, high_s = float(self.answers[beside].min()), float(self.answers[beside].max())
            elif scored and found.kind == "keypoints":
                place = columns.index(next(iter(scored)))
                low_s, high_s = float(rows[:, place].min()), float(rows[:, place].max())
            else:
                low_s, high_s = 0.0, 1.0
            guess_score = "probability" if low_s >= 0 and high_s <= 1.001 else "logit"
            why = "from its range over noise"
        more["score"] = self._choose(
            "score", self.stated.score, ("decoder", "score"), known.get("score"), guess_score, why
        )
        return more

    # --- Hidden tensors and taps

    def _hidden(self, found: Candidate, decoder: NetDecoder) -> tuple[dict[str, str], tuple[str, ...]]:
        stated = self.stated.hidden if self.stated.hidden is not None else self.given.get("hidden")
        if stated is not None:
            logits = tuple(self.given.get("logits", ()))
            self._note("hidden", dict(stated), "stated")
            return dict(stated), logits
        names = list(self.graph.tensors)
        if self.family and self.family.hidden:
            matched = {kind: families.find(pattern, names) for kind, pattern in self.family.hidden.items()}
            known = {kind: name for kind, name in matched.items() if name}
            if len(known) == len(self.family.hidden):
                self._note("hidden", known, "family")
                return known, tuple(known[kind] for kind in self.family.logits)
        hidden, logits = self._guessed_hidden(found, decoder)
        if hidden:
            self._note("hidden", hidden, "guess", "traced back from the outputs")
        return hidden, logits

    def _guessed_hidden(self, found: Candidate, decoder: NetDecoder) -> tuple[dict[str, str], tuple[str, ...]]:
        """Heatmaps that a net which gives points hides, and an output that says whether anybody is there."""
        hidden: dict[str, str] = {}
        if found.kind == "keypoints":
            maps = [
                tensor
                for tensor in self._maps(self.graph.tensors)
                if (self._shape(tensor) or (0, 0))[1] == found.joints and min((self._shape(tensor) or (0,))[2:]) >= 8
            ]
            if maps:
                finest = max(math.prod((self._shape(name) or (0,))[2:]) for name in maps)
                last = [name for name in maps if math.prod((self._shape(name) or (0,))[2:]) == finest][-1]
                hidden["heatmaps"] = last
        flags = [name for name, shape in self.shapes.items() if math.prod(shape) == 1 and name not in decoder.outputs]
        if len(flags) == 1 and found.kind != "yolo":
            hidden["flag"] = flags[0]
        logits = tuple(
            name for kind, name in hidden.items()
            if kind == "heatmaps" and self.graph.tensors[name].operator not in ("Sigmoid", "Softmax", "Relu", "Clip")
        )  # fmt: skip
        return hidden, logits

    def _shape(self, name: str) -> tuple[int, ...] | None:
        shape = self.measured.get(name) or self.graph.shape(name)
        return None if shape is None or None in shape else tuple(int(axis or 0) for axis in shape)

    def _maps(self, names: Iterable[str]) -> list[str]:
        """Tensors (N, C, h, w) that lie on the input at a lower resolution, in the order of the graph."""
        found = []
        for name in sorted(names, key=lambda name: self.graph.tensors[name].place):
            shape = self._shape(name)
            if (
                shape is None
                or len(shape) != 4
                or shape[0] != (self.batch or 1)
                or not self.graph.tensors[name].operator
            ):
                continue
            height, width = shape[2:]
            if height * width > 1 and same_aspect((height, width), self.size):
                found.append(name)
        return found

    def _taps(self, found: Candidate, decoder: NetDecoder, hidden: Mapping[str, str]) -> tuple[str, ...]:
        stated = self.stated.taps if self.stated.taps is not None else self.given.get("taps")
        names = list(self.graph.tensors)
        if stated is not None:
            self._note("taps", tuple(stated), "stated")
            return tuple(stated)
        if self.family and self.family.taps:
            matched = [
                families.find(pattern, [name for name in names if "BiasAdd" not in name], last=True)
                for pattern in self.family.taps
            ]
            if all(matched):
                taps = tuple(name for name in matched if name)
                self._note("taps", taps, "family")
                return taps
        taps = self._guessed_taps(found, decoder, hidden)
        self._note("taps", taps, "guess", "traced back from the outputs" if taps else "no feature map was found")
        return taps

    def _guessed_taps(self, found: Candidate, decoder: NetDecoder, hidden: Mapping[str, str]) -> tuple[str, ...]:
        """One feature tensor of each resolution, the last before the heads; finest first, the deepest last."""
        answers = [*decoder.outputs, *hidden.values()]
        behind = self.graph.ancestors(answers)
        counts = {found.joints * times for times in (1, 2, 3)} | set(range(LEAST_CHANNELS))
        maps = [
            name
            for name in self._maps(behind)
            if self.graph.tensors[name].operator in _AFTER_FEATURES
            and (self._shape(name) or (0, 0))[1] not in counts
            and (self._shape(name) or (0, 0, 0))[2] * 2 <= self.size[0]
        ]
        by_cells: dict[int, list[str]] = {}
        for name in maps:
            by_cells.setdefault(math.prod((self._shape(name) or (0,))[2:]), []).append(name)
        tokens = self._tokens(behind, found.joints) if found.kind != "yolo" else ()
        last_map = max((self.graph.tensors[name].place for name in maps), default=-1)
        if tokens and self.graph.tensors[tokens[0]].place > last_map and len(self._shape(tokens[0]) or ()) == 3:
            return tokens
        if not by_cells:
            return tokens
        must = self._passed_by_all(maps, answers)
        shared = self.graph.ancestors(must[-1:]) if must else behind
        taps = []
        for cells in sorted(by_cells, reverse=True):
            level = [name for name in by_cells[cells] if name in shared] or by_cells[cells]
            active = [name for name in level if self.graph.tensors[name].operator not in _RAW]
            taps.append((active or level)[-1])
        coarse = [tap for tap in taps if (self._shape(tap) or (0, 0, 1))[2] * 4 <= self.size[0]]
        taps = coarse or taps
        return tuple(taps if len(taps) <= MOST_TAPS else [taps[0], *taps[-(MOST_TAPS - 1) :]])

    def _passed_by_all(self, maps: Sequence[str], answers: Sequence[str]) -> list[str]:
        """Maps without which no answer can be computed: every way from the image to every answer goes through them."""
        users: dict[str, list[str]] = {}
        for name, sources in self.graph.sources.items():
            for source in sources:
                users.setdefault(source, []).append(name)
        behind = self.graph.ancestors(answers)
        found = []
        for name in maps:
            reached, todo = set(), [self.image.name]
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
            shape, operator = self._shape(name), self.graph.tensors[name].operator
            if not shape or shape[0] != (self.batch or 1) or operator not in _AFTER_FEATURES:
                continue
            rows = shape[1] if len(shape) == 3 and shape[2] >= LEAST_CHANNELS and operator not in _RAW else joints
            if rows != joints and any(0 <= rows - grid <= 8 for grid in grids):
                tokens.append(name)
            if len(shape) == 2 and shape[1] >= 16 and name not in self.graph.outputs:
                vectors.append(name)
        return tuple((tokens or vectors)[-1:])

    def _check_tensors(self, spec: PoseSpec) -> None:
        for name in spec.tensors:
            if name not in self.graph.tensors:
                near = difflib.get_close_matches(name, list(self.graph.tensors), 3, 0.4)
                raise ConfigError(
                    f"{self.path} has no tensor {name}" + (f"; near it are {', '.join(near)}" if near else "")
                )


# --- Normalisation inside the graph


def _guessed_normalisation(
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


# --- What a user types


def read_spec_file(path: Path) -> dict[str, Any]:
    """Read a spec, or some parts of one, from JSON or TOML."""
    if path.suffix == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:  # Python 3.10
            import tomli as tomllib  # type: ignore[import-not-found,no-redef]
        try:
            value = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path}: {error}") from error
    else:
        value = read_json(path)
    return checked_parts(value, str(path))


def checked_parts(value: Any, where: str) -> dict[str, Any]:
    """Return parts of a spec whose names are known; their values are checked where they are used."""
    groups: dict[str, type] = {"input": NetInput, "crop": NetCrop, "decoder": NetDecoder}
    known = [one.name for one in fields(PoseSpec)]
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected a table with {', '.join(known)}")
    unknown = set(value) - set(known)
    for name, group in groups.items():
        inner = value.get(name, {})
        if not isinstance(inner, Mapping):
            raise DataError(f"{where}: {name} must be a table, got {inner!r}")
        unknown |= {f"{name}.{key}" for key in set(inner) - {one.name for one in fields(group)}}
    if unknown:
        near = difflib.get_close_matches(sorted(unknown)[0], known, 1)
        raise DataError(
            f"{where}: unknown {', '.join(sorted(unknown))}" + (f"; did you mean {near[0]}?" if near else "")
        )
    whole = {one.name for one in fields(PoseSpec) if one.default is one.default_factory is dataclasses.MISSING}
    if whole <= set(value):
        from_json(PoseSpec, dict(value) | {"skeleton": _plain_skeleton(value["skeleton"])}, where)
    return dict(value)


def _plain_skeleton(value: Any) -> Any:
    return to_json(known_skeleton(value)) if isinstance(value, str) and not value.endswith(".json") else value


def parse_columns(text: str) -> tuple[Column, ...]:
    """``yxs`` or ``y,x,score`` as names of columns."""
    names = text.split(",") if "," in text else [COLUMNS.get(letter, letter) for letter in text]
    bad = [name for name in names if name not in get_args(Column)]
    if bad:
        raise ConfigError(
            f"--columns {text}: {bad[0]!r} is not a column; letters are {', '.join(f'{k} {v}' for k, v in COLUMNS.items())}"
        )
    return tuple(cast(Column, name) for name in names)


def _three(values: Any) -> tuple[float, float, float]:
    values = [float(value) for value in (values if isinstance(values, Sequence) else [values] * 3)]
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise ConfigError(f"mean and std are three numbers, in the net's order of colours, got {values}")
    return (values[0], values[1], values[2])


def _axes(shape: Iterable[Any]) -> str:
    return f"({', '.join('free' if axis is None else str(axis) for axis in shape)})"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return json.dumps(value) if isinstance(value, bool) else str(value)
