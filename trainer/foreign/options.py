"""The options that state what a pose net of somebody else's is, for every command that takes ``--pose`` or such a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click

from alpose.runtime.errors import ConfigError

from ..cli_options import names_in
from .recognition.families import FAMILIES
from .recognition.stated import Stated, parse_columns, read_spec_file
from .spec import Colour, CropKind, Decoding, Layout, Refinement, ScoreForm, Unit


def net_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a :class:`~.recognition.stated.Stated`, which the command is given as ``stated``."""

    @wraps(command)
    def call(**given: Any) -> Any:
        own = {name: given.pop(f"net_{name}") for name in _NAMES}
        file = own.pop("spec")
        texts: dict[str, Callable[[str], Any]] = {
            "size": _size,
            "mean": _numbers,
            "std": _numbers,
            "columns": parse_columns,
            "taps": names_in,
            "outputs": names_in,
        }
        values: dict[str, Any] = {
            name: texts[name](value) if name in texts and value is not None else value for name, value in own.items()
        }
        return command(stated=Stated(spec=None if file is None else read_spec_file(file), **values), **given)

    found: Any = call
    for option in reversed(_OPTIONS):  # the first is listed first
        found = option(found)
    return found


def _option(name: str, meaning: str, **more: Any) -> Any:
    return click.option(f"--{name}", f"net_{name}", help=meaning, **more)


_OPTIONS = (
    _option("like", f"Family of the net: {', '.join(FAMILIES)}. [default: recognised]", metavar="FAMILY"),
    _option("spec", "File with any parts of the net's description, as describe --json prints it.", metavar="JSON|TOML",
            type=click.Path(path_type=Path, exists=True, dir_okay=False)),
    _option("skeleton", "Joints of the net: a known skeleton by name, or a JSON file. [default: by their number]",
            metavar="NAME|JSON"),
    _option("size", "Height and width of the input, where the file leaves them free.", metavar="HxW"),
    _option("layout", "Order of the input's axes.", type=click.Choice(get_args(Layout))),
    _option("colour", "Order of the input's colours.", type=click.Choice(get_args(Colour))),
    _option("scale", "Pixels, 0 to 255, are multiplied by it, then mean is subtracted, then std divides.", type=float,
            metavar="FACTOR"),
    _option("mean", "In the net's order of colours.", metavar="A,B,C"),
    _option("std", "In the net's order of colours.", metavar="A,B,C"),
    _option("crop", "Which part of a frame is fed.", type=click.Choice(get_args(CropKind))),
    _option("margin", "Length of the crop's sides over that of the box's.", type=float, metavar="FACTOR"),
    _option("fill", "Grey level of what lies outside the frame, 0 to 255.", type=click.IntRange(0, 255), metavar="GREY"),
    _option("decode", "What the outputs are.", type=click.Choice(get_args(Decoding))),
    _option("outputs", "The tensors that are decoded; they may lie inside the graph.", metavar="NAMES"),
    _option("columns", "Numbers of a point, by letter (x y z, s score, v visibility, p presence, - other) or by name.",
            metavar="xys"),
    _option("unit", "Of x and y; corner: pixels from the input's corner; centred: -1 to 1.", type=click.Choice(get_args(Unit))),
    _option("refine", "Of the highest cell of a heatmap.", type=click.Choice(get_args(Refinement))),
    _option("score", "What a score is.", type=click.Choice(get_args(ScoreForm))),
    _option("peak", "Height that heatmaps were trained towards.", type=float, metavar="HEIGHT"),
    _option("points", "Points in the output, where it has more than the skeleton.", type=click.IntRange(1), metavar="POINTS"),
    _option("taps", "Feature tensors of the graph, finest first. [default: traced back from the outputs]", metavar="NAMES"),
    _option("embedding", "Feature tensor whose average describes the image. [default: the last tap]", metavar="NAME"),
)  # fmt: skip
_NAMES = ("like", "spec", "skeleton", "size", "layout", "colour", "scale", "mean", "std", "crop", "margin", "fill", "decode",
          "outputs", "columns", "unit", "refine", "score", "peak", "points", "taps", "embedding")  # fmt: skip


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--size {text}: write HEIGHTxWIDTH in pixels, such as 256x192")
    return int(parts[0]), int(parts[1])


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"write three numbers, such as 0.485,0.456,0.406, or one for all colours; got {text!r}"
        ) from None
