"""The active-learning benchmark: every method, from the same base models, stage by stage.

A stage: the current model selects ``budget`` people (all that is said of failure detection is measured then, with
that model); they are labelled; a model is trained on the enlarged set and tested.

Everything lands in files as soon as it exists (``results.py`` draws the tree). A run that was stopped at any point,
``kill -9`` included, goes on from the last file and ends with the same rows: what is random depends on the seed,
the method and the stage alone.

Shapes: N people who can be labelled, M selected, G in the gallery.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alpose.runtime.io import from_json, read_json, write_json

from .. import checkpoint
from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..device import DeviceContext
from ..measures.metrics import neighbour_thresholds
from ..methods.catalog import METHODS, heads_for, maps_for, resolve
from ..methods.nearest_neighbours import nearest_neighbours
from ..methods.selection import Pool, PoolImages, Selection, judge_scored, measure, neighbour_pck, select
from ..scoring import Scored, score
from ..training_state import discard
from .base_model import BaseModel, add_heads, missing_heads, new_model, tested, train
from .results import Gallery, Results, Row, Scores, stage_folder
from .run import Run, RunConfig, claim, open_run

log = logging.getLogger("alpose")

Executor = Literal["local", "ray"]

GALLERY = 24
"""Selected people that are kept as pictures."""

UNLABELLED = -1


def run_benchmark(
    config: RunConfig,
    folder: Path,
    machine: DeviceContext,
    *,
    data_root: Path | None,
    cache: Path,
    bases: Path | None = None,
    executor: Executor = "local",
) -> Results:
    """Run a benchmark, or what is left of it.

    Args:
        config: what to run.
        folder: where everything goes; an unfinished run there is continued.
        machine: where to compute; under ``torchrun`` every process calls this.
        data_root: where datasets are.
        cache: where crops are cached.
        bases: another run's folder whose base models are taken over in place of training them again.
        executor: ``local`` runs one method after the other here; ``ray`` each as a task of a cluster.
    """
    # A run that cannot be is refused before it claims the folder: what its message advises must work there.
    run = open_run(config, folder, data_root, cache, machine)
    claim(config, folder, machine)

    def collect(rows: list[Row]) -> None:
        for row in rows:
            _log(run, row)
        _collect(run)

    if executor == "ray":
        from .ray_executor import Task, run_on_ray

        tasks = []
        for seed in range(config.seeds):
            base = f"the base model of seed {seed}"
            tasks.append(Task(base, _prepare_base, (seed, bases)))
            tasks += [Task(f"{method} of seed {seed}", _all_stages, (seed, method), base) for method in config.methods]
        run_on_ray(config, folder, machine, data_root=data_root, cache=cache, tasks=tasks, collect=collect)
    else:
        for seed in range(config.seeds):
            base_model = _base(run, seed, bases)
            for method in config.methods:
                for row in _stages(run, seed, method, base_model):
                    collect([row])
    return _collect(run)


def _base(run: Run, seed: int, bases: Path | None = None) -> BaseModel:
    """The base model of a seed, with the heads that any method of the run ranks by: they are trained together."""
    return BaseModel(run, seed, heads_for(run.config.methods), bases)


def _prepare_base(run: Run, seed: int, bases: Path | None) -> list[Row]:
    """A task of a cluster: leave a seed's base model and its scores in the run folder; there are no rows yet."""
    _base(run, seed, bases).scored()
    return []


def _all_stages(run: Run, seed: int, method: str) -> list[Row]:
    """A task of a cluster: all stages of one method of one seed, whose base model is there."""
    return list(_stages(run, seed, method, _base(run, seed)))


@dataclass(frozen=True, slots=True)
class _Stage:
    """One stage of one method of one seed."""

    run: Run
    seed: int
    method: str
    number: int

    @property
    def folder(self) -> Path:
        return stage_folder(self.run.folder, self.seed, self.method, self.number)

    def selected(self) -> npt.NDArray[np.int64]:
        """Rows of ``run.people`` that the finished selection chose, found by their ids."""
        stored = Scores.load(self.folder / "scores.npz")
        row_of = {id_: row for row, id_ in enumerate(self.run.people.data.ids)}
        return np.array([row_of[stored.ids[row]] for row in stored.selected_M], dtype=np.int64)

    def save_row(self, row: Row) -> None:
        self.run.machine.once(write_json, self.folder / "row.json", row)


