"""Some rendered people, shown to a net before anything costly: does what it answers look like an answer?

A net that was exported wrongly, was never trained, or is described wrongly answers something all the same: numbers that are none,
one pose for every picture, points that have nothing to do with anybody. That needs no labels of the user's to be seen.

Shapes: N pictures, J joints of the net, L of them that the rendered people have too.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.skeleton import Skeleton

from ..data.crops import crop_config, prepare
from ..data.synthetic import read_people
from .joints import match_joints
from .net import ForeignNet
from .reader import NetReader
from .spec import PoseSpec

PEOPLE = 16
REPEATED = 2
"""Of them, those that are shown twice."""
FEWEST_JOINTS = 3
"""In common with the rendered people, so that these say anything."""
STILL_PX = 0.01
"""A point that moves by less over all pictures is always the same."""
NEAR = 0.1
"""Of the input's longer side: a joint within it is found."""
BEYOND = 0.1
"""A point this share of the longer side outside the input counts as outside: feet may be cut off."""
MOST_OUTSIDE = 0.5
CLEARLY = 0.15
"""The share of joints that is found is to be above that of another person's answer by so much."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a net answered on rendered people, on a black and on a white picture."""

    people: int
    joints: int
    """That net and rendered people share by name."""
    found: float | None
    """Share of them that lies within a tenth of the input's longer side; None with too few in common."""
    by_chance: float | None
    """The same where everybody gets the answers that another one got."""
    warnings: tuple[str, ...]
    """Whole sentences; empty where nothing is odd."""

    def lines(self) -> list[str]:
        """For a terminal."""
        if self.found is None:
            said = f"{self.people} rendered people were shown to it"
        else:
            said = (
                f"Of the joints of {self.people} rendered people it finds {100 * self.found:.0f} % to a tenth of the picture "
                f"({100 * (self.by_chance or 0):.0f} % by chance)"
            )
        return [said + ("." if self.warnings else "; nothing is odd."), *(f"Warning: {text}" for text in self.warnings)]


def try_net(net: ForeignNet, reader: NetReader) -> Trial:
    """Show some rendered people to a net, and a black and a white picture.

    Raises:
        ConfigError: a tensor that the spec names has a shape that cannot be read as it says.
    """
    spec = net.spec
    config = crop_config(spec)
    if config.kind == "turned":  # people stand upright
        config = replace(config, kind="box")
    with tempfile.TemporaryDirectory() as scratch:
        crops = prepare(read_people(seed=0, count=PEOPLE), config, Path(scratch))
        people_NHW3 = np.array(crops.read_bare(np.arange(len(crops))))
    plain_2HW3 = np.stack([np.zeros_like(people_NHW3[0]), np.full_like(people_NHW3[0], 255)])
    warnings = not_finite(net(people_NHW3), "rendered people") or not_finite(
        net(plain_2HW3), "a black and a white picture"
    )
    points_NJ2, scores_NJ = _answers(net, reader, people_NHW3)
    # Few, and as many both times: another number of images at once may round otherwise.
    twice = [_answers(net, reader, people_NHW3[:REPEATED])[0] for _ in range(2)]
    found = by_chance = None
    shared_L, order_J = _shared(spec, crops.data.skeleton)
    if len(shared_L) >= FEWEST_JOINTS:
        near = NEAR * max(spec.input.height_px, spec.input.width_px)
        found, by_chance = shares_found(points_NJ2[:, shared_L], crops.joints_NJ2[:, order_J[shared_L]], near)
    if not warnings:
        warnings = [*drawn(*twice), *odd(points_NJ2, scores_NJ, spec)]
    if not warnings and found is not None and by_chance is not None and found < by_chance + CLEARLY:
        warnings = [
            f"On rendered people its points lie where any other person's would ({100 * found:.0f} % of the joints are found, "
            f"{100 * by_chance:.0f} % by chance). Either it was not trained, or it is not for whole people, or something above is wrong: "
            "the order of x and y (--columns), their --unit, the --skeleton, colours and normalisation, or --crop"
        ]
    return Trial(people=len(crops), joints=len(shared_L), found=found, by_chance=by_chance, warnings=tuple(warnings))


