"""``alpose-train detect``: every detector on the same base models and the same held-out people.

One base model per seed. Half of the pool (even places) is what a head may see: without labels for ``epck-distilled``,
with them for the ceiling alone. The other half, and the test split, are what is reported. Choices were made on the
damaged views of people that validated a pose net and on synthetic people; the latter stand in the report beside the rest.

A run that was stopped goes on with the base model, the seed or the heads that are missing.

Shapes: N people or views, B batch, J joints, F pieces of evidence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP

from ..bases import Base
from ..checkpoint import PoseModel
from ..data.crops import Crops, prepare
from ..data.synthetic import read_people
from ..device import Machine, environment
from ..epck import EpckTraining
from ..metrics import FAILURE_PCK
from ..results import read_json, write_json
from ..run import CyclesConfig, PartName, Run, claim, initial, open_run
from ..training import validation_mask
from .costs import measure_costs
from .detectors import AUXILIARY_NAMES, NAMES, OF_OTHER_NETS, PAPERS, infos
from .logistic import fit_logistic
from .scoring import View, score_views
from .stored import Catalogue, SetInfo, SetScores, set_file
from .students import IN_DOMAIN, train_students

log = logging.getLogger("alpose")

Floats = npt.NDArray[np.floating[Any]]

COSTS = "costs.json"

POOLS = {"lsp": "lspet", "synthetic": "synthetic-hard"}
"""What the pool of a benchmark is called."""

SYNTHETIC = "synthetic-choice"

LOOKS = {"lsp-test": 8, "lspet": 5}
"""How often pilots looked at the test sets (of one base model) before this experiment was fixed: its own look is one
more. None of the settings of :class:`EpckTraining` was chosen on them; that the head reads features as well as maps,
and that no auditor of its own was built, was decided with them in view."""

SYNTHETIC_PEOPLE, SYNTHETIC_SEED = 1000, 7
CALIBRATION_VIEWS = 16
FUSED = ("epck", "peak", "entropy")
"""What ``epck+free`` joins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """What is compared."""

    base: CyclesConfig
    """Dataset, recipe and seeds, as of a benchmark that stops after its first selection."""
    epck: EpckTraining
    detectors: tuple[str, ...] = NAMES

    def __post_init__(self) -> None:
        unknown = [name for name in self.detectors if name not in NAMES]
        if unknown or not self.detectors:
            raise ConfigError(f"--detectors: {', '.join(unknown) or 'none'} unknown; known: {', '.join(NAMES)}")


@dataclass(frozen=True, slots=True)
class _Set:
    """A held-out set."""

    info: SetInfo
    crops: Crops


def run_detect(
    config: DetectConfig,
    folder: Path,
    machine: Machine,
    *,
    data_root: Path | None,
    cache: Path,
    bases: Path | None = None,
) -> Catalogue:
    """Train, score and store everything that :func:`alpose.trainer.detect.evaluate` makes a report of.

    Args:
        config: what to compare.
        folder: where everything goes; an unfinished run there is continued.
        machine: where to compute.
        data_root: where datasets are.
        cache: where crops are cached.
        bases: another run's folder whose base models are taken over.
    """
    if machine.world > 1:
        raise ConfigError("alpose-train detect runs in one process: leave torchrun out")
    run = open_run(config.base, folder, data_root, cache, machine)
    claim(config.base, folder, machine)
    _claim_epck(config, folder)
    names = tuple(name for name in config.detectors if config.base.seeds > 1 or name not in OF_OTHER_NETS)
    if names != config.detectors:
        log.warning("%s want another seed's net: left out, run with --seeds 2 or more", ", ".join(OF_OTHER_NETS))
    parts: tuple[PartName, ...] = tuple(name for name in (*PAPERS, *AUXILIARY_NAMES) if name in names)  # type: ignore[misc]
    models = [Base(run, seed, bases).model(parts) for seed in range(config.base.seeds)]
    info = {each.info.name: each.info for each in _sets(run, 0, cache)}
    for seed, model in enumerate(models):
        _one_seed(run, config, names, seed, model, [other for other in models if other is not model], cache)
    costs = _costs(run, names, models[0], config)
    looks = {name: LOOKS.get(name, 0) + 1 for name, each in info.items() if each.role == "test"}
    settings = {"dataset": config.base.dataset, "preset": config.base.preset, "profile": "standard",
                "recipe": asdict(config.base.recipe), "epck": asdict(config.epck)}  # fmt: skip
    catalogue = Catalogue(
        detectors=infos(names, costs), sets=tuple(info.values()), seeds=tuple(range(config.base.seeds)),
        config=json.loads(json.dumps(settings)), environment=environment(machine), looks=looks,
    )  # fmt: skip
    catalogue.save(folder)
    return catalogue


def _claim_epck(config: DetectConfig, folder: Path) -> None:
    """Scores of heads that were trained otherwise must not stand beside these."""
    path, ours = folder / "epck.json", json.loads(json.dumps(asdict(config.epck)))
    if path.exists() and read_json(path) != ours:
        raise ConfigError(f"{folder} holds another run (of expected-PCK heads trained with {read_json(path)}): "
                          "choose another --out")  # fmt: skip
    write_json(path, ours)


