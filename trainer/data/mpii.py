"""Readers of MPII Human Pose: the official MATLAB file, the JSON form of later toolkits, and Newell's split.

Every file counts pixels from 1; the readers subtract 1 from joints and centres (HRNet does the same).

A person's box comes from ``objpos`` and ``scale``, which do not follow the joints: a square of 200 · scale
pixels (a person of scale 1 is 200 px tall), its centre 15 · scale pixels below ``objpos``. With a crop margin
of 1.25 this is the crop of Stacked Hourglass, Simple Baselines and HRNet. (The code of the LearningLoss++
paper crops around the labelled joints instead: ``records.joint_boxes`` gives that box.)

``head_N`` is the full diagonal of the head box. PCKh normalises by 0.6 times that.

Sources: Andriluka et al., CVPR 2014; the split from Newell et al., ECCV 2016.

Shapes: N people, J = 16 joints, V people of Newell's validation list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, get_args

import h5py
import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import read_json
from alpose.runtime.skeleton import MPII

from .images import ImageFiles
from .lsp import read_mat
from .records import Floats, Person, PoseData, from_people, inside, join, log_left_out

Split: TypeAlias = Literal["train", "valid"]
"""The parts of Newell's split, and the files of the JSON form."""
SPLITS: tuple[Split, ...] = get_args(Split)

MAT_NAME = "mpii_human_pose_v1_u12_1.mat"
MAT_PLACES = (MAT_NAME, f"annot/{MAT_NAME}", f"mpii_human_pose_v1_u12_2/{MAT_NAME}")
NEWELL_PLACES = ("annot/newell_valid.h5", "annot/valid.h5", "newell_valid.h5")
HEAD_BIAS = 0.6
"""PCKh's head size is this times the diagonal of the head box (evalMPII, ``SC_BIAS``)."""
HEADS_PER_PERSON = 8.0
"""MPII's scale takes a person to be eight head sizes tall: exact for all 2,958 people of Newell's list."""


@dataclass(frozen=True, slots=True)
class NewellPeople:
    """Newell's validation list as his ``valid.h5`` holds it, brought back to this module's coordinates."""

    images: tuple[str, ...]
    """File name per person; 2,729 different ones in the official list."""
    person_V: npt.NDArray[np.int64]
    """Place of the person in ``annorect``, from 0: with the stem of the file name it makes the id."""
    centre_V2: Floats
    """``objpos`` from 0, the shift of 15 · scale taken back."""
    scale_V: Floats
    """``scale`` of the official file, the factor 1.25 taken back."""
    head_V: Floats
    """Diagonal of the head box in pixels: ``normalize`` / 0.6."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids as :func:`read_mpii_mat` gives them."""
        return tuple(_id(name, row) for name, row in zip(self.images, self.person_V.tolist(), strict=True))


def read_mpii(root: Path, split: Split | None = None) -> PoseData:
    """MPII in whichever form lies in ``root``; the official file is preferred to the JSON form.

    Args:
        root: the dataset folder, with ``images/``.
        split: a part of Newell's split, or None for everybody. With the official file the parts need his list at
            ``annot/newell_valid.h5``; in the JSON form they are the files ``train.json`` and ``valid.json``.
    """
    if not _has_mat(root):
        return read_mpii_json(root, split)
    if split is None:
        return read_mpii_mat(root)
    train, valid = read_mpii_parts(root)
    return train if split == "train" else valid


def read_mpii_parts(root: Path) -> tuple[PoseData, PoseData]:
    """Both parts of Newell's split, training and validation, from one reading of the files."""
    if not _has_mat(root):
        return read_mpii_json(root, "train"), read_mpii_json(root, "valid")
    valid_images = newell_valid_people(_first(root, NEWELL_PLACES, "Newell's list")).images
    return newell_split(read_mpii_mat(root), valid_images)


def _has_mat(root: Path) -> bool:
    return any((root / place).is_file() for place in MAT_PLACES)


