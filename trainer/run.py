"""What every step of a benchmark run shares: its configuration, its data, and how it makes models.

Shapes: N people who can be labelled.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import read_json, write_json

from . import checkpoint
from .auxiliary import new_auxiliary, train_auxiliary
from .checkpoint import PoseModel
from .data.benchmarks import Benchmark, Sizes, load_benchmark
from .data.crops import Crops, prepare
from .detection import judge_scored, neighbours
from .device import Machine, environment
from .egl import EGL, EglConfig, lends
from .head_training import train_all_heads
from .metrics import Profile, ProfileName, judge, profile_of
from .models.auxiliary import AUXILIARY, AuxiliaryHead, AuxiliaryName, check_skeleton
from .models.heads import EPCK, HEADS, HeadName, LossHead
from .options import ScoreOptions
from .presets import PresetName, Recipe, Start
from .samplers import Method, check_known, check_labelled
from .scoring import score
from .training import PoseTraining, train_pose

log = logging.getLogger("alpose")

PartName = HeadName | AuxiliaryName
"""What a method may want to be trained on the frozen pose net."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CyclesConfig:
    """One benchmark. ``dataset`` is a name or the path of a COCO keypoints folder."""

    dataset: str
    preset: PresetName
    recipe: Recipe
    methods: tuple[Method, ...]
    seeds: int
    stages: int
    budget: int
    initial: int
    sizes: Sizes
    profile: ProfileName = "standard"
    start: Start = "warm"
    select_only: bool = False
    egl: EglConfig = field(default_factory=EglConfig)
    """Of the methods ``egl++`` and ``egl++-lle``."""
    scores: ScoreOptions = field(default_factory=ScoreOptions)
    """Of the methods that rank by entropy, by peaks or by a committee."""

    def __post_init__(self) -> None:
        check_known(self.methods)
        if len(set(self.methods)) != len(self.methods):
            raise ConfigError(f"--methods names one twice: {', '.join(self.methods)}")
        for name, value in (("seeds", self.seeds), ("stages", self.stages), ("budget", self.budget)):
            if value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")
        if self.select_only and self.stages != 1:
            raise ConfigError(f"--select-only stops after the selection of stage 1: --stages {self.stages} cannot be")

    def fixed(self) -> dict[str, Any]:
        """What all rows of one run folder must share; methods, seeds and stages may be added later."""
        free = {"methods", "seeds", "stages", "select_only", "preset"}
        # Runs that are older than an option go on as what it says by default.
        free |= {"egl"} if self.egl == EglConfig() else set()
        free |= {"scores"} if self.scores == ScoreOptions() else set()
        return {k: v for k, v in asdict(self).items() if k not in free}


@dataclass(frozen=True, slots=True)
class Run:
    """What every step of a run needs."""

    config: CyclesConfig
    folder: Path
    benchmark: Benchmark
    people: Crops
    test: Crops
    profile: Profile
    machine: Machine
    people_sha256: str
    test_sha256: str
    environment: dict[str, Any]
    """Of this call; a run that was continued elsewhere says where it ended."""


def claim(config: CyclesConfig, folder: Path, machine: Machine) -> None:
    """Refuse a folder that holds another benchmark: its rows would be mixed with ours."""
    path = folder / "config.json"
    ours = json.loads(json.dumps(config.fixed()))
    if path.exists():
        theirs = read_json(path)
        differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if differing:
            was = "; ".join(f"{key} was {theirs.get(key)!r}, now {ours.get(key)!r}" for key in differing)
            raise ConfigError(f"{folder} holds another run ({was}): choose another --out")
    elif machine.leads:
        write_json(path, ours)
    machine.wait()