def not_finite(tensors: dict[str, Floats], pictures: str) -> list[str]:
    """A sentence on tensors that hold NaN or infinity."""
    bad = [(name, int((~np.isfinite(value.reshape(len(value), -1)).all(axis=1)).sum()), len(value))
           for name, value in tensors.items() if not np.isfinite(value).all()]  # fmt: skip
    if not bad:
        return []
    name, count, of = bad[0]
    others = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    return [
        f"It answers NaN or infinity on {count} of {of} pictures ({pictures}; {name}{others}): its weights are damaged, it overflows in "
        "float16, or it is fed wrongly (--scale, --mean, --std)"
    ]


def drawn(first_NJ2: Floats, again_NJ2: Floats) -> list[str]:
    """A sentence on points of the same pictures that differ from call to call."""
    if np.array_equal(first_NJ2, again_NJ2):
        return []
    moved = float(np.abs(first_NJ2 - again_NJ2).max())
    return [
        f"The same picture gets another answer at the second call (up to {moved:.3g} px apart): it draws at random, as dropout does in "
        "training mode"
    ]


def odd(points_NJ2: Floats, scores_NJ: Floats, spec: PoseSpec) -> list[str]:
    """Sentences on answers that no pose net gives.

    Args:
        points_NJ2: of different pictures, in pixels of the input.
        scores_NJ: of the same.
        spec: what the net is described as.
    """
    said = []
    width, height = spec.input.width_px, spec.input.height_px
    still_J = np.ptp(points_NJ2, axis=0).max(axis=1) < STILL_PX
    if still_J.all():
        said.append(
            "It answers the same points on every picture: its weights were not loaded, or --scale, --mean and --std leave nothing of the image"
        )
    elif still_J.any():
        names = [spec.skeleton.joints[j] for j in np.flatnonzero(still_J)]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        said.append(f"{len(names)} of {len(still_J)} joints stay where they are whatever the picture shows: {shown}")
    elif points_NJ2.shape[1] > 1 and np.ptp(points_NJ2, axis=1).max() < 1:
        said.append("All joints of a picture are at one place: look at --outputs, --unit and --columns")
    beyond = BEYOND * max(width, height)
    outside = float(((points_NJ2 < -beyond) | (points_NJ2 > np.array([width, height]) + beyond)).any(axis=2).mean())
    if outside > MOST_OUTSIDE:
        low, high = points_NJ2.min(), points_NJ2.max()
        said.append(
            f"{100 * outside:.0f} % of its points lie far outside the input of {width} x {height} px (they are {low:.3g} to {high:.3g}): state --unit, --columns or --size"
        )
    low, high = float(scores_NJ.min()), float(scores_NJ.max())
    if spec.decoder.score == "probability" and (low < 0 or high > 1.001):
        said.append(
            f"Its scores are {low:.3g} to {high:.3g}, which are no probabilities: state --score logit if a sigmoid is missing"
        )
    elif spec.decoder.score != "none" and low == high:
        said.append(
            f"Its scores are {low:.3g} for every joint of every picture: they tell nothing; state --outputs, --columns or --peak"
        )
    return said


def shares_found(points_NL2: Floats, joints_NL2: Floats, near_px: float) -> tuple[float, float]:
    """Share of joints that lie within some pixels of the labels; and on average where pictures are paired with others' answers."""

    def share(pointed_NL2: Floats) -> float:
        return float((np.linalg.norm(pointed_NL2 - joints_NL2, axis=2) < near_px).mean())

    others = [share(np.roll(points_NL2, step, axis=0)) for step in range(1, len(points_NL2))]
    return share(points_NL2), float(np.mean(others))


def _shared(spec: PoseSpec, skeleton: Skeleton) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    try:
        order_J = match_joints(spec.skeleton, skeleton, None)
    except (ConfigError, DataError):  # no joint in common
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.flatnonzero(order_J >= 0), order_J


def _answers(net: ForeignNet, reader: NetReader, pictures_NHW3: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    tensors = net(pictures_NHW3)
    with torch.no_grad():
        reading = reader(*(torch.from_numpy(tensors[name]) for name in net.spec.tensors))
    return reading.keypoints_NJ2.numpy(), reading.scores_NJ.numpy()