def read_mpii_mat(root: Path) -> PoseData:
    """Everybody with joints in the training images of ``mpii_human_pose_v1_u12_1.mat``.

    Left out and counted in the log: images of the official test set (no labels), and people without joints.
    People without ``objpos`` or ``scale`` get the tight box of their joints, also counted. A joint whose
    ``is_visible`` is empty counts as visible (the file says nothing for head joints). Ids are
    ``mpii/015601864#0``, with the place in ``annorect`` from 0.
    """
    path = _first(root, MAT_PLACES, "the annotation file")
    release = read_mat(path, "RELEASE")
    annolist = _structs(getattr(release, "annolist", None))
    train = np.atleast_1d(getattr(release, "img_train", np.empty(0)))
    if not annolist or len(annolist) != len(train):
        raise DataError(
            f"{path}: RELEASE.annolist holds {len(annolist)} images and RELEASE.img_train {len(train)}; expected "
            "as many of each. Restore the file from the official archive"
        )
    people: list[Person] = []
    skipped = 0
    for row, (anno, in_train) in enumerate(zip(annolist, train.tolist(), strict=True)):
        if not in_train:
            continue
        rects = _structs(getattr(anno, "annorect", None))
        name = getattr(getattr(anno, "image", None), "name", None)
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: annolist({row + 1}).image.name is {name!r}, expected a file name")
        found = [_person_from_rect(name, k, rect) for k, rect in enumerate(rects)]
        skipped += found.count(None)
        people += [person for person in found if person is not None]
    log_left_out(
        path, len(people), {"images of the test set": int((train == 0).sum()), "people without joints": skipped}
    )
    return _pose_data(root, people, path)


def read_mpii_json(root: Path, split: Split | None = None) -> PoseData:
    """The JSON form (``annot/train.json``, ``annot/valid.json``) that Simple Baselines and HRNet made common.

    Entries hold image, center, scale, joints and joints_vis; center and scale are those of the official file,
    and joints_vis tells labelled from not labelled, with nothing about occlusion. The form has no head boxes:
    ``head_N`` comes from scale, which MPII computed from the head box (8 · 0.6 · diagonal / 200). Ids number
    the people of an image in file order. Entries without joints are left out and counted in the log.

    Args:
        root: folder with ``annot/`` and ``images/``.
        split: one of the files; None reads those that are there.
    """
    paths = [path for path in (root / f"annot/{name}.json" for name in SPLITS) if path.is_file()]
    if split is not None or not paths:
        paths = [_first(root, (f"annot/{split or 'valid'}.json",), "the annotation file")]
    parts = [_read_json_file(root, path) for path in paths]
    return join("mpii", *parts) if len(parts) > 1 else parts[0]