def open_run(config: CyclesConfig, folder: Path, data_root: Path | None, cache: Path, machine: Machine) -> Run:
    """Read the data and cut the crops; refuse what could not be carried out to its end."""
    benchmark = load_benchmark(config.dataset, data_root, config.sizes)
    crop = config.recipe.crop
    if not machine.leads:  # the leading process cuts, the others open what it made
        machine.wait()
    people = prepare(benchmark.people, crop, cache)
    test = prepare(benchmark.test, replace(crop, context=0.0), cache)
    if machine.leads:
        machine.wait()
    run = Run(config, folder, benchmark, people, test, profile_of(config.profile, people.data), machine,
               people.data.fingerprint(), test.data.fingerprint(), environment(machine))  # fmt: skip
    _refuse_impossible(run)
    for method in config.methods:
        check_skeleton(method, people.data.skeleton)
    return run


def _refuse_impossible(run: Run) -> None:
    """Find out before hours of training what a selection after them would find out."""
    config = run.config
    wanted = config.stages * config.budget
    # The oracles choose among those whose truth is known.
    nobody = np.zeros((len(run.people), len(run.people.data.skeleton)), dtype=np.float32)
    judged_N = np.isfinite(judge(run.people.data, nobody, nobody, run.profile).image_pck())
    known_N: dict[Method, npt.NDArray[np.bool_]] = {
        "oracle-loss": np.asarray(run.people.labelled_NJ.any(axis=1)), "oracle-pck": judged_N
    }  # fmt: skip
    for seed in range(config.seeds):
        labelled_N = initial(run, seed)
        check_labelled(config.methods, int(labelled_N.sum()))
        for by_gradient in (name for name in EGL if name in config.methods):
            config.egl.check(int((labelled_N & lends(run.people)).sum()), by_gradient)
        unlabelled = int((~labelled_N).sum())
        if wanted > unlabelled:
            raise ConfigError(
                f"{config.stages} stages of {config.budget} want {wanted} people, the pool has {unlabelled}: lower "
                "--budget or --stages"
            )
        for method in config.methods:
            able = int((known_N[method] & ~labelled_N).sum()) if method in known_N else unlabelled
            if wanted > able:
                raise ConfigError(
                    f"{method} chooses by labels: {config.stages} stages of {config.budget} want {wanted} people, of "
                    f"the {unlabelled} in the pool of seed {seed} only {able} can be judged: lower --budget or "
                    "--stages, or leave it out of --methods"
                )


