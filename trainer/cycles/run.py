"""One run of the benchmark or of the detector experiment: what was asked for, its data, and its folder.

Shapes: N people who can be labelled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import read_json, write_json

from ..data.catalog import Dataset, Sizes, open_dataset
from ..data.crops import Crops, prepare
from ..device import DeviceContext, environment
from ..measures.failures import RUN_FAILURES
from ..measures.metrics import Failure, Profile, ProfileName, judge, profile_of
from ..methods.catalog import METHODS, check_known, check_labelled, resolve
from ..methods.options import EglConfig, ScoreOptions
from ..presets import PresetName, Recipe, Start, preset


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run is asked for. ``dataset`` is a name or the path of a COCO keypoints folder."""

    dataset: str
    preset: PresetName
    recipe: Recipe
    methods: tuple[str, ...]
    seeds: int
    stages: int
    budget: int
    initial: int
    sizes: Sizes
    profile: ProfileName = "standard"
    start: Start = "warm"
    select_only: bool = False
    egl: EglConfig = field(default_factory=EglConfig)
    """Options of the methods ``egl++`` and ``egl++-lle``."""
    scores: ScoreOptions = field(default_factory=ScoreOptions)
    """Options of the methods that rank by entropy, by peaks or by a committee."""
    failure: Failure = field(default_factory=Failure)
    """When a pose counts as failed, in every number that speaks of failures."""

    @classmethod
    def from_preset(cls, name: PresetName, dataset: str, **changes: Any) -> RunConfig:
        """Return the configuration of a preset, with other values where they are given and not None."""
        given = {key: value for key, value in changes.items() if value is not None}
        chosen = preset(name)
        if given.get("initial") and dataset == "synthetic":  # where the initial people are rendered
            given["sizes"] = replace(given.get("sizes", chosen.sizes), initial=given["initial"])
        own = {key: getattr(chosen, key) for key in ("recipe", "seeds", "stages", "budget", "initial", "sizes")}
        own["stages"] = 1 if given.get("select_only") else chosen.stages
        return cls(dataset=dataset, preset=name, **{**own, **given})

    def __post_init__(self) -> None:
        check_known(self.methods)
        if len(set(self.methods)) != len(self.methods):
            raise ConfigError(f"--methods names one twice: {', '.join(self.methods)}")
        for name, value in (("seeds", self.seeds), ("stages", self.stages), ("budget", self.budget)):
            if value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")
        if self.select_only and self.stages != 1:
            raise ConfigError(f"--select-only stops after the selection of stage 1: leave out --stages {self.stages}")
        if self.failure.name not in RUN_FAILURES:
            raise ConfigError(f"--failure {self.failure.name}: the files of a run keep which joints are right, not how far off "
                              f"they are: take {' or '.join(RUN_FAILURES)}")  # fmt: skip

    def fixed(self) -> dict[str, Any]:
        """What all rows of one run folder must share; methods, seeds and stages may be added later."""
        free = {"methods", "seeds", "stages", "select_only", "preset"}
        # A run that is older than an option is continued with the option's default.
        free |= {name for name, default in (("egl", EglConfig()), ("scores", ScoreOptions()))
                 if getattr(self, name) == default}  # fmt: skip
        return {name: value for name, value in self.to_json().items() if name not in free}

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the default definition of a failure is left out, as older runs have none."""
        value = asdict(self)
        if self.failure == Failure():
            del value["failure"]
        return value


@dataclass(frozen=True, slots=True)
class Run:
    """What every step of a run needs."""

    config: RunConfig
    folder: Path
    benchmark: Dataset
    people: Crops
    """Everybody who is or can be labelled."""
    test: Crops
    profile: Profile
    machine: DeviceContext
    people_sha256: str
    test_sha256: str
    environment: dict[str, Any]
    """Of this call: a run that was continued elsewhere says where it ended."""

    def initial(self, seed: int) -> npt.NDArray[np.bool_]:
        """Who is labelled at the start, (N,)."""
        return self.benchmark.initial(self.people.row_N, self.config.initial, seed)


def half_of_pool(run: Run, half: int) -> npt.NDArray[np.int64]:
    """Rows of the people of every even (0) or odd (1) picture of the pool.

    Pictures that hold somebody who is labelled under any seed are in neither half: all base models are judged by the
    same people, and none has seen them. Two people of one picture are never in different halves.
    """
    image_N = run.people.data.image_N
    labelled_N = np.any([run.initial(seed) for seed in range(run.config.seeds)], axis=0)
    rows_M = np.flatnonzero(~np.isin(image_N, image_N[labelled_N]))
    _, place_M = np.unique(image_N[rows_M], return_inverse=True)
    rows_K = rows_M[place_M % 2 == half]
    if not len(rows_K):
        raise ConfigError(f"{run.benchmark.name}: {len(np.unique(image_N))} pictures are too few: every second one "
                          f"without anybody who is labelled, under any of {run.config.seeds} seeds, is left for each "
                          "half of the pool")  # fmt: skip
    return rows_K


def claim(config: RunConfig, folder: Path, machine: DeviceContext) -> None:
    """Refuse a folder that holds another run, whose rows would be mixed with ours."""
    path = folder / "config.json"
    ours = json.loads(json.dumps(config.fixed()))
    if path.exists():
        theirs = read_json(path)
        was = "; ".join(_differing(theirs, ours))
        if was:
            raise ConfigError(f"{folder} holds another run ({was}): choose another --out")
    elif machine.leads:
        write_json(path, ours)
    machine.wait()


def _differing(theirs: Any, ours: Any, place: str = "") -> list[str]:
    """Every value that is not the same in both, by the names that lead to it."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [said for key in {**ours, **theirs}
                for said in _differing(theirs.get(key), ours.get(key), f"{place}.{key}".lstrip("."))]  # fmt: skip
    return [] if theirs == ours else [f"{place} was {theirs!r}, now {ours!r}"]


