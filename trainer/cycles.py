"""The active-learning benchmark: every method, from the same base models, stage by stage.

A stage: the current model selects ``budget`` people (all that is said of failure detection is measured then, with
that model); they are labelled; a model is trained on the enlarged set and tested.

Everything lands in files as soon as it exists (``results.py`` draws the tree). A run that was stopped at any point,
``kill -9`` included, goes on from the last file and ends with the same rows: what is random depends on the seed,
the method and the stage alone.

Shapes: N people who can be labelled, M selected, L labelled, D embedding.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alpose.runtime.io import from_json, read_json, write_json

from . import checkpoint
from .bases import Base
from .checkpoint import PoseModel
from .committee import net_disagreement, train_members
from .data.crops import Crops
from .detection import Selection, forms_of, judge_scored, measure, neighbours, part_of, select
from .device import Machine
from .egl import EGL, expected_gradient
from .lookalikes import lookalikes
from .metrics import neighbour_thresholds
from .results import Gallery, Results, Row, Scores, stage_folder
from .resume import discard
from .run import CyclesConfig, PartName, Run, add_heads, claim, initial, lacking, new_model, open_run, tested, train
from .samplers import METHODS, Method
from .scoring import Scored, score

log = logging.getLogger("alpose")

Executor = Literal["local", "ray"]

GALLERY = 24
"""Selected people that are kept as pictures."""

UNLABELLED = -1


def run_cycles(
    config: CyclesConfig,
    folder: Path,
    machine: Machine,
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
    if executor == "ray":
        from .ray_executor import run_on_ray

        def collect(rows: list[Row]) -> None:
            for row in rows:
                _say(run, row)
            _collect(run)

        run_on_ray(config, folder, machine, data_root=data_root, cache=cache, bases=bases, collect=collect)
        return _collect(run)
    for seed in range(config.seeds):
        base = Base(run, seed, bases)
        for method in config.methods:
            for row in _method(run, seed, method, base):
                _say(run, row)
                _collect(run)
    return _collect(run)


def prepare_base(run: Run, seed: int, bases: Path | None) -> None:
    """Leave a seed's base model and scores in the run folder, for all methods of the run."""
    Base(run, seed, bases).scored(_all_heads(run))


def rows_of(run: Run, seed: int, method: Method) -> list[Row]:
    """All stages of one method of one seed, whose base model is there."""
    return list(_method(run, seed, method, Base(run, seed, None)))


def _method(run: Run, seed: int, method: Method, base: Base) -> Iterator[Row]:
    """All stages of one method of one seed."""
    # Of every item, the stage in which it was labelled: 0 initially, -1 not yet.
    labelled_at_N = np.where(initial(run, seed), 0, UNLABELLED)
    model: PoseModel | None = None
    for stage in range(1, run.config.stages + 1):
        row, model = _stage(run, seed, method, stage, labelled_at_N, base, model)
        labelled_at_N[_selected_rows(run, seed, method, stage)] = stage
        yield row


def _selected_rows(run: Run, seed: int, method: Method, stage: int) -> npt.NDArray[np.int64]:
    """Rows of ``run.people`` that a finished selection chose, found by their ids."""
    stored = Scores.load(stage_folder(run.folder, seed, method, stage) / "scores.npz")
    row_of = {id_: row for row, id_ in enumerate(run.people.data.ids)}
    return np.array([row_of[stored.ids[row]] for row in stored.selected_M], dtype=np.int64)


