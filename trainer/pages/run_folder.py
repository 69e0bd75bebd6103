"""What the pages of a run read from its folder: the configuration and rows, the files of its stages, and each other.

Shapes: N people of the pool, M selected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from alpose.runtime.errors import DataError
from alpose.runtime.io import from_json, write_atomically

from ..cycles.results import Gallery, Lookalikes, Results, Row, Scores, stage_folder
from ..measures.metrics import Failure
from ..methods.catalog import in_order
from .formatting import plural

K = TypeVar("K")
T = TypeVar("T")

UNKNOWN = "not recorded"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run, finished or not."""

    dataset: str
    preset: str
    profile: str
    start: str
    budget: str
    select_only: bool
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    stages: tuple[int, ...]
    rows: dict[tuple[str, int, int], Row]
    """By method, seed and stage."""
    base_pck: dict[int, float | None]
    """Test PCK of the base model by seed; all methods of a seed start from it."""
    base_seconds: list[float | None]
    """Training time of the base models, in seconds."""
    config: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)

    @property
    def failure(self) -> Failure:
        """When a pose counts as failed."""
        return from_json(Failure, self.config.get("failure", {}), "config.failure")

    @property
    def first_seed(self) -> int:
        """The seed whose pictures are shown."""
        return self.seeds[0]

    @property
    def first_stage(self) -> int:
        """The stage at which all methods share the base model."""
        return self.stages[0]

    @property
    def missing(self) -> tuple[tuple[str, int, int], ...]:
        """Selections that were asked for and have no row yet."""
        asked = product(self.methods, self.seeds, self.stages)
        return tuple(key for key in asked if key not in self.rows)

    def over_seeds(self, method: str, stage: int, name: str) -> list[float | None]:
        """One field of one method at one stage, a value per seed of the run; None where there is no row."""
        rows = (self.rows.get((method, seed, stage)) for seed in self.seeds)
        return [None if row is None else getattr(row, name) for row in rows]

    def at_stage(self, stage: int) -> list[Row]:
        """All rows of one stage."""
        return [row for (_, _, at), row in self.rows.items() if at == stage]


def run_info(results: Results) -> RunInfo:
    """Describe a run; the rows fill in where the config is silent, and add what the config does not name."""
    config, rows = results.config, results.rows
    seeds = {*counted(config.get("seeds"), 0), *(row.seed for row in rows)}
    stages = {*counted(config.get("stages"), 1), *(row.stage for row in rows)}
    select_only = config.get("select_only")
    return RunInfo(
        dataset=named(config.get("dataset")),
        preset=named(config.get("preset")),
        profile=named(config.get("profile")),
        start=named(config.get("start")),
        budget=named(config.get("budget")),
        select_only=nothing_retrained(rows) if select_only is None else bool(select_only),
        methods=in_order([*listed(config.get("methods")), *(row.method for row in rows)]),
        seeds=tuple(sorted(seeds)) or (0,),
        stages=tuple(sorted(stages)) or (1,),
        rows={(row.method, row.seed, row.stage): row for row in rows},
        base_pck=base_pck_of(results),
        base_seconds=[base.get("train_seconds") for base in results.bases],
        config=config,
        environment=results.environment,
    )  # fmt: skip


def base_pck_of(results: Results) -> dict[int, float | None]:
    """Test PCK of the base models by seed: from ``bases``, or from the rows of stage 1, whose model it is."""
    from_rows = {row.seed: row.base_test_pck for row in results.rows if row.stage == 1}
    return from_rows | {int(base["seed"]): base.get("test_pck") for base in results.bases if "seed" in base}


def nothing_retrained(rows: tuple[Row, ...]) -> bool:
    """Whether rows are there, and none has a test PCK."""
    return bool(rows) and all(row.test_pck is None for row in rows)


def named(value: Any) -> str:
    """A config value as a word; a nested config answers with its own name, path or kind."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("name", "kind", "path") if value.get(key) is not None), None)
    return UNKNOWN if value is None or value == "" else str(value)


def listed(value: Any) -> list[str]:
    """Names from a list, or from one comma-separated string."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [str(name) for name in value] if isinstance(value, Iterable) else []


def counted(value: Any, first: int) -> list[int]:
    """Numbers from a list of them, or from how many there are, counting from ``first``."""
    if isinstance(value, bool) or value is None or isinstance(value, str | dict):
        return []
    if isinstance(value, int):
        return list(range(first, first + value))
    return [int(number) for number in value] if isinstance(value, Iterable) else []


