"""The one in-memory form of a labelled set of people, whichever dataset they came from.

Shapes: N people, J joints.

Coordinates are pixels of the original image with pixel centres at whole numbers (the first pixel is 0).
Joints that are not labelled keep whatever position the file holds: only the mask says what counts.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import Skeleton

from .images import Images, JoinedImages, image_files, image_size, name_and_size

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

log = logging.getLogger("alpose")

REACH = 0.5
"""How far outside of a picture a joint may be labelled, in its longer sides: see :func:`far_outside`."""
SHOWN = 20
"""Joints far outside of their pictures that are logged one by one."""


@dataclass(frozen=True, slots=True)
class PoseData:
    """People with their images, joints and masks, one row each."""

    name: str
    skeleton: Skeleton
    ids: tuple[str, ...]
    """Unique and stable, such as ``lspet/im00042``; every score that is stored travels with its id."""
    images: Images
    image_N: npt.NDArray[np.int64]
    """Row of ``images`` that shows this person; several people may share one image."""
    joints_NJ2: Floats
    labelled_NJ: Bools
    """The joint has a position that was annotated. The only mask that training and scoring look at."""
    visible_NJ: Bools
    """Labelled and not occluded, where the dataset tells; otherwise equal to ``labelled_NJ``."""
    boxes_N4: Floats
    """(x0, y0, x1, y1) around the person, before any margin."""
    head_N: Floats | None = None
    """MPII's head-box diagonal in pixels, NaN where there is none; None for datasets without head boxes."""
    groups: tuple[str, ...] | None = None
    """What everybody belongs to (a driver, a camera, a clip), where a split by that was asked for."""

    def __post_init__(self) -> None:
        count, joints = len(self.ids), len(self.skeleton)
        expected = {
            "image_N": (count,),
            "joints_NJ2": (count, joints, 2),
            "labelled_NJ": (count, joints),
            "visible_NJ": (count, joints),
            "boxes_N4": (count, 4),
            "head_N": (count,),
        }
        for field, shape in expected.items():
            value = getattr(self, field)
            if value is not None and value.shape != shape:
                raise DataError(f"{self.name}: {field} has shape {value.shape}, expected {shape}")
        if len(set(self.ids)) != count:
            raise DataError(f"{self.name}: ids are not unique")
        if (self.visible_NJ & ~self.labelled_NJ).any():
            raise DataError(f"{self.name}: a joint is visible but not labelled")

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, index_M: Sequence[int] | npt.NDArray[np.integer], name: str | None = None) -> PoseData:
        """The people at these rows, in this order; images stay shared."""
        rows_M = np.asarray(index_M, dtype=np.int64)
        return PoseData(
            name=name or self.name,
            skeleton=self.skeleton,
            ids=tuple(self.ids[row] for row in rows_M),
            images=self.images,
            image_N=self.image_N[rows_M],
            joints_NJ2=self.joints_NJ2[rows_M],
            labelled_NJ=self.labelled_NJ[rows_M],
            visible_NJ=self.visible_NJ[rows_M],
            boxes_N4=self.boxes_N4[rows_M],
            head_N=None if self.head_N is None else self.head_N[rows_M],
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows_M),
        )

    def with_skeleton(self, skeleton: Skeleton) -> PoseData:
        """The same people under a skeleton of the same joints; links and mirror pairs may differ."""
        if skeleton.joints != self.skeleton.joints:
            raise DataError(
                f"{self.name} has the {len(self.skeleton)} joints of {self.skeleton.name!r}, needed are the "
                f"{len(skeleton)} of {skeleton.name!r}: {', '.join(skeleton.joints)}"
            )
        return replace(self, skeleton=skeleton)

    def image(self, row: int) -> npt.NDArray[np.uint8]:
        """The image of one person, uint8 (H, W, 3) RGB. Raises :class:`ImageError`."""
        return self.images.read(int(self.image_N[row]))

    def pictures(self) -> tuple[str, ...]:
        """Everybody's picture by its content, whatever its file is called."""
        rows = np.unique(self.image_N).tolist()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            described = dict(zip(rows, pool.map(self.images.describe, rows), strict=True))
        return tuple(described[row] for row in self.image_N.tolist())

    def people_keys(self) -> tuple[str, ...]:
        """Everybody by picture and place: the same in a copied, renamed or merged folder."""
        places = (",".join(f"{value:.0f}" for value in box_4) for box_4 in self.boxes_N4.tolist())
        return tuple(f"{picture}@{place}" for picture, place in zip(self.pictures(), places, strict=True))

    def split_names(self) -> tuple[str, ...]:
        """What must stay on one side of a split: everybody's group where one was asked for, else the image's name."""
        return self.groups or tuple(id_.rpartition("#")[0] or id_ for id_ in self.ids)

    def fingerprint(self, *, by_file_name: bool = False) -> str:
        """sha256 over ids, labels, boxes and the pictures' content.

        ``by_file_name`` tells pictures apart by name and size, as version 0.1.0 did: its run folders hold such hashes.
        """
        digest = hashlib.sha256()
        digest.update(repr((self.name, self.skeleton.to_json(), self.ids)).encode())
        named = (name_and_size(self.images, row) for row in self.image_N.tolist())
        for picture in named if by_file_name else self.pictures():
            digest.update(picture.encode())
        for array in (self.joints_NJ2, self.labelled_NJ, self.visible_NJ, self.boxes_N4, self.head_N):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def join(name: str, *parts: PoseData) -> PoseData:
    """Several sets of one skeleton as one, in order."""
    first = parts[0]
    for part in parts[1:]:
        if part.skeleton != first.skeleton:
            raise DataError(
                f"cannot join {first.name} ({first.skeleton.name}) and {part.name} ({part.skeleton.name}): "
                "their skeletons differ"
            )
    offsets = np.cumsum([0] + [len(part.images) for part in parts[:-1]])
    grouped = any(part.groups for part in parts)
    has_head = all(part.head_N is not None for part in parts)
    return PoseData(
        name=name,
        skeleton=first.skeleton,
        ids=tuple(id_ for part in parts for id_ in part.ids),
        images=JoinedImages(tuple(part.images for part in parts)),
        image_N=np.concatenate([part.image_N + offset for part, offset in zip(parts, offsets, strict=True)]),
        joints_NJ2=np.concatenate([part.joints_NJ2 for part in parts]),
        labelled_NJ=np.concatenate([part.labelled_NJ for part in parts]),
        visible_NJ=np.concatenate([part.visible_NJ for part in parts]),
        boxes_N4=np.concatenate([part.boxes_N4 for part in parts]),
        head_N=np.concatenate([part.head_N for part in parts if part.head_N is not None]) if has_head else None,
        groups=tuple(name for part in parts for name in part.split_names()) if grouped else None,
    )


