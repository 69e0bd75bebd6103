"""One file on its way to a spec: what is stated, what its graph says, and what it takes and answers when it runs on noise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import CheckpointError, ConfigError

from ..net import run_once
from ..spec import Layout, NetCrop, NetInput, Number
from .families import FAMILIES, Family
from .graph import GraphInput, read_graph
from .stated import Stated, size_in, stated_skeleton, with_own_spec
from .tracing import AFTER_FEATURES, guessed_normalisation

Origin = Literal["stated", "graph", "family", "guess"]


@dataclass(frozen=True)
class Part:
    """One thing that is known of a net, and how."""

    name: str
    value: str
    origin: Origin
    why: str = ""


class Examination:
    """What a file takes, and what it answers; parts are noted as they become known."""

    def __init__(self, path: Path, stated: Stated) -> None:
        self.path, self.parts = path, list[Part]()
        self.graph = read_graph(path, stated.size or size_in(stated.spec or {}))
        self.stated, self.own = with_own_spec(path, stated, self.graph.metadata)
        self.given: Mapping[str, Any] = self.stated.spec or {}
        self.values, self.skeleton_stated = self.stated.values(), stated_skeleton(self.stated)
        self.size_stated = stated.size or size_in(self.given)
        self.image = self._image()
        self.layout, self.size = self._layout_and_size()
        self.batch = self._batch()
        self.answers, self.low, self.high = self._measure()
        self.shapes = {name: value.shape[1:] for name, value in self.answers.items()}
        self.family_name, self.family = self._family()

    def _origin(self, name: str) -> Origin:
        """Where a value comes from that an option, a spec file or the file's own spec gives."""
        return "graph" if name in self.own else "stated"

    def _note(self, name: str, value: Any, origin: Origin, why: str = "") -> None:
        self.parts.append(Part(name, shown(value), origin, why))

    def _choose(self, name: str, family: Any, guess: Any, why: str = "") -> Any:
        """Return the stated value, else the family's (unless None), or the guess."""
        for value, origin in ((self.values.get(name), self._origin(name)), (family, "family"), (guess, "guess")):
            if value is not None:
                value = tuple(value) if isinstance(value, list) else value
                from_graph = origin == "guess" and why.startswith("the graph")
                self._note(name, value, "graph" if from_graph else origin, why if origin == "guess" else "")
                return value
        return None

    def _image(self) -> GraphInput:
        inputs = self.graph.inputs
        said = ", ".join(f"{one.name} {one.number} {written_axes(one.shape)}" for one in inputs) or "none"
        images = [one for one in inputs if len(one.shape) == 4]
        if len(inputs) != 1 or len(images) != 1:
            raise ConfigError(
                f"{self.path} takes {said}; expected one input, an image of four axes. Export the net with the other inputs "
                "folded in as constants, or fold them into the file: docs/models.md shows how"
            )
        if images[0].number not in get_args(Number):
            raise ConfigError(
                f"{self.path} takes {said}; an image is {', '.join(get_args(Number))}. Export the net with a cast in front"
            )
        return images[0]

    def _layout_and_size(self) -> tuple[Layout, tuple[int, int]]:
        shape = self.image.shape
        said = f"{self.path} takes {self.image.name} {self.image.number} {written_axes(shape)}"
        fits: list[Layout] = [layout for layout, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] == 3]  # type: ignore[misc]
        free = not any(isinstance(shape[axis], int) for axis in (1, 3))
        layout = self.values.get("layout")
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
                raise ConfigError(f"{said}: its size is {stated[0]}x{stated[1]}, stated was {shown(self.size_stated)}")
            size = self.size_stated
        elif len(stated) == 2:
            size = (stated[0], stated[1])
        else:
            raise ConfigError(
                f"{said}: height and width are free. State --size HxW, the size that the net was trained for; 256x192 is "
                "common for people that are cropped, 640x640 for whole frames"
            )
        self._note(
            "layout", layout, self._origin("layout") if "layout" in self.values else "graph" if fits else "guess"
        )
        self._note("size", f"{size[0]}x{size[1]}", "graph" if len(stated) == 2 else self._origin("size"))
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
                   if tensor.operator in AFTER_FEATURES and (tensor.shape is None or None in tensor.shape)]  # fmt: skip
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
        scale, mean, std, why = guessed_normalisation(self.graph, self.image.name, self.layout, integer)
        known = family if family and not integer else None
        if self.parts_value("decode") == "yolo" and not integer:
            mean, std, why = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "usual for detectors"
        scale = self._choose("scale", known and known.scale, scale, why)
        mean = self._choose("mean", known and known.mean, mean, why)
        std = self._choose("std", known and known.std, std, why)
        colour = self._choose("colour", family and family.colour, "rgb", "not told by the graph")
        if family and family.unsure and self.parts[-1].origin == "family":
            self.parts[-1] = dataclasses.replace(self.parts[-1], why=family.unsure)
        return NetInput(
            name=self.image.name, height_px=self.size[0], width_px=self.size[1], layout=self.layout, colour=colour,
            number=cast(Number, self.image.number), scale=float(scale), mean=mean, std=std, batch=self.batch,
        )  # fmt: skip

    def _crop(self) -> NetCrop:
        family = self.family.crop if self.family else None
        whole = self.parts_value("decode") == "yolo"
        kind = self._choose("crop", family and family.kind, "letterbox" if whole else "box", "usual for such outputs")
        boxed = kind in ("box", "turned")
        margin = self._choose("margin", (family and boxed and family.margin) or None, 1.25 if boxed else 1.0, "usual")
        fill = self._choose("fill", family and family.fill, 114 if whole else 0, "usual")
        return NetCrop(kind=kind, margin=float(margin), fill=int(fill))

    def parts_value(self, name: str) -> str:
        """The value of a part that was noted."""
        return next((part.value for part in self.parts if part.name == name), "")


def written_axes(shape: Iterable[Any]) -> str:
    """A shape as messages have it."""
    return f"({', '.join('free' if axis is None else str(axis) for axis in shape)})"


def shown(value: Any) -> str:
    """A value as messages and tables have it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    return json.dumps(value) if isinstance(value, bool) else str(value)