def _sets(run: Run, seed: int, cache: Path) -> list[_Set]:
    """What is reported. Nothing was chosen on the two sets of the benchmark."""
    sets = []
    bare = replace(run.config.recipe.crop, context=0.0)
    if run.people.data.skeleton == LSP:
        people = read_people(seed=SYNTHETIC_SEED, count=SYNTHETIC_PEOPLE, domain="hard")
        what = f"{SYNTHETIC_PEOPLE} synthetic people of the hard domain"
        sets.append(_Set(SetInfo(name=SYNTHETIC, what=what, role="choice"), prepare(people, bare, cache)))
    name = run.benchmark.name
    test = SetInfo(name=f"{name}-test", what="the test split, the domain that trained the net", role="test")
    pool = SetInfo(name=_pool_name(run), role="test",
                   what="the half of the pool that nothing was trained on, neither picture nor label")  # fmt: skip
    return [_Set(test, run.test), _Set(pool, _pool(run, seed, 1)), *sets]


def _pool_name(run: Run) -> str:
    return POOLS.get(run.benchmark.name, f"{run.benchmark.name}-pool")


def _pool(run: Run, seed: int, half: int) -> Crops:
    """The even (0) or odd (1) places of the unlabelled pool."""
    return run.people.subset(np.flatnonzero(~initial(run, seed))[half::2])


def _one_seed(
    run: Run, config: DetectConfig, names: tuple[str, ...], seed: int, model: PoseModel, others: list[PoseModel],
    cache: Path,
) -> None:  # fmt: skip
    sets = _sets(run, seed, cache)
    if all(_complete(run.folder, seed, each.info.name, names) for each in sets):
        return
    labelled = run.people.subset(np.flatnonzero(initial(run, seed)))
    recipe = run.config.recipe
    students = train_students(
        model, others, labelled, _pool(run, seed, 0), names, recipe, config.epck, run.machine, seed
    )

    def look(crops: Crops, what: str, views: int = 0, keep: bool = False) -> View:
        return score_views(model, others, students, crops, run.machine, names, views=views, seed=seed,
                           what=f"{what}, seed {seed}", keep_evidence=keep)  # fmt: skip

    validating_N = validation_mask(labelled.data.ids, recipe.pose.validation, seed)
    held_out = look(labelled.subset(np.flatnonzero(validating_N)), "people who validated", CALIBRATION_VIEWS)
    probabilities = _probabilities(held_out, names)
    for each in sets:
        name = each.info.name
        folds = "in-domain" in names and name == f"{run.benchmark.name}-test"
        seen = look(each.crops, name, keep=folds)
        scores = {detector: to_probability(seen) for detector, to_probability in probabilities.items()}
        if folds and seen.lesson:
            scores["in-domain"] = special.expit(students.test_folds(model, seen.lesson))
        elif "in-domain" in names and name == _pool_name(run):
            scores["in-domain"] = special.expit(seen.scores[IN_DOMAIN])
        if "true-loss" in names:
            scores["true-loss"] = seen.true_loss_N
        ids = tuple(each.crops.data.ids[row] for row in seen.rows_N)
        stored = {detector: np.asarray(value_N, dtype=np.float32) for detector, value_N in scores.items()}
        SetScores(ids, seen.right_NJ, seen.counts_NJ, seen.true_loss_N, stored).save(run.folder, seed, name)


def _complete(folder: Path, seed: int, name: str, names: tuple[str, ...]) -> bool:
    if not set_file(folder, seed, name).exists():
        return False
    has = SetScores.load(folder, seed, name).scores
    return all(detector in has for detector in names if detector != "in-domain")


def _probabilities(seen: View, names: tuple[str, ...]) -> dict[str, Callable[[View], Floats]]:
    """For every detector a probability of failure that rises with its score, fitted to people who trained nothing.

    So all are judged by one calibration, and the order that a detector gives is kept.
    """
    failed_N, known_N = seen.image_pck() < FAILURE_PCK, np.isfinite(seen.image_pck())

    def fitted(evidence_of: Callable[[View], Floats]) -> Callable[[View], Floats]:
        logistic = fit_logistic(evidence_of(seen)[known_N], failed_N[known_N])
        return lambda view: np.asarray(logistic(evidence_of(view)))

    found = {}
    for name in names:
        parts = FUSED if name == "epck+free" else (name,)
        if all(part in seen.scores for part in parts):
            found[name] = fitted(partial(_evidence, parts=parts))
    return found


def _evidence(view: View, parts: tuple[str, ...]) -> Floats:
    return np.stack([view.scores[part] for part in parts], axis=1)


def _costs(
    run: Run, names: tuple[str, ...], model: PoseModel, config: DetectConfig
) -> Mapping[str, tuple[int, float, float]]:
    """Measured once and kept: a report that is written again must not depend on what else the machine does."""
    path = run.folder / COSTS
    if not path.exists():
        write_json(path, measure_costs(model, names, run.machine))
    return {name: tuple(value) for name, value in read_json(path)["detectors"].items()}
