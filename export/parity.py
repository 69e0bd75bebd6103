"""How far an engine's answers lie from another's on real crops, and how far they may.

The reference is the graph in PyTorch at fp32. Keypoints count by their score: where the net sees nothing, two cells of
a flat map compete, and a rounding decides which wins.

Shapes: N crops, S crop side, J joints, D embedding, G reference frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from alpose.runtime.bundle.golden import Golden, Tolerances
from alpose.runtime.bundle.manifest import Precision
from alpose.runtime.errors import AlposeError, ConfigError, DataError
from alpose.runtime.types import CONFIDENCE, Engine, Outputs, form_problems
from alpose.trainer.data.crops import Crops
from alpose.trainer.data.records import Bools, Floats
from alpose.trainer.measures.metrics import Failure, Judged, Profile, auroc, judge, mean_error

JUDGED_SCORE = 0.3
"""A joint with a lower reference score has no weight: its place is the net's guess among flat cells."""


GOLDEN_FRAMES = 8
Doubles = npt.NDArray[np.float64]


class ParityError(AlposeError, RuntimeError):
    """A precision whose answers lie too far from the reference."""


FLAT = 1e-6
"""Losses that lie nearer together, as a share of their size or of 1, are one number: float32 rounds them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityFigures:
    """Deviations of one engine from the reference, over the same crops."""

    crops: int
    joints: int
    """Joints that were judged: reference score of at least ``JUDGED_SCORE``."""
    unjudged: int
    """Joints below it."""
    keypoint_median_px: float | None
    """Weighted by the reference score, as p99 is; pixels of the crop. None where no joint was judged."""
    keypoint_p99_px: float | None
    keypoint_max_px: float | None
    score_max: float
    probability_max: float
    confidence_max: float | None
    """Of the joints; None where the graph gives no confidence."""
    embedding_max: float
    """Largest distance between the two unit vectors of a crop."""
    loss_rank_correlation: float
    """Spearman's, of the predicted loss with the reference's."""
    pck: float | None
    """Of this engine, and its difference from the reference's; None without labels, or where none can be scored."""
    pck_change: float | None
    auroc: float | None
    """Of the failure probability, for this engine's own failures; None without labels, or where all or none failed."""
    auroc_change: float | None
    """From the reference's probability for the same failures: between two nets' own failures, the few that a rounding
    turns would hide it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityLimits:
    """What each figure may reach; None leaves one unjudged. Changes are judged in the direction that hurts."""

    keypoint_median_px: float | None = None
    keypoint_p99_px: float | None = None
    keypoint_max_px: float | None = None
    score_max: float | None = None
    probability_max: float | None = None
    confidence_max: float | None = None
    embedding_max: float | None = None
    loss_rank_correlation: float | None = None
    """The least that it may be."""
    pck_change: float | None = None
    """The most that PCK may fall."""
    auroc_change: float | None = None
    """The most that AUROC may fall."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ConfigError(f"parity limit {field.name} must be a number of at least 0, got {value}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


# fp32 is arithmetic in another order. In fp16 and int8 two peaks of nearly equal height can change places, which moves
# a joint across the crop: the largest deviation says nothing there that p99 and PCK do not say better.
LIMITS: Mapping[Precision, ParityLimits] = {
    "fp32": ParityLimits(keypoint_max_px=0.05, score_max=1e-3, probability_max=1e-3, confidence_max=1e-3,
                         embedding_max=1e-3, loss_rank_correlation=0.9999, pck_change=0.001, auroc_change=0.001),
    "fp16": ParityLimits(keypoint_median_px=0.05, keypoint_p99_px=0.5, embedding_max=0.05, loss_rank_correlation=0.999,
                         pck_change=0.005, auroc_change=0.005),
    "int8": ParityLimits(keypoint_median_px=0.5, keypoint_p99_px=4.0, loss_rank_correlation=0.99, pck_change=0.01,
                         auroc_change=0.01),
}  # fmt: skip
"""Keypoint limits are for crops of 128 px and hold at other sizes as they are: they are pixels, as users see them."""


def answer(engine: Engine, frames_NSS3: npt.NDArray[np.uint8], batch: int = 8) -> Outputs:
    """Every frame's answer, ``batch`` frames in a call."""
    if not len(frames_NSS3):
        raise DataError("there are no crops to compare engines on")
    parts = [engine(frames_NSS3[start : start + batch]).named() for start in range(0, len(frames_NSS3), batch)]
    return Outputs(*(np.concatenate([part[name] for part in parts]) for name in parts[0]))


