"""How wrong a pose is (PCK, in two named profiles), and how well a score tells which poses are wrong.

Shapes: N people, J joints, M selected people.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import stats

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import from_json, read_json
from alpose.runtime.skeleton import Skeleton

from ..data.records import Bools, Floats, PoseData
from .failures import DEFAULT_LIMITS, FAILURES, FailureName

AnyFloats = npt.NDArray[np.floating[Any]]

ProfileName = Literal["standard", "official-2021"]
PROFILES: tuple[ProfileName, ...] = get_args(ProfileName)

# The published evaluation code looks at linspace(0, 1, 20) only: neither 0.2 nor 0.5 is among them, and which
# neighbour the printed tables used is not known.
_LINSPACE_NEIGHBOURS = {0.2: (3 / 19, 4 / 19), 0.5: (9 / 19, 10 / 19)}


Ruler = Literal["head", "torso", "box"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a prediction is scored, for one skeleton."""

    name: ProfileName
    threshold: float
    """A joint is right when its distance is under this share of the normaliser."""
    normaliser: str
    """In words, for the report."""
    by: Ruler = "torso"
    """What distances are measured by."""
    macro: bool
    """Average of the joints' PCK (published code) in place of the share over all joints (standard)."""
    skip: tuple[int, ...] = ()
    """Joints that the convention leaves out."""
    drop_occluded: bool = False
    min_peak: float = 0.0
    """A lower peak, as a share of the training peak, is a miss."""


def profile_for(name: ProfileName, skeleton: Skeleton, head_boxes: bool = True) -> Profile:
    """The profile for a skeleton: PCKh@0.5 for people with head boxes (MPII), PCK@0.2 of the torso otherwise.

    ``head_boxes`` says whether MPII's people come with them; people whom others labelled do not, and are measured by
    the torso. A skeleton without shoulders and hips by these names is measured by the longer side of its box, at 0.1.

    ``standard`` is the literature's: MPII by 0.6 of the head diagonal without pelvis and thorax; torso =
    |left shoulder - right hip|, or the other diagonal where that one is not labelled; joints count equally.
    ``official-2021`` is what the code published with the LL++ paper computes: MPII by the whole head diagonal; LSP
    and LSPET by the longer of both diagonals, *unlabelled garbage corners included*; occluded joints dropped;
    the mean of per-joint values; a peak under a quarter of the training peak is a miss.
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown metric profile {name!r}; known: {', '.join(PROFILES)}")
    mpii = skeleton.name == "mpii" and head_boxes
    if not mpii and not _has_torso(skeleton):
        return Profile(name=name, threshold=0.1, normaliser="longer side of the box", by="box",
                       macro=name == "official-2021")  # fmt: skip
    if name == "standard":
        skip = (skeleton.index("pelvis"), skeleton.index("thorax")) if mpii else ()
        words = "0.6 x head diagonal" if mpii else "torso diagonal, valid corners only"
        return Profile(name=name, threshold=0.5 if mpii else 0.2, normaliser=words, by="head" if mpii else "torso",
                       macro=False, skip=skip)  # fmt: skip
    words = "head diagonal" if mpii else "longer torso diagonal, flags ignored"
    return Profile(name=name, threshold=0.5 if mpii else 0.2, normaliser=words, by="head" if mpii else "torso",
                   macro=True, drop_occluded=True, min_peak=0.25)  # fmt: skip


def profile_of(name: ProfileName, data: PoseData) -> Profile:
    """The profile for people as they come: see :func:`profile_for`."""
    return profile_for(name, data.skeleton, head_boxes=data.head_N is not None)


def normaliser(data: PoseData, profile: Profile) -> Floats:
    """Length in frame pixels that distances are divided by, (N,); NaN where it cannot be had."""
    if profile.by == "head":
        if data.head_N is None:
            raise DataError(f"{data.name}: PCKh needs head boxes, and this set has none")
        return data.head_N * (0.6 if profile.name == "standard" else 1.0)
    if profile.by == "box":
        return np.asarray((data.boxes_N4[:, 2:] - data.boxes_N4[:, :2]).max(axis=1), dtype=np.float32)
    left_N, left_valid_N = _diagonal(data, "left_shoulder", "right_hip")
    right_N, right_valid_N = _diagonal(data, "right_shoulder", "left_hip")
    if profile.name == "official-2021":
        return np.maximum(left_N, right_N)
    either_N = np.where(left_valid_N, left_N, np.where(right_valid_N, right_N, np.nan))
    # A torso seen from its end has no length to measure by.
    return np.where(either_N > 1.0, either_N, np.nan).astype(np.float32)


def words_of_length(profile: Profile) -> str:
    """Return the profile's normaliser in a word that needs no literature."""
    if profile.by == "box":
        return "longer side of the person's box"
    return "head size" if profile.by == "head" else "torso diagonal"


def _has_torso(skeleton: Skeleton) -> bool:
    return {"left_shoulder", "right_shoulder", "left_hip", "right_hip"} <= set(skeleton.joints)