def open_run(config: RunConfig, folder: Path, data_root: Path | None, cache: Path, machine: DeviceContext) -> Run:
    """Read the data and cut the crops; refuse what could not be carried out to its end."""
    benchmark = open_dataset(config.dataset, data_root, sizes=config.sizes)
    crop = config.recipe.crop
    if not machine.leads:  # the leading process cuts, the others open what it made
        machine.wait()
    people = prepare(benchmark.train, crop, cache)
    test = prepare(benchmark.test, replace(crop, context=0.0), cache)
    if machine.leads:
        machine.wait()
    run = Run(config, folder, benchmark, people, test, profile_of(config.profile, people.data), machine,
              people.data.fingerprint(), test.data.fingerprint(), environment(machine))  # fmt: skip
    _refuse_impossible(run)
    return run


def _refuse_impossible(run: Run) -> None:
    """Find out before hours of training what a selection after them would find out."""
    config = run.config
    # The oracles choose among those whose truth is known.
    nobody = np.zeros((len(run.people), len(run.people.data.skeleton)), dtype=np.float32)
    known_N = {
        "loss": np.asarray(run.people.labelled_NJ.any(axis=1)),
        "pck": np.isfinite(judge(run.people.data, nobody, nobody, run.profile).image_pck()),
    }
    wanted = config.stages * config.budget
    for seed in range(config.seeds):
        labelled_N = run.initial(seed)
        check_labelled(config.methods, int(labelled_N.sum()))
        for method in config.methods:
            if METHODS[method].check is not None:
                resolve(METHODS[method].check)(method, run, labelled_N)
        pool = int((~labelled_N).sum())
        if wanted > pool:
            raise ConfigError(f"{config.stages} stages of {config.budget} want {wanted} people, the pool has {pool}: "
                              "lower --budget or --stages")  # fmt: skip
        for method in config.methods:
            truth = METHODS[method].truth
            able = int((known_N[truth] & ~labelled_N).sum()) if truth else pool
            if wanted > able:
                raise ConfigError(
                    f"{method} chooses by labels: {config.stages} stages of {config.budget} want {wanted} people, of "
                    f"the {pool} in the pool of seed {seed} only {able} can be judged: lower --budget or --stages, or "
                    "leave it out of --methods"
                )