def compare(
    reference: Outputs,
    outputs: Outputs,
    *,
    crops: Crops | None = None,
    profile: Profile | None = None,
    failure: Failure | None = None,
) -> ParityFigures:
    """All figures of one engine.

    Args:
        reference: of the fp32 graph in PyTorch.
        outputs: of the engine, for the same crops in the same order.
        crops: the crops with their labels; without them PCK and AUROC are not known.
        profile: how joints are scored; needed with ``crops``.
        failure: what AUROC calls a failure; image PCK under 0.5 unless given.

    Raises :class:`ParityError` for answers of another form or that are not finite, naming the output.
    """
    count, joints = reference.scores_NJ.shape
    problems = form_problems(outputs, count, joints, reference.embedding_ND.shape[1], reference.named())
    for name, value in outputs.named().items():
        if name not in problems and not np.isfinite(value).all():
            bad = int((~np.isfinite(value)).sum())
            problems[name] = f"has {bad} of {value.size} values that are not finite"
    if problems:
        raise ParityError("; ".join(f"{name} {what}" for name, what in problems.items()))
    distance_NJ = np.linalg.norm(outputs.keypoints_NJ2 - reference.keypoints_NJ2, axis=2).astype(np.float64)
    judged_NJ = reference.scores_NJ >= JUDGED_SCORE
    distance, weight = distance_NJ[judged_NJ], reference.scores_NJ[judged_NJ].astype(np.float64)
    known = bool(judged_NJ.any())
    pck, pck_change, found, found_change = _quality(outputs, reference, crops, profile, failure or Failure())
    return ParityFigures(
        crops=count,
        joints=int(judged_NJ.sum()),
        unjudged=int((~judged_NJ).sum()),
        keypoint_median_px=weighted_quantile(distance, weight, 0.5) if known else None,
        keypoint_p99_px=weighted_quantile(distance, weight, 0.99) if known else None,
        keypoint_max_px=float(distance.max()) if known else None,
        score_max=_largest(outputs.scores_NJ - reference.scores_NJ),
        probability_max=_largest(outputs.failure_probability_N - reference.failure_probability_N),
        confidence_max=(
            None
            if outputs.confidence_NJ is None or reference.confidence_NJ is None
            else _largest(outputs.confidence_NJ - reference.confidence_NJ)
        ),
        embedding_max=_largest(np.linalg.norm(outputs.embedding_ND - reference.embedding_ND, axis=1)),
        loss_rank_correlation=rank_correlation(outputs.predicted_loss_N, reference.predicted_loss_N),
        pck=pck,
        pck_change=pck_change,
        auroc=found,
        auroc_change=found_change,
    )


def exceeded(figures: ParityFigures, limits: ParityLimits) -> tuple[str, ...]:
    """The figures that pass their limits, each in words with its value and limit."""
    found = []
    for field in fields(limits):
        limit, value = getattr(limits, field.name), getattr(figures, field.name)
        if limit is None or value is None:
            continue
        if field.name == "loss_rank_correlation":
            if value < limit:
                found.append(f"{field.name} is {value:.6g}, must be at least {limit:g}")
        elif field.name.endswith("_change"):
            if value < -limit:
                found.append(f"{field.name} is {value:+.4g}, may fall by {limit:g} at most")
        elif value > limit:
            found.append(f"{field.name} is {value:.4g}, may be {limit:g} at most")
    return tuple(found)


def require(figures: ParityFigures, limits: ParityLimits, what: str) -> ParityFigures:
    """The figures, if they keep their limits; otherwise :class:`ParityError` with every one that does not."""
    if failed := exceeded(figures, limits):
        raise ParityError(
            f"{what} differs from fp32 in PyTorch by more than its limits on {figures.crops} crops: {'; '.join(failed)}. "
            "Export at a higher precision, or set other limits if your use allows them"
        )
    return figures


def weighted_quantile(values_M: Doubles, weight_M: Doubles, share: float) -> float | None:
    """The least value that this share of the weight does not exceed; None of nothing."""
    if not len(values_M):
        return None
    order_M = np.argsort(values_M, kind="stable")
    reached_M = np.cumsum(weight_M[order_M])
    place = int(np.searchsorted(reached_M, share * reached_M[-1]))
    return float(values_M[order_M][min(place, len(order_M) - 1)])


def rank_correlation(a_N: Floats, b_N: Floats) -> float:
    """Spearman's; where one of them is constant but for rounding, 1 if both are and 0 otherwise."""
    # Losses that are all one number but for float32's rounding have no ranks, and other sums round otherwise.
    flat = [bool(np.ptp(each_N) <= FLAT * max(1.0, np.abs(each_N).max())) for each_N in (a_N, b_N)]
    if any(flat):
        return float(all(flat))
    return float(stats.spearmanr(a_N, b_N).statistic)


