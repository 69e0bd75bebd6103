"""VL4Pose's score and the data pipeline, beside the official code.

Shapes: N people, B batch, J joints, P peaks, L links.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.skeleton import LSP
from alpose.trainer.data.augment import AugmentConfig, augment, to_input
from alpose.trainer.data.catalog import find
from alpose.trainer.data.crops import CropConfig, prepare
from alpose.trainer.data.images import ImageFiles
from alpose.trainer.data.lsp import read_lsp
from alpose.trainer.data.records import PoseData
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import DeviceContext
from alpose.trainer.feed import Feed
from alpose.trainer.heatmaps import draw, to_cells
from alpose.trainer.methods.gaussian_heads import APART, Over, find_peaks, skeleton_likelihood
from alpose.trainer.models.auxiliary import tree_of
from alpose.trainer.models.hourglass import STRIDE

from .measure import Task
from .methods_work import OURS, REFERENCE, Check, Floats, Sizes, Work, maps_of
from .reference_methods import LOADING, ReferenceMethods

BATCH = 16

ITS_JOINTS = (13, 12, 9, 10, 11, 8, 7, 6, 3, 4, 5, 2, 1, 0)
"""Rows of our LSP in the official order: head, neck, left arm, right arm, left leg, right leg."""


# --- VL4Pose


def vl4pose(peaks: int) -> Callable[[Sizes, ReferenceMethods | None], Work]:
    """From heatmaps and the parameters of the links to the score of every image."""

    def make(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
        images = sizes.images if peaks == 1 else sizes.skeletons
        maps = maps_of(replace(sizes, images=images, joints=len(LSP)))
        links = tree_of(LSP)
        generator = torch.Generator().manual_seed(0)
        mean_NL = 2 + 20 * torch.rand(images, len(links), generator=generator)
        parameters_NL2 = torch.stack([mean_NL, 2 + torch.randn(images, len(links), generator=generator)], dim=2)
        found: dict[str, Any] = {}

        def of_form(name: str, over: Over, official: bool) -> Task:
            def task() -> None:
                cells_NJP2, weight_NJP = find_peaks(maps, peaks, min_distance=APART, exclude_border=official)
                found[name] = skeleton_likelihood(cells_NJP2, weight_NJP, parameters_NL2, links, over=over).numpy()

            return task

        def theirs() -> None:
            assert reference is not None
            found[REFERENCE] = reference.vl4pose(maps.numpy(), parameters_NL2.numpy(), links, peaks=peaks, apart=APART)

        def check() -> list[Check]:
            if REFERENCE not in found:
                return []
            off = float(np.abs(found[OURS] / found[REFERENCE] - 1).max())
            return [Check(OURS, REFERENCE, off < 1e-4, f"log-likelihoods differ by {off:.1e} of theirs at most; in its form, "
                          "which adds up those of all peaks and has none near the edge")]  # fmt: skip

        tasks = {
            OURS: of_form(OURS, "official-sum", True),
            "ours, expected": of_form("ours, expected", "expected", False),
        }
        says = f"{len(LSP)} maps of {sizes.cells} x {sizes.cells} and {len(links)} links per image, {peaks} peaks per joint"
        name = f"VL4Pose, {peaks} peak" + "s" * (peaks > 1)
        return Work(name, says, images, "image", tasks | ({REFERENCE: theirs} if reference else {}), check)

    return make


# --- Data pipeline


def data_pipeline(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """From files to batches of images and heatmaps."""
    rooms, place = ExitStack(), Path(tempfile.mkdtemp())
    people = _people(sizes, place)
    crops = prepare(people, CropConfig(), place / "cache", torch.get_num_threads())
    feed, generator = (
        Feed.open(crops, DeviceContext(torch.device("cpu"), torch.float32, 0, 1)),
        torch.Generator().manual_seed(0),
    )
    blocks = [np.arange(start, min(start + BATCH, len(crops))) for start in range(0, len(crops), BATCH)]
    counter = itertools.count()

    def ours() -> None:
        for index_B in blocks:
            images_B3HW, joints_BJ2, counts_BJ = augment(
                *feed.batch(index_B), shape_px=crops.config.shape_px, flip_order=LSP.flip_order(), config=AugmentConfig(),
                generator=generator,
            )  # fmt: skip
            _targets(images_B3HW, joints_BJ2).mul_(counts_BJ[:, :, None, None])

    def first_pass() -> None:
        prepare(people, CropConfig(), place / str(next(counter)), torch.get_num_threads())

    tasks: dict[str, Task] = {OURS: ours, "ours, cutting the crops": first_pass}
    left_out: tuple[str, ...] = ()
    reads: list[Any] = []
    if reference and reference.loading:
        theirs = rooms.enter_context(reference.people(*_as_its(people)))
        reads.append(theirs)

        def official() -> None:
            for index_B in blocks:
                items = [theirs(int(row), True) for row in index_B]
                torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])

        tasks[REFERENCE] = official
    elif reference:
        left_out = (f"its dataset: {reference.lacks[LOADING]}",)

    def check() -> list[Check]:
        with rooms:  # its checkout is put back
            if not reads:
                return []
            image_NHW3 = to_input(torch.from_numpy(crops.read_bare(np.arange(len(crops))))).permute(0, 2, 3, 1)
            return [
                _same_places([reads[0](row, False) for row in range(len(crops))], image_NHW3.numpy(), crops.joints_NJ2)
            ]

    weakref.finalize(check, shutil.rmtree, place, ignore_errors=True)
    source = "LSP" if sizes.data_root else "made-up people (--data-root gives LSP)"
    says = (f"{len(crops)} people of {source} to augmented batches of {BATCH} and their targets; ours from crops that are cut "
            "once, which is a contestant of its own, the reference from files each time")  # fmt: skip
    return Work("data pipeline", says, len(crops), "person", tasks, check, left_out=left_out)


def _targets(images_B3HW: Tensor, joints_BJ2: Tensor) -> Tensor:
    return draw(to_cells(joints_BJ2, STRIDE), images_B3HW.shape[2] // STRIDE, sigma=1.75, peak=30.0)


def _people(sizes: Sizes, place: Path) -> PoseData:
    """The first of LSP, or made-up ones, as files."""
    if sizes.data_root:
        everybody = read_lsp(find("lsp", sizes.data_root))
        return everybody.subset(np.arange(min(sizes.loaded, len(everybody))))
    made_up = read_people(count=sizes.loaded, domain="easy")
    (place / "images").mkdir()
    paths = tuple(place / "images" / f"im{row:04d}.jpg" for row in range(1, len(made_up) + 1))
    for row, path in enumerate(paths):
        cv2.imwrite(str(path), cv2.cvtColor(made_up.image(row), cv2.COLOR_RGB2BGR))
    return replace(made_up, images=ImageFiles(paths))


def _as_its(people: PoseData) -> tuple[Path, list[str], Floats, Floats]:
    """Folder and names of the images, joints (x, y, visible) in its order, and boxes."""
    assert isinstance(people.images, ImageFiles)
    paths = [people.images.paths[row] for row in people.image_N]
    marked_NJ3 = np.concatenate([people.joints_NJ2, people.visible_NJ[..., None]], axis=2, dtype=np.float32)
    return paths[0].parent, [path.name for path in paths], marked_NJ3[:, list(ITS_JOINTS)], people.boxes_N4


def _same_places(items: list[Any], image_NHW3: npt.NDArray[Any], joints_NJ2: Floats) -> Check:
    """Views differ (its boxes end at the frame's edge): what lies under the joints must be the same."""
    ours, theirs = [], []
    for item, image_HW3, joints_J2 in zip(items, image_NHW3, joints_NJ2, strict=True):
        its_image_HW3, its_J2 = item[0].numpy() * (256 / 255), item[2][0, :, 1::-1]  # it has rows first
        for joint_2, its_2 in zip(joints_J2[list(ITS_JOINTS)], its_J2, strict=True):
            pair = _colour_at(image_HW3, joint_2), _colour_at(its_image_HW3, its_2)
            if pair[0] is not None and pair[1] is not None:
                ours.append(pair[0])
                theirs.append(pair[1])
    r = float(np.corrcoef(np.ravel(ours), np.ravel(theirs))[0, 1])
    return Check(OURS, REFERENCE, r > 0.95, f"without augmentation the colours under {len(ours)} joints correlate by {r:.3f}; its "
                 "crops are wider and end at the frame's edge")  # fmt: skip


def _colour_at(image_HW3: npt.NDArray[Any], joint_2: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Mean of 7 x 7 pixels; None at the edge."""
    column, row = (round(float(value)) for value in joint_2)
    if not (3 <= row < image_HW3.shape[0] - 3 and 3 <= column < image_HW3.shape[1] - 3):
        return None
    return np.asarray(image_HW3[row - 3 : row + 4, column - 3 : column + 4].mean(axis=(0, 1)))
