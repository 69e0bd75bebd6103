"""What a dataset holds, in numbers and as a sheet of drawn crops.

Shapes: N people, J joints, S crop side in pixels, G people on the sheet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.crop import cut, square_crop
from alpose.runtime.drawing import pose
from alpose.runtime.errors import DataError
from alpose.runtime.io import write_atomically

from .images import ImageError
from .records import PoseData

Pixels = npt.NDArray[np.uint8]

OCCLUDED = 0.2
"""Score with which an occluded joint is drawn."""
MARGIN = 1.25
logger = logging.getLogger("alpose")


@dataclass(frozen=True, slots=True)
class Info:
    """The numbers of one dataset. Shares are in [0, 1]; sizes are pixels of the original images."""

    name: str
    people: int
    images: int
    """Images that show at least one of the people."""
    skeleton: str
    joints: tuple[str, ...]
    labelled: tuple[float, ...]
    """Share of the people, per joint."""
    occluded: tuple[float, ...]
    """Share of the labelled ones that are known to be occluded, per joint; 0 where none is labelled."""
    complete: int
    """People with every joint labelled."""
    box_side: tuple[float, float, float, float, float]
    """Longer side of the box: smallest, first quarter, median, third quarter, largest."""
    with_head: int | None
    """People with a head size; None for datasets without."""

    def lines(self) -> list[str]:
        """The same for people."""
        smallest, low, median, high, largest = self.box_side
        total, width = len(self.joints), max(len(joint) for joint in self.joints)
        share = sum(self.labelled) / total
        hidden = sum(a * b for a, b in zip(self.labelled, self.occluded, strict=True)) / max(sum(self.labelled), 1e-9)
        lines = [
            f"{self.name}: {self.people:,} people in {self.images:,} images",
            f"  joints     {total} ({self.skeleton}); {share:.1%} labelled, {hidden:.1%} of those occluded",
            f"  complete   {self.complete:,} people have all {total} joints",
            f"  box side   {smallest:.0f} to {largest:.0f} px, "
            f"median {median:.0f} (half lie in {low:.0f} to {high:.0f})",
        ]
        if self.with_head is not None:
            lines.append(f"  head size  {self.with_head:,} people")
        lines.append(f"  {'joint':<{width}}  labelled  occluded")
        for joint, labelled, occluded in zip(self.joints, self.labelled, self.occluded, strict=True):
            lines.append(f"  {joint:<{width}}  {labelled:8.1%}  {occluded:8.1%}")
        return lines


def describe(data: PoseData) -> Info:
    """Count one dataset."""
    if len(data) == 0:
        raise DataError(f"{data.name} holds no people with labelled joints: there is nothing to describe")
    side_N = (data.boxes_N4[:, 2:] - data.boxes_N4[:, :2]).max(axis=1)
    labelled_J = data.labelled_NJ.sum(axis=0)
    hidden_J = labelled_J - data.visible_NJ.sum(axis=0)
    quarters = np.quantile(side_N, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Info(
        name=data.name,
        people=len(data),
        images=len(np.unique(data.image_N)),
        skeleton=data.skeleton.name,
        joints=data.skeleton.joints,
        labelled=tuple((labelled_J / len(data)).tolist()),
        occluded=tuple((hidden_J / np.maximum(labelled_J, 1)).tolist()),
        complete=int(data.labelled_NJ.all(axis=1).sum()),
        box_side=(quarters[0], quarters[1], quarters[2], quarters[3], quarters[4]),
        with_head=None if data.head_N is None else int(np.isfinite(data.head_N).sum()),
    )


def contact_sheet(data: PoseData, count: int = 24, columns: int = 6, size_px: int = 224) -> Pixels:
    """Crops of people spread evenly over the dataset with their joints drawn, uint8 (rows · S, columns · S, 3) RGB.

    A person whose image cannot be read is an empty tile with the reason in the log.
    """
    rows_G = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int))
    tiles = []
    for row in rows_G.tolist():
        crop = square_crop(data.boxes_N4[row], margin=MARGIN, size_px=size_px)
        try:
            image_SS3 = cut(data.image(row), crop)
        except ImageError as error:
            logger.warning("not drawn: %s", error)
            tiles.append(np.zeros((size_px, size_px, 3), dtype=np.uint8))
            continue
        # Occluded joints are fainter, and joints without a label are not drawn.
        points_J2 = np.where(data.labelled_NJ[row][:, None], crop.to_crop(data.joints_NJ2[row]), np.nan)
        pose(image_SS3, points_J2, np.where(data.visible_NJ[row], 1.0, OCCLUDED), data.skeleton)
        tiles.append(image_SS3)
    columns = min(columns, max(len(tiles), 1))
    tiles += [np.zeros((size_px, size_px, 3), dtype=np.uint8)] * (-len(tiles) % columns)
    lines = [np.concatenate(tiles[at : at + columns], axis=1) for at in range(0, len(tiles), columns)]
    return np.concatenate(lines, axis=0)


def save_sheets(datasets: Iterable[PoseData], path: Path) -> Path:
    """One PNG with the contact sheets of some datasets, one below the other."""
    sheets = [contact_sheet(data) for data in datasets]
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets]
    stacked = cv2.cvtColor(np.concatenate(padded, axis=0), cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png", stacked)
    if not done:
        raise DataError(f"the sheet of {stacked.shape[1]} x {stacked.shape[0]} pixels could not be encoded as PNG")
    return write_atomically(path, encoded.tobytes())
