"""What the experiment leaves in a run folder, and the types that write it and read it back.

::

    RUN/
      detectors.json             every detector and every set, how it was run, how often test sets were looked at
      seed-0/lsp-test.npz        one set under the base model of one seed: joints right or wrong, true losses, scores
      detect.json, detect.html   what was made of them, see evaluation.py and report.py

Shapes: N people of one set, J joints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import from_json, read_json, write_json

from ..cycles.results import load_npz, save_npz
from ..measures.metrics import Failure
from ..methods.catalog import DETECTORS, METHODS, DetectorKind

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

Kind = DetectorKind
KINDS: dict[Kind, str] = {
    "shipped": "the detector that ships",
    "slim": "its slim form",
    "free": "free: read off the heatmaps at no cost",
    "paper": "heads as the papers have them",
    "candidate": "candidates that were tried",
    "costed": "costed: further passes, or a second net",
    "ceiling": "ceiling: trained on labels of the very domain",
    "oracle": "oracle: scores by the true labels",
}
"""Every kind with its heading, in the order of the tables."""
REFERENCES: tuple[Kind, ...] = ("ceiling", "oracle")
"""These know labels that no detector has in the field: bounds, not competitors."""

Role = Literal["test", "choice"]
ROLES: dict[Role, str] = {
    "test": "held out: reported; no setting was chosen on it",
    "choice": "choices were made on it",
}

SCORE, JOINT = "score.", "joint."
CATALOGUE = "detectors.json"
DAMAGED = "damaged-views"
"""What the damaged views of the people who validated each base model are called; every seed has people of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorInfo:
    """One detector: a row of every table."""

    name: str
    kind: Kind
    what: str
    """In one sentence."""
    parameters: int | None = None
    """Beside the pose net's own; None where not counted."""
    latency_ms: float | None = None
    """Of the detector alone, for one person, in milliseconds."""
    latency_share: float | None = None
    """The same as a fraction of the pose net's own latency."""
    probability: bool = False
    """Whether its score is a probability of failure, so that its calibration can be measured."""
    ablates: str | None = None
    """The detector of which this is a form with one thing taken away or changed."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"detector {self.name}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        for name in ("parameters", "latency_ms", "latency_share"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise DataError(f"detector {self.name}: {name} is {value}; give a number from 0 up, or null")


Cost = tuple[int, float | None, float | None]
"""Parameters, milliseconds and share of the pose net's time; None where no clock could run."""


