"""``alpose-train detect``: every detector on the same base models and the same held-out people.

One base model per seed. Half of the pool (every other picture) is what a head may see: without labels for
``epck-distilled``, with them for the ceiling alone. The other half, and the test split, are what is reported. Choices were made on the
damaged views of people that validated a pose net and on synthetic people; the latter stand in the report beside the rest.

A run that was stopped goes on with the base model, the seed or the heads that are missing.

Shapes: N people or views, B batch, J joints, F pieces of evidence.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import read_json, write_json
from alpose.runtime.skeleton import LSP

from ..checkpoint import PoseModel
from ..cycles.base_model import BaseModel
from ..cycles.run import Run, RunConfig, claim, half_of_pool, open_run
from ..data.crops import Crops, prepare
from ..data.synthetic import read_people
from ..device import DeviceContext, environment
from ..epck import EpckTraining
from ..measures.joint_calibration import fit as fit_joints
from ..measures.keypoint_measures import oks_of
from ..measures.metrics import Failure
from ..measures.statistics import fit_logistic
from ..methods.catalog import DETECTORS, detectors_of
from .ablations import IN_DOMAIN, Training
from .costs import has_costs, measure_costs
from .scoring import ScoredViews, score_views
from .stored import DAMAGED, Catalogue, Cost, SetInfo, SetScores, infos, set_file

log = logging.getLogger("alpose")

Floats = npt.NDArray[np.floating[Any]]

COSTS, NETS = "costs.json", "nets.json"

POOLS = {"lsp": "lspet", "synthetic": "synthetic-hard"}
"""What the pool of a benchmark is called."""

SYNTHETIC = "synthetic-choice"

LOOKS = {"lsp-test": 12, "lspet": 7}
"""How often the test sets were looked at: by pilots of one base model each, and once by this experiment with fewer rows. Its
own look is one more.

None of the settings of :class:`EpckTraining` was chosen on them; that the head reads features as well as maps, and that no
auditor of its own ships, was decided with them in view. After the last two looks nothing that ships was changed.
"""

SYNTHETIC_PEOPLE, SYNTHETIC_SEED = 1000, 7
CALIBRATION_VIEWS = 16
LEAST_SLOPE = 1e-3
"""So little that a detector which points the wrong way keeps its order, for better or worse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """What is compared."""

    base: RunConfig
    """Dataset, recipe and seeds, as of a benchmark that stops after its first selection."""
    epck: EpckTraining
    detectors: tuple[str, ...] = tuple(DETECTORS)

    def __post_init__(self) -> None:
        unknown = [name for name in self.detectors if name not in DETECTORS]
        if unknown:
            raise ConfigError(f"--detectors: {', '.join(unknown)} unknown; known: {', '.join(DETECTORS)}")
        if not self.detectors or len(set(self.detectors)) != len(self.detectors):
            raise ConfigError(f"--detectors: name at least one, each once, got {', '.join(self.detectors) or 'none'}; "
                              f"known: {', '.join(DETECTORS)}")  # fmt: skip

    def scored(self) -> tuple[str, ...]:
        """Those detectors that so many seeds can have."""
        return tuple(name for name in self.detectors if self.base.seeds > 1 or not DETECTORS[name].other_nets)


@dataclass(frozen=True, slots=True)
class _Set:
    """A held-out set."""

    info: SetInfo
    crops: Crops


