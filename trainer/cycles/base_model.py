"""How the benchmark makes its models: the base model that all methods of a seed start from, its heads, its test."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import read_json, write_atomically

from .. import checkpoint
from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..methods.catalog import head_named, heads_of, maps_for
from ..methods.selection import judge_scored, neighbour_pck
from ..models.auxiliary import AuxiliaryHead
from ..models.heads import LossHead
from ..scoring import COLUMNS, PREFIXES, Scored, score
from ..training import PoseTraining, train_heads, train_pose, validation_mask
from ..training_state import discard
from .results import load_npz, save_npz
from .run import Run

SCORED = "scored.npz"


class BaseModel:
    """The base model of one seed, with the heads that were asked for.

    It is trained, or taken over from another run, when it is first wanted.
    """

    def __init__(self, run: Run, seed: int, heads: Sequence[str], bases: Path | None = None) -> None:
        self._run, self._seed, self._heads = run, seed, tuple(heads)
        self._folder = run.folder / f"seed-{seed}" / "base"
        self._model: PoseModel | None = None
        if bases:
            run.machine.once(self._take_over, bases / f"seed-{seed}" / "base")

    def model(self) -> PoseModel:
        """The model; heads that are missing are trained together."""
        model = self._model or self._load_or_train()
        missing = missing_heads(self._run, model, self._heads)
        if missing:
            what = f"loss heads of seed {self._seed}"
            model = self._save(add_heads(self._run, model, missing, self._labelled(), self._seed, what))
        self._model = model
        return model

    def scored(self) -> tuple[Scored, float]:
        """Everyone's scores under the model, and the seconds that they took; one pass serves all methods."""
        path, machine, options = self._folder / SCORED, self._run.machine, self._run.config.scores
        model, forms = self.model(), maps_for(self._run.config.methods)
        made_of = " ".join(filter(None, [
            read_json(self._folder / checkpoint.FACTS)["sha256"], self._run.people_sha256, options.of_a_pass()
        ]))  # fmt: skip

        stored = load_npz(path) if path.exists() else {}
        wanted = {*COLUMNS, *(PREFIXES["forms"] + name for name in forms)}
        if not (wanted <= stored.keys() and str(stored["made_of"]) == made_of):
            started = time.perf_counter()
            # No process is through before all have begun, so that none finds the file which the first one writes after.
            scored = score(model, self._run.people, machine, what=f"scoring with the base of seed {self._seed}",
                           options=options, forms=forms, shared=True)  # fmt: skip
            took = np.array(time.perf_counter() - started)
            machine.once(save_npz, path, {**scored.save_arrays(), "seconds": took, "made_of": np.array(made_of)})
        arrays = load_npz(path)
        seconds = float(arrays.pop("seconds"))
        del arrays["made_of"]
        return Scored.from_arrays(arrays), seconds

    def _labelled(self) -> Crops:
        return self._run.people.subset(np.flatnonzero(self._run.initial(self._seed)))

    def _load_or_train(self) -> PoseModel:
        run, state = self._run, self._folder / "training.pt"
        if not checkpoint.exists(self._folder):
            model = train(run, new_model(run, self._seed), self._labelled(), run.config.recipe.pose, seed=self._seed,
                          state=state, what=f"base model of seed {self._seed}", heads=self._heads)  # fmt: skip
            self._save(with_facts(model, key=self._key()))
            run.machine.once(discard, state)
        model = checkpoint.load(self._folder, run.machine.device)
        self._check(model, self._folder)
        measured = tested(run, model)
        return model if measured is model else self._save(measured)

    def _save(self, model: PoseModel) -> PoseModel:
        self._run.machine.once(checkpoint.save, model, self._folder)
        return model

    def _take_over(self, source: Path) -> None:
        """Copy another run's base model and scores; what describes the model goes last, so that half is nothing."""
        if checkpoint.exists(self._folder):
            return
        if not checkpoint.exists(source):
            raise ConfigError(f"--bases: there is no base model for seed {self._seed} in {source}")
        self._check(checkpoint.load(source), source)
        for name in (SCORED, checkpoint.WEIGHTS, checkpoint.FACTS):
            if (source / name).exists():
                write_atomically(self._folder / name, (source / name).read_bytes())

    def _key(self, *, by_file_name: bool = False) -> str:
        """What made a base model: its data, its recipe, its seed."""
        recipe = asdict(self._run.config.recipe)
        made_of = [self._labelled().data.fingerprint(by_file_name=by_file_name), self._seed,
                   {name: recipe[name] for name in ("crop", "target", "net", "pose", "heads")}]  # fmt: skip
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _check(self, model: PoseModel, where: Path) -> None:
        if model.facts.get("key") not in (self._key(), self._key(by_file_name=True)):
            raise ConfigError(f"{where} was trained on other data or with another recipe than this run asks for: "
                              "choose another --out, or other --bases")  # fmt: skip


def new_model(run: Run, seed: int) -> PoseModel:
    """A pose net of the recipe's size with fresh weights."""
    recipe, skeleton = run.config.recipe, run.people.data.skeleton
    return checkpoint.new_model(recipe.net.config(len(skeleton)), skeleton, recipe.crop, recipe.target, seed)


