"""What a user states of a pose net, by options, from Python, or in a file; checked as far as that needs no net."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import from_json, parse_json, read_json, to_json
from alpose.runtime.known_skeletons import known_skeleton
from alpose.runtime.skeleton import Skeleton

from ..spec import (
    COLUMNS,
    LONGEST_PX,
    SHORTEST_PX,
    Colour,
    Column,
    CropKind,
    Decoding,
    Layout,
    NetCrop,
    NetDecoder,
    NetInput,
    PoseSpec,
    Refinement,
    ScoreForm,
    Unit,
)  # fmt: skip
from .families import FAMILIES
from .outputs import MOST_JOINTS

log = logging.getLogger("alpose")

SPEC_KEY = "alpose.spec"
"""Under which a file that :func:`~.wrap.wrap` wrote holds its spec, as JSON, in ``metadata_props``."""
PLACES: dict[str, tuple[str, str]] = {
    "layout": ("input", "layout"), "colour": ("input", "colour"), "scale": ("input", "scale"), "mean": ("input", "mean"),
    "std": ("input", "std"), "crop": ("crop", "kind"), "margin": ("crop", "margin"), "fill": ("crop", "fill"),
    "decode": ("decoder", "kind"), "outputs": ("decoder", "outputs"), "columns": ("decoder", "columns"),
    "unit": ("decoder", "unit"), "refine": ("decoder", "refine"), "score": ("decoder", "score"), "peak": ("decoder", "peak"),
    "points": ("decoder", "points"),
}  # fmt: skip
"""Where the value of each option stands in a :class:`~.spec.PoseSpec`."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "layout": get_args(Layout), "colour": get_args(Colour), "crop": get_args(CropKind), "decode": get_args(Decoding),
    "unit": get_args(Unit), "refine": get_args(Refinement), "score": get_args(ScoreForm),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a user states of a net; None leaves it to the file, to its family, or to a guess.

    Raises:
        ConfigError: a value that no net can have.
    """

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
    unit: Unit | None = None
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

    def __post_init__(self) -> None:
        for name in ("outputs", "taps"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _three(name, value))
        if isinstance(self.spec, PoseSpec):
            object.__setattr__(self, "spec", to_json(self.spec))
        elif self.spec is not None:
            object.__setattr__(self, "spec", checked_parts(self.spec, "spec"))
        if self.like is not None and self.like not in FAMILIES:
            near = difflib.get_close_matches(self.like, FAMILIES, 3, 0.4)
            hint = f": did you mean {', '.join(near)}?" if near else ";"
            raise ConfigError(f"--like {self.like}: no such family{hint} known are {', '.join(FAMILIES)}")
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in known:
                raise ConfigError(f"--{name} {value}: expected {', '.join(known)}")
        if self.size is not None:
            check_size(self.size)
        for name in ("scale", "peak"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise ConfigError(f"--{name} {value}: expected a positive number")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(
                f"--std {_words(self.std)}: the image is divided by it, so that each number must be positive"
            )
        if self.margin is not None and not (_is_number(self.margin) and 1 <= self.margin <= 4):
            raise ConfigError(f"--margin {self.margin}: a crop is 1 to 4 times as wide as the box")
        if self.fill is not None and not (_is_whole(self.fill) and 0 <= self.fill <= 255):
            raise ConfigError(f"--fill {self.fill}: expected a grey level, 0 to 255")
        if self.points is not None and not (_is_whole(self.points) and 1 <= self.points <= MOST_JOINTS):
            raise ConfigError(f"--points {self.points}: a net answers 1 to {MOST_JOINTS} points")
        if self.columns is not None:
            check_columns(self.columns)

    def given(self) -> list[str]:
        """Names of what was stated at all."""
        return [one.name for one in fields(self) if getattr(self, one.name) is not None]

    def values(self) -> dict[str, Any]:
        """What was stated of the fields of a :class:`~.spec.PoseSpec`, by option; what an option says comes before the file."""
        parts = self.spec or {}
        found = {}
        for name, (group, key) in PLACES.items():
            value = getattr(self, name)
            if value is None:
                value = parts.get(group, {}).get(key)
            if value is not None:
                found[name] = tuple(value) if isinstance(value, list) else value
        return found


def check_size(size: Any) -> None:
    """Refuse what is no height and width of an input."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2 or not all(map(_is_whole, size)):
        raise ConfigError(f"size {size}: expected (height, width) in whole pixels, such as (256, 192)")
    if not all(SHORTEST_PX <= length <= LONGEST_PX for length in size):
        raise ConfigError(f"--size {size[0]}x{size[1]}: height and width are {SHORTEST_PX} to {LONGEST_PX} px")


