"""The definitions of a failed pose by name: importing nothing heavy, so that ``--help`` of every command can list them.

:class:`alpose.trainer.measures.metrics.Failure` says what each of them means.
"""

from __future__ import annotations

from typing import Literal, get_args

FailureName = Literal["image-pck", "any-joint", "mean-error"]
FAILURES: tuple[FailureName, ...] = get_args(FailureName)
RUN_FAILURES: tuple[FailureName, ...] = ("image-pck", "any-joint")
"""Those that follow from which joints are right, which is all that the files of a benchmark's run keep."""
DEFAULT_LIMITS: dict[FailureName, float | None] = {"image-pck": 0.5, "any-joint": None, "mean-error": 0.1}