def joint_boxes(joints_NJ2: Floats, labelled_NJ: Bools) -> Floats:
    """Tight boxes (N, 4) around the labelled joints; a person without any gets a box of NaN."""
    masked_NJ2 = np.where(labelled_NJ[..., None], joints_NJ2, np.inf)
    low_N2 = masked_NJ2.min(axis=1)
    high_N2 = np.where(labelled_NJ[..., None], joints_NJ2, -np.inf).max(axis=1)
    boxes_N4 = np.concatenate([low_N2, high_N2], axis=1)
    boxes_N4[~labelled_NJ.any(axis=1)] = np.nan
    return boxes_N4.astype(np.float32)


# --- What readers share


@dataclass(frozen=True, slots=True)
class Person:
    """One person on the way into :class:`PoseData`; NaN where the file holds nothing."""

    id: str
    image: str
    """File name as the labels give it."""
    joints_J2: Floats
    labelled_J: Bools
    visible_J: Bools
    box_4: Sequence[float] | Floats
    head: float = np.nan


def far_outside(points_N2: npt.NDArray[np.floating], size_2: npt.ArrayLike) -> Bools:
    """Return which points lie too far outside of their picture to be places, (N,): beyond an edge by more than half of the longer side.

    A hidden joint of somebody whom the edge cuts off may be labelled where it must be; of 151,213 labelled joints of LSP and
    LSPET one lies farther out than this. What is not finite is not far outside.

    Args:
        points_N2: pixels, with pixel centres at whole numbers.
        size_2: width and height of the picture.
    """
    size = np.asarray(size_2, dtype=np.float64)
    reach = REACH * size.max()
    return np.asarray(((points_N2 < -reach) | (points_N2 > size - 1 + reach)).any(axis=-1))