def run_detect(
    config: DetectConfig,
    folder: Path,
    machine: DeviceContext,
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
    names = config.scored()
    left_out = ", ".join(name for name in config.detectors if name not in names)
    if not names:
        raise ConfigError(f"--detectors {left_out}: they want another seed's net, run with --seeds 2 or more")
    run = open_run(config.base, folder, data_root, cache, machine)
    claim(config.base, folder, machine)
    _claim_heads(config, folder)
    if left_out:
        log.warning("%s want another seed's net: left out, run with --seeds 2 or more", left_out)
    sets = _sets(run, cache)
    papers = (*detectors_of("paper", "loss"), *detectors_of("paper", "auxiliary"))
    heads = [name for name in papers if name in names]
    models = [BaseModel(run, seed, heads, bases).model() for seed in range(config.base.seeds)]
    for seed, model in enumerate(models):
        _one_seed(run, config, names, seed, model, [other for other in models if other is not model], sets)
    info = {each.info.name: each.info for each in sets}
    costs = _costs(run, names, models[0])
    looks = {name: LOOKS.get(name, 0) + 1 for name, each in info.items() if each.role == "test"}
    settings = {"dataset": config.base.dataset, "preset": config.base.preset, "profile": "standard",
                "recipe": asdict(config.base.recipe), "epck": asdict(config.epck)}  # fmt: skip
    if config.base.failure != Failure():
        settings["failure"] = asdict(config.base.failure)
    catalogue = Catalogue(
        detectors=infos(names, costs), sets=tuple(info.values()), seeds=tuple(range(config.base.seeds)),
        config=json.loads(json.dumps(settings)), environment=environment(machine), looks=looks,
        joints=run.people.data.skeleton.joints,
    )  # fmt: skip
    catalogue.save(folder)
    return catalogue


def _claim_heads(config: DetectConfig, folder: Path) -> None:
    """Scores of heads that were trained otherwise, or by another committee, must not stand beside these."""
    path, ours = folder / "epck.json", json.loads(json.dumps(asdict(config.epck)))
    if path.exists() and read_json(path) != ours:
        raise ConfigError(f"{folder} holds another run (of expected-PCK heads trained with {read_json(path)}): "
                          "choose another --out")  # fmt: skip
    write_json(path, ours)
    nets, seeds = folder / NETS, config.base.seeds
    if seeds > 1 and any(DETECTORS[name].other_nets for name in config.detectors):
        if nets.exists() and read_json(nets) != {"seeds": seeds}:
            raise ConfigError(f"{folder} holds another run ({read_json(nets)}, now {seeds}: the committee of a seed is "
                              f"the net of every other): choose another --out, with --bases {folder} its base models "
                              "need not be trained again")  # fmt: skip
        write_json(nets, {"seeds": seeds})


def _sets(run: Run, cache: Path) -> list[_Set]:
    """What is reported. No setting was chosen on the two sets of the benchmark; what was decided with them in view: LOOKS."""
    sets = []
    bare = replace(run.config.recipe.crop, context=0.0)
    if run.people.data.skeleton == LSP:
        people = read_people(seed=SYNTHETIC_SEED, count=SYNTHETIC_PEOPLE, domain="hard")
        what = f"{SYNTHETIC_PEOPLE} synthetic people of the hard domain"
        sets.append(_Set(SetInfo(name=SYNTHETIC, what=what, role="choice"), prepare(people, bare, cache)))
    test = SetInfo(name=_test_name(run), what="the test split, the domain that trained the net", role="test")
    pool = SetInfo(name=_pool_name(run), role="test",
                   what="the half of the pool that nothing was trained on, neither picture nor label")  # fmt: skip
    return [_Set(test, run.test), _Set(pool, _pool(run, 1)), *sets]


def _name(run: Run) -> str:
    """Of the benchmark, fit for a file: a folder may be called anything."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run.benchmark.name).lstrip("._-") or "data"


def _test_name(run: Run) -> str:
    return f"{_name(run)}-test"


def _pool_name(run: Run) -> str:
    return POOLS.get(run.benchmark.name, f"{_name(run)}-pool")


def _pool(run: Run, half: int) -> Crops:
    """The people of every even (0) or odd (1) picture of the pool."""
    return run.people.subset(half_of_pool(run, half))


def _one_seed(
    run: Run, config: DetectConfig, names: tuple[str, ...], seed: int, model: PoseModel, others: list[PoseModel],
    sets: list[_Set],
) -> None:  # fmt: skip
    ceilings = (_test_name(run), _pool_name(run))
    if all(_complete(run.folder, seed, each, names, each.info.name in ceilings) for each in sets):
        return
    labelled = run.people.subset(np.flatnonzero(run.initial(seed)))
    training = Training(model, others, labelled, _pool(run, 0), run.config.recipe, config.epck, run.machine, seed)
    ablations = training.train(names)
    held_out = score_views(training, ablations, training.held_out, names, views=CALIBRATION_VIEWS,
                           what="people who validated")  # fmt: skip
    probabilities = _probabilities(held_out, names, run.config.failure)
    SetScores(
        tuple(training.held_out.data.ids[row] for row in held_out.rows_N), held_out.right_NJ, held_out.counts_NJ,
        held_out.true_loss_N, {name: of(held_out).astype(np.float64) for name, of in probabilities.items()},
    ).save(run.folder, seed, DAMAGED)  # fmt: skip
    joint_maps = {name: fit_joints(value_NJ, held_out.right_NJ, held_out.counts_NJ)
                  for name, value_NJ in held_out.joints.items() if name in names}  # fmt: skip
    for each in sets:
        name = each.info.name
        folds = "in-domain" in names and name == _test_name(run)
        seen = score_views(training, ablations, each.crops, names, views=0, what=name, keep_evidence=folds)
        scores = {detector: to_probability(seen) for detector, to_probability in probabilities.items()}
        if folds and seen.evidence:
            scores["in-domain"] = special.expit(training.score_by_fold(seen.evidence))
        elif "in-domain" in names and name == _pool_name(run):
            scores["in-domain"] = special.expit(seen.scores[IN_DOMAIN])
        if "true-loss" in names:
            scores["true-loss"] = seen.true_loss_N
        people = each.crops.subset(seen.rows_N)
        ids, oks_N = people.data.ids, oks_of(people.data, seen.away_NJ * people.scale_N[:, None])
        stored = {detector: np.asarray(value_N, dtype=np.float64) for detector, value_N in scores.items()}
        confidences = {detector: of_joints.confidence(seen.joints[detector]).astype(np.float32)
                       for detector, of_joints in joint_maps.items()}  # fmt: skip
        SetScores(ids, seen.right_NJ, seen.counts_NJ, seen.true_loss_N, stored, confidences, oks_N).save(
            run.folder, seed, name
        )


def _complete(folder: Path, seed: int, asked: _Set, names: tuple[str, ...], ceiling: bool) -> bool:
    """Whether all detectors scored these very people, the ceiling where a set has one."""
    if not set_file(folder, seed, asked.info.name).exists():
        return False
    stored = SetScores.load(folder, seed, asked.info.name)
    wanted = [name for name in names if ceiling or name != "in-domain"]
    return stored.ids == asked.crops.data.ids and all(name in stored.scores for name in wanted)


def _probabilities(
    seen: ScoredViews, names: tuple[str, ...], failure: Failure
) -> dict[str, Callable[[ScoredViews], Floats]]:
    """For every detector a probability of failure that rises with its score, fitted to people who trained nothing.

    So all are judged by one calibration, and the order that a detector gives is kept.
    """
    failed_N, known_N = failure.failed(seen.image_pck())

    def fitted(name: str, evidence_of: Callable[[ScoredViews], Floats]) -> Callable[[ScoredViews], Floats]:
        try:
            evidence_NF = evidence_of(seen)[known_N]
            least = LEAST_SLOPE if evidence_NF.shape[1] == 1 else 0.0
            logistic = fit_logistic(evidence_NF, failed_N[known_N], least=least)
        except DataError as error:
            raise DataError(f"{name}, on the {int(known_N.sum())} views of people who validated: {error}") from error
        return lambda view: np.asarray(logistic(evidence_of(view)))

    found = {}
    for name in names:
        parts = DETECTORS[name].parts or (name,)
        if all(part in seen.scores for part in parts):
            found[name] = fitted(name, partial(_evidence, parts=parts))
    return found


def _evidence(view: ScoredViews, parts: tuple[str, ...]) -> Floats:
    return np.stack([view.scores[part] for part in parts], axis=1)


def _costs(run: Run, names: tuple[str, ...], model: PoseModel) -> Mapping[str, Cost]:
    """Measured once and kept: a report that is written again must not depend on what else the machine does."""
    path = run.folder / COSTS
    costs = read_json(path) if path.exists() else None
    if costs is None or not has_costs(names) <= set(costs["detectors"]):
        costs = measure_costs(model, names, run.machine)
        if costs["pose_ms"] is not None:  # otherwise the next call may have what measures it
            write_json(path, costs)
    return {name: tuple(value) for name, value in costs["detectors"].items()}
