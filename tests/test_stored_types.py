"""Every dataclass that is kept as JSON goes there and back, and refuses what it does not know, naming the place."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import pytest

from alpose.export.quality import CalibrationReport, ReliabilityBin
from alpose.export.shift import Applied, Catch
from alpose.export.thresholds import CatchThreshold
from alpose.runtime.errors import DataError
from alpose.runtime.io import from_json, to_json
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.cycles.results import Row
from alpose.trainer.detect.results import Comparison, DetectRow, Rating, Reliability, SetResult
from alpose.trainer.detect.stored import Catalogue, DetectorInfo, SetInfo
from alpose.trainer.measures.joint_calibration import JointReport
from alpose.trainer.measures.metrics import Failure

OWN: dict[tuple[str, str], Any] = {
    ("Skeleton", "links"): [[0, 0]],
    ("Skeleton", "flip_pairs"): [],
    ("Failure", "limit"): 0.5,
    ("DetectorInfo", "ablates"): None,
    ("Catalogue", "looks"): {},
}
"""Values that a class wants because it checks them against others."""

WHOLE: dict[str, Any] = {
    "Calibration": {"evidence": ["predicted_loss", "entropy", "doubt"], "mean": [0, 0, 0], "sd": [1, 1, 1],
                    "weight": [1, 0, 0], "score": [0, 1], "probability": [0.125, 0.875]},
    "JointCalibration": {"gain": [1.0], "offset": [0.0], "own": [False]},
}  # fmt: skip
"""Of the classes that keep arrays."""

TYPES = (Applied, CalibrationReport, Catalogue, Catch, CatchThreshold, Comparison, DetectorInfo, DetectRow, Failure, JointReport, Rating,
         Reliability, ReliabilityBin, Row, SetInfo, SetResult, Skeleton)  # fmt: skip


def sample(kind: Any) -> Any:
    """JSON that fits a type."""
    arguments, origin = get_args(kind), get_origin(kind)
    if kind in (int, float, str, bool):
        return {int: 1, float: 0.5, str: "x", bool: True}[kind]
    if origin is Literal:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return sample(arguments[0])
    if origin in (tuple, list, Sequence):
        return (
            [sample(arguments[0])] if Ellipsis in arguments or origin is not tuple else [sample(a) for a in arguments]
        )
    if origin in (dict, Mapping) or kind in (Any, dict):
        return {} if kind is Any else {"x": sample(arguments[1]) if arguments else 1}
    return WHOLE.get(kind.__name__) or document(kind)


def document(cls: type[Any]) -> dict[str, Any]:
    kinds = typing.get_type_hints(cls)
    fields = [item.name for item in dataclasses.fields(cls)]
    return {
        name: OWN.get((cls.__name__, name), None if (cls.__name__, name) in OWN else sample(kinds[name]))
        for name in fields
    }


@pytest.mark.parametrize("cls", TYPES)
def test_it_goes_to_json_and_back(cls: type[Any]) -> None:
    made = from_json(cls, document(cls), "file.json")
    stored = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert stored == document(cls)
    assert to_json(from_json(cls, stored, "file.json")) == stored


@pytest.mark.parametrize("cls", TYPES)
def test_what_it_does_not_know_is_refused_with_its_place(cls: type[Any]) -> None:
    value = document(cls)
    with pytest.raises(DataError, match=r"file\.json: unknown surprise"):
        from_json(cls, value | {"surprise": 1}, "file.json")
    for field in dataclasses.fields(cls):
        rest = {name: item for name, item in value.items() if name != field.name}
        if field.default is field.default_factory is dataclasses.MISSING:
            with pytest.raises(DataError, match=rf"file\.json: missing {field.name}"):
                from_json(cls, rest, "file.json")
        wrong: Any = object() if typing.get_type_hints(cls)[field.name] is Any else {"no": {"such": object()}}
        if "dict" in str(field.type) or "Mapping" in str(field.type):
            wrong = 3
        with pytest.raises(DataError, match=rf"file\.json: {field.name}"):
            from_json(cls, value | {field.name: wrong}, "file.json")