def _quality(
    outputs: Outputs, reference: Outputs, crops: Crops | None, profile: Profile | None, failure: Failure
) -> tuple[float | None, float | None, float | None, float | None]:
    """PCK, its change, AUROC of the failure probability, its change."""
    if crops is None:
        return None, None, None, None
    if profile is None:
        raise ConfigError("crops without a profile: PCK needs one, see alpose.trainer.measures.metrics.profile_for")
    if len(crops) != len(outputs):
        raise DataError(f"{len(outputs)} answers do not fit the labels of {len(crops)} crops")
    judged, failed_N, defined_N = judge_outputs(outputs, crops, profile, failure)
    before = judge_outputs(reference, crops, profile, failure)[0]
    ours, theirs = (auroc(one.failure_probability_N[defined_N], failed_N[defined_N]) for one in (outputs, reference))
    pck = judged.pck()
    return pck, _change(pck, before.pck()), ours, _change(ours, theirs)


def judge_outputs(outputs: Outputs, crops: Crops, profile: Profile, failure: Failure) -> tuple[Judged, Bools, Bools]:
    """Right and wrong joints, who failed, and of whom that can be said."""
    offset_NJ2 = outputs.keypoints_NJ2 - crops.joints_NJ2
    distance_NJ = crops.distance(offset_NJ2)
    judged = judge(crops.data, distance_NJ, outputs.scores_NJ, profile)
    error_N = mean_error(distance_NJ, crops.labelled_NJ, crops.side_N)
    return judged, *failure.failed(judged.image_pck(), error_N)


def _largest(deviation: npt.NDArray[np.floating]) -> float:
    return float(np.abs(deviation).max())


def _change(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


# --- reference frames


def extreme_crop(frames_NSS3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The crop of the greatest contrast, every colour of it either 0 or 255 (1, S, S, 3)."""
    frame_SS3 = frames_NSS3[int(np.argmax(frames_NSS3.std(axis=(1, 2, 3))))]
    return np.where(frame_SS3 >= frame_SS3.mean(), 255, 0).astype(np.uint8)[None]


def appended(outputs: Outputs, more: Outputs) -> Outputs:
    """Answers to the crops of both, one behind the other."""
    return Outputs(
        *(np.concatenate(pair) for pair in zip(outputs.named().values(), more.named().values(), strict=True))
    )


def golden_frames(
    frames_NSS3: npt.NDArray[np.uint8], expected: Outputs, given: Outputs, precision: Precision
) -> Golden:
    """Frames from the surest to the worst by their probability of failure, with tolerances for this precision.

    fp32 is arithmetic in another order: its tolerances are fixed. A lower precision answers differently by nature, and
    another engine at that precision about as much: it gets twice what ONNX Runtime was seen to do on these frames. Of
    int8 the last frame is always among them.
    """
    order_N = np.argsort(expected.failure_probability_N, kind="stable")
    rows_G = order_N[np.unique(np.linspace(0, len(order_N) - 1, GOLDEN_FRAMES).astype(np.int64))]
    if precision == "int8" and len(order_N) - 1 not in rows_G:
        rows_G = np.append(rows_G[:-1] if len(rows_G) == GOLDEN_FRAMES else rows_G, len(order_N) - 1)
    expected_G, given_G = (Outputs(*(value[rows_G] for value in out.named().values())) for out in (expected, given))
    floor = Tolerances(keypoints_px=0.1, score=2e-3, predicted_loss=2e-3 * (1 + float(np.std(expected.predicted_loss_N))),
                       probability=2e-3, embedding=2e-3, confidence=2e-3)  # fmt: skip
    if precision == "fp32":
        return Golden(frames_NSS3[rows_G], expected_G, floor)
    judged_GJ = expected_G.scores_NJ >= 0.3
    moved_GJ = np.linalg.norm(given_G.keypoints_NJ2 - expected_G.keypoints_NJ2, axis=2)
    seen = (
        float(moved_GJ[judged_GJ].max(initial=0.0)),
        float(np.abs(given_G.scores_NJ - expected_G.scores_NJ).max()),
        float(np.abs(given_G.predicted_loss_N - expected_G.predicted_loss_N).max()),
        float(np.abs(given_G.failure_probability_N - expected_G.failure_probability_N).max()),
        float(np.linalg.norm(given_G.embedding_ND - expected_G.embedding_ND, axis=1).max()),
        float(np.abs(given_G.named()[CONFIDENCE] - expected_G.named()[CONFIDENCE]).max()),
    )
    low = asdict(floor)
    ceiling = {"probability": 0.99, "embedding": 1.99, "confidence": 0.99}
    wide = {
        name: min(max(2 * value, low[name]), ceiling.get(name, np.inf)) for name, value in zip(low, seen, strict=True)
    }
    return Golden(frames_NSS3[rows_G], expected_G, Tolerances(**wide))