def infos(names: tuple[str, ...], costs: Mapping[str, Cost]) -> tuple[DetectorInfo, ...]:
    """Entries of the named detectors, with what those cost that were measured."""
    found = []
    for name in names:
        detector = DETECTORS[name]
        parameters, latency_ms, share = costs.get(name, (None, None, None))
        found.append(DetectorInfo(
            name=name, kind=detector.kind, what=detector.what or METHODS[name].look.meaning, parameters=parameters,
            latency_ms=latency_ms, latency_share=share, probability=detector.kind not in ("oracle", "ceiling"),
            ablates=detector.ablates if detector.ablates in names else None,
        ))  # fmt: skip
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInfo:
    """One held-out set."""

    name: str
    what: str
    role: Role

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):  # it becomes a file name
            raise DataError(f"set {self.name!r}: a name is letters, digits, '.', '_' and '-'")
        if self.role not in get_args(Role):
            raise DataError(f"set {self.name}: role {self.role!r} is none of {', '.join(get_args(Role))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """``RUN/detectors.json``: what was compared, on what, and how."""

    detectors: tuple[DetectorInfo, ...]
    sets: tuple[SetInfo, ...]
    seeds: tuple[int, ...]
    """One base model each."""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    """By set: how often its numbers were looked at."""
    joints: tuple[str, ...] = ()
    """Names of the joints; none in files that were written before joints had measures of their own."""

    def __post_init__(self) -> None:
        for words, names in (("detector", [d.name for d in self.detectors]), ("set", [s.name for s in self.sets]),
                             ("seed", [str(seed) for seed in self.seeds])):  # fmt: skip
            if not names:
                raise DataError(f"{CATALOGUE} names no {words}: there is nothing to evaluate")
            doubles = {name for name in names if names.count(name) > 1}
            if doubles:
                raise DataError(f"{CATALOGUE} names the {words} {', '.join(sorted(doubles))} twice; a name stands once")
        shipped = [d.name for d in self.detectors if d.kind == "shipped"]
        if len(shipped) > 1:
            raise DataError(f"{CATALOGUE}: {' and '.join(shipped)} are all of kind 'shipped'; one detector ships")
        known = {d.name for d in self.detectors}
        for detector in self.detectors:
            if detector.ablates is not None and (detector.ablates not in known or detector.ablates == detector.name):
                raise DataError(
                    f"{CATALOGUE}: {detector.name} ablates {detector.ablates!r}, which is no other detector"
                )
        unknown = set(self.looks) - {s.name for s in self.sets}
        if unknown:
            raise DataError(f"{CATALOGUE}: looks at {', '.join(sorted(unknown))}, which is none of its sets")

    @property
    def macro(self) -> bool:
        """Whether PCK is the mean of the joints' values, as the ``official-2021`` profile has it."""
        return self.config.get("profile") == "official-2021"

    @property
    def failure(self) -> Failure:
        """When a pose counts as failed."""
        return from_json(Failure, self.config.get("failure", {}), CATALOGUE)

    def of_kind(self, *kinds: Kind) -> tuple[DetectorInfo, ...]:
        """The detectors of these kinds, as they are listed."""
        return tuple(detector for detector in self.detectors if detector.kind in kinds)

    def save(self, run: Path) -> Path:
        """Write it, complete or not at all."""
        return write_json(run / CATALOGUE, self)

    @classmethod
    def load(cls, run: Path) -> Catalogue:
        """Read ``RUN/detectors.json``; unknown and missing keys are errors."""
        path = run / CATALOGUE
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: {run} is not a run of alpose-train detect")
        return from_json(cls, read_json(path), str(path))


@dataclass(frozen=True, slots=True)
class SetScores:
    """``RUN/seed-S/SET.npz``: one set under one base model."""

    ids: tuple[str, ...]
    right_NJ: Bools
    """Joints that the pose net found, under the profile."""
    labelled_NJ: Bools
    """Joints that count under the profile: labelled, not skipped, of a person with a normaliser."""
    true_loss_N: Floats
    """NaN where nothing is labelled."""
    scores: Mapping[str, Floats]
    """(N,) by detector; higher = more likely a failure."""
    confidences: Mapping[str, Floats] = field(default_factory=dict)
    """(N, J) by detector, of those that know joints: the probability that each is right. Older files have none."""
    oks_N: Floats | None = None
    """Object keypoint similarity of each pose, NaN without a label; None where COCO knows none of the joints, and in older files."""

    def __post_init__(self) -> None:
        shape = self.labelled_NJ.shape
        if len(shape) != 2 or shape[0] != len(self.ids) or self.right_NJ.shape != shape:
            raise DataError(
                f"right_NJ has shape {self.right_NJ.shape} and labelled_NJ {shape} for {len(self.ids)} ids; "
                "both are (people, joints)"
            )
        for name, value_N in (("true_loss_N", self.true_loss_N), *self.scores.items()):
            if value_N.shape != (len(self.ids),):
                raise DataError(f"{name} has shape {value_N.shape} for {len(self.ids)} ids; there is one per person")
        if self.oks_N is not None and self.oks_N.shape != (len(self.ids),):
            raise DataError(f"oks_N has shape {self.oks_N.shape} for {len(self.ids)} ids; there is one per person")
        for name, value_NJ in self.confidences.items():
            if value_NJ.shape != shape:
                raise DataError(f"confidences of {name} have shape {value_NJ.shape}; there is one per joint, {shape}")

    @property
    def counted_N(self) -> Bools:
        """People whose PCK is defined; the others are left out of everything, and counted."""
        return np.asarray(self.labelled_NJ.any(axis=1))

    def save(self, run: Path, seed: int, name: str) -> Path:
        """Write it as npz without pickle, complete or not at all."""
        path = set_file(run, seed, name)
        arrays = {"ids": np.array(self.ids), "right_NJ": self.right_NJ, "labelled_NJ": self.labelled_NJ,
                  "true_loss_N": self.true_loss_N}  # fmt: skip
        if self.oks_N is not None:
            arrays["oks_N"] = self.oks_N
        arrays |= {SCORE + detector: value_N for detector, value_N in self.scores.items()}
        save_npz(path, arrays | {JOINT + detector: value_NJ for detector, value_NJ in self.confidences.items()})
        return path

    @classmethod
    def load(cls, run: Path, seed: int, name: str, detectors: Iterable[str] | None = None) -> SetScores:
        """Read what :meth:`save` wrote; what the people who count lack of scores or losses is an error.

        Args:
            run: folder of the run.
            seed: of the base model.
            name: of the set.
            detectors: these scores and confidences alone, where they are there; all by default.
        """
        path = set_file(run, seed, name)
        if not path.exists():
            raise DataNotFoundError(
                f"{path} does not exist: seed {seed} has not scored {name}; run the experiment again"
            )
        arrays = load_npz(path, needs=("ids", "right_NJ", "labelled_NJ", "true_loss_N"))
        wanted = None if detectors is None else set(detectors)
        scores, confidences = (_named(prefix, arrays, wanted) for prefix in (SCORE, JOINT))
        try:
            stored = cls(tuple(arrays["ids"].tolist()), arrays["right_NJ"].astype(np.bool_),
                         arrays["labelled_NJ"].astype(np.bool_), arrays["true_loss_N"], scores, confidences,
                         arrays.get("oks_N"))  # fmt: skip
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        of_people = {name: value_NJ.sum(axis=1) for name, value_NJ in confidences.items()}
        for key, value_N in {"true_loss_N": stored.true_loss_N, **of_people, **scores}.items():
            bad_M = np.flatnonzero(stored.counted_N & ~np.isfinite(value_N))
            if len(bad_M):
                raise DataError(
                    f"{path}: {key} is NaN or infinite for {len(bad_M)} of {int(stored.counted_N.sum())} people who "
                    f"count (first {stored.ids[bad_M[0]]}: {value_N[bad_M[0]]}); score everybody, or leave the whole "
                    "detector out of this set"
                )
        return stored


def _named(prefix: str, arrays: Mapping[str, Any], wanted: set[str] | None) -> dict[str, Any]:
    """The arrays of a prefix without it; ``wanted`` alone, where that is given."""
    found = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    return {name: value for name, value in found.items() if wanted is None or name in wanted}


def set_file(run: Path, seed: int, name: str) -> Path:
    """Where the scores of one set under one base model are kept."""
    return run / f"seed-{seed}" / f"{name}.npz"
