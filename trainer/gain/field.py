"""The field of the experiment: frames that can be labelled, and people who test what the labels were worth.

========== ============================================ ================================= ========================
dataset    the field                                    tests, of the field               tests, of the old domain
========== ============================================ ================================= ========================
synthetic  a stream: the old domain, a few frames of a  people seen by a turned camera    the test split
           camera that was turned by a quarter, and as
           many dark and blurred ones
lsp        half of the pool, by picture                 the other half                    the test split
========== ============================================ ================================= ========================

For choices (``development``) the field is three quarters of that half, and the fourth quarter tests: the half that is reported is
not looked at.

Shapes: N people, J joints, L limbs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import Skeleton

from ..cycles.run import Run, half_of_pool
from ..data.crops import Crops, prepare
from ..data.images import Images
from ..data.records import Bools, Floats, PoseData, join, joint_boxes
from ..data.synthetic import read_people

log = logging.getLogger("alpose")

BENCHMARKS = ("lsp", "synthetic")
"""Datasets that say who is labelled first; the others draw them by seed, so that no field is left that all base models miss."""
OUTSIDE_PX = 2.0
"""How far beyond the edge of its picture a label must lie to be wrong: rounding moves labels by a pixel."""
TOO_LONG = 2.5
"""A limb that is so many times too long beside the second largest of its person cannot be one, however the person is turned."""
LEAST_LIMBS = 6
"""Labelled limbs that a person must have for that."""


@dataclass(frozen=True, slots=True)
class TestSet:
    """People who test, and how many of their labels were wrong and do not count."""

    __test__ = False

    name: str
    what: str
    crops: Crops
    removed: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """Everything that the experiment trains and tests on."""

    everyone: Crops
    """Those who trained the base model, then the frames of the field."""
    labelled: int
    """How many trained the base model."""
    changed_N: Bools
    """Which frames of the field come after the change; all where the whole field is another domain."""
    new: TestSet
    old: TestSet

    @property
    def pool(self) -> Crops:
        """The frames of the field, which can be labelled."""
        return self.everyone.subset(np.arange(self.labelled, len(self.everyone)))


def open_field(run: Run, cache: Path, *, share: float, development: bool, most: int | None = None) -> Field:
    """The field of a benchmark.

    Args:
        run: the benchmark.
        cache: for crops.
        share: of the stream's frames that come after the change (``synthetic``).
        development: for choices, not for the report.
        most: so many people of each test at most, from all over it.
    """
    if run.benchmark.name == "synthetic":
        return _stream(run, cache, share, development, most)
    pool_M, test_M = half_of_pool(run, 0), half_of_pool(run, 1)
    if development:
        _, place_M = np.unique(run.people.data.image_N[pool_M], return_inverse=True)
        pool_M, test_M = pool_M[place_M % 4 != 3], pool_M[place_M % 4 == 3]
    first_M = np.flatnonzero(np.any([run.initial(seed) for seed in range(run.config.seeds)], axis=0))
    everyone = run.people.subset(np.concatenate([first_M, pool_M]))
    which = "a quarter of the half that can be labelled" if development else "the other half of the pool"
    return Field(everyone, len(first_M), np.ones(len(pool_M), dtype=np.bool_),
                 _cleaned("field", which, _some(run.people.subset(test_M), most)), _cleaned("old", "the test split", _some(run.test, most)))  # fmt: skip


def _some(crops: Crops, most: int | None) -> Crops:
    """At most so many people, evenly from first to last."""
    if most is None or most >= len(crops):
        return crops
    return crops.subset(np.linspace(0, len(crops) - 1, most).round().astype(np.int64))


# --- Labels that are wrong


def wrong_labels(
    joints_NJ2: Floats, labelled_NJ: Bools, size_N2: npt.NDArray[np.floating], skeleton: Skeleton
) -> Bools:
    """Labels that cannot be right, (N, J), by two rules that need no eye.

    *Outside*: the joint lies beyond the edge of its picture, by more than :data:`OUTSIDE_PX`.

    *Too long*: a projected limb is at most as long as the limb. Each limb's length over what is usual for it (the median over
    everybody of its share of a person's limbs) says how large the person is at least. Where one limb says :data:`TOO_LONG`
    times what the second largest of at least :data:`LEAST_LIMBS` says, all others would have to point at the camera: its ends
    do not count.

    Args:
        joints_NJ2: pixels of the pictures.
        labelled_NJ: which are labelled.
        size_N2: width and height of everybody's picture.
        skeleton: whose links are the limbs.
    """
    beyond_NJ = ((joints_NJ2 < -OUTSIDE_PX) | (joints_NJ2 > size_N2[:, None] - 1 + OUTSIDE_PX)).any(axis=2)
    wrong_NJ = beyond_NJ & labelled_NJ
    if not skeleton.links:
        return np.asarray(wrong_NJ)
    a_L, b_L = (np.array(ends) for ends in zip(*skeleton.links, strict=True))
    known_NL = labelled_NJ[:, a_L] & labelled_NJ[:, b_L]
    length_NL = np.where(known_NL, np.linalg.norm(joints_NJ2[:, a_L] - joints_NJ2[:, b_L], axis=2), np.nan)
    enough_N = known_NL.sum(axis=1) >= LEAST_LIMBS
    if not enough_N.any():
        return np.asarray(wrong_NJ)
    whole_N1 = np.nanmean(length_NL[enough_N], axis=1, keepdims=True)
    usual_L = np.nanmedian(length_NL[enough_N] / np.maximum(whole_N1, 1e-6), axis=0)
    at_least_NL = np.nan_to_num(length_NL / np.maximum(usual_L, 1e-6))
    ranked_NL = np.sort(at_least_NL, axis=1)
    alone_NL = (at_least_NL > TOO_LONG * ranked_NL[:, -2:-1]) & enough_N[:, None]
    for person, limb in zip(*np.nonzero(alone_NL), strict=True):
        wrong_NJ[person, [a_L[limb], b_L[limb]]] = True
    return np.asarray(wrong_NJ)


def _cleaned(name: str, what: str, crops: Crops) -> TestSet:
    """The same people without labels that cannot be right."""
    data = crops.data
    size_N2 = np.array([data.image(row).shape[1::-1] for row in range(len(data))], dtype=np.float64)
    wrong_NJ = wrong_labels(data.joints_NJ2, data.labelled_NJ, size_N2, data.skeleton)
    removed = int(wrong_NJ.sum())
    if removed:
        log.info("%s: %d of %d labels of %d people cannot be right and do not count", data.name, removed,
                 int(data.labelled_NJ.sum()), int(wrong_NJ.any(axis=1).sum()))  # fmt: skip
        data = replace(data, labelled_NJ=data.labelled_NJ & ~wrong_NJ, visible_NJ=data.visible_NJ & ~wrong_NJ)
        crops = replace(crops, data=data)
    return TestSet(name, what, crops, removed)


# --- A stream with a rare change


@dataclass(frozen=True, slots=True)
class Turned:
    """Pictures turned by a quarter, anticlockwise: what a camera sees that was mounted on its side."""

    upright: Images

    def __len__(self) -> int:
        return len(self.upright)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One picture, uint8 (H, W, 3) RGB."""
        return np.ascontiguousarray(np.rot90(self.upright.read(index)))

    def describe(self, index: int) -> str:
        """What the pixels follow from."""
        return f"turned:{self.upright.describe(index)}"


