"""Base models: what all methods of one seed start from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import read_json, write_atomically

from . import checkpoint
from .checkpoint import PoseModel
from .data.crops import Crops
from .detection import forms_of
from .results import load_npz, save_npz
from .resume import discard
from .run import PartName, Run, add_heads, initial, lacking, new_model, tested, train, with_facts
from .scoring import COLUMNS, PREFIXES, FormName, Scored, score

SCORED = "scored.npz"


class Base:
    """The base model of one seed: trained, or taken over from another run, when it is first wanted."""

    def __init__(self, run: Run, seed: int, bases: Path | None) -> None:
        self._run, self._seed = run, seed
        self._folder = run.folder / f"seed-{seed}" / "base"
        self._model: PoseModel | None = None
        if bases and run.machine.leads and not checkpoint.exists(self._folder):
            self._take_over(bases / f"seed-{seed}" / "base")
        run.machine.wait()

    def model(self, heads: tuple[PartName, ...]) -> PoseModel:
        """The base model with at least these heads. Heads that are missing are trained together."""
        model = self._model or self._load_or_train(heads)
        missing = lacking(self._run, model, heads)
        if missing:
            what = f"loss heads of seed {self._seed}"
            model = self._save(add_heads(self._run, model, missing, self._labelled(), self._seed, what))
        self._model = model
        return model

    def scored(self, heads: tuple[PartName, ...]) -> tuple[Scored, float]:
        """Everyone's scores under the base model, and the seconds that they took; one pass serves all methods."""
        path = self._folder / SCORED
        model = self.model(heads)
        options, forms = self._run.config.scores, forms_of(self._run.config.methods)
        made_of = " ".join(filter(None, [
            read_json(self._folder / checkpoint.FACTS)["sha256"], self._run.people_sha256, options.of_a_pass()
        ]))  # fmt: skip
        if self._run.machine.leads and not _is_made_of(path, made_of, forms):
            started = time.perf_counter()
            what = f"scoring with the base of seed {self._seed}"
            scored = score(model, self._run.people, self._run.machine, what=what, options=options, forms=forms)
            seconds = np.array(time.perf_counter() - started)
            save_npz(path, {**scored.save_arrays(), "seconds": seconds, "made_of": np.array(made_of)})
        self._run.machine.wait()
        arrays = load_npz(path)
        score_seconds = float(arrays.pop("seconds"))
        del arrays["made_of"]
        return Scored.from_arrays(arrays), score_seconds

    def _labelled(self) -> Crops:
        return self._run.people.subset(np.flatnonzero(initial(self._run, self._seed)))

    def _load_or_train(self, heads: tuple[PartName, ...]) -> PoseModel:
        run, state = self._run, self._folder / "training.pt"
        if not checkpoint.exists(self._folder):
            labelled, what = self._labelled(), f"base model of seed {self._seed}"
            model = train(run, new_model(run, self._seed), labelled, run.config.recipe.pose, seed=self._seed,
                          state=state, what=what, heads=heads)  # fmt: skip
            self._save(with_facts(model, key=self._key()))
            if run.machine.leads:
                discard(state)
        model = checkpoint.load(self._folder, run.machine.device)
        self._check(model, self._folder)
        measured = tested(run, model)
        return model if measured is model else self._save(measured)

    def _save(self, model: PoseModel) -> PoseModel:
        if self._run.machine.leads:
            checkpoint.save(model, self._folder)
        self._run.machine.wait()
        return model

    def _take_over(self, source: Path) -> None:
        """Copy another run's base model and scores; what describes the model goes last, so that half is nothing."""
        if not checkpoint.exists(source):
            raise ConfigError(f"--bases: there is no base model for seed {self._seed} in {source}")
        self._check(checkpoint.load(source), source)
        for name in (SCORED, checkpoint.WEIGHTS, checkpoint.FACTS):
            if (source / name).exists():
                write_atomically(self._folder / name, (source / name).read_bytes())

    def _key(self) -> str:
        """What made a base model: its data, its recipe, its seed."""
        recipe = asdict(self._run.config.recipe)
        made_of = [self._labelled().data.fingerprint(), self._seed,
                   {name: recipe[name] for name in ("crop", "target", "net", "pose", "heads")}]  # fmt: skip
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _check(self, model: PoseModel, where: Path) -> None:
        if model.facts.get("key") != self._key():
            raise ConfigError(f"{where} was trained on other data or with another recipe than this run asks for: "
                              "choose another --out, or other --bases")  # fmt: skip


def _is_made_of(path: Path, made_of: str, forms: Collection[FormName]) -> bool:
    """Whether stored scores are of this model, these people and options, and hold all that is wanted of scores today."""
    if not path.exists():
        return False
    arrays = load_npz(path)
    whole = all(name in arrays for name in (*COLUMNS, *(PREFIXES["forms"] + name for name in forms)))
    return whole and str(arrays["made_of"]) == made_of
