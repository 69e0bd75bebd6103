"""The result of a run in plain words, from its rows alone."""

from __future__ import annotations

from ..statistics import LEVEL, is_defined, mean_sd
from . import form
from .facts import Facts
from .methods import RANDOM, is_scorer
from .tables import MIN_SEEDS, against_random


def finding(facts: Facts, level: float = LEVEL) -> str:
    """Who found the worst predictions, against random and the oracle, and how far that can be trusted."""
    stage = facts.first_stage
    values = {method: selected(facts, method, stage) for method in facts.methods}
    scorers = [method for method in facts.methods if is_scorer(method) and values[method]]
    if not scorers:
        return "No method other than random selection and the oracles has finished a stage yet."
    if RANDOM not in facts.methods or not values[RANDOM]:
        return "Random selection has not finished a stage, so there is nothing to compare with yet."
    common = set(values[RANDOM]).intersection(*(values[method] for method in scorers))
    if not common:
        return "The methods have no seed in common yet, so they cannot be compared."
    mean = {m: mean_sd([values[m][seed] for seed in common]).mean or 0.0 for m in (*scorers, RANDOM)}
    best = min(scorers, key=mean.__getitem__)
    numbers = f"PCK {form.number(mean[best])} against {form.number(mean[RANDOM])}"
    if mean[best] >= mean[RANDOM]:
        first = (
            f"At stage {stage} no method found worse predictions than random selection did: the best, "
            f"{best}, chose people with {numbers}{over(common)}."
        )
    else:
        first = (
            f"At stage {stage} the people that {best} chose were the worst predicted: {numbers} for random "
            f"selection{over(common)}{gap(facts, best, common)}."
        )
    rest = (trust(facts, best, stage, mean[best] < mean[RANDOM], level), unfinished(facts))
    return " ".join(filter(None, (first, *rest)))


def selected(facts: Facts, method: str, stage: int) -> dict[int, float]:
    """PCK of what the method selected, by seed."""
    values = zip(facts.seeds, facts.over_seeds(method, stage, "selected_pck"), strict=True)
    return {seed: value for seed, value in values if is_defined(value)}


def over(seeds: set[int]) -> str:
    """How many seeds a mean is over."""
    return f" (means of {len(seeds)} seeds)" if len(seeds) > 1 else ""


def gap(facts: Facts, method: str, seeds: set[int]) -> str:
    """How much of the way to the oracle was gone."""
    rows = (facts.rows[method, seed, facts.first_stage] for seed in sorted(seeds))
    closed = mean_sd([row.gap_closed for row in rows])
    if closed.mean is None or closed.count < len(seeds):
        return ""
    return f", {form.percent(closed.mean)} of the way from random to the oracle"


def trust(facts: Facts, method: str, stage: int, lower: bool, level: float) -> str:
    """Whether the difference is more than chance."""
    if len(facts.seeds) < MIN_SEEDS:
        few = "This is one seed" if len(facts.seeds) == 1 else f"These are {len(facts.seeds)} seeds"
        return f"{few}: no test is possible, and the order of the methods may be chance."
    verdict = against_random(facts)[0].get((method, stage))
    if not lower:
        return ""
    if verdict is None:
        return "There is no test of the difference (the notes under Table A say why)."
    test = f"(paired one-tailed t-test, Holm-adjusted p {form.p_value(verdict.adjusted)}, level {level:g})"
    return f"That is {'' if verdict.adjusted < level else 'not '}more than chance would explain {test}."


def unfinished(facts: Facts) -> str:
    """A warning while selections are missing."""
    return "The run is unfinished, so this may change." if facts.missing else ""
