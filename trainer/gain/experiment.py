"""``alpose-train harvest-gain``: train on with labels that a strategy chose, and see what they were worth.

For every seed a base model scores the frames of the field. Every strategy chooses batches of every budget, the base model is trained on
with each as ``alpose-train fit --from`` does (warm start, the old people mixed in, the epoch chosen by old people that trained
nothing and a tenth of the new), and the result is tested on the field and on the old domain. ``none`` trains on without new labels.

A run that was stopped goes on with the cells that are missing.

Shapes: N people or frames, J joints, K chosen.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import read_json, write_json

from ..augmented_views import augmented_views
from ..checkpoint import PoseModel
from ..cycles.base_model import BaseModel
from ..cycles.results import load_npz, save_npz
from ..cycles.run import Run, RunConfig, claim, open_run
from ..device import DeviceContext, environment, evaluating
from ..fit_data import FitData, History
from ..measures.metrics import Judged
from ..measures.statistics import Logistic, fit_logistic
from ..methods.catalog import SHIPPED
from ..methods.selection import judge_scored
from ..methods.strategies import STRATEGIES, Frames
from ..passes import predict
from ..scoring import score
from ..training import train_pose, validation_mask
from .field import BENCHMARKS, Field, TestSet, open_field
from .results import BASE, NONE, RANDOM, Cell, GainResults, SetFacts, summarise

log = logging.getLogger("alpose")

CALIBRATION_VIEWS = 16
MIN_DISTANCE = 0.05
"""Of near-duplicates, as ``alpose-harvest select`` has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GainConfig:
    """What is compared."""

    base: RunConfig
    strategies: tuple[str, ...]
    budgets: tuple[int, ...]
    """Labels per batch."""
    chance_budgets: tuple[int, ...] = ()
    """Further budgets of ``random`` alone: with them it can be said how many labels chance needs."""
    epochs: int | None = None
    """Of training on; None is the recipe's."""
    share: float = 0.05
    """Of the synthetic stream that comes after the change."""
    development: bool = False
    """For choices: the reported half is not looked at, and the stream is another."""
    first_seed: int = 0
    people: int | None = None
    """Of each test, at most."""

    def __post_init__(self) -> None:
        if self.base.dataset not in BENCHMARKS:
            raise ConfigError(f"--dataset {self.base.dataset}: harvest-gain needs a benchmark that says who is labelled first: "
                              f"take {' or '.join(BENCHMARKS)}")  # fmt: skip
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown:
            raise ConfigError(f"--strategies: {', '.join(unknown)} unknown; known: {', '.join(STRATEGIES)}")
        if RANDOM not in self.strategies:
            raise ConfigError("--strategies: random must be among them, it is what the others are compared with")
        every = (*self.budgets, *self.chance_budgets)
        if not self.budgets or min(every) < 2 or len(set(every)) != len(every):
            raise ConfigError("--budgets and --chance-budgets are different numbers from 2 up, got "
                              f"{', '.join(map(str, every)) or 'none'}")  # fmt: skip

    @property
    def seeds(self) -> range:
        """Of the base models."""
        return range(self.first_seed, self.first_seed + self.base.seeds)


def run_gain(
    config: GainConfig, folder: Path, machine: DeviceContext, *, data_root: Path | None, cache: Path,
    bases: Path | None = None,
) -> GainResults:  # fmt: skip
    """Train, test and store everything, and write ``harvest-gain.json``.

    Args:
        config: what to compare.
        folder: where everything goes; an unfinished run there is continued.
        machine: where to compute.
        data_root: where datasets are.
        cache: where crops are cached.
        bases: another run's folder whose base models are taken over.
    """
    if machine.world > 1:
        raise ConfigError("alpose-train harvest-gain runs in one process: leave torchrun out")
    run = open_run(config.base, folder, data_root, cache, machine)
    field = open_field(run, cache, share=config.share, development=config.development, most=config.people)
    largest = max((*config.budgets, *config.chance_budgets))
    if largest > len(field.pool):
        raise ConfigError(f"--budgets: {largest} labels are wanted of {len(field.pool)} frames of the field: name fewer, "
                          f"such as --budgets {max(2, len(field.pool) // 8)}")  # fmt: skip
    claim(config.base, folder, machine)
    _claim(config, folder)
    cells, done = list(_cells(config)), 0
    for seed in config.seeds:
        model = BaseModel(run, seed, (SHIPPED,), bases).model()
        stored = _scored(run, field, model, seed)
        for name, budget in cells:
            done += 1
            path = cell_file(folder, seed, name, budget)
            if path.exists():
                continue
            chosen_K = _choose(name, budget, Frames.of_one(stored["failure_N"], stored["embedding_ND"]), seed)
            cell = _one_cell(run, config, field, model, seed, name, budget, chosen_K, stored["image_pck_N"], path)
            log.info("%d of %d: seed %d, %s, %d labels: PCK %.4f in the field, %.4f in the old domain (%.0f s)", done,
                     len(cells) * len(config.seeds), seed, name, budget, cell.field_pck, cell.old_pck, cell.seconds)  # fmt: skip
    results = _collect(run, config, field, folder)
    results.save(folder)
    return results