def _diagonal(data: PoseData, a: str, b: str) -> tuple[Floats, Bools]:
    i, j = data.skeleton.index(a), data.skeleton.index(b)
    length_N = np.linalg.norm(data.joints_NJ2[:, i] - data.joints_NJ2[:, j], axis=1)
    return length_N, data.labelled_NJ[:, i] & data.labelled_NJ[:, j]


@dataclass(frozen=True, slots=True)
class Judged:
    """Every joint of every person, right or wrong."""

    right_NJ: Bools
    counts_NJ: Bools
    """Joints that are scored: labelled, not skipped by the profile, of a person with a normaliser."""
    macro: bool

    def pck(self, rows_M: npt.NDArray[np.integer] | None = None) -> float | None:
        """PCK over these people (all by default); None when nothing can be scored."""
        rows = slice(None) if rows_M is None else rows_M
        right_MJ, counts_MJ = self.right_NJ[rows] & self.counts_NJ[rows], self.counts_NJ[rows]
        if not counts_MJ.any():
            return None
        if not self.macro:
            return float(right_MJ.sum() / counts_MJ.sum())
        total_J = counts_MJ.sum(axis=0)
        return float((right_MJ.sum(axis=0)[total_J > 0] / total_J[total_J > 0]).mean())

    def image_pck(self) -> Floats:
        """PCK of each image alone, (N,); NaN where nothing can be scored."""
        count_N = self.counts_NJ.sum(axis=1)
        right_N = (self.right_NJ & self.counts_NJ).sum(axis=1)
        return np.where(count_N > 0, right_N / np.maximum(count_N, 1), np.nan).astype(np.float32)


def judge(
    data: PoseData, distance_NJ: Floats, peak_NJ: Floats, profile: Profile, threshold: float | None = None
) -> Judged:
    """Compare distances (frame pixels) with the profile's threshold.

    Args:
        data: people with their labels.
        distance_NJ: predicted to labelled position, in frame pixels.
        peak_NJ: heatmap peak as a share of the training peak.
        profile: how to score.
        threshold: in place of the profile's own.
    """
    length_N = normaliser(data, profile)
    counts_NJ = (data.visible_NJ if profile.drop_occluded else data.labelled_NJ) & np.isfinite(length_N)[:, None]
    counts_NJ[:, list(profile.skip)] = False
    limit_N1 = (profile.threshold if threshold is None else threshold) * np.nan_to_num(length_N)[:, None]
    return Judged((distance_NJ < limit_N1) & (peak_NJ >= profile.min_peak), counts_NJ, profile.macro)


def mean_error(distance_NJ: Floats, labelled_NJ: Bools, side_N: Floats) -> AnyFloats:
    """Return the mean distance over a person's labelled joints as a share of the crop's side, (N,); NaN without labels.

    Args:
        distance_NJ: predicted to labelled position, in frame pixels.
        labelled_NJ: joints with a label.
        side_N: side of the crop, in frame pixels.
    """
    count_N = labelled_NJ.sum(axis=1)
    total_N = np.where(labelled_NJ, distance_NJ, 0.0).sum(axis=1)
    return np.where(count_N > 0, total_N / (side_N * np.maximum(count_N, 1)), np.nan)


def neighbour_thresholds(profile: Profile) -> tuple[float, ...]:
    """The thresholds of the published evaluation table around the named one (``official-2021`` only)."""
    return _LINSPACE_NEIGHBOURS.get(profile.threshold, ()) if profile.name == "official-2021" else ()


# --- Who failed?


@dataclass(frozen=True, slots=True)
class Failure:
    """When a pose counts as failed: chosen once, and the same in training, calibration, bundle, field and benchmark.

    ``image-pck``
        fewer than ``limit`` of the scored joints are right under the profile (default 0.5, the papers').
    ``any-joint``
        one scored joint or more is wrong under the profile; there is no limit.
    ``mean-error``
        the mean distance over labelled joints exceeds ``limit`` sides of the crop (default 0.1).
    """

    name: FailureName = "image-pck"
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.name not in FAILURES:
            raise ConfigError(f"unknown definition of failure {self.name!r}; known: {', '.join(FAILURES)}")
        limit = DEFAULT_LIMITS[self.name] if self.limit is None else float(self.limit)
        if self.name == "any-joint" and limit is not None:
            raise ConfigError(f"failure 'any-joint' has no limit, got {limit}: leave it out")
        if limit is not None and not 0 < limit <= 1:
            raise ConfigError(f"failure {self.name!r}: the limit must be in (0, 1], got {limit}")
        object.__setattr__(self, "limit", limit)

    def failed(self, image_pck_N: AnyFloats, mean_error_N: AnyFloats | None = None) -> tuple[Bools, Bools]:
        """Return who failed and of whom that can be said at all: two masks, (N,) each.

        Args:
            image_pck_N: share of each person's scored joints that are right; NaN where none is scored.
            mean_error_N: from :func:`mean_error`; only the definition ``mean-error`` needs it.
        """
        if self.name == "mean-error":
            if mean_error_N is None:
                raise DataError("failure 'mean-error' needs the distances of the joints, which are not at hand here")
            return np.nan_to_num(mean_error_N, nan=0.0) > (self.limit or 0.0), np.isfinite(mean_error_N)
        limit = 1.0 if self.limit is None else self.limit
        return np.nan_to_num(image_pck_N, nan=1.0) < limit, np.isfinite(image_pck_N)

    @property
    def label(self) -> str:
        """The definition in a few words, for tables: ``image PCK below 0.5``."""
        if self.name == "any-joint":
            return "any joint wrong"
        what = "image PCK below" if self.name == "image-pck" else "mean error, in sides of the crop, above"
        return f"{what} {self.limit:g}"

    def words(self, profile: Profile) -> str:
        """Return the definition as a sentence for people who deploy."""
        right = f"within {profile.threshold:g} of the {words_of_length(profile)}"
        if self.name == "image-pck":
            share = "half" if self.limit == 0.5 else f"{100 * (self.limit or 0):g} %"
            return f"A pose fails when fewer than {share} of its joints are right: {right} from where they truly are."
        if self.name == "any-joint":
            return f"A pose fails when one joint or more is wrong: not {right} from where it truly is."
        return (f"A pose fails when its joints lie further than {100 * (self.limit or 0):g} % of the side of the crop "
                "from where they truly are, on average.")  # fmt: skip