def turned(data: PoseData) -> PoseData:
    """The same people, seen by a camera that was turned by a quarter."""
    width_N = np.array([data.image(row).shape[1] for row in range(len(data))], dtype=np.float32)
    x_NJ, y_NJ = data.joints_NJ2[..., 0], data.joints_NJ2[..., 1]
    joints_NJ2 = np.stack([y_NJ, width_N[:, None] - 1 - x_NJ], axis=2).astype(np.float32)
    return replace(
        data, name=f"{data.name}-turned", ids=tuple(f"turned/{id_}" for id_ in data.ids), images=Turned(data.images),
        joints_NJ2=joints_NJ2, boxes_N4=joint_boxes(joints_NJ2, data.labelled_NJ),
    )  # fmt: skip


def _stream(run: Run, cache: Path, share: float, development: bool, most: int | None) -> Field:
    sizes = run.config.sizes
    rare = round(share * sizes.pool)
    if not 0 < rare < sizes.pool // 3:
        raise ConfigError(f"--share is a share of the stream between 0 and a third, at least one frame of {sizes.pool}: "
                          f"got {share}")  # fmt: skip
    seed = 200 if development else 100
    first = run.benchmark.train.subset(np.flatnonzero(run.initial(0)))
    stream = join(
        "synthetic-stream",
        read_people(seed=seed, count=sizes.pool - 2 * rare),
        turned(read_people(seed=seed + 1, count=rare)),
        read_people(seed=seed + 2, count=rare, domain="hard"),
    )
    everyone = prepare(join("synthetic-harvest", first, stream), run.config.recipe.crop, cache)
    test = turned(read_people(seed=seed + 3, count=min(sizes.test, most or sizes.test)))
    place_N = np.arange(sizes.pool) - (sizes.pool - 2 * rare)
    return Field(
        everyone, len(first), (place_N >= 0) & (place_N < rare),
        TestSet("field", "people after the change: the camera was turned by a quarter",
                prepare(test, replace(run.config.recipe.crop, context=0.0), cache)),
        TestSet("old", "the test split", _some(run.test, most)),
    )  # fmt: skip
