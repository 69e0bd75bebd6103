"""Is one detector better than another, or was it these people, or these base models?

Two intervals for every mean over seeds of an AUROC, and for every difference of two:

- *people*: the same resample of the set's people for all detectors and all seeds, so that a difference is paired. It
  says how far other people of this kind might move the number, for these base models.
- *people and seeds*: the seeds are drawn again besides. It says how far other base models might move it too. Three
  seeds say little about that: read it as a warning, not as a coverage of 95 %.

And a paired one-tailed t-test over the seeds, with Holm's correction.

Shapes: D detectors, S seeds, N people of one set, R resamples, F failures, G successes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError

from ..measures.statistics import Alternative, Doubles, draws, holm, paired_t_test, percentiles
from .stored import Bools, Floats

LEVEL = 0.95
"""Of every interval."""
RESAMPLES = 2_000
BLOCK = 250
"""Resamples that are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Percentile interval of a bootstrap; None where no resample had both failures and successes."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds with both intervals."""

    mean: float | None
    people: Interval
    seeds: Interval
    """People and seeds drawn again; the same as ``people`` with one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """AUROC of one detector less that of another, on one set."""

    estimate: Estimate
    per_seed: tuple[float | None, ...]
    alternative: Alternative
    t: float | None
    p: float | None
    holm: float | None
    """Adjusted over the tests of the same question; None until :func:`adjusted` has seen them all."""
    reason: str | None
    """Why there is no test; None when there is one."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """AUROCs of one set, and of its resamples."""

    names: tuple[str, ...]
    auroc_DS: Doubles
    """NaN where it is not defined."""
    resampled_DSR: Doubles
    """NaN where a resample lacks failures or successes."""
    drawn_RS: npt.NDArray[np.int64]
    """The seeds that each resample draws, where seeds are drawn too."""

    def estimate(self, name: str) -> Estimate:
        """Mean AUROC over seeds, with intervals."""
        row = self.names.index(name)
        return self._estimate(self.auroc_DS[row], self.resampled_DSR[row])

    def difference(self, name: str, against: str, alternative: Alternative) -> Difference:
        """``name`` less ``against``, paired by person and by seed; the test is whether it is ``alternative``."""
        a, b = self.names.index(name), self.names.index(against)
        apart_S = self.auroc_DS[a] - self.auroc_DS[b]
        values_a, values_b = self.auroc_DS[a].tolist(), self.auroc_DS[b].tolist()
        test = paired_t_test(values_a, values_b, alternative)
        return Difference(
            estimate=self._estimate(apart_S, self.resampled_DSR[a] - self.resampled_DSR[b]),
            per_seed=tuple(value if np.isfinite(value) else None for value in apart_S.tolist()),
            alternative=alternative, t=test.t, p=test.p, holm=None, reason=test.reason,
        )  # fmt: skip

    def _estimate(self, value_S: Doubles, resampled_SR: Doubles) -> Estimate:
        defined = bool(np.isfinite(value_S).all())
        drawn_R = resampled_SR[self.drawn_RS.T, np.arange(resampled_SR.shape[1])].mean(axis=0)
        return Estimate(
            mean=float(value_S.mean()) if defined else None,
            people=interval(resampled_SR.mean(axis=0)),
            seeds=interval(drawn_R),
        )


def interval(value_R: Doubles, level: float = LEVEL) -> Interval:
    """Percentile interval over the resamples that are defined."""
    return Interval(*(percentiles(value_R, level) or (None, None)))


def bootstrap(
    names: Sequence[str], score_DSN: Floats, failed_SN: Bools, *, resamples: int = RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Resample the people of one set, the same for all detectors and all seeds.

    Args:
        names: of the detectors.
        score_DSN: their scores, finite; higher = more likely a failure.
        failed_SN: who failed under the base model of each seed.
        resamples: how many.
        seed: of the random numbers; the same seed gives the same intervals.
    """
    D, S, N = score_DSN.shape
    if len(names) != D or failed_SN.shape != (S, N) or not N or not np.isfinite(score_DSN).all():
        raise DataError(
            f"bootstrap: scores of shape {score_DSN.shape} for {len(names)} detectors and failures of shape "
            f"{failed_SN.shape}; give finite (detectors, seeds, people) and (seeds, people)"
        )
    ranked = [[Ranked.of(score_DSN[d, s], failed_SN[s]) for s in range(S)] for d in range(D)]
    once_N1 = np.ones((N, 1), dtype=np.float32)
    auroc_DS = np.array([[ranked[d][s].auroc(once_N1)[0] for s in range(S)] for d in range(D)])
    resampled_DSR = np.empty((D, S, resamples))
    for start, count_NR in resample_counts(N, resamples, seed):
        for d in range(D):
            for s in range(S):
                resampled_DSR[d, s, start : start + count_NR.shape[1]] = ranked[d][s].auroc(count_NR)
    drawn_RS = np.random.default_rng((seed, 1)).integers(0, S, (resamples, S))
    return Bootstrap(tuple(names), auroc_DS, resampled_DSR, drawn_RS)