def _cells(config: GainConfig) -> Iterator[tuple[str, int]]:
    """Every strategy and budget; the base model itself, and training on without labels, come first."""
    yield BASE, 0
    yield NONE, 0
    for budget in config.budgets:
        for name in config.strategies:
            yield name, budget
    for budget in config.chance_budgets:
        yield RANDOM, budget


def cell_file(folder: Path, seed: int, name: str, budget: int) -> Path:
    """Where the joints that one model got right are kept."""
    return folder / f"seed-{seed}" / "cells" / f"{name}-{budget}.npz"


def _claim(config: GainConfig, folder: Path) -> None:
    """Cells that were trained otherwise must not stand beside these."""
    path = folder / "gain.json"
    ours = json.loads(
        json.dumps(
            {"epochs": config.epochs, "share": config.share, "development": config.development, "people": config.people}
        )
    )
    if path.exists() and read_json(path) != ours:
        raise ConfigError(f"{folder} holds another run ({read_json(path)}, now {ours}): choose another --out")
    write_json(path, ours)


def _choose(name: str, budget: int, frames: Frames, seed: int) -> npt.NDArray[np.int64]:
    """Rows of the field, most wanted first; fewer than the budget only where a strategy finds no more that differ."""
    if not budget:
        return np.zeros(0, dtype=np.int64)
    rng = np.random.default_rng([seed, budget, *name.encode()])
    return np.array([pick.row for pick in STRATEGIES[name].choose(frames, budget, rng, MIN_DISTANCE)], dtype=np.int64)


