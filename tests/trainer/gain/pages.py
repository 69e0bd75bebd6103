"""Results of ``harvest-gain`` that nobody measured, for tests of the page."""

from __future__ import annotations

from alpose.trainer.gain.results import BASE, NONE, RANDOM, Cell, Comparison, Difference, GainResults, SetFacts
from alpose.trainer.pages.harvest_gain import render


def difference(mean: float) -> Difference:
    return Difference(mean=mean, low=mean - 0.01, high=mean + 0.01, seeds_low=mean - 0.02, seeds_high=mean + 0.02,
                      per_seed=(mean,), p=None, holm=None)  # fmt: skip


def cell(strategy: str, budget: int, pck: float) -> Cell:
    known = 0.5 if budget else None
    return Cell(seed=0, strategy=strategy, budget=budget, chosen=budget, field_pck=pck, field_failures=0.5, old_pck=0.7,
                old_failures=0.2, chosen_failures=known, chosen_changed=known, chosen_joints=known, seconds=1.0)  # fmt: skip


def results(name: str = "value") -> GainResults:
    return GainResults(
        seeds=(0,), strategies=(RANDOM, name, "bad"), budgets=(100,), chance_budgets=(200,), frames=1000, changed=0.05,
        labelled=400, sets=(SetFacts(name="field", what=name, people=10, labels=140, removed=3),),
        cells=(cell(BASE, 0, 0.3), cell(NONE, 0, 0.31), cell(RANDOM, 100, 0.4), cell(name, 100, 0.45), cell("bad", 100, 0.3),
               cell(RANDOM, 200, 0.44)),
        comparisons=(
            Comparison(strategy=name, budget=100, field=difference(0.05), old=difference(0.0), failures=-0.1, random_needs=None),
            Comparison(strategy="bad", budget=100, field=difference(-0.1), old=difference(-0.1), failures=0.1, random_needs=0.0),
        ),
        config={"dataset": name, "preset": name}, environment={"note": name},
    )  # fmt: skip


def page_of(name: str) -> str:
    return render(results(name))