def _stage(
    run: Run, seed: int, method: Method, stage: int, labelled_at_N: npt.NDArray[np.int64], base: Base,
    model: PoseModel | None,
) -> tuple[Row, PoseModel | None]:  # fmt: skip
    """One stage, or what is left of it. Returns the model only when it was just trained."""
    folder = stage_folder(run.folder, seed, method, stage)
    row_path, model_folder = folder / "row.json", folder / "model"
    done = from_json(Row, read_json(row_path), str(row_path)) if row_path.exists() else None
    if done and (run.config.select_only or done.test_pck is not None):
        return done, None
    heads: tuple[PartName, ...] = tuple(h for h in [part_of(method)] if h)

    def current() -> PoseModel:
        if stage == 1:
            return base.model(_all_heads(run))
        previous = stage_folder(run.folder, seed, method, stage - 1) / "model"
        return model or checkpoint.load(previous, run.machine.device)

    if done is None:
        selecting = current()
        scored, seconds = base.scored(_all_heads(run)) if stage == 1 else _score_now(run, method, stage, selecting)
        done = _select(run, seed, method, stage, labelled_at_N, scored, seconds, selecting)
        if run.machine.leads:
            write_json(row_path, done)
        run.machine.wait()
    if run.config.select_only:
        return done, None

    enlarged = labelled_at_N != UNLABELLED
    enlarged[_selected_rows(run, seed, method, stage)] = True
    if not checkpoint.exists(model_folder):
        trained = tested(run, _retrain(run, seed, method, stage, enlarged, current(), heads, folder / "training.pt"))
        if run.machine.leads:
            checkpoint.save(trained, model_folder)
            discard(folder / "training.pt")
        run.machine.wait()
    trained = checkpoint.load(model_folder, run.machine.device)
    after = {threshold: {**values, "test_pck": trained.facts["test_pck_neighbours"].get(threshold)}
             for threshold, values in done.neighbours.items()}  # fmt: skip
    done = replace(
        done,
        test_pck=trained.facts["test_pck"],
        train_seconds=trained.facts["train_seconds"] + trained.facts["head_seconds"],
        neighbours=after,
    )
    if run.machine.leads:
        write_json(row_path, done)
    run.machine.wait()
    return done, trained


def _all_heads(run: Run) -> tuple[PartName, ...]:
    """Heads that any method of this run wants: the base trains them together."""
    return tuple(h for h in map(part_of, run.config.methods) if h)


def _score_now(run: Run, method: Method, stage: int, model: PoseModel) -> tuple[Scored, float]:
    started = time.perf_counter()
    scored = score(model, run.people, run.machine, what=f"scoring for {method}, stage {stage}",
                   options=run.config.scores, forms=forms_of([method]))  # fmt: skip
    return scored, time.perf_counter() - started


def _select(
    run: Run, seed: int, method: Method, stage: int, labelled_at_N: npt.NDArray[np.int64], scored: Scored,
    score_seconds: float, model: PoseModel,
) -> Row:  # fmt: skip
    """Let the method choose from the pool, store what it saw, and measure."""
    pool_rows, labelled_rows = np.flatnonzero(labelled_at_N == UNLABELLED), np.flatnonzero(labelled_at_N != UNLABELLED)
    pool, crops = scored.take(pool_rows), run.people.subset(pool_rows)
    judged = judge_scored(crops.data, pool, run.profile)
    image_pck_N = judged.image_pck()
    nets = train_members(run, seed, stage, run.people.subset(labelled_rows)) if method == "ensemble-nets" else ()
    started = time.perf_counter()
    second = _second_pass(run, method, model, crops, pool, labelled_rows, scored, nets)
    score_seconds += time.perf_counter() - started if second else 0.0

    def choose(by: Method, k: int) -> Selection:
        rng = np.random.default_rng([seed, stage, *by.encode()])
        return select(by, pool, scored.embedding_ND[labelled_rows], image_pck_N, k, rng, second)

    selection = choose(method, run.config.budget)
    # The oracle cannot judge people whose PCK is undefined: there may be fewer than the budget.
    judgeable = int(np.isfinite(image_pck_N).sum())
    oracle = choose("oracle-pck", min(run.config.budget, judgeable)) if judgeable else selection
    detection = measure(selection, oracle, pool, judged)
    if run.machine.leads:
        folder = stage_folder(run.folder, seed, method, stage)
        Scores(crops.data.ids, selection.score_N, pool.true_loss_N, image_pck_N, selection.rows_M).save(
            folder / "scores.npz"
        )
        _gallery(crops, pool, selection, image_pck_N).save(folder / "gallery.npz")
        if (seed, stage) == (0, 1):
            lookalikes(method, crops, pool, run.people.subset(labelled_rows), scored.take(labelled_rows), selection,
                       run.config.egl).save(folder / "lookalikes.npz")  # fmt: skip
    chosen = neighbours(crops.data, pool, run.profile, selection.rows_M)
    before = model.facts["test_pck_neighbours"]
    return Row(
        method=method, seed=seed, stage=stage, labelled=len(labelled_rows), pool=len(pool_rows),
        selected=len(selection.rows_M), base_test_pck=model.facts["test_pck"], test_pck=None, train_seconds=None,
        score_seconds=score_seconds, **asdict(detection),
        neighbours={t: {"base_test_pck": before.get(t), "test_pck": None, "selected_pck": chosen[t]} for t in chosen},
    )  # fmt: skip


