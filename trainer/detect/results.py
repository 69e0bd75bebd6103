"""``RUN/detect.json``: what an evaluation leaves, and the types that write it and read it back.

Shapes: none; plain numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alpose.runtime.errors import DataNotFoundError
from alpose.runtime.io import from_json, read_json, write_json

from ..measures.joint_measures import PersonMeasures
from .comparing import LEVEL, RESAMPLES, Difference, Estimate
from .measures import Measures
from .stored import Catalogue

RESULTS = "detect.json"

Question = Literal["shipped-free", "shipped-ceiling", "slim-shipped", "any-free", "ablation", "joint-peak"]
QUESTIONS: dict[Question, str] = {
    "shipped-free": "is the shipped detector better than the best free score?",
    "shipped-ceiling": "is it better than a head trained on labels of this very domain?",
    "slim-shipped": "is the slim form worse than the shipped one?",
    "any-free": "is a detector better than the best free score?",
    "ablation": "is a detector better than itself with one thing taken away?",
    "joint-peak": "does the shipped detector find wrong joints better than the height of the peaks?",
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
class JointRow:
    """How well one detector knows wrong joints, on one set under one base model."""

    detector: str
    set: str
    seed: int
    measures: PersonMeasures


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
    joints: tuple[JointRow, ...] = ()
    """Of the detectors that know joints; none in files that were written before."""
    resamples: int = RESAMPLES
    level: float = LEVEL
    questions: dict[str, str] = field(default_factory=lambda: {str(key): words for key, words in QUESTIONS.items()})

    def save(self, run: Path) -> Path:
        """Write ``RUN/detect.json``, complete or not at all."""
        return write_json(run / RESULTS, self)

    @classmethod
    def load(cls, run: Path) -> DetectResults:
        """Read ``RUN/detect.json``; unknown and missing keys are errors."""
        path = run / RESULTS
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: evaluate the run first")
        return from_json(cls, read_json(path), str(path))

    def over_seeds(self, detector: str, name: str, measure_name: str) -> list[float | None]:
        """One measure of one detector on one set, a value per seed; empty where it was not scored."""
        rows = (row for row in self.rows if (row.detector, row.set) == (detector, name))
        return [getattr(row.measures, measure_name) for row in rows]