def _stages(run: Run, seed: int, method: str, base: BaseModel) -> Iterator[Row]:
    """All stages of one method of one seed."""
    # Of every person, the stage in which it was labelled: 0 initially.
    labelled_at_N = np.where(run.initial(seed), 0, UNLABELLED)
    model: PoseModel | None = None
    for number in range(1, run.config.stages + 1):
        stage = _Stage(run, seed, method, number)
        row, model = _stage(stage, labelled_at_N, base, model)
        labelled_at_N[stage.selected()] = number
        yield row


def _stage(
    stage: _Stage, labelled_at_N: npt.NDArray[np.int64], base: BaseModel, model: PoseModel | None
) -> tuple[Row, PoseModel | None]:
    """One stage, or what is left of it. Returns the model only when it was just trained."""
    run, folder = stage.run, stage.folder
    row = _read_row(folder / "row.json") if (folder / "row.json").exists() else None
    if row and (run.config.select_only or row.test_pck is not None):
        return row, None

    def current() -> PoseModel:
        if stage.number == 1:
            return base.model()
        previous = replace(stage, number=stage.number - 1)
        return model or checkpoint.load(previous.folder / "model", run.machine.device)

    if row is None:
        selecting = current()
        scored, seconds = base.scored() if stage.number == 1 else _score(stage, selecting)
        row = _select(stage, labelled_at_N, scored, seconds, selecting)
        stage.save_row(row)
    if run.config.select_only:
        return row, None

    if not checkpoint.exists(folder / "model"):
        enlarged_N = labelled_at_N != UNLABELLED
        enlarged_N[stage.selected()] = True
        retrained = tested(run, _retrain(stage, enlarged_N, current()))
        run.machine.once(checkpoint.save, retrained, folder / "model")
        run.machine.once(discard, folder / "training.pt")
    trained = checkpoint.load(folder / "model", run.machine.device)
    facts = trained.facts
    row = replace(
        row,
        test_pck=facts["test_pck"],
        train_seconds=facts["train_seconds"] + facts["head_seconds"],
        neighbours={threshold: {**values, "test_pck": facts["test_pck_neighbours"].get(threshold)}
                    for threshold, values in row.neighbours.items()},
    )  # fmt: skip
    stage.save_row(row)
    return row, trained


def _score(stage: _Stage, model: PoseModel) -> tuple[Scored, float]:
    started = time.perf_counter()
    scored = score(model, stage.run.people, stage.run.machine, what=f"scoring for {stage.method}, stage {stage.number}",
                   options=stage.run.config.scores, forms=maps_for([stage.method]), shared=True)  # fmt: skip
    return scored, time.perf_counter() - started


def _select(
    stage: _Stage, labelled_at_N: npt.NDArray[np.int64], scored: Scored, score_seconds: float, model: PoseModel
) -> Row:
    """Let the method choose from the pool, store what it saw, and measure."""
    run, method = stage.run, stage.method
    pool_rows, labelled_rows = np.flatnonzero(labelled_at_N == UNLABELLED), np.flatnonzero(labelled_at_N != UNLABELLED)
    pool, crops = scored.take(pool_rows), run.people.subset(pool_rows)
    labelled = run.people.subset(labelled_rows)
    judged = judge_scored(crops.data, pool, run.profile)
    image_pck_N = judged.image_pck()
    labelled_scored = scored.take(labelled_rows)
    images = PoolImages(run, stage.seed, stage.number, model, crops, labelled)
    if METHODS[method].prepare is not None:
        resolve(METHODS[method].prepare)(images)

    def choose(by: str, k: int) -> Selection:
        rng = np.random.default_rng([stage.seed, stage.number, *by.encode()])
        whole = Pool(scored=pool, labelled=labelled_scored, image_pck_N=image_pck_N, rng=rng, images=images)
        return select(by, whole, k)

    started = time.perf_counter()
    selection = choose(method, run.config.budget)
    seconds = time.perf_counter() - started if METHODS[method].reads_images else 0.0
    # The oracle cannot judge people whose PCK is undefined: there may be fewer than the budget.
    judgeable = int(np.isfinite(image_pck_N).sum())
    oracle = choose("oracle-pck", min(run.config.budget, judgeable)) if judgeable else selection
    detection = measure(selection, oracle, pool, judged, run.config.failure)
    if run.machine.leads:
        Scores(crops.data.ids, selection.score_N, pool.true_loss_N, image_pck_N, selection.rows_M).save(
            stage.folder / "scores.npz"
        )
        _gallery(crops, pool, selection, image_pck_N).save(stage.folder / "gallery.npz")
        if (stage.seed, stage.number) == (0, 1):
            nearest_neighbours(method, crops, pool, labelled, labelled_scored, selection, run.config.egl).save(
                stage.folder / "lookalikes.npz"
            )
    chosen = neighbour_pck(crops.data, pool, run.profile, selection.rows_M)
    before = model.facts["test_pck_neighbours"]
    return Row(
        method=method, seed=stage.seed, stage=stage.number, labelled=len(labelled_rows), pool=len(pool_rows),
        selected=len(selection.rows_M), base_test_pck=model.facts["test_pck"], test_pck=None, train_seconds=None,
        score_seconds=score_seconds + seconds, **asdict(detection),
        neighbours={t: {"base_test_pck": before.get(t), "test_pck": None, "selected_pck": chosen[t]} for t in chosen},
    )  # fmt: skip