def check_columns(columns: Sequence[str]) -> None:
    """Refuse names of columns that are not known, and points without x and y."""
    letters = ", ".join(f"{letter} {name}" for letter, name in COLUMNS.items())
    bad = [name for name in columns if name not in get_args(Column)]
    if bad:
        raise ConfigError(f"--columns {_words(columns)}: {bad[0]!r} is not a column; letters are {letters}")
    if any(list(columns).count(axis) != 1 for axis in "xy"):
        raise ConfigError(f"--columns {_words(columns)}: x and y once each; letters are {letters}")


def parse_columns(text: str) -> tuple[Column, ...]:
    """``yxs`` or ``y,x,score`` as names of columns."""
    names = text.split(",") if "," in text else [COLUMNS.get(letter, letter) for letter in text]
    check_columns(names)
    return tuple(cast(Column, name) for name in names)


def stated_skeleton(stated: Stated) -> Skeleton | None:
    """The skeleton that was stated, by name, in a file, or as it is."""
    value: Any = stated.skeleton if stated.skeleton is not None else (stated.spec or {}).get("skeleton")
    if value is None or isinstance(value, Skeleton):
        return value
    if isinstance(value, Mapping):
        return Skeleton.from_json(value, "the spec's skeleton")
    if not isinstance(value, str):
        raise ConfigError(f"--skeleton {value}: expected a known skeleton by name, or a JSON file")
    return Skeleton.from_json(read_json(Path(value)), value) if value.endswith(".json") else known_skeleton(value)


# --- Files


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
    """Return parts of a spec, all of which are known and have values that a net can have."""
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
    decoder = dict(value.get("decoder", {}))
    pair = decoder.get("kind") == "simcc" or len(decoder.get("outputs") or ()) == 2
    filled: dict[str, dict[str, Any]] = {
        "input": {"name": "image", "height_px": 256, "width_px": 192},
        "crop": {},
        "decoder": {"kind": "simcc" if pair else "heatmaps", "outputs": ["x", "y"] if pair else ["x"]},
    }
    for name, group in groups.items():
        if name in value:
            from_json(group, filled[name] | dict(value[name]), f"{where}: {name}")
    return dict(value)


def _plain_skeleton(value: Any) -> Any:
    return to_json(known_skeleton(value)) if isinstance(value, str) and not value.endswith(".json") else value


# --- What a file says of itself


def with_own_spec(path: Path, stated: Stated, metadata: Mapping[str, str]) -> tuple[Stated, frozenset[str]]:
    """What is stated, and behind it what a file says of itself that ``wrap`` has written; and the names of the parts that only the file
    says.

    Where a family or the decoding is stated otherwise, the file's word on it is left out. A spec that cannot be read is reported.
    """
    text = metadata.get(SPEC_KEY)
    if text is None or stated.like is not None:
        return stated, frozenset()
    try:
        own: dict[str, Any] = to_json(from_json(PoseSpec, parse_json(text.encode()), SPEC_KEY))
    except DataError as error:
        log.warning("%s carries a spec that cannot be read, and is recognised without it: %s", path, error)
        return stated, frozenset()
    given = dict(stated.spec or {})
    if {"decode", "outputs"} & set(stated.values()):
        own = {
            name: value
            for name, value in own.items()
            if name not in ("decoder", "hidden", "logits", "taps", "embedding")
        }
    both = own | given
    both |= {name: own[name] | given[name] for name in ("input", "crop", "decoder") if name in own and name in given}
    said = set(stated.values()) | {
        name for name in ("skeleton", "hidden", "taps", "size") if getattr(stated, name) is not None or name in given
    }
    if size_in(given):
        said.add("size")
    return dataclasses.replace(stated, spec=both), frozenset({*PLACES, "skeleton", "hidden", "taps", "size"} - said)


def size_in(parts: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size that a spec file states."""
    shape = parts.get("input", {})
    return (shape["height_px"], shape["width_px"]) if {"height_px", "width_px"} <= set(shape) else None


# --- Values


def _three(name: str, value: Any) -> tuple[float, float, float]:
    value = value.tolist() if hasattr(value, "tolist") else value
    values = [value] * 3 if _is_number(value) else list(value) if isinstance(value, Sequence) else []
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(_is_number(one) and math.isfinite(one) for one in values):
        raise ConfigError(
            f"--{name} {_words(value)}: expected three numbers, in the net's order of colours, such as 0.485,0.456,0.406, or one "
            "for all of them"
        )
    return (float(values[0]), float(values[1]), float(values[2]))


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