def bootstrap_views(
    names: Sequence[str], score_SDN: Sequence[Floats], failed_SN: Sequence[Bools], person_SN: Sequence[npt.NDArray[np.int64]],
    *, same_people: bool, resamples: int = RESAMPLES,
) -> Bootstrap:  # fmt: skip
    """The same where people have several views, or joints, each: a person is drawn with all of them.

    Args:
        names: of the detectors.
        score_SDN: for every seed their scores of its views, (D, N), finite.
        failed_SN: for every seed the views in which the base model failed, (N,).
        person_SN: for every seed whose view it is, (N,), counted from 0.
        same_people: whether the people are the same under every seed, so that they are drawn together.
        resamples: how many.
    """
    seeds = range(len(score_SDN))
    auroc_DS = np.empty((len(names), len(seeds)))
    resampled_DSR = np.empty((*auroc_DS.shape, resamples))
    for s, score_DN, failed_N, person_N in zip(seeds, score_SDN, failed_SN, person_SN, strict=True):
        ranked = [Ranked.of(score_N, failed_N) for score_N in score_DN]
        auroc_DS[:, s] = [each.auroc(np.ones((len(failed_N), 1), dtype=np.float32))[0] for each in ranked]
        for start, count_PR in resample_counts(int(person_N.max()) + 1, resamples, 0 if same_people else s):
            for d, each in enumerate(ranked):
                resampled_DSR[d, s, start : start + count_PR.shape[1]] = each.auroc(count_PR[person_N])
    drawn_RS = np.random.default_rng((0, 1)).integers(0, len(seeds), (resamples, len(seeds)))
    return Bootstrap(tuple(names), auroc_DS, resampled_DSR, drawn_RS)


def resample_counts(people: int, resamples: int, seed: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """How often each person is drawn, (N, R) in blocks of :data:`BLOCK` resamples, each with its place."""
    drawn = draws(people, resamples, np.random.default_rng((seed, 0)))
    for start in range(0, resamples, BLOCK):
        yield start, np.ascontiguousarray(np.array([*islice(drawn, BLOCK)], dtype=np.float32).T)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The order of one score, worked out once for all resamples."""

    failure_F: npt.NDArray[np.int64]
    """Rows of the failures."""
    success_G: npt.NDArray[np.int64]
    """Rows of the successes, lowest score first."""
    below_F: npt.NDArray[np.int64]
    """How many successes score lower than each failure."""
    upto_F: npt.NDArray[np.int64]
    """How many score lower or the same."""

    @classmethod
    def of(cls, score_N: Floats, failed_N: Bools) -> Ranked:
        """Sort the successes, and find every failure's place among them."""
        failure_F, success_G = np.flatnonzero(failed_N), np.flatnonzero(~failed_N)
        # In the order of their scores the failures look up their places one after the other.
        failure_F = failure_F[np.argsort(score_N[failure_F], kind="stable")]
        success_G = success_G[np.argsort(score_N[success_G], kind="stable")]
        sorted_G, sought_F = score_N[success_G], score_N[failure_F]
        below_F, upto_F = (np.searchsorted(sorted_G, sought_F, side) for side in ("left", "right"))
        return cls(failure_F, success_G, below_F, upto_F)

    def auroc(self, count_NR: npt.NDArray[np.float32]) -> Doubles:
        """AUROC (R,) of everybody taken so many times; NaN where no failure or no success is taken.

        What :func:`~alpose.trainer.measures.metrics.auroc` says of the people written out as often as they are counted. Counts
        are whole and their sums stay below 2²⁴, so float32 holds them exactly.
        """
        weight_FR = count_NR[self.failure_F]
        lower_GR = np.zeros((len(self.success_G) + 1, count_NR.shape[1]), dtype=np.float32)
        np.cumsum(count_NR[self.success_G], axis=0, out=lower_GR[1:])
        wins_FR = lower_GR[self.below_F]
        # Ties count half: twice the wins are those below and those up to here.
        wins_FR = wins_FR + (wins_FR if (self.below_F == self.upto_F).all() else lower_GR[self.upto_F])
        wins_R = np.einsum("fr,fr->r", weight_FR, wins_FR, dtype=np.float64) / 2
        pairs_R = weight_FR.sum(axis=0, dtype=np.float64) * lower_GR[-1]
        return np.divide(wins_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)


def adjusted(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """Holm's correction over these tests; those without a p-value are left as they are."""
    tested = [place for place, difference in enumerate(differences) if difference.p is not None]
    p_values = holm([p for difference in differences if (p := difference.p) is not None])
    result = list(differences)
    for place, p in zip(tested, p_values, strict=True):
        result[place] = replace(result[place], holm=p)
    return tuple(result)