def _scored(run: Run, field: Field, model: PoseModel, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """What a device would know of every frame, and what only labels tell: its PCK, for the record."""
    path = run.folder / f"seed-{seed}" / "field.npz"
    if not path.exists():
        pool = field.pool
        scored = score(model, pool, run.machine, what=f"scoring the field with the base of seed {seed}")
        failure_N = failure_probability(run, field, model, seed)(scored.predicted_loss[SHIPPED][:, None])
        save_npz(path, {"failure_N": failure_N.astype(np.float32), "embedding_ND": scored.embedding_ND,
                        "image_pck_N": judge_scored(pool.data, scored, run.profile).image_pck()})  # fmt: skip
    return load_npz(path, needs=("failure_N", "embedding_ND", "image_pck_N"))


def failure_probability(run: Run, field: Field, model: PoseModel, seed: int) -> Logistic:
    """From the shipped head's score to a probability of failure, fitted to damaged views of old people that trained nothing."""
    old = field.everyone.subset(np.arange(field.labelled))
    held_N = validation_mask(old.data.split_names(), run.config.recipe.pose.validation, seed)
    head = model.heads[SHIPPED]
    scores, right, counts = [], [], []
    for seen in augmented_views(model, old.subset(np.flatnonzero(held_N)), run.machine, views=CALIBRATION_VIEWS,
                                seed=seed + 1000, what=f"calibrating the base of seed {seed}"):  # fmt: skip
        with evaluating(head):
            scores.append(head(seen.features).float().cpu())
        right.append(((seen.distance_BJ < 1) & seen.counts_BJ).cpu())
        counts.append(seen.counts_BJ.cpu())
    image_pck_N = Judged(torch.cat(right).numpy(), torch.cat(counts).numpy(), macro=False).image_pck()
    failed_N, known_N = run.config.failure.failed(image_pck_N)
    score_N1 = torch.cat(scores).numpy().astype(np.float64)[:, None]
    return fit_logistic(score_N1[known_N], failed_N[known_N], least=1e-3)


def _one_cell(
    run: Run, config: GainConfig, field: Field, base: PoseModel, seed: int, name: str, budget: int,
    chosen_K: npt.NDArray[np.int64], image_pck_N: npt.NDArray[np.float32], path: Path,
) -> Cell:  # fmt: skip
    started = time.perf_counter()
    model = base if name == BASE else train_on(run, config, field, base, seed, chosen_K)
    arrays: dict[str, npt.NDArray[np.bool_]] = {}
    measured = {}
    for each in (field.new, field.old):
        judged = _judged(run, model, each, f"testing {name}, {len(chosen_K)} labels, seed {seed}")
        arrays |= {
            f"{each.name}.right_NJ": judged.right_NJ & judged.counts_NJ,
            f"{each.name}.counts_NJ": judged.counts_NJ,
        }
        failed_N, known_N = run.config.failure.failed(judged.image_pck())
        measured[each.name] = (judged.pck() or 0.0, float(failed_N[known_N].mean()))
    failed_K, known_K = run.config.failure.failed(image_pck_N[chosen_K])
    cell = Cell(
        seed=seed, strategy=name, budget=budget, chosen=len(chosen_K), field_pck=measured["field"][0], field_failures=measured["field"][1],
        old_pck=measured["old"][0], old_failures=measured["old"][1],
        chosen_failures=float(failed_K[known_K].mean()) if known_K.any() else None,
        chosen_changed=float(field.changed_N[chosen_K].mean()) if len(chosen_K) else None,
        chosen_joints=float(field.pool.labelled_NJ[chosen_K].mean()) if len(chosen_K) else None,
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    save_npz(path, {**arrays, "chosen_K": chosen_K})
    write_json(path.with_suffix(".json"), cell)
    return cell


def train_on(
    run: Run, config: GainConfig, field: Field, base: PoseModel, seed: int, chosen_K: npt.NDArray[np.int64]
) -> PoseModel:
    """Train the pose net of the base model on, with the old people and the chosen frames: what ``alpose-train fit --from`` does."""
    how = run.config.recipe.retrain
    if config.epochs is not None:
        how = replace(how, epochs=config.epochs)
    people = field.everyone.subset(np.concatenate([np.arange(field.labelled), field.labelled + chosen_K]))
    validates_N = FitData((), History.of(base)).validates(people.data, how.validation, seed)
    model = replace(base, pose=copy.deepcopy(base.pose), heads={}, auxiliary={}, facts={})
    train_pose(model, people, how, run.machine, seed=seed, validates_N=validates_N, what=f"{len(chosen_K)} labels")
    return model


def _judged(run: Run, model: PoseModel, each: TestSet, what: str) -> Judged:
    """Which joints a model gets right, (N, J)."""
    right, counts = [], []
    for seen in predict(model, each.crops, run.machine, batch=64, what=what):
        right.append(((seen.distance_BJ < 1) & seen.counts_BJ).cpu())
        counts.append(seen.counts_BJ.cpu())
    return Judged(torch.cat(right).numpy(), torch.cat(counts).numpy(), macro=False)


def _collect(run: Run, config: GainConfig, field: Field, folder: Path) -> GainResults:
    """Read every cell back and compare."""
    settings = {
        "dataset": config.base.dataset, "preset": config.base.preset, "recipe": asdict(config.base.recipe),
        "epochs": config.epochs or config.base.recipe.retrain.epochs, "failure": asdict(config.base.failure),
        "profile": config.base.profile, "development": config.development,
        **({"share": config.share} if run.benchmark.name == "synthetic" else {}),
    }  # fmt: skip
    sets = tuple(SetFacts(name=each.name, what=each.what, people=len(each.crops), labels=int(each.crops.labelled_NJ.sum()),
                          removed=each.removed) for each in (field.new, field.old))  # fmt: skip
    return summarise(
        folder, seeds=tuple(config.seeds), strategies=config.strategies, budgets=config.budgets,
        chance_budgets=config.chance_budgets, sets=sets,
        frames=len(field.pool), labelled=field.labelled, changed=float(field.changed_N.mean()),
        config=json.loads(json.dumps(settings)), environment=environment(run.machine),
    )  # fmt: skip