def train(
    run: Run, model: PoseModel, labelled: Crops, config: PoseTraining, *, seed: int, state: Path, what: str,
    heads: Sequence[str] = (),
) -> PoseModel:  # fmt: skip
    """Train the pose net, with heads beside it when the recipe says ``joint``; its provenance goes into its facts."""
    recipe = run.config.recipe
    beside = _able_to_learn_beside(heads) if recipe.heads.how == "joint" else []
    joint = {name: checkpoint.new_head(model, name, seed) for name in beside}
    validates_N = validation_mask(labelled.data.split_names(), config.validation, seed)
    started = time.perf_counter()
    history = train_pose(model, labelled, config, run.machine, seed=seed, state=state, heads=joint,
                         head_config=recipe.heads, what=what)  # fmt: skip
    return with_facts(
        model.with_heads(joint),
        what=what,
        dataset=run.config.dataset,
        preset=run.config.preset,
        seed=seed,
        recipe=asdict(recipe),
        labelled=len(labelled),
        labelled_ids=list(labelled.data.ids),
        labelled_people=sorted(labelled.data.people_keys()),
        validated_pictures=sorted(
            {picture for picture, validated in zip(labelled.data.pictures(), validates_N, strict=True) if validated}
        ),
        train_seconds=time.perf_counter() - started,
        head_seconds=0.0,
        losses=[[round(epoch.train_loss, 6), round(epoch.validation_loss, 6)] for epoch in history],
        head_losses={},
    )


def _able_to_learn_beside(names: Sequence[str]) -> list[str]:
    """Those loss heads that learn by an objective, and so can learn in the steps of the pose net."""
    return [name for name in names if head_named(name).group == "loss" and head_named(name).loss is not None]


def missing_heads(run: Run, model: PoseModel, names: Sequence[str]) -> list[str]:
    """Those heads that a model lacks; a committee of another size, in a model that was taken over, does not count."""
    members = run.config.scores.members
    has = {*model.heads, *(name for name, head in model.auxiliary.items()
                           if name != "ensemble" or head.config.members == members)}  # fmt: skip
    return [name for name in names if name not in has]


def add_heads(
    run: Run, model: PoseModel, names: Sequence[str], labelled: Crops, seed: int, what: str,
    warm: PoseModel | None = None,
) -> PoseModel:  # fmt: skip
    """Train heads, loss heads and auxiliary ones, on the frozen pose net, fresh or from those of ``warm``."""
    recipe, members = run.config.recipe, run.config.scores.members
    had = warm.heads if warm else {}
    heads: dict[str, LossHead] = {
        name: copy.deepcopy(had[name]) if name in had else checkpoint.new_head(model, name, seed)
        for name in names if head_named(name).group == "loss"
    }  # fmt: skip
    if recipe.heads.how == "joint" and _able_to_learn_beside(names):
        raise ConfigError(f"{what}: heads that are trained beside the pose net cannot be added to it later: name all "
                          "methods at once, in a new --out")  # fmt: skip
    if heads:
        started = time.perf_counter()
        losses = train_heads(model, heads, labelled, recipe.heads, run.machine, seed=seed,
                             validation=recipe.pose.validation, what=what)  # fmt: skip
        model = _note_losses(model.with_heads(heads), "head_losses", losses, started)
    had_auxiliary = warm.auxiliary if warm else {}
    auxiliary: dict[str, AuxiliaryHead] = {
        name: copy.deepcopy(had_auxiliary[name]) if name in had_auxiliary
        else checkpoint.new_auxiliary(model, name, seed, members=members)
        for name in heads_of("auxiliary") if name in names
    }  # fmt: skip
    if auxiliary:
        started = time.perf_counter()
        losses = train_heads(model, auxiliary, labelled, recipe.heads, run.machine, seed=seed,
                             validation=recipe.pose.validation, what=what.replace("loss head", "auxiliary head"))  # fmt: skip
        model = _note_losses(model.with_auxiliary(auxiliary), "auxiliary_losses", losses, started)
    return model


def _note_losses(model: PoseModel, fact: str, losses: Mapping[str, Sequence[float]], started: float) -> PoseModel:
    rounded = {name: [round(loss, 6) for loss in of_head] for name, of_head in losses.items()}
    seconds = model.facts["head_seconds"] + time.perf_counter() - started
    return with_facts(model, **{"head_seconds": seconds, fact: {**model.facts.get(fact, {}), **rounded}})


def tested(run: Run, model: PoseModel) -> PoseModel:
    """The model with its test PCK among its facts; one that was tested the same way before is returned as it is."""
    how = {"profile": run.profile.name, "data_sha256": run.test_sha256}
    if model.facts.get("tested") == how:
        return model
    scored = score(model, run.test, run.machine, what="test")
    return with_facts(model, tested=how, test_pck=judge_scored(run.test.data, scored, run.profile).pck(),
                      test_pck_neighbours=neighbour_pck(run.test.data, scored, run.profile, None))  # fmt: skip


def with_facts(model: PoseModel, **facts: Any) -> PoseModel:
    """The model with more provenance."""
    return replace(model, facts={**model.facts, **facts})