def initial(run: Run, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the initial labelled set over the people that could be cut."""
    return run.benchmark.initial(run.people.row_N, run.config.initial, seed)


def new_model(run: Run, seed: int) -> PoseModel:
    """A pose net of the recipe's size with fresh weights."""
    recipe, skeleton = run.config.recipe, run.people.data.skeleton
    return checkpoint.new_model(recipe.net.config(len(skeleton)), skeleton, recipe.crop, recipe.target, seed)


def train(
    run: Run, model: PoseModel, labelled: Crops, config: PoseTraining, *, seed: int, state: Path, what: str,
    heads: tuple[PartName, ...] = (),
) -> PoseModel:  # fmt: skip
    """Train the pose net, with heads beside it when the recipe says ``joint``; its provenance goes into its facts."""
    recipe = run.config.recipe
    beside = tuple(name for name in _in_heads(heads) if name not in EPCK)
    joint = beside if recipe.heads.how == "joint" else ()
    new: dict[HeadName, LossHead] = {name: checkpoint.new_head(model, name, seed) for name in joint}
    started = time.perf_counter()
    history = train_pose(model, labelled, config, run.machine, seed=seed, state=state, heads=new,
                         head_config=recipe.heads, what=what)  # fmt: skip
    return with_facts(
        model.with_heads(new),
        what=what,
        dataset=run.config.dataset,
        preset=run.config.preset,
        seed=seed,
        recipe=asdict(recipe),
        labelled=len(labelled),
        labelled_ids=list(labelled.data.ids),
        train_seconds=time.perf_counter() - started,
        head_seconds=0.0,
        losses=[[round(epoch.train_loss, 6), round(epoch.validation_loss, 6)] for epoch in history],
        head_losses={},
    )


def add_heads(
    run: Run, model: PoseModel, names: Sequence[PartName], labelled: Crops, seed: int, what: str,
    warm: PoseModel | None = None,
) -> PoseModel:  # fmt: skip
    """Train heads, loss heads and auxiliary ones, on the frozen pose net, fresh or from those of ``warm``."""
    wanted = _in_heads(names)
    if wanted:
        model = _add_loss_heads(run, model, wanted, labelled, seed, what, warm)
    asked: tuple[AuxiliaryName, ...] = tuple(name for name in AUXILIARY if name in names)
    return _add_auxiliary(run, model, asked, labelled, seed, what, warm) if asked else model


def lacking(run: Run, model: PoseModel, names: Sequence[PartName]) -> list[PartName]:
    """Those heads that a model does not have; a committee of another size, in a model that was taken over, is none."""
    members = run.config.scores.members
    has = {*model.heads, *(name for name, head in model.auxiliary.items()
                           if name != "ensemble" or head.config.members == members)}  # fmt: skip
    return [name for name in names if name not in has]


def _in_heads(names: Sequence[PartName]) -> tuple[HeadName, ...]:
    return tuple(name for name in names if name in HEADS)


def _add_auxiliary(
    run: Run, model: PoseModel, names: Sequence[AuxiliaryName], labelled: Crops, seed: int, what: str,
    warm: PoseModel | None,
) -> PoseModel:  # fmt: skip
    """On the frozen pose net, also where loss heads learn beside it."""
    recipe = run.config.recipe
    heads: dict[AuxiliaryName, AuxiliaryHead] = {
        name: copy.deepcopy(warm.auxiliary[name])
        if warm and name in warm.auxiliary
        else new_auxiliary(model, name, seed, members=run.config.scores.members)
        for name in names
    }
    started = time.perf_counter()
    losses = train_auxiliary(
        model, heads, labelled, recipe.heads, run.machine, seed=seed, validation=recipe.pose.validation,
        what=what.replace("loss head", "auxiliary head"),
    )  # fmt: skip
    rounded = {name: [round(loss, 6) for loss in of_head] for name, of_head in losses.items()}
    return with_facts(
        model.with_auxiliary(heads),
        head_seconds=model.facts["head_seconds"] + time.perf_counter() - started,
        auxiliary_losses={**model.facts.get("auxiliary_losses", {}), **rounded},
    )


def _add_loss_heads(
    run: Run, model: PoseModel, names: Sequence[HeadName], labelled: Crops, seed: int, what: str,
    warm: PoseModel | None,
) -> PoseModel:  # fmt: skip
    recipe = run.config.recipe
    if recipe.heads.how == "joint" and any(name not in EPCK for name in names):
        raise ConfigError(f"{what}: heads that are trained beside the pose net cannot be added to it later: name all "
                          "methods at once, in a new --out")  # fmt: skip
    heads: dict[HeadName, LossHead] = {
        name: copy.deepcopy(warm.heads[name]) if warm and name in warm.heads else checkpoint.new_head(model, name, seed)
        for name in names
    }
    started = time.perf_counter()
    losses = train_all_heads(
        model, heads, labelled, recipe.heads, run.machine, seed=seed, validation=recipe.pose.validation, what=what
    )
    rounded = {name: [round(loss, 6) for loss in of_head] for name, of_head in losses.items()}
    return with_facts(
        model.with_heads(heads),
        head_seconds=model.facts["head_seconds"] + time.perf_counter() - started,
        head_losses={**model.facts["head_losses"], **rounded},
    )


def tested(run: Run, model: PoseModel) -> PoseModel:
    """The model with its test PCK among its facts; one that was tested the same way before is returned as it is."""
    how = {"profile": run.profile.name, "data_sha256": run.test_sha256}
    if model.facts.get("tested") == how:
        return model
    scored = score(model, run.test, run.machine, what="test")
    return with_facts(model, tested=how, test_pck=judge_scored(run.test.data, scored, run.profile).pck(),
                       test_pck_neighbours=neighbours(run.test.data, scored, run.profile, None))  # fmt: skip


def with_facts(model: PoseModel, **facts: Any) -> PoseModel:
    """The model with more provenance."""
    return replace(model, facts={**model.facts, **facts})