def _gallery(crops: Crops, pool: Scored, selection: Selection, image_pck_N: npt.NDArray[np.float32]) -> Gallery:
    first_G = selection.rows_M[:GALLERY]
    return Gallery(
        ids=tuple(crops.data.ids[row] for row in first_G), crops_GSS3=crops.read_bare(first_G),
        true_GJ2=crops.joints_NJ2[first_G], labelled_GJ=crops.labelled_NJ[first_G],
        predicted_GJ2=pool.predicted_NJ2[first_G], score_G=selection.score_N[first_G],
        true_loss_G=pool.true_loss_N[first_G], image_pck_G=image_pck_N[first_G], skeleton=crops.data.skeleton,
    )  # fmt: skip


def _retrain(stage: _Stage, enlarged_N: npt.NDArray[np.bool_], model: PoseModel) -> PoseModel:
    """A model on the enlarged set: from the one that selected (warm) or from fresh weights (cold)."""
    run, seed, recipe = stage.run, stage.seed, stage.run.config.recipe
    warm, what = run.config.start == "warm", f"{stage.method}, stage {stage.number} of seed {stage.seed}"
    heads = heads_for([stage.method])
    labelled = run.people.subset(np.flatnonzero(enlarged_N))
    start = replace(copy.deepcopy(model), heads={}, auxiliary={}, facts={}) if warm else new_model(run, seed)
    trained = train(run, start, labelled, recipe.retrain if warm else recipe.pose, seed=seed, what=what, heads=heads,
                    state=stage.folder / "training.pt")  # fmt: skip
    missing = missing_heads(run, trained, heads)
    if missing:
        trained = add_heads(run, trained, missing, labelled, seed, f"loss head of {what}", model if warm else None)
    return trained


def _collect(run: Run) -> Results:
    """Gather every row that this folder holds, those of earlier calls too, and write ``results.json``."""
    rows = [_read_row(path) for path in run.folder.glob("seed-*/*/stage-*/row.json")]
    order = {method: place for place, method in enumerate(METHODS)}
    rows.sort(key=lambda row: (row.seed, order[row.method], row.stage))
    asked = run.config
    config = asked.to_json() | {
        "methods": sorted({*asked.methods, *(row.method for row in rows)}, key=lambda name: order[name]),
        "seeds": max([asked.seeds, *(row.seed + 1 for row in rows)]),
        "stages": max([asked.stages, *(row.stage for row in rows)]),
        "profile_details": asdict(run.profile),
        "thresholds": [run.profile.threshold, *neighbour_thresholds(run.profile)],
        "people": len(run.people),
        "test_people": len(run.test),
        "left_out": len(run.people.left_out) + len(run.test.left_out),
    }
    results = Results(config, run.environment, tuple(rows), _bases(run))
    if run.machine.leads:
        results.save(run.folder)
    return results


def _read_row(path: Path) -> Row:
    return from_json(Row, read_json(path), str(path))


def _bases(run: Run) -> tuple[dict[str, Any], ...]:
    """What is known of each seed's base model; one that was stopped before its test has no test PCK yet."""
    wanted = ("labelled", "test_pck", "test_pck_neighbours", "train_seconds", "head_seconds")
    bases = []
    for path in run.folder.glob(f"seed-*/base/{checkpoint.FACTS}"):
        facts = read_json(path)["facts"]
        bases.append({"seed": int(facts["seed"]), **{name: facts.get(name) for name in wanted}})
    return tuple(sorted(bases, key=lambda base: int(base["seed"])))


def _log(run: Run, row: Row) -> None:
    """One line of a finished row."""
    if not run.machine.leads:
        return
    values = (row.selected_pck, row.auroc, row.base_test_pck, row.test_pck)
    log.info("seed %d, stage %d, %s: selected PCK %s, AUROC %s, test PCK %s → %s", row.seed, row.stage, row.method,
             *("-" if value is None else f"{value:.3f}" for value in values))  # fmt: skip