def _second_pass(
    run: Run, method: Method, model: PoseModel, crops: Crops, pool: Scored, labelled_rows: npt.NDArray[np.int64],
    scored: Scored, nets: Sequence[Path],
) -> dict[Method, npt.NDArray[np.float32]]:  # fmt: skip
    """Scores of a method that needs another look at the pool, with the labelled people at hand; no method, no look."""
    if method == "ensemble-nets":
        return {method: net_disagreement(run, nets, crops, pool)}
    if method not in EGL:
        return {}
    labelled, what = run.people.subset(labelled_rows), f"{method} with {len(labelled_rows)} labelled"
    return {method: expected_gradient(model, crops, labelled, pool, scored.take(labelled_rows), run.machine,
                                      run.config.egl, method=method, what=what)}  # fmt: skip


def _gallery(crops: Crops, pool: Scored, selection: Selection, image_pck_N: npt.NDArray[np.float32]) -> Gallery:
    first_G = selection.rows_M[:GALLERY]
    return Gallery(
        ids=tuple(crops.data.ids[row] for row in first_G), crops_GSS3=crops.read_bare(first_G),
        true_GJ2=crops.joints_NJ2[first_G], labelled_GJ=crops.labelled_NJ[first_G],
        predicted_GJ2=pool.predicted_NJ2[first_G], score_G=selection.score_N[first_G],
        true_loss_G=pool.true_loss_N[first_G], image_pck_G=image_pck_N[first_G], skeleton=crops.data.skeleton,
    )  # fmt: skip


def _retrain(
    run: Run, seed: int, method: Method, stage: int, enlarged_N: npt.NDArray[np.bool_], model: PoseModel,
    heads: tuple[PartName, ...], state: Path,
) -> PoseModel:  # fmt: skip
    """A model on the enlarged set: from the one that selected (warm) or from fresh weights (cold)."""
    warm = run.config.start == "warm"
    recipe = run.config.recipe
    labelled = run.people.subset(np.flatnonzero(enlarged_N))
    start = replace(copy.deepcopy(model), heads={}, auxiliary={}, facts={}) if warm else new_model(run, seed)
    what = f"{method}, stage {stage} of seed {seed}"
    trained = train(run, start, labelled, recipe.retrain if warm else recipe.pose, seed=seed, state=state, what=what,
                    heads=heads)  # fmt: skip
    missing = lacking(run, trained, heads)
    if missing:
        trained = add_heads(run, trained, missing, labelled, seed, f"loss head of {what}", model if warm else None)
    return trained


def _collect(run: Run) -> Results:
    """Gather every row that this folder holds, those of earlier calls too, and write ``results.json``."""
    rows = [from_json(Row, read_json(path), str(path)) for path in run.folder.glob("seed-*/*/stage-*/row.json")]
    order = {method: place for place, method in enumerate(METHODS)}
    rows.sort(key=lambda row: (row.seed, order[row.method], row.stage))  # type: ignore[index]
    asked = run.config
    config = asdict(asked) | {
        "methods": sorted({*asked.methods, *(row.method for row in rows)}, key=lambda name: order[name]),  # type: ignore[index]
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


def _bases(run: Run) -> tuple[dict[str, Any], ...]:
    """What is known of each seed's base model; one that was stopped before its test has no test PCK yet."""
    wanted = ("labelled", "test_pck", "test_pck_neighbours", "train_seconds", "head_seconds")
    bases = []
    for path in run.folder.glob(f"seed-*/base/{checkpoint.FACTS}"):
        facts = read_json(path)["facts"]
        bases.append({"seed": int(facts["seed"]), **{name: facts.get(name) for name in wanted}})
    return tuple(sorted(bases, key=lambda base: int(base["seed"])))


def _say(run: Run, row: Row) -> None:
    """One log line of a finished row."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    if not run.machine.leads:
        return
    log.info("seed %d, stage %d, %s: selected PCK %s, AUROC %s, test PCK %s → %s", row.seed, row.stage, row.method,
            number(row.selected_pck), number(row.auroc), number(row.base_test_pck), number(row.test_pck))  # fmt: skip
