"""The per-stage files of a run, read as far as they are there; what is not there is said, not raised.

Shapes: N people of the pool, M selected, G people in the gallery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError

from ..results import Gallery, Lookalikes, Scores, stage_folder
from .facts import Facts
from .form import plural

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """Files of the first stage, and what curves over the stages want of the others."""

    scores: dict[tuple[str, int], Scores]
    """By method and seed."""
    galleries: dict[str, Gallery]
    """By method, of the first seed."""
    lookalikes: dict[str, Lookalikes]
    """By method, of the first seed; runs that are older than these have none."""
    selected_pck: dict[tuple[str, int], npt.NDArray[np.float32]]
    """PCK of each person selected (M,), by method and stage; of runs of one seed alone, whose curves want it."""
    problems: tuple[str, ...]
    """What is missing or damaged, in sentences."""


def read_stored(run: Path, facts: Facts) -> Stored:
    """Scores of every finished row of the first stage, the first seed's pictures, and one seed's later selections."""
    stage, scores, problems = facts.first_stage, {}, []
    galleries, lookalikes = {}, {}
    for method, seed in ((m, s) for m in facts.methods for s in facts.seeds if (m, s, stage) in facts.rows):
        folder = stage_folder(run, seed, method, stage)
        where = f"{method}, seed {seed}, stage {stage}"
        found = read(Scores.load, folder / "scores.npz")
        if isinstance(found, Scores):
            scores[method, seed] = found
        else:
            problems.append(f"{where}: scores.npz is {found}.")
        if seed == facts.first_seed:
            gallery = read(Gallery.load, folder / "gallery.npz")
            if isinstance(gallery, Gallery):
                galleries[method] = gallery
            else:
                problems.append(f"{where}: gallery.npz is {gallery}.")
            alike = read(Lookalikes.load, folder / "lookalikes.npz")
            if isinstance(alike, Lookalikes):
                lookalikes[method] = alike
            elif alike == "damaged":
                problems.append(f"{where}: lookalikes.npz is {alike}.")
    return Stored(scores, galleries, lookalikes, selected_pck(run, facts), tuple(problems))


def selected_pck(run: Path, facts: Facts) -> dict[tuple[str, int], npt.NDArray[np.float32]]:
    """PCK of each selected person (M,) by method and stage, of a run with one seed; stages without scores are left out.

    What cannot be read of the first stage is named elsewhere; a later stage then has no interval.
    """
    if len(facts.seeds) > 1 or len(facts.stages) < 2:
        return {}
    found = {}
    for method, seed, stage in facts.rows:
        scores = read(Scores.load, stage_folder(run, seed, method, stage) / "scores.npz")
        if isinstance(scores, Scores):
            found[method, stage] = scores.image_pck_N[scores.selected_M]
    return found


def read(load: Callable[[Path], T], path: Path) -> T | str:
    """The file, or in a word why not."""
    try:
        return load(path)
    except FileNotFoundError:
        return "missing"
    except DataError:
        return "damaged"


def missing_rows(facts: Facts) -> tuple[str, ...]:
    """Selections without a row, a sentence per method."""
    lines = []
    for method in facts.methods:
        absent = [(seed, stage) for name, seed, stage in facts.missing if name == method]
        if absent:
            some = ", ".join(f"seed {seed} stage {stage}" for seed, stage in absent[:6])
            more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
            lines.append(f"{method}: {plural(len(absent), 'selection')} missing ({some}{more}).")
    return tuple(lines)