def lookup(config: dict[str, Any], *names: str) -> Any:
    """The value under the first of these keys, however nested, nearest the top first; or None."""
    for name in names:
        queue: deque[dict[str, Any]] = deque([config])
        while queue:
            level = queue.popleft()
            if level.get(name) is not None:
                return level[name]
            queue.extend(value for value in level.values() if isinstance(value, dict))
    return None


@dataclass(frozen=True, slots=True)
class StageFiles:
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


def stage_files(run: Path, info: RunInfo) -> StageFiles:
    """Scores of every finished row of the first stage, the first seed's pictures, and one seed's later selections."""
    stage, problems = info.first_stage, []
    scores: dict[tuple[str, int], Scores] = {}
    galleries: dict[str, Gallery] = {}
    lookalikes: dict[str, Lookalikes] = {}
    for method, seed in ((m, s) for m in info.methods for s in info.seeds if (m, s, stage) in info.rows):
        folder = stage_folder(run, seed, method, stage)
        found = {"scores.npz": read(Scores.load, folder / "scores.npz", scores, (method, seed))}
        if seed == info.first_seed:
            found["gallery.npz"] = read(Gallery.load, folder / "gallery.npz", galleries, method)
            found["lookalikes.npz"] = read(Lookalikes.load, folder / "lookalikes.npz", lookalikes, method)
            if found["lookalikes.npz"] == "missing":  # older runs have none
                del found["lookalikes.npz"]
        problems += [f"{method}, seed {seed}, stage {stage}: {file} is {why}." for file, why in found.items() if why]
    return StageFiles(scores, galleries, lookalikes, selected_pck(run, info), tuple(problems))


def selected_pck(run: Path, info: RunInfo) -> dict[tuple[str, int], npt.NDArray[np.float32]]:
    """PCK of each selected person (M,) by method and stage, of a run with one seed; stages without scores are left out.

    What cannot be read of the first stage is named elsewhere; a later stage then has no interval.
    """
    found: dict[tuple[str, int], Scores] = {}
    if len(info.seeds) == 1 and len(info.stages) > 1:
        for method, seed, stage in info.rows:
            read(Scores.load, stage_folder(run, seed, method, stage) / "scores.npz", found, (method, stage))
    return {key: scores.image_pck_N[scores.selected_M] for key, scores in found.items()}


def read(load: Callable[[Path], T], path: Path, into: dict[K, T], key: K) -> str:
    """Load a file into a dictionary; in a word why it cannot be read, or nothing."""
    try:
        into[key] = load(path)
    except FileNotFoundError:
        return "missing"
    except DataError:
        return "damaged"
    return ""


def missing_rows(info: RunInfo) -> tuple[str, ...]:
    """Selections without a row, a sentence per method."""
    lines = []
    for method in info.methods:
        absent = [(seed, stage) for name, seed, stage in info.missing if name == method]
        if absent:
            some = ", ".join(f"seed {seed} stage {stage}" for seed, stage in absent[:6])
            more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
            lines.append(f"{method}: {plural(len(absent), 'selection')} missing ({some}{more}).")
    return tuple(lines)


REPORT, THEORY = "report.html", "theory.html"
TITLES = {REPORT: "Report of this run", THEORY: "Theory beside this run"}


def link_or_gap(run: Path, page: str) -> Markup:
    """What one of the two pages writes for the other: a link, or a gap for it where the other does not exist yet."""
    return _link(page) if (run / _other(page)).exists() else _gap(page)


def fill_gap(run: Path, page: str) -> None:
    """Put the link into a page that was written before the other existed; the rest of its bytes stay."""
    path = run / page
    if path.exists() and _gap(page) in (text := path.read_text(encoding="utf-8")):
        write_atomically(path, text.replace(_gap(page), _link(page)).encode())


def _other(page: str) -> str:
    return THEORY if page == REPORT else REPORT


def _link(page: str) -> Markup:
    """Relative, so that a run folder can be moved."""
    return Markup('<a href="{}">{}</a>').format(_other(page), TITLES[_other(page)])


def _gap(page: str) -> Markup:
    """A comment of HTML; what comes from a run is escaped and cannot be one."""
    return Markup("<!-- {} -->").format(_other(page))