def from_people(
    name: str, skeleton: Skeleton, people: Sequence[Person], place: Callable[[str], Path], source: Path,
    *, heads: bool = False, stated: Mapping[str, tuple[int, int]] | None = None,
) -> PoseData:  # fmt: skip
    """Put people in rows, with the images that show at least one of them; a person without a box gets that of its joints.

    Args:
        name: of the dataset.
        skeleton: of everybody.
        people: in order.
        place: where the file of an image name lies.
        source: the file of labels, for the log.
        heads: whether people of this dataset have head sizes.
        stated: width and height of the images that the labels state, by name; images are then read upright, and joints far
            outside of them are not labelled, counted and logged: see :func:`far_outside`.
    """
    if stated is not None:
        people = _within_reach(people, skeleton, lambda image: stated.get(image) or image_size(place(image)), source)
    count, J = len(people), len(skeleton)
    names = list(dict.fromkeys(person.image for person in people))
    row_of = {image: row for row, image in enumerate(names)}
    joints_NJ2 = np.array([person.joints_J2 for person in people], dtype=np.float32).reshape(count, J, 2)
    labelled_NJ = np.array([person.labelled_J for person in people], dtype=np.bool_).reshape(count, J)
    boxes_N4 = np.array([person.box_4 for person in people], dtype=np.float32).reshape(count, 4)
    boxed_N = np.asarray(np.isfinite(boxes_N4).all(axis=1))
    if not boxed_N.all():
        log.warning("%s: %d people without a box get the box of their joints", source, int((~boxed_N).sum()))
    return PoseData(
        name=name,
        skeleton=skeleton,
        ids=tuple(person.id for person in people),
        images=image_files(
            [place(image) for image in names],
            source,
            None if stated is None else [stated.get(image) for image in names],
        ),
        image_N=np.array([row_of[person.image] for person in people], dtype=np.int64),
        joints_NJ2=joints_NJ2,
        labelled_NJ=labelled_NJ,
        visible_NJ=np.array([person.visible_J for person in people], dtype=np.bool_).reshape(count, J),
        boxes_N4=np.where(boxed_N[:, None], boxes_N4, joint_boxes(joints_NJ2, labelled_NJ)),
        head_N=np.array([person.head for person in people], dtype=np.float32) if heads else None,
    )


def _within_reach(
    people: Sequence[Person], skeleton: Skeleton, size_of: Callable[[str], tuple[int, int] | None], source: Path
) -> list[Person]:
    """The people with the joints that are in or near their pictures; without those who are elsewhere for the most part."""
    kept: list[Person] = []
    odd: list[str] = []
    size_of = functools.lru_cache(maxsize=None)(size_of)
    for person in people:
        size = size_of(person.image)
        if size is None:  # the picture is not there, and nobody says how large it is
            kept.append(person)
            continue
        far_J = far_outside(person.joints_J2, size) & person.labelled_J
        if not far_J.any():
            kept.append(person)
            continue
        if far_J.sum() * 2 > person.labelled_J.sum():
            odd.append(
                f"{person.id}: most joints lie far outside of the picture of {size[0]} x {size[1]}; the person is left out"
            )
            continue
        for joint in np.flatnonzero(far_J).tolist():
            x, y = person.joints_J2[joint].tolist()
            odd.append(f"{person.id}: {skeleton.joints[joint]} at {x:.6g}, {y:.6g} lies far outside of the picture of "
                       f"{size[0]} x {size[1]}, and counts as not labelled")  # fmt: skip
        kept.append(replace(person, labelled_J=person.labelled_J & ~far_J, visible_J=person.visible_J & ~far_J))
    for line in odd[:SHOWN]:
        log.warning("%s: %s", source, line)
    if len(odd) > SHOWN:
        log.warning("%s: and %d more joints or people that lie far outside of their pictures", source, len(odd) - SHOWN)
    return kept


