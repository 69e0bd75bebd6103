"""What counts as a failure: a named choice that is stored with every calibration.

Shapes: N people, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.data.records import Bools, Floats
from alpose.trainer.metrics import FAILURE_PCK, Judged, Profile

FailureName = Literal["image-pck", "any-joint", "mean-error"]
FAILURES: tuple[FailureName, ...] = get_args(FailureName)

MEAN_ERROR = 0.1
"""Default limit of ``mean-error``, as a share of the side of the crop."""


@dataclass(frozen=True, slots=True)
class Failure:
    """When a pose counts as failed.

    ``image-pck``
        fewer than ``limit`` of the scored joints are right under the profile (default 0.5, the benchmark's).
    ``any-joint``
        one scored joint or more is wrong under the profile; no limit.
    ``mean-error``
        the mean distance over labelled joints exceeds ``limit`` sides of the crop (default 0.1).
    """

    name: FailureName = "image-pck"
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.name not in FAILURES:
            raise ConfigError(f"unknown definition of failure {self.name!r}; known: {', '.join(FAILURES)}")
        if self.name == "any-joint":
            if self.limit is not None:
                raise ConfigError(f"failure 'any-joint' has no limit, got {self.limit}: leave it out")
            return
        limit = {"image-pck": FAILURE_PCK, "mean-error": MEAN_ERROR}[self.name] if self.limit is None else self.limit
        if not 0 < limit <= 1:
            raise ConfigError(f"failure {self.name!r}: the limit must be in (0, 1], got {limit}")
        object.__setattr__(self, "limit", float(limit))

    def words(self, profile: Profile) -> str:
        """The definition as a sentence for people who deploy."""
        right = f"within {profile.threshold:g} of the {_length(profile)}"
        if self.name == "image-pck":
            share = "half" if self.limit == 0.5 else f"{100 * (self.limit or 0):g} %"
            return f"A pose fails when fewer than {share} of its joints are right: {right} from where they truly are."
        if self.name == "any-joint":
            return f"A pose fails when one joint or more is wrong: not {right} from where it truly is."
        return (f"A pose fails when its joints lie further than {100 * (self.limit or 0):g} % of the side of the crop "
                "from where they truly are, on average.")  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, read back by :meth:`from_json`."""
        return {"name": self.name, "limit": self.limit}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Failure:
        """The definition that :meth:`to_json` wrote."""
        try:
            return cls(value["name"], value["limit"])
        except (KeyError, TypeError) as error:
            raise DataError(f"not a definition of failure ({error!r}): {str(value)[:200]}") from error


def failures(
    failure: Failure, judged: Judged, distance_NJ: Floats, labelled_NJ: Bools, side_N: Floats
) -> tuple[Bools, Bools]:
    """Who failed, and of whom that can be said at all: two masks, (N,) each.

    Args:
        failure: the definition.
        judged: right and wrong joints under a profile.
        distance_NJ: predicted to labelled position, in frame pixels.
        labelled_NJ: joints with a label.
        side_N: side of the crop, in frame pixels.
    """
    if failure.name == "mean-error":
        count_N = labelled_NJ.sum(axis=1)
        total_N = np.where(labelled_NJ, distance_NJ, 0.0).sum(axis=1)
        return np.asarray(total_N > (failure.limit or 0.0) * side_N * count_N), np.asarray(count_N > 0)
    defined_N = np.asarray(judged.counts_NJ.any(axis=1))
    if failure.name == "any-joint":
        return np.asarray((judged.counts_NJ & ~judged.right_NJ).any(axis=1)), defined_N
    return np.nan_to_num(judged.image_pck(), nan=1.0) < (failure.limit or 0.0), defined_N


def _length(profile: Profile) -> str:
    """The profile's normaliser in a word that needs no literature."""
    if "box" in profile.normaliser:
        return "longer side of the person's box"
    return "head size" if "head" in profile.normaliser else "torso diagonal"
