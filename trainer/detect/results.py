"""``RUN/detect.json``: what an evaluation leaves, and the types that write it and read it back.

Shapes: none; plain numbers alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import read_json, write_json

from .comparing import LEVEL, RESAMPLES, Difference, Estimate, Interval
from .measures import Measures
from .stored import Catalogue, built, exact

RESULTS = "detect.json"

Question = Literal["shipped-free", "shipped-ceiling", "slim-shipped", "any-free", "ablation"]
QUESTIONS: dict[Question, str] = {
    "shipped-free": "is the shipped detector better than the best free score?",
    "shipped-ceiling": "is it better than a head trained on labels of this very domain?",
    "slim-shipped": "is the slim form worse than the shipped one?",
    "any-free": "is a detector better than the best free score?",
    "ablation": "is a detector better than itself with one thing taken away?",
}
HEADLINE: tuple[Question, ...] = ("shipped-free", "shipped-ceiling", "slim-shipped")
"""Asked before this experiment ran, after pilots had looked at the test sets; tested as one family by Holm, apart from what is looked at besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectRow:
    """One detector on one set under one base model."""

    detector: str
    set: str
    seed: int
    measures: Measures


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """One set; the tuples have a value per seed."""

    name: str
    people: int
    """Whose PCK is defined."""
    left_out: int
    """Whose PCK is not: neither failures nor successes, in no number."""
    failures: tuple[int, ...]
    pck: tuple[float | None, ...]
    worst_pck: tuple[float | None, ...]
    """Of the tenth with the lowest PCK."""
    oracle_auroc: tuple[float | None, ...]
    """Of the true loss itself."""
    best_free: str | None
    """None where no free score is stored for this set."""
    unlisted: tuple[str, ...]
    """Stored scores of detectors that the catalogue does not name; they are not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """Mean AUROC of one detector on one set."""

    detector: str
    set: str
    auroc: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """AUROC of ``detector`` less that of ``against``."""

    question: Question
    set: str
    detector: str
    against: str
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Equal-mass bins of a probability, the people of all seeds together."""

    detector: str
    set: str
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    people: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectResults:
    """A whole evaluation as ``detect.json`` holds it."""

    catalogue: Catalogue
    sets: tuple[SetResult, ...]
    rows: tuple[DetectRow, ...]
    ratings: tuple[Rating, ...]
    comparisons: tuple[Comparison, ...]
    reliabilities: tuple[Reliability, ...]
    resamples: int = RESAMPLES
    level: float = LEVEL
    questions: dict[str, str] = field(default_factory=lambda: {str(key): words for key, words in QUESTIONS.items()})

    def save(self, run: Path) -> Path:
        """Write ``RUN/detect.json``, complete or not at all."""
        return write_json(run / RESULTS, asdict(self))

    @classmethod
    def load(cls, run: Path) -> DetectResults:
        """Read ``RUN/detect.json``; unknown and missing keys are errors."""
        path = run / RESULTS
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: evaluate the run first")
        try:
            return _results(read_json(path), str(path))
        except (TypeError, KeyError) as error:
            raise DataError(f"{path} is not what an evaluation writes ({error!r}): evaluate the run again") from error

    def over_seeds(self, detector: str, name: str, measure_name: str) -> list[float | None]:
        """One measure of one detector on one set, a value per seed; empty where it was not scored."""
        rows = (row for row in self.rows if (row.detector, row.set) == (detector, name))
        return [getattr(row.measures, measure_name) for row in rows]


# --- detect.json back into its types


def _results(value: Any, where: str) -> DetectResults:
    value = dict(exact(DetectResults, value, where))
    value["catalogue"] = Catalogue.from_json(value["catalogue"], f"{where}, catalogue")
    value["sets"] = tuple(built(SetResult, _tuples(item), f"{where}, sets") for item in value["sets"])
    value["rows"] = tuple(_with(DetectRow, item, f"{where}, rows", "measures", _measures) for item in value["rows"])
    value["ratings"] = tuple(_with(Rating, item, f"{where}, ratings", "auroc", _estimate) for item in value["ratings"])
    value["comparisons"] = tuple(
        _with(Comparison, item, f"{where}, comparisons", "difference", _difference) for item in value["comparisons"]
    )
    value["reliabilities"] = tuple(
        built(Reliability, _tuples(item), f"{where}, reliabilities") for item in value["reliabilities"]
    )
    return DetectResults(**value)


def _with(cls: type[Any], value: Any, where: str, name: str, part: Any) -> Any:
    """A dataclass of which one field is another."""
    return cls(**(exact(cls, value, where) | {name: part(value[name], f"{where}, {name}")}))


def _measures(value: Any, where: str) -> Measures:
    return built(Measures, _tuples(value), where)


def _estimate(value: Any, where: str) -> Estimate:
    value = exact(Estimate, value, where)
    return Estimate(mean=value["mean"], people=built(Interval, value["people"], where),
                    seeds=built(Interval, value["seeds"], where))  # fmt: skip


def _difference(value: Any, where: str) -> Difference:
    value = exact(Difference, value, where)
    return Difference(**(_tuples(value) | {"estimate": _estimate(value["estimate"], where)}))


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