def log_left_out(source: Path | str, kept: int, left_out: Mapping[str, int]) -> None:
    """Count in one line who was left out, by reason, if anybody was."""
    parts = [f"{count} {what}" for what, count in sorted(left_out.items()) if count]
    if parts:
        log.warning("%s: kept %d people, left out %s", source, kept, ", ".join(parts))


def inside(folder: Path, name: str, source: Path) -> Path:
    """Return ``folder / name``; a name from an archive, a JSON or a MATLAB file that would leave the folder is refused.

    Args:
        folder: where the name belongs.
        name: what ``source`` holds.
        source: the file that the name came from, for the message.
    """
    windows = PureWindowsPath(name)
    try:
        name.encode(errors="surrogateescape")  # whatever the locale is: the file is looked for as bytes
    except UnicodeEncodeError:
        raise DataError(f"{source}: the name {name!a} holds half a character; no file can be called so") from None
    if not name or "\0" in name or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(
            f"{source}: the name {name!r} leaves the folder {folder}; it must be relative, without '..'. "
            "Nothing was read or written there"
        )
    return folder / PurePosixPath(name)


def trained(data: PoseData, seen: Collection[str], *, exactly: bool = False) -> Bools:
    """Return who trained a model, (N,): everybody on a picture that it was trained on.

    Args:
        data: people.
        seen: from :func:`who_trained`.
        exactly: the very people, without others on their pictures.
    """
    keys = {found[0]: found[1] for name in seen if (found := _KEY.fullmatch(name))}
    mask_N = np.array([id_ in seen for id_ in data.ids], dtype=np.bool_) if len(keys) < len(seen) else np.zeros(
        len(data), dtype=np.bool_)  # fmt: skip
    if keys:
        names, known = (data.people_keys(), keys.keys()) if exactly else (data.pictures(), set(keys.values()))
        mask_N |= np.array([name in known for name in names], dtype=np.bool_)
    return mask_N


_KEY = re.compile(r"(.*)@(?:-?\d+|nan)(?:,(?:-?\d+|nan)){3}")


def who_trained(facts: Mapping[str, Any]) -> frozenset[str]:
    """Return who trained a checkpoint, from its facts: keys of people, or the ids of those that an old one names."""
    return frozenset(facts.get("labelled_people") or facts.get("labelled_ids", ()))


def split_groups(names: Sequence[str], share: float, purpose: str, never: Bools | None = None) -> Bools:
    """Return which people a share holds out, whole groups at a time; a hash of the group's name decides.

    Args:
        names: of everybody's group, from :meth:`PoseData.split_names` or :meth:`PoseData.pictures`.
        share: of the groups.
        purpose: splits for different purposes are independent.
        never: people who may not be held out, with their whole group: those who trained the net already.
    """
    mask_N = np.asarray(hashes(names, purpose) < int(share * 2**32))
    if never is not None:
        tainted = {name for name, is_in in zip(names, never.tolist(), strict=True) if is_in}
        mask_N &= np.array([name not in tainted for name in names], dtype=np.bool_)
    return mask_N


def hashes(names: Sequence[str], purpose: str) -> npt.NDArray[np.uint32]:
    """Return one number per name, the same in every process: what splits people without storing who went where.

    ``hashes(...) < share * 2**32`` holds out a share. Each purpose has numbers of its own, so that splits for different
    purposes are independent. Give people of one photograph its name, and they lie on the same side.
    """
    found = {name: hashlib.sha256(f"{purpose}/{name}".encode()).digest()[:4] for name in dict.fromkeys(names)}
    return np.array([int.from_bytes(found[name], "little") for name in names], dtype=np.uint32)
