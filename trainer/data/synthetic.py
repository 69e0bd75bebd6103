"""Made-up people with the joints of LSP: a data set that needs no download, for tests, demonstrations and CI.

Two domains: ``easy`` plays the role of LSP (upright people, plain pictures, every joint labelled) and ``hard``
that of LSPET (gymnastics, occluders, bad light, blur, clutter, a tenth of the joints without a label). Within
``hard`` the difficulty differs from picture to picture, from nearly easy to hopeless.

Everything about picture i follows from (seed, domain, i), whatever is read before it and in which process.
Other versions of NumPy and OpenCV may round pixels differently.

Shapes: N people, J joints (LSP order), H W picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP

from ._synthetic_pose import LEVELS, sample_people
from ._synthetic_scene import render
from .records import PoseData, joint_boxes

DOMAINS = tuple(LEVELS)

_VERSION = 1
"""Part of every fingerprint: raise it when the same seed gives other pixels or labels."""
_PIXELS = 1000
"""Keeps the random numbers of pixels apart from those of poses."""


@dataclass(frozen=True, slots=True)
class SyntheticImages:
    """Pictures rendered when they are read."""

    seed: int
    count: int
    domain: str

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ConfigError(f"there is no synthetic domain {self.domain!r}; use one of: {', '.join(DOMAINS)}")

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One picture, uint8 (H, W, 3) RGB, 144 to 200 pixels high."""
        if not 0 <= index < self.count:
            raise IndexError(f"synthetic-{self.domain} has {self.count} pictures, there is none at {index}")
        entropy = np.random.SeedSequence([self.seed, DOMAINS.index(self.domain), _PIXELS, index])
        people = sample_people(self.seed, self.domain, index, 1)
        return render(people, 0, np.random.Generator(np.random.Philox(entropy)), self.domain)

    def describe(self, index: int) -> str:
        """What the pixels follow from."""
        return f"synthetic-{self.domain}:v{_VERSION}:{self.seed}:{index}"


def read_people(*, seed: int = 0, count: int, domain: str = "easy") -> PoseData:
    """People and their labels; the pictures are rendered later, one at a time.

    A joint is visible when no occluder covers it; that the person's own body covers it does not count.

    Args:
        seed: 0 or more; other seeds give other people.
        count: number of people; the first ones are the same for every count.
        domain: ``easy`` or ``hard``.
    """
    people = sample_people(seed, domain, 0, count)
    shown_NJ2, labelled_NJ = people.joints_NJ3[..., :2], people.labelled_NJ
    joints_NJ2 = np.where(labelled_NJ[..., None], shown_NJ2, people.garbage_NJ2).astype(np.float32)
    return PoseData(
        name=f"synthetic-{domain}",
        skeleton=LSP,
        ids=tuple(f"synthetic-{domain}/{seed}-{index:05d}" for index in range(count)),
        images=SyntheticImages(seed, count, domain),
        image_N=np.arange(count, dtype=np.int64),
        joints_NJ2=joints_NJ2,
        labelled_NJ=labelled_NJ,
        visible_NJ=people.visible_NJ,
        boxes_N4=joint_boxes(joints_NJ2, labelled_NJ),
    )
