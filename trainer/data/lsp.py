"""Readers of Leeds Sports Pose (LSP) and its extended training set (LSPET).

Both keep their labels in one MATLAB array ``joints`` with x, y and a third value per joint. The two files
disagree in two ways: LSP is (3, 14, N) and LSPET is (14, 3, N); and the third value is 1 for *occluded* in
LSP, where every joint has a position, but 1 for *labelled* in LSPET, where the others hold garbage.

Coordinates are kept as the files hold them: see :func:`read_lsp` for what was measured.

Sources: Johnson & Everingham, BMVC 2010 (LSP) and CVPR 2011 (LSPET).

Shapes: N people, J = 14 joints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.io

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.skeleton import LSP

from .images import ImageFiles, image_files
from .records import Floats, PoseData, joint_boxes, log_left_out

AxisOrder: TypeAlias = Literal["3,14,N", "14,3,N"]
"""How the axes of ``joints`` lie: value, joint, person or joint, value, person."""


def read_lsp(root: Path) -> PoseData:
    """LSP: people in file order (2,000 in the official file), every joint labelled.

    Args:
        root: folder with ``joints.mat`` and ``images/im0001.jpg`` onwards.

    Counted from 0 or from 1? MATLAB counts pixels from 1; neither of the official files does, and nothing is
    subtracted. In LSPET a joint without a label lies at pixel (0, 0) of the photograph before it was cropped
    and shrunk, labelled joints lie on whole pixels of that photograph, and two of them at exactly x = 0. (Six
    lie just above the image, down to y = -1.19; they are kept.) LSP's smallest x is 1.01, but its smallest y
    is 0.25, which would be outside the image if its first pixel were 1, and 0.5 is where such an image
    begins.
    """
    joints_NJ2, flag_NJ, _ = read_joints(root / "joints.mat")
    if _mostly(not_positions(joints_NJ2)[~flag_NJ]):
        raise DataError(
            f"{root / 'joints.mat'}: most joints with third value 0 hold no position. In LSP 0 means visible; "
            "LSPET marks joints without a label like this. Read it as lspet, or put LSP's own joints.mat there"
        )
    everything_NJ = np.ones_like(flag_NJ)
    return PoseData(
        name="lsp",
        skeleton=LSP,
        ids=tuple(f"lsp/im{row:04d}" for row in range(1, len(flag_NJ) + 1)),
        images=_images(root, "lsp", len(flag_NJ), digits=4),
        image_N=np.arange(len(flag_NJ)),
        joints_NJ2=joints_NJ2,
        labelled_NJ=everything_NJ,
        visible_NJ=~flag_NJ,
        boxes_N4=joint_boxes(joints_NJ2, everything_NJ),
    )


def read_lspet(root: Path) -> PoseData:
    """LSPET: people in file order (10,000 in the official file), joints masked by the flag alone.

    People without a single labelled joint are left out and counted in the log (the official file has none).
    Positions of joints that are not labelled stay as they are. See :func:`read_lsp` for the origin.

    Args:
        root: folder with ``joints.mat`` and ``images/im00001.jpg`` onwards.
    """
    joints_NJ2, labelled_NJ, _ = read_joints(root / "joints.mat")
    if _mostly(~not_positions(joints_NJ2)[~labelled_NJ]):
        raise DataError(
            f"{root / 'joints.mat'}: most joints with third value 0 hold a position. In LSPET 0 means not "
            "labelled; LSP marks visible joints like this. Read it as lsp, or put LSPET's own joints.mat there"
        )
    count = len(labelled_NJ)
    data = PoseData(
        name="lspet",
        skeleton=LSP,
        ids=tuple(f"lspet/im{row:05d}" for row in range(1, count + 1)),
        images=_images(root, "lspet", count, digits=5),
        image_N=np.arange(count),
        joints_NJ2=joints_NJ2,
        labelled_NJ=labelled_NJ,
        visible_NJ=labelled_NJ.copy(),
        boxes_N4=joint_boxes(joints_NJ2, labelled_NJ),
    )
    some_N = labelled_NJ.any(axis=1)
    log_left_out("lspet", int(some_N.sum()), {"people without a labelled joint": int((~some_N).sum())})
    return data if some_N.all() else data.subset(np.flatnonzero(some_N))


def read_joints(path: Path) -> tuple[Floats, npt.NDArray[np.bool_], AxisOrder]:
    """Positions (N, 14, 2) in pixels, third values (N, 14) as bool, and the axis order that the file had."""
    joints = read_mat(path, "joints")
    shape = getattr(joints, "shape", None)
    order: AxisOrder
    if shape is not None and len(shape) == 3 and shape[:2] == (3, 14):
        order, joints_NJ3 = "3,14,N", np.transpose(joints, (2, 1, 0))
    elif shape is not None and len(shape) == 3 and shape[:2] == (14, 3):
        order, joints_NJ3 = "14,3,N", np.transpose(joints, (2, 0, 1))
    else:
        raise DataError(
            f"{path}: 'joints' has shape {shape}; LSP has (3, 14, people) and LSPET (14, 3, people). "
            "Restore the file from the official archive"
        )
    if joints_NJ3.dtype.kind not in "fiu" or not np.isfinite(joints_NJ3).all():
        raise DataError(f"{path}: 'joints' ({joints_NJ3.dtype}) holds values that are not finite numbers")
    values = np.unique(joints_NJ3[..., 2])
    if not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{path}: the third value of a joint must be 0 or 1, found {values[:6].tolist()}. With axes {order} "
            "the file was read as (x, y, flag): restore it from the official archive"
        )
    return np.ascontiguousarray(joints_NJ3[..., :2], dtype=np.float32), joints_NJ3[..., 2] == 1, order


def not_positions(joints_NJ2: Floats) -> npt.NDArray[np.bool_]:
    """Where (N, J) a position is what LSPET writes for joints without a label: one axis 0, the other not
    above."""
    return np.asarray((joints_NJ2.max(axis=-1) <= 0) & (joints_NJ2 == 0).any(axis=-1))


def _mostly(mask_M: npt.NDArray[np.bool_]) -> bool:
    """More than half are set; of none, not."""
    return 2 * int(mask_M.sum()) > mask_M.size


def read_mat(path: Path, variable: str) -> Any:
    """One variable of a MATLAB file, structs as objects and single elements unwrapped."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist")
    with open(path, "rb") as file:
        if file.read(10) == b"MATLAB 7.3":
            raise DataError(
                f"{path} was saved by a newer MATLAB (-v7.3): restore the published file, or save it with -v7"
            )
    try:
        found = scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True, variable_names=[variable])
        if variable not in found:
            held = ", ".join(name for name, *_ in scipy.io.whosmat(path)) or "none"
            raise DataError(f"{path} has no variable {variable!r}; it has: {held}")
        return found[variable]
    except DataError:
        raise
    except (
        Exception
    ) as error:  # scipy raises many kinds on damaged files, NotImplementedError and zlib.error among them
        raise DataError(f"{path} cannot be read as a MATLAB file ({type(error).__name__}: {error})") from error


def _images(root: Path, name: str, count: int, digits: int) -> ImageFiles:
    """Return ``images/im0001.jpg`` onwards."""
    folder = root / "images"
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder} does not exist: place the {name} images there, im{1:0{digits}d}.jpg onwards")
    return image_files([folder / f"im{row:0{digits}d}.jpg" for row in range(1, count + 1)], name)