def _read_json_file(root: Path, path: Path) -> PoseData:
    """The people of one JSON file."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path} must hold a list of people, found {type(entries).__name__}")
    people: list[Person] = []
    per_image: dict[str, int] = {}
    skipped = 0
    for row, entry in enumerate(entries):
        try:
            name = str(entry["image"])
            if "joints" not in entry:
                skipped += 1
                continue
            joints_J2 = np.asarray(entry["joints"], dtype=np.float32).reshape(len(MPII), 2) - 1
            labelled_J = np.asarray(entry["joints_vis"], dtype=np.float32).reshape(len(MPII)) > 0
            x, y, scale = float(entry["center"][0]) - 1, float(entry["center"][1]) - 1, float(entry["scale"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}: entry {row} is not a person of the JSON form (image, center, scale, 16 joints, "
                f"16 joints_vis): {error!r}"
            ) from error
        place = per_image[name] = per_image.get(name, -1) + 1
        head = 200 * scale / (HEADS_PER_PERSON * HEAD_BIAS) if scale > 0 else np.nan
        box_4 = _square(x, y, scale)
        people.append(Person(_id(name, place), name, joints_J2, labelled_J, labelled_J, box_4, head))
    log_left_out(path, len(people), {"people without joints": skipped})
    return _pose_data(root, people, path)


def newell_valid_people(path: Path) -> NewellPeople:
    """Newell's ``valid.h5``: 2,958 people of 2,729 training images that he kept for validation.

    His file stores center with 15 · scale added to y and scale with the factor 1.25; both are taken back.
    """
    fields = ("imgname", "person", "center", "scale", "normalize")
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist")
    try:
        with h5py.File(path) as file:
            names_V, person_V, centre_V2, scale_V, normalize_V = (np.asarray(file[field]) for field in fields)
    except (OSError, KeyError) as error:
        raise DataError(f"{path} is not Newell's list (an HDF5 file with {', '.join(fields)}): {error}") from error
    if names_V.dtype.kind == "f":  # his original stores a name as a row of character codes
        names = tuple("".join(chr(int(code)) for code in row if code) for row in names_V)
    else:
        names = tuple(name.decode() for name in names_V)
    scale_V = scale_V / 1.25
    centre_V2 = centre_V2 - np.stack([np.zeros_like(scale_V), 15 * scale_V], axis=1) - 1
    return NewellPeople(
        images=names,
        person_V=person_V.astype(np.int64),
        centre_V2=centre_V2.astype(np.float32),
        scale_V=scale_V.astype(np.float32),
        head_V=(normalize_V / HEAD_BIAS).astype(np.float32),
    )


def newell_split(data: PoseData, valid_images: Collection[str]) -> tuple[PoseData, PoseData]:
    """Training and validation people: an image is in one or the other, never in both.

    Args:
        data: people of the official training images.
        valid_images: file names of the validation images (``newell_valid_people(...).images``); other people
        on
            those images are validation people too.
    """
    if not isinstance(data.images, ImageFiles):
        raise DataError(f"{data.name}: the split goes by file names, and these images are not files")
    names = frozenset(valid_images)
    listed = np.array([path.name in names for path in data.images.paths], dtype=np.bool_)
    valid_N = listed[data.image_N] if len(data) else np.empty(0, dtype=np.bool_)
    return (
        data.subset(np.flatnonzero(~valid_N), f"{data.name}-train"),
        data.subset(np.flatnonzero(valid_N), f"{data.name}-valid"),
    )


def _person_from_rect(name: str, place: int, rect: Any) -> Person | None:
    """One ``annorect``; None when it has no joints."""
    joints_J2 = np.full((len(MPII), 2), -1, dtype=np.float32)
    labelled_J = np.zeros(len(MPII), dtype=np.bool_)
    visible_J = np.zeros(len(MPII), dtype=np.bool_)
    for point in _structs(getattr(getattr(rect, "annopoints", None), "point", None)):
        x, y, joint = _number(point, "x"), _number(point, "y"), _number(point, "id")
        if not np.isfinite([x, y, joint]).all():
            continue
        if joint not in range(len(MPII)):
            raise DataError(f"mpii image {name}, person {place}: joint id {joint:g} is not one of 0 to {len(MPII) - 1}")
        joints_J2[int(joint)] = x - 1, y - 1
        labelled_J[int(joint)] = True
        visible_J[int(joint)] = _number(point, "is_visible") != 0  # empty: NaN, which is not 0
    if not labelled_J.any():
        return None
    objpos = getattr(rect, "objpos", None)
    box_4 = _square(_number(objpos, "x") - 1, _number(objpos, "y") - 1, _number(rect, "scale"))
    head = float(np.hypot(_number(rect, "x2") - _number(rect, "x1"), _number(rect, "y2") - _number(rect, "y1")))
    return Person(_id(name, place), name, joints_J2, labelled_J, visible_J, box_4, head if head > 0 else np.nan)


def _pose_data(root: Path, people: list[Person], source: Path) -> PoseData:
    """Put those with a labelled joint in rows."""
    folder = root / "images"
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder} does not exist: place the MPII images there")
    kept = [person for person in people if person.labelled_J.any()]
    log_left_out(source, len(kept), {"people without a labelled joint": len(people) - len(kept)})
    return from_people("mpii", MPII, kept, lambda name: inside(folder, name, source), source, heads=True)


def _square(x: float, y: float, scale: float) -> tuple[float, float, float, float]:
    """Return the box from ``objpos``, counted from 0, and ``scale``; NaN where either is missing."""
    half = 100 * scale if scale > 0 else np.nan
    y += 15 * scale
    return x - half, y - half, x + half, y + half


def _id(name: str, place: int) -> str:
    return f"mpii/{PurePosixPath(name).stem}#{place}"


def _structs(value: Any) -> list[Any]:
    """The structs of a MATLAB struct array, whichever way it was unwrapped: one, several, none."""
    return [item for item in _items(value) if hasattr(item, "_fieldnames")]


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, np.ndarray):
        yield from value.ravel()
    elif value is not None:
        yield value


def _number(struct: Any, field: str) -> float:
    """A number that may be missing, empty or written as text; NaN where there is none."""
    value = np.asarray(getattr(struct, field, None)).ravel()
    try:
        return float(value[0]) if value.size and value[0] is not None else np.nan
    except (TypeError, ValueError):
        return np.nan


def _first(root: Path, places: tuple[str, ...], what: str) -> Path:
    """The first of some places where a file exists."""
    for place in places:
        if (root / place).is_file():
            return root / place
    raise DataNotFoundError(f"mpii: {what} is not in {root}: looked for {', '.join(places)}")
