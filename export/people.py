"""Labelled people that a model has not seen: for calibration, parity and golden frames.

Shapes: N people, S crop side, J joints.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.benchmarks import Sizes, load_benchmark
from alpose.trainer.data.crops import CropConfig, Crops, prepare
from alpose.trainer.data.records import PoseData

log = logging.getLogger("alpose")

ENOUGH = 400
"""Rendered people cost next to nothing: enough of them for thresholds with a promise."""


def calibration_people(name: str, data_root: Path | None, sizes: Sizes) -> PoseData:
    """Labelled people by the name of a dataset, or of a COCO keypoints folder (everybody in it).

    ``lsp``, ``mpii`` and ``synthetic`` give the part that tests in the benchmark; ``lspet`` and ``synthetic-hard``
    the shifted domains.
    """
    if name == "lspet":
        from alpose.trainer.data.lsp import read_lspet
        from alpose.trainer.data.sources import find

        return read_lspet(find("lspet", data_root))
    if name == "synthetic-hard":
        from alpose.trainer.data.synthetic import read_people

        return read_people(seed=1, count=max(sizes.test, ENOUGH), domain="hard")
    if Path(name).is_dir():
        from alpose.trainer.data.coco import read_coco

        return read_coco(Path(name))
    return load_benchmark(name, data_root, sizes).test


def unseen_crops(people: PoseData, skeleton: Skeleton, crop: CropConfig, cache: Path, seen: Collection[str]) -> Crops:
    """Crops of the people that trained nothing, as a device would see them.

    Args:
        people: labelled.
        skeleton: of the model; another one is an error.
        crop: of the model.
        cache: for the crops.
        seen: ids that the model was trained or its epoch chosen on: left out, and counted in the log.
    """
    if people.skeleton != skeleton:
        raise DataError(
            f"the model has the {len(skeleton)} joints of {skeleton.name!r}, {people.name} has the "
            f"{len(people.skeleton)} of {people.skeleton.name!r}: calibrate with people of the model's own skeleton"
        )
    crops = prepare(people, replace(crop, context=0.0), cache)
    unseen_N = np.array([id_ not in seen for id_ in crops.data.ids], dtype=np.bool_)
    if not unseen_N.any():
        raise DataError(f"all {len(crops)} people of {people.name} trained this model: calibrate with others")
    if not unseen_N.all():
        log.warning("%s: %d of %d people trained this model and are left out of its calibration", people.name,
                    int((~unseen_N).sum()), len(unseen_N))  # fmt: skip
    return crops.subset(np.flatnonzero(unseen_N))
