"""``bundle.json``: what a bundle says of itself, read strictly. ``docs/bundle.md`` is its specification.

Shapes: N batch, J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from ..crop import CropKind, CropRule
from ..errors import BundleError, DataError
from ..io import parse_json
from ..skeleton import Skeleton, body_axis
from ..types import AXIS_LENGTHS, CONFIDENCE, OUTPUT_AXES, PEOPLE, output_names
from .golden import Golden

KIND, SCHEMA = "alpose bundle", 2
SCHEMAS = (1, SCHEMA)
"""What is read. Schema 1 has square crops on black and no confidence."""
MODEL, MANIFEST, DIGEST, GOLDEN, CARD = "model.onnx", "bundle.json", "bundle.sha256", "golden.npz", "card.html"
SIGNATURE, ENGINES = "bundle.sig", "engines"
WEIGHTS = "model.weights"
"""Weights of a graph that does not fit one file of 2 GiB; hashed where it is there, which few bundles have."""
HASHED = (MODEL, GOLDEN, CARD)
"""The files whose sha256 stands in the manifest."""
REQUIRED = (MODEL, MANIFEST, DIGEST, GOLDEN, CARD)
HISTOGRAM_BINS = 64
"""Of the failure probability on the calibration set, equal in width, over [0, 1]."""

Precision = Literal["fp32", "fp16", "int8"]
Dimension = int | str | None

_KEYS = ("kind", "schema", "name", "created", "alpose", "skeleton", "crop", "precision", "head", "inputs", "outputs",
         "calibration", "parity", "provenance", "opset", "files")  # fmt: skip

_UNITS = {
    "keypoints": "pixels of the input; the centre of the first pixel is (0, 0)",
    "scores": "share of the training peak",
    "predicted_loss": "the loss head's own",
    "failure_probability": "probability",
    "embedding": "unit length",
    CONFIDENCE: "probability",
    PEOPLE: "pixels of the input; the net's own score",
}

_CROP_KEYS = {1: ("size_px", "margin"), 2: ("width_px", "height_px", "margin", "kind", "fill")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Where to flag so that a share of the failures is caught."""

    catch: float
    """Share of failures that a frame's ``failure_probability >= threshold`` finds."""
    confidence: float
    """Probability, over calibration sets, that the promise holds."""
    threshold: float | None
    """None where the calibration set has too few failures for the promise."""
    reason: str | None = None
    """Why there is no threshold."""

    def __post_init__(self) -> None:
        if not 0 < self.catch < 1 or not 0 < self.confidence < 1:
            raise DataError(f"catch and confidence must lie between 0 and 1, got {self.catch} and {self.confidence}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise DataError(f"the threshold must lie in [0, 1], got {self.threshold}")
        if self.threshold is None and not self.reason:
            raise DataError(f"there is no threshold for catch {self.catch}, and no reason is given")


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """What a runtime uses of the calibration; the rest is for people and stays in ``facts``."""

    thresholds: tuple[Threshold, ...]
    histogram: tuple[int, ...]
    """Frames of the calibration set by their failure probability, in :data:`HISTOGRAM_BINS` bins over [0, 1]."""
    facts: Mapping[str, Any] = field(repr=False)
    """The manifest's section as it stands."""

    def threshold(self, catch: float) -> float:
        """The threshold that catches this share of failures; :class:`DataError` says why there is none."""
        for item in self.thresholds:
            if math.isclose(item.catch, catch):
                if item.threshold is None:
                    raise DataError(f"no threshold is known to catch {catch:g} of failures: {item.reason}")
                return item.threshold
        known = ", ".join(f"{item.catch:g}" for item in self.thresholds) or "none"
        raise DataError(f"this bundle has no threshold for catch {catch:g}; it has: {known}")

    @classmethod
    def from_json(cls, value: Any) -> CalibrationFacts:
        """Read the manifest's section."""
        facts = _mapping(value, "calibration")
        thresholds = []
        for place, item in enumerate(_list(facts, "thresholds", "calibration")):
            where = f"calibration.thresholds[{place}]"
            one = _mapping(item, where)
            numbers = {key: _number(one, key, where) for key in ("catch", "confidence")}
            limit = None if one.get("threshold") is None else _number(one, "threshold", where)
            reason = None if one.get("reason") is None else _text(one, "reason", where)
            try:
                thresholds.append(Threshold(**numbers, threshold=limit, reason=reason))
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        histogram = _list(facts, "histogram", "calibration")
        if len(histogram) != HISTOGRAM_BINS or not all(_is_whole(count) and count >= 0 for count in histogram):
            raise DataError(f"calibration.histogram must be {HISTOGRAM_BINS} counts, got {str(histogram)[:80]}")
        return cls(tuple(thresholds), tuple(histogram), facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """``bundle.json``, checked. Read with :meth:`from_json`."""

    name: str
    created: str
    """UTC, ISO 8601."""
    alpose: str
    """Version that exported."""
    skeleton: Skeleton
    crop: CropRule
    precision: Precision
    head: str
    """The loss head whose prediction the graph gives."""
    dimensions: int
    """D, the length of an embedding."""
    calibration: CalibrationFacts | None
    """None: exported without labelled data. Failure probabilities then mean nothing, and there are no thresholds."""
    parity: Mapping[str, Any] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    opset: int
    files: Mapping[str, str] = field(repr=False)
    """sha256 by name."""
    confidence: bool = True
    """Whether the graph gives each joint's probability of being right; bundles of schema 1 do not."""
    people: bool = False
    """Whether the graph gives candidates for several people on a whole frame."""

    @property
    def schema(self) -> int:
        """Of the file."""
        return SCHEMA if self.confidence else 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in their order."""
        return output_names(self.confidence, self.people)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values in the order of the file, read back by :meth:`from_json`."""
        inputs, outputs = tensors(self.crop, len(self.skeleton), self.dimensions, self.confidence, self.people)
        return {
            "kind": KIND,
            "schema": self.schema,
            "name": self.name,
            "created": self.created,
            "alpose": self.alpose,
            "skeleton": self.skeleton.to_json(),
            "crop": crop_to_json(self.crop, self.schema),
            "precision": self.precision,
            "head": self.head,
            "inputs": inputs,
            "outputs": outputs,
            "calibration": None if self.calibration is None else dict(self.calibration.facts),
            "parity": dict(self.parity),
            "provenance": dict(self.provenance),
            "opset": self.opset,
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Check parsed JSON; :class:`DataError` names the key, what it holds and what it should.

        The shapes are compared with the skeleton and the crop here, with the engine in
        :func:`check_against_engine`.
        """
        top = _mapping(value, "the manifest")
        if top.get("kind") != KIND:
            raise DataError(f"kind must be {KIND!r}, got {top.get('kind')!r}: this is not a bundle of alpose")
        if not _is_whole(top.get("schema")) or top["schema"] not in SCHEMAS:
            raise DataError(
                f"schema must be 1 or {SCHEMA}, got {top.get('schema')!r}: use the alpose that wrote it "
                f"({str(top.get('alpose'))[:40]}), or export again"
            )
        _exactly(top, _KEYS, "the manifest", top["schema"])
        schema = top["schema"]
        skeleton = Skeleton.from_json(top["skeleton"])
        crop = _crop(top, schema)
        if crop.kind == "turned" and body_axis(skeleton) is None:
            raise DataError(
                f"crop.kind is turned, and skeleton {skeleton.name!r} has no hips and shoulders to turn by: export it with "
                "another kind of crop"
            )
        precision = _text(top, "precision")
        if precision not in get_args(Precision):
            raise DataError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        opset = _whole(top, "opset")
        if opset < 1:
            raise DataError(f"opset must be positive, got {opset}")
        return cls(
            name=_name(top),
            created=_time(top),
            alpose=_text(top, "alpose"),
            skeleton=skeleton,
            crop=crop,
            precision=precision,  # type: ignore[arg-type]  # one of its values, see above
            head=_text(top, "head"),
            dimensions=_check_tensors(top, crop, skeleton, schema),
            calibration=None if top["calibration"] is None else CalibrationFacts.from_json(top["calibration"]),
            parity=_mapping(top["parity"], "parity"),
            provenance=_mapping(top["provenance"], "provenance"),
            opset=opset,
            files=_hashes(top),
            confidence=schema > 1,
            people=PEOPLE in top["outputs"],
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Check the bytes of ``bundle.json``."""
        return cls.from_json(parse_json(content))


def crop_to_json(crop: CropRule, schema: int = SCHEMA) -> dict[str, Any]:
    """The manifest's ``crop``."""
    if schema == 1:
        if crop != CropRule(width_px=crop.width_px, height_px=crop.width_px, margin=crop.margin):
            raise DataError(f"schema 1 has square crops around a box on black alone, got {crop}: write schema {SCHEMA}")
        return {"size_px": crop.width_px, "margin": crop.margin}
    return {name: getattr(crop, name) for name in _CROP_KEYS[schema]}


def tensors(
    crop: CropRule, joints: int, dimensions: int, confidence: bool = True, people: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's ``inputs`` and ``outputs``: fixed by the schema up to four numbers.

    ``confidence``: whether the graph gives it; without, they are those of schema 1. ``people``: as :attr:`Manifest.people`.
    """
    length: dict[str, str | int] = {"N": "N", "J": joints, "D": dimensions, **AXIS_LENGTHS}
    frames = {
        "dtype": "uint8",
        "shape": ["N", crop.height_px, crop.width_px, 3],
        "axes": ["N", "H", "W", "C"],
        "colour": "RGB",
    }
    outputs = {
        name: {
            "dtype": "float32",
            "shape": [length[axis] for axis in OUTPUT_AXES[name]],
            "axes": list(OUTPUT_AXES[name]),
            "unit": _UNITS[name],
        }
        for name in output_names(confidence, people)
    }
    return {"frames": frames}, outputs


def check_against_engine(
    manifest: Manifest,
    input_shapes: Mapping[str, Sequence[Dimension]],
    output_shapes: Mapping[str, Sequence[Dimension]],
) -> None:
    """Compare the names and shapes that an engine reports with the manifest; :class:`BundleError` lists what differs.

    A name, None or -1 is a dynamic axis. The first axis may be fixed (an engine built for one batch size); no other may
    be dynamic.
    """
    inputs, outputs = tensors(
        manifest.crop, len(manifest.skeleton), manifest.dimensions, manifest.confidence, manifest.people
    )
    problems = []
    for side, facts, shapes in (("input", inputs, input_shapes), ("output", outputs, output_shapes)):
        if set(shapes) != set(facts):
            problems.append(f"its {side}s are {sorted(shapes)}, {MANIFEST} declares {sorted(facts)}")
        for name in facts.keys() & shapes.keys():
            wanted, given = facts[name]["shape"], list(shapes[name])
            first = given[0] if given else 0
            batch = not isinstance(first, int) or first == -1 or first > 0
            if not batch or given[1:] != wanted[1:]:
                problems.append(f"{side} {name} has the shape {given}, {MANIFEST} declares {wanted}")
    if problems:
        raise BundleError(
            f"{MODEL} of bundle {manifest.name!r} is not what {MANIFEST} says: {'; '.join(sorted(problems))}. "
            "Export the bundle again"
        )


def check_golden(manifest: Manifest, golden: Golden) -> None:
    """Compare golden frames with the manifest; :class:`DataError` says what differs."""
    for what, given, wanted in (
        ("frames of height and width", golden.size_px, (manifest.crop.height_px, manifest.crop.width_px)),
        ("joints", golden.joints, len(manifest.skeleton)),
        ("embedding dimensions", golden.dimensions, manifest.dimensions),
        ("outputs", tuple(golden.expected.named()), output_names(manifest.confidence)),
    ):
        if given != wanted:
            raise DataError(f"golden frames with {what} {given} do not fit {MANIFEST}, which declares {wanted}")


def _crop(top: Mapping[str, Any], schema: int) -> CropRule:
    value = _mapping(top["crop"], "crop")
    _exactly(value, _CROP_KEYS[schema], "crop", schema)
    margin = _number(value, "margin", "crop")
    if schema == 1:
        size_px = _whole(value, "size_px", "crop")
        return CropRule(width_px=size_px, height_px=size_px, margin=margin)
    kind = _text(value, "kind", "crop")
    if kind not in get_args(CropKind):
        raise DataError(f"crop.kind must be one of {', '.join(get_args(CropKind))}, got {kind[:80]!r}")
    sizes = {name: _whole(value, name, "crop") for name in ("width_px", "height_px", "fill")}
    return CropRule(**sizes, margin=margin, kind=kind)  # type: ignore[arg-type]  # one of its values, see above


def _check_tensors(top: Mapping[str, Any], crop: CropRule, skeleton: Skeleton, schema: int) -> int:
    """Compare inputs and outputs with crop and skeleton; returns D."""
    outputs, inputs = _mapping(top["outputs"], "outputs"), _mapping(top["inputs"], "inputs")
    names = output_names(schema > 1, PEOPLE in outputs)
    if PEOPLE in outputs and crop.around_person:
        raise DataError(
            f"outputs has {PEOPLE}, and crop.kind is {crop.kind}: only a net that looks at whole frames finds people"
        )
    _exactly(outputs, names, "outputs", schema)
    _exactly(inputs, ("frames",), "inputs", schema)
    for name in names:
        _list(_mapping(outputs[name], f"outputs.{name}"), "shape", f"outputs.{name}")
    joints_shape = outputs["keypoints"]["shape"]
    if len(joints_shape) == 3 and joints_shape[1] != len(skeleton):
        raise DataError(
            f"skeleton {skeleton.name!r} has {len(skeleton)} joints, which does not fit outputs.keypoints.shape "
            f"{joints_shape}"
        )
    shape = outputs["embedding"]["shape"]
    if len(shape) != 2 or not _is_whole(shape[1]) or shape[1] < 1:
        raise DataError(f"outputs.embedding.shape must be ['N', D] with D at least 1, got {shape}")
    for side, given, wanted in zip(("inputs", "outputs"), (inputs, outputs),
                                   tensors(crop, len(skeleton), shape[1], schema > 1, PEOPLE in names), strict=True):  # fmt: skip
        for name, facts in wanted.items():
            tensor = _mapping(given[name], f"{side}.{name}")
            _exactly(tensor, tuple(facts), f"{side}.{name}", schema)
            for key, value in facts.items():
                if tensor[key] != value:
                    raise DataError(f"{side}.{name}.{key} must be {value!r}, got {str(tensor[key])[:80]!r}")
    return int(shape[1])


def _hashes(top: Mapping[str, Any]) -> dict[str, str]:
    files = _mapping(top["files"], "files")
    names = (*HASHED, WEIGHTS) if WEIGHTS in files and top["schema"] > 1 else HASHED
    _exactly(files, names, "files", top["schema"])
    for name in names:
        if not re.fullmatch(r"[0-9a-f]{64}", _text(files, name, "files")):
            raise DataError(f"files.{name} must be a sha256 in 64 lower-case hex digits, got {files[name][:80]!r}")
    return {name: files[name] for name in names}


def _name(top: Mapping[str, Any]) -> str:
    name = _text(top, "name")
    if len(name) > 100 or set(name) & set("/\\"):
        raise DataError(f"name must be at most 100 characters without slashes, got {name[:120]!r}")
    return name


def _time(top: Mapping[str, Any]) -> str:
    text = _text(top, "created")
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00", text, re.ASCII):
            raise ValueError("form")
        datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"created must be a UTC time like 2025-01-31T12:00:00+00:00, got {text[:60]!r}") from None
    return text


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object, got {str(value)[:80]!r}")
    return value


def _exactly(value: Mapping[str, Any], keys: Sequence[str], where: str, schema: int) -> None:
    missing, extra = sorted(set(keys) - set(value)), sorted(set(value) - set(keys))
    if missing or extra:
        raise DataError(f"{where} has not the keys of schema {schema}: missing {missing}, unknown {extra}")


def _field(value: Mapping[str, Any], key: str, where: str) -> tuple[Any, str]:
    path = f"{where}.{key}" if where else key
    if key not in value:
        raise DataError(f"{path} is missing")
    return value[key], path


def _text(value: Mapping[str, Any], key: str, where: str = "") -> str:
    item, path = _field(value, key, where)
    if not isinstance(item, str) or not item or not item.isprintable():
        raise DataError(f"{path} must be a printable text that is not empty, got {str(item)[:80]!r}")
    return item


def _list(value: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    item, path = _field(value, key, where)
    if not isinstance(item, list):
        raise DataError(f"{path} must be a list, got {str(item)[:80]!r}")
    return item


def _whole(value: Mapping[str, Any], key: str, where: str = "") -> int:
    item, path = _field(value, key, where)
    if not _is_whole(item):
        raise DataError(f"{path} must be a whole number, got {str(item)[:80]!r}")
    return int(item)


def _number(value: Mapping[str, Any], key: str, where: str = "") -> float:
    item, path = _field(value, key, where)
    if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
        raise DataError(f"{path} must be a finite number, got {str(item)[:80]!r}")
    return float(item)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