def fitted_failure(model: Path | None, name: FailureName | None = None, limit: float | None = None) -> Failure:
    """The definition that is stated, or the one that a model was fitted for; the house's where neither says.

    Args:
        model: its folder or a file in it, whose ``model.json`` is read where there is one.
        name: the definition, where it is stated.
        limit: its limit, or another one for the model's own definition.
    """
    facts = None if model is None else (model if model.is_dir() else model.parent) / "model.json"
    if name is not None or facts is None or not facts.exists():
        return Failure(name or "image-pck", limit)
    fitted = read_json(facts).get("facts", {}).get("failure")
    own = Failure() if fitted is None else from_json(Failure, fitted, "failure")
    return own if limit is None else Failure(own.name, limit)


# --- Does the score find the failures?


def auroc(score_N: AnyFloats, failed_N: Bools) -> float | None:
    """Probability that a failure scores higher than a success, ties half; None unless both occur."""
    failures, successes = int(failed_N.sum()), int((~failed_N).sum())
    if not failures or not successes:
        return None
    rank_N = stats.rankdata(score_N)
    return float((rank_N[failed_N].sum() - failures * (failures + 1) / 2) / (failures * successes))


def aurc(score_N: AnyFloats, failed_N: Bools) -> float | None:
    """Area under the risk-coverage curve: mean failure rate of the k lowest-scored images, over all k.

    Ties share their expected place, so that a constant score has the plain failure rate as its area.
    """
    if not len(score_N):
        return None
    return float(risk_coverage(score_N, failed_N).mean())


def augrc(score_N: AnyFloats, failed_N: Bools) -> float | None:
    """Area under the generalized risk-coverage curve: the share of all images that are kept and fail, over all coverages.

    Traub et al., NeurIPS 2024. AURC divides by who is kept, so that the first few weigh most; here a failure among the
    first costs as much as one among the last. By trapezia from (0, 0), ties in their expected place, which makes it
    ``(1 - AUROC) · rate · (1 - rate) + rate² / 2`` with the failure rate. None of nobody.
    """
    count = len(score_N)
    if not count:
        return None
    risk_N = risk_coverage(score_N, failed_N) * np.arange(1, count + 1) / count
    return float((risk_N.sum() - risk_N[-1] / 2) / count)


def risk_coverage(score_N: AnyFloats, failed_N: Bools) -> npt.NDArray[np.float64]:
    """Failure rate among the k images that score lowest, for k = 1..N."""
    _, group_N, size_G = np.unique(score_N, return_inverse=True, return_counts=True)
    rate_G = np.bincount(group_N, weights=failed_N) / size_G
    expected_N = np.repeat(rate_G, size_G)
    return np.cumsum(expected_N) / np.arange(1, len(score_N) + 1)


def correlation(score_N: AnyFloats, loss_N: AnyFloats) -> tuple[float | None, float | None]:
    """Spearman's and Pearson's correlation of a score with the true loss, over finite pairs; None if constant."""
    fine_N = np.isfinite(score_N) & np.isfinite(loss_N)
    score_N, loss_N = score_N[fine_N], loss_N[fine_N]
    if len(score_N) < 2 or np.ptp(score_N) == 0 or np.ptp(loss_N) == 0:
        return None, None
    spearman = stats.spearmanr(score_N, loss_N).statistic
    return float(spearman), float(np.corrcoef(score_N.astype(np.float64), loss_N.astype(np.float64))[0, 1])


def precision(failed_M: Bools) -> float | None:
    """Share of failures among what was selected."""
    return float(failed_M.mean()) if len(failed_M) else None


def gap_closed(selected: float | None, pool: float | None, oracle: float | None) -> float | None:
    """How far a selection's PCK lies from the pool's mean (0) towards the oracle's (1)."""
    if selected is None or pool is None or oracle is None or pool - oracle <= 0:
        return None
    return (pool - selected) / (pool - oracle)
