"""From the stored scores of a run to every number of its page: ``RUN/detect.json``.

The best free score of a set is the one with the highest mean AUROC *on that very set*: chosen with hindsight, which
favours it, so that whoever beats it has beaten every free score.

Shapes: D detectors, S seeds, N people of one set whose PCK is defined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alpose.runtime.errors import ConfigError, DataError

from ..measures.joint_measures import measure_joints
from ..measures.metrics import auroc
from ..measures.statistics import bins_of_equal_mass
from .comparing import RESAMPLES, Bootstrap, Difference, adjusted, bootstrap, bootstrap_views
from .measures import Measures, Truth, measure, truth_of, way_to_oracle
from .results import HEADLINE, Comparison, DetectResults, DetectRow, JointRow, Question, Rating, Reliability, SetResult
from .stored import DAMAGED, Bools, Catalogue, DetectorInfo, Floats, SetInfo, SetScores, set_file


def evaluate(run: Path, *, seeds: Sequence[int] | None = None, resamples: int = RESAMPLES) -> DetectResults:
    """Measure every detector on every set, compare them, and write ``RUN/detect.json``.

    Args:
        run: folder of the experiment.
        seeds: these alone, for a run whose other seeds are still computing; all by default.
        resamples: of the people, for the intervals.

    Raises:
        DataNotFoundError: a file of a seed is missing.
        DataError: a file is damaged, seeds are of different people, a score is NaN, or a detector is not in all seeds.
    """
    catalogue = Catalogue.load(run)
    if seeds is not None:
        unknown = [seed for seed in seeds if seed not in catalogue.seeds]
        if unknown or not seeds:
            raise ConfigError(f"seeds {list(seeds)}: {run} has the seeds {', '.join(map(str, catalogue.seeds))}")
        catalogue = replace(catalogue, seeds=tuple(seeds))
    parts = [_one_set(run, catalogue, info, resamples) for info in catalogue.sets]
    comparisons = [comparison for part in parts for comparison in part.comparisons]
    comparisons += _on_damaged_views(run, catalogue, resamples)
    results = DetectResults(
        catalogue=catalogue,
        sets=tuple(part.result for part in parts),
        rows=tuple(row for part in parts for row in part.rows),
        ratings=tuple(rating for part in parts for rating in part.ratings),
        comparisons=_tested(comparisons),
        reliabilities=tuple(item for part in parts for item in part.reliabilities),
        joints=tuple(row for part in parts for row in part.joints),
        resamples=resamples,
    )
    results.save(run)
    return results


@dataclass(frozen=True, slots=True)
class _Part:
    """What one set gives."""

    result: SetResult
    rows: list[DetectRow]
    ratings: list[Rating]
    comparisons: list[Comparison]
    reliabilities: list[Reliability]
    joints: list[JointRow]


def _one_set(run: Path, catalogue: Catalogue, info: SetInfo, resamples: int) -> _Part:
    stored = [SetScores.load(run, seed, info.name) for seed in catalogue.seeds]
    counted_N = _same_people(run, info, catalogue, stored)
    detectors = _scored_in_all(run, info, catalogue, stored)
    truths = [truth_of(scores, catalogue.macro, catalogue.failure) for scores in stored]
    score_DSN = np.array([[scores.scores[d.name][counted_N] for scores in stored] for d in detectors], dtype=np.float64)
    boot = bootstrap([d.name for d in detectors], score_DSN, np.array([t.failed_N for t in truths]),
                     resamples=resamples)  # fmt: skip
    ratings = [Rating(detector=d.name, set=info.name, auroc=boot.estimate(d.name)) for d in detectors]
    best_free = _best_free(detectors, ratings)
    oracle = [auroc(truth.true_loss_N, truth.failed_N) for truth in truths]
    listed = {d.name for d in catalogue.detectors}
    result = SetResult(
        name=info.name,
        people=int(counted_N.sum()),
        left_out=int((~counted_N).sum()),
        failures=tuple(int(truth.failed_N.sum()) for truth in truths),
        pck=tuple(truth.pck for truth in truths),
        worst_pck=tuple(truth.worst_pck for truth in truths),
        oracle_auroc=tuple(oracle),
        best_free=best_free,
        unlisted=tuple(sorted({name for scores in stored for name in scores.scores} - listed)),
    )
    return _Part(
        result,
        _rows(info, catalogue, detectors, score_DSN, truths, result),
        ratings,
        [*_comparisons(info, detectors, boot, best_free), *_of_joints(info, detectors, stored, resamples)],
        _reliabilities(info, detectors, score_DSN, truths),
        list(_joint_rows(info, catalogue, detectors, stored)),
    )


def _same_people(run: Path, info: SetInfo, catalogue: Catalogue, stored: list[SetScores]) -> Bools:
    """Who counts; the same people under every base model, or a bootstrap over people would mean nothing."""
    first = stored[0]
    for seed, scores in zip(catalogue.seeds, stored, strict=True):
        if scores.ids != first.ids or not np.array_equal(scores.labelled_NJ, first.labelled_NJ):
            what = "ids" if scores.ids != first.ids else "labelled_NJ"
            raise DataError(
                f"{run}: {what} of {info.name} under seed {seed} are not those under seed {catalogue.seeds[0]}; "
                "every base model is judged by the same people in the same order: score the set again"
            )
    if not first.counted_N.any():
        raise DataError(f"{run}: nobody of the {len(first.ids)} people of {info.name} has a joint that counts")
    return first.counted_N


def _scored_in_all(run: Path, info: SetInfo, catalogue: Catalogue, stored: list[SetScores]) -> tuple[DetectorInfo, ...]:
    """The detectors with scores under every seed; one that has them under some alone is an error."""
    here = []
    for detector in catalogue.detectors:
        without = [s for s, scores in zip(catalogue.seeds, stored, strict=True) if detector.name not in scores.scores]
        if not without:
            here.append(detector)
        elif len(without) < len(stored):
            raise DataError(
                f"{run}: {detector.name} has not scored {info.name} under the seeds {', '.join(map(str, without))}, "
                "but has under others; finish it, or leave it out of the set under every seed"
            )
    if not here:
        raise DataError(f"{run}: no detector of the catalogue has scored {info.name}")
    return tuple(here)


def _best_free(detectors: Sequence[DetectorInfo], ratings: Sequence[Rating]) -> str | None:
    means = {d.name: rating.auroc.mean for d, rating in zip(detectors, ratings, strict=True) if d.kind == "free"}
    known = {name: mean for name, mean in means.items() if mean is not None}
    return max(known, key=known.__getitem__) if known else None


def _rows(
    info: SetInfo, catalogue: Catalogue, detectors: Sequence[DetectorInfo], score_DSN: Floats,
    truths: Sequence[Truth], result: SetResult,
) -> list[DetectRow]:  # fmt: skip
    names = [d.name for d in detectors]
    found = [[_measured(score_DSN[d, s], truth, detector, info) for s, truth in enumerate(truths)]
             for d, detector in enumerate(detectors)]  # fmt: skip
    rows = []
    for d, name in enumerate(names):
        for s, seed in enumerate(catalogue.seeds):
            free = None if result.best_free is None else found[names.index(result.best_free)][s].auroc
            way = way_to_oracle(found[d][s].auroc, free, result.oracle_auroc[s])
            measures = replace(found[d][s], way_to_oracle=way)
            rows.append(DetectRow(detector=name, set=info.name, seed=seed, measures=measures))
    return rows


def _joint_rows(
    info: SetInfo, catalogue: Catalogue, detectors: Sequence[DetectorInfo], stored: Sequence[SetScores]
) -> Iterator[JointRow]:
    """The detectors that said something of each joint, under every seed."""
    for detector in detectors:
        if all(detector.name in scores.confidences for scores in stored):
            for seed, scores in zip(catalogue.seeds, stored, strict=True):
                found = measure_joints(scores.confidences[detector.name].astype(np.float64), scores.right_NJ,
                                       scores.labelled_NJ, catalogue.joints, oks_M=scores.oks_N)  # fmt: skip
                yield JointRow(detector=detector.name, set=info.name, seed=seed, measures=found)


def _measured(score_N: Floats, truth: Truth, detector: DetectorInfo, info: SetInfo) -> Measures:
    try:
        return measure(score_N, truth, probability=detector.probability)
    except DataError as error:
        raise DataError(f"{detector.name} on {info.name}: {error}") from error


def _comparisons(
    info: SetInfo, detectors: Sequence[DetectorInfo], boot: Bootstrap, best_free: str | None
) -> Iterator[Comparison]:
    names = {d.name for d in detectors}
    shipped = next((d.name for d in detectors if d.kind == "shipped"), None)

    def comparison(question: Question, name: str, against: str) -> Comparison:
        difference = boot.difference(name, against, "less" if question == "slim-shipped" else "greater")
        difference = _untested_where_chosen(difference, info)
        return Comparison(question=question, set=info.name, detector=name, against=against, difference=difference)

    for d in detectors:
        if best_free is not None and d.name != best_free:
            yield comparison("shipped-free" if d.kind == "shipped" else "any-free", d.name, best_free)
        if d.kind == "ceiling" and shipped is not None:
            yield comparison("shipped-ceiling", shipped, d.name)
        if d.kind == "slim" and shipped is not None:
            yield comparison("slim-shipped", d.name, shipped)
        if d.ablates in names:
            yield comparison("ablation", str(d.ablates), d.name)


def _of_joints(
    info: SetInfo, detectors: Sequence[DetectorInfo], stored: Sequence[SetScores], resamples: int
) -> Iterator[Comparison]:
    """AUROC of a wrong joint, of the shipped detector and of the peaks; a person is drawn with all joints."""
    shipped = next((d.name for d in detectors if d.kind == "shipped"), None)
    names = [shipped, "peak"]
    if shipped is None or any(name not in scores.confidences for scores in stored for name in names):
        return
    boot = bootstrap_views(
        [shipped, "peak"],
        [np.array([-scores.confidences[name][scores.labelled_NJ] for name in (shipped, "peak")]) for scores in stored],
        [~scores.right_NJ[scores.labelled_NJ] for scores in stored],
        [np.unique(np.nonzero(scores.labelled_NJ)[0], return_inverse=True)[1] for scores in stored],
        same_people=True, resamples=resamples,
    )  # fmt: skip
    difference = _untested_where_chosen(boot.difference(shipped, "peak", "greater"), info)
    yield Comparison(question="joint-peak", set=info.name, detector=shipped, against="peak", difference=difference)


def _untested_where_chosen(difference: Difference, info: SetInfo) -> Difference:
    """Whoever won where choices were made was chosen for winning there."""
    if info.role != "choice":
        return difference
    return replace(difference, t=None, p=None, reason="choices were made on this set")


def _on_damaged_views(run: Path, catalogue: Catalogue, resamples: int) -> list[Comparison]:
    """The ablations on the people who validated each base model, where choices are made; none in older runs."""
    if not all(set_file(run, seed, DAMAGED).exists() for seed in catalogue.seeds):
        return []
    stored = [SetScores.load(run, seed, DAMAGED) for seed in catalogue.seeds]
    named = [d for d in catalogue.detectors if all(d.name in scores.scores for scores in stored)]
    known = {d.name for d in named}
    boot = bootstrap_views(
        [d.name for d in named],
        [np.array([scores.scores[d.name][scores.counted_N] for d in named], dtype=np.float64) for scores in stored],
        [truth_of(scores, catalogue.macro, catalogue.failure).failed_N for scores in stored],
        [np.unique(np.array(scores.ids)[scores.counted_N], return_inverse=True)[1] for scores in stored],
        same_people=False, resamples=resamples,
    )  # fmt: skip
    found = []
    for d in named:
        if d.ablates in known:
            apart = boot.difference(str(d.ablates), d.name, "greater")
            apart = replace(apart, t=None, p=None, reason="choices were made on these views")
            found.append(Comparison(question="ablation", set=DAMAGED, detector=str(d.ablates), against=d.name,
                                    difference=apart))  # fmt: skip
    return found


def _tested(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Holm's correction: the headline's questions are one family, each other question one of its own."""
    families: dict[str, list[int]] = {}
    for place, comparison in enumerate(comparisons):
        family = "headline" if comparison.question in HEADLINE else comparison.question
        families.setdefault(family, []).append(place)
    result = list(comparisons)
    for places in families.values():
        for place, difference in zip(places, adjusted([comparisons[p].difference for p in places]), strict=True):
            result[place] = replace(comparisons[place], difference=difference)
    return tuple(result)


def _reliabilities(
    info: SetInfo, detectors: Sequence[DetectorInfo], score_DSN: Floats, truths: Sequence[Truth]
) -> list[Reliability]:
    failed_K = np.concatenate([truth.failed_N for truth in truths])
    found = []
    for d, detector in enumerate(detectors):
        if detector.probability:
            predicted_B, observed_B, people_B = bins_of_equal_mass(score_DSN[d].ravel(), failed_K)
            found.append(
                Reliability(detector=detector.name, set=info.name, predicted=tuple(predicted_B.tolist()),
                            observed=tuple(observed_B.tolist()), people=tuple(people_B.tolist()))
            )  # fmt: skip
    return found
