"""Open a dataset by its name or its folder: who may be trained on, and who tests.

============== ======================================= =============== ===========================
name           everyone who may be trained on           labelled first  test
============== ======================================= =============== ===========================
lsp            first 1,000 of LSP, then all of LSPET   the LSP part    last 1,000 of LSP
lspet          nobody                                                  all of LSPET
mpii           training images of Newell's split       drawn by seed   Newell's validation
synthetic      easy domain, then hard domain           the easy part   easy domain, other people
synthetic-hard nobody                                                  hard domain, other people
coco, FOLDER   the part called ``train``               drawn by seed   the part called ``val``
============== ======================================= =============== ===========================

A folder with no such parts is split by image. A data root holds one folder per dataset (``DATA/lsp``, ``DATA/lspet``,
``DATA/mpii``, ``DATA/coco``). It is given by ``--data-root`` or $ALPOSE_DATA, and may also be the folder of the one
dataset that is wanted.

What a folder holds is read by whichever :class:`Reader` recognises it; :func:`register` adds one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.runtime.skeleton import Skeleton, with_flip_pairs

from .download import SOURCES, how_to_place
from .records import Bools, PoseData, join, split_groups, trained

DatasetName: TypeAlias = Literal["lsp", "lspet", "mpii", "coco"]
"""Datasets that lie in a data root under their names."""
NAMES = ("lsp", "lspet", "mpii", "coco", "synthetic", "synthetic-hard")

ENOUGH = 400
"""Rendered people cost next to nothing: enough of them for thresholds with a promise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How many people the synthetic benchmark renders."""

    initial: int = 1000
    pool: int = 10000
    test: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One dataset in its roles."""

    name: str
    train: PoseData
    """Everyone who is or can be labelled and trained on."""
    test: PoseData
    whole: PoseData | None = None
    """Everybody as they were read, of a folder that does not say who tests and whose images were split here."""
    first: int | None = None
    """The first so many people are the benchmark's initial labelled set; None draws it by seed."""

    def initial(self, row_N: npt.NDArray[np.integer], count: int, seed: int) -> Bools:
        """Return who is labelled at the start, as a mask over ``row_N``: the rows of ``train`` that are usable."""
        if self.first is not None:
            return row_N < self.first
        if not 2 <= count < len(row_N):
            raise ConfigError(
                f"{self.name}: cannot label {count} of {len(row_N)} people at the start: set --initial between 2 and "
                f"{len(row_N) - 1}"
            )
        mask_N = np.zeros(len(row_N), dtype=np.bool_)
        mask_N[np.random.default_rng([seed, 1]).permutation(len(row_N))[:count]] = True
        return mask_N

    def with_skeleton(self, skeleton: Skeleton) -> Dataset:
        """Return the same people under a skeleton of the same joints."""
        return replace(self, train=self.train.with_skeleton(skeleton), test=self.test.with_skeleton(skeleton),
                       whole=None if self.whole is None else self.whole.with_skeleton(skeleton))  # fmt: skip

    def for_calibration(self) -> PoseData:
        """Return who may calibrate: those who test, or everybody of a folder that does not say who tests."""
        return self.test if self.whole is None else self.whole


# --- Readers of folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How one kind of dataset folder is read."""

    name: str
    recognises: Callable[[Path], bool]
    """Whether a folder, or a file, is of this kind: at least the labels or the images are there."""
    read: Callable[[Path, str | None], PoseData]
    """The people of a folder, of one part or of the only one. Broken labels are a :class:`DataError` that names them."""
    groups: Callable[[Path, str | None, str], Mapping[str, str]] | None = None
    """What each person of a part belongs to, by id, from the name of a field; None where labels do not say it."""
    parts: Callable[[Path], tuple[str, ...]] = lambda _: ()
    """Names of the parts of a folder that are read one at a time; none where it is one whole."""


READERS: dict[str, Reader] = {}


def register(reader: Reader) -> Reader:
    """Add a kind of dataset folder; the one that was added last is asked first."""
    READERS[reader.name] = reader
    return reader


def reader_of(folder: Path) -> Reader:
    """Return the reader that recognises a folder."""
    for reader in reversed(READERS.values()):
        if reader.recognises(folder):
            return reader
    raise DataNotFoundError(
        f"{folder} is not a dataset that can be read ({', '.join(READERS)}): a COCO keypoints folder needs "
        "annotations/NAME.json beside images/, a YOLO-pose folder data.yaml with kpt_shape"
    )


def _recognises_lsp(folder: Path, digits: int) -> bool:
    """LSP and LSPET differ in the digits of their image names."""
    images = folder / "images"
    pattern = re.compile(rf"im\d{{{digits}}}\.jpg")
    return (folder / "joints.mat").is_file() and images.is_dir() and any(
        pattern.fullmatch(path.name) for path in images.iterdir()
    )  # fmt: skip


def _recognises_mpii(folder: Path) -> bool:
    places = ("*.mat", "annot/*.mat", "mpii_human_pose_v1_u12_2/*.mat", "annot/*.json")
    return not (folder / "joints.mat").is_file() and any(True for place in places for _ in folder.glob(place))


def _recognises_coco(folder: Path) -> bool:
    if folder.is_file():
        return folder.suffix == ".json"
    places = ("annotations/*.json", "_annotations.coco.json", "*/_annotations.coco.json")
    fiftyone = (folder / "labels.json").is_file() and (folder / "data").is_dir()
    return fiftyone or any(True for place in places for _ in folder.glob(place))


def _read_lsp(folder: Path, _part: str | None) -> PoseData:
    from .lsp import read_lsp

    return read_lsp(folder)


def _read_lspet(folder: Path, _part: str | None) -> PoseData:
    from .lsp import read_lspet

    return read_lspet(folder)


def _read_mpii(folder: Path, _part: str | None) -> PoseData:
    from .mpii import read_mpii

    return read_mpii(folder)


def _read_coco(folder: Path, part: str | None) -> PoseData:
    from .coco import read_coco

    return read_coco(folder, part)


def _groups_of_coco(folder: Path, part: str | None, field: str) -> Mapping[str, str]:
    from .coco import groups

    return groups(folder, part, field)


def _parts_of_coco(folder: Path) -> tuple[str, ...]:
    from .coco import annotation_files, part_of

    return tuple(part_of(path) for path in annotation_files(folder))


def _recognises_yolo(folder: Path) -> bool:
    from .yolo import find_yaml

    return find_yaml(folder) is not None


def _read_yolo(folder: Path, part: str | None) -> PoseData:
    from .yolo import read_yolo

    return read_yolo(folder, part)


def _parts_of_yolo(folder: Path) -> tuple[str, ...]:
    from .yolo import parts_of

    return parts_of(folder)


register(Reader(name="lsp", recognises=lambda folder: _recognises_lsp(folder, 4), read=_read_lsp))
register(Reader(name="lspet", recognises=lambda folder: _recognises_lsp(folder, 5), read=_read_lspet))
register(Reader(name="mpii", recognises=_recognises_mpii, read=_read_mpii))
register(
    Reader(name="coco", recognises=_recognises_coco, read=_read_coco, parts=_parts_of_coco, groups=_groups_of_coco)
)
register(Reader(name="yolo-pose", recognises=_recognises_yolo, read=_read_yolo, parts=_parts_of_yolo))


# --- Opening


def open_dataset(
    name: str, data_root: Path | None = None, *, sizes: Sizes | None = None, hold_out: float | None = None,
    flip_pairs: str | None = None, group_by: str | None = None, seen: Collection[str] = (), split: str | None = None,
) -> Dataset:  # fmt: skip
    """Open a dataset by its name, or a folder by its path.

    Args:
        name: one of :data:`NAMES`, or the path of a folder or of an annotation file.
        data_root: where datasets lie; None looks at $ALPOSE_DATA.
        sizes: how many people are rendered, of synthetic sets.
        hold_out: the share of the images that tests in a folder without a part for it, by a hash of their content, so
            that a person keeps its side while the folder grows; None draws a fifth of them.
        group_by: a field of a COCO folder's images, such as ``driver``, ``camera`` or ``clip``: people of one group lie
            on one side, because neighbouring frames resemble each other.
        seen: who trained a net that is trained on: they are never held out.
        split: the part of a COCO folder that tests, such as ``val2017``.
        flip_pairs: which joints change places in a mirror, in place of what their names say:
            see :func:`alpose.runtime.skeleton.with_flip_pairs`.
    """
    if opener := _OPENERS.get(name):
        dataset = opener(data_root, sizes or Sizes())
    else:
        folder = find("coco", data_root) if name == "coco" else Path(name)
        if not folder.exists():
            raise ConfigError(f"{name!r} is neither one of {', '.join(NAMES)} nor a folder")
        dataset = _open_folder(folder, hold_out, group_by, seen, split)
    return dataset if flip_pairs is None else dataset.with_skeleton(with_flip_pairs(dataset.test.skeleton, flip_pairs))


def read_parts(name: str | Path, data_root: Path | None = None, split: str | None = None) -> tuple[PoseData, ...]:
    """Read everything that a dataset holds, part by part; ``synthetic`` has an easy and a hard domain.

    Args:
        name: one of :data:`NAMES`, or the path of a folder or of an annotation file.
        data_root: where datasets lie; None looks at $ALPOSE_DATA.
        split: one part of a folder that has several, such as ``val2017``.
    """
    if name == "synthetic":
        from .synthetic import read_people

        return tuple(read_people(seed=0, count=Sizes().initial, domain=domain) for domain in ("easy", "hard"))
    if isinstance(name, str) and name in READERS and not Path(name).is_dir():
        reader, folder = READERS[name], find(name, data_root)  # type: ignore[arg-type]
    else:
        reader, folder = reader_of(Path(name)), Path(name)
    parts = reader.parts(folder) if split is None else (split,)
    return tuple(reader.read(folder, part) for part in parts or (None,))


def _open_folder(
    folder: Path, hold_out: float | None, group_by: str | None, seen: Collection[str], split: str | None
) -> Dataset:
    reader = reader_of(folder)
    parts = reader.parts(folder)

    def read(part: str | None) -> PoseData:
        data = reader.read(folder, part)
        if group_by is None:
            return data
        if reader.groups is None:
            raise ConfigError(f"--group-by {group_by}: a dataset of the kind {reader.name} does not say it ({folder})")
        group_of = reader.groups(folder, part, group_by)
        return replace(data, groups=tuple(group_of[id_] for id_ in data.ids))

    if split is not None:
        everyone = read(split)
        return Dataset(name=folder.name, train=everyone.subset([]), test=everyone)
    if any("train" in part for part in parts) and any("val" in part for part in parts):
        train, test = read("train"), read("val")
        return Dataset(name=folder.name, train=train, test=test.subset(np.flatnonzero(~trained(test, seen))))
    everyone = read(None)
    if hold_out is None and group_by is None:
        held_N = _fifth(everyone)
    else:
        held_N = held_out(everyone, hold_out or 0.2, trained(everyone, seen) if seen else None)
    test = everyone.subset(np.flatnonzero(held_N), f"{everyone.name}-test" if hold_out is None else None)
    return Dataset(name=folder.name, train=everyone.subset(np.flatnonzero(~held_N)), test=test, whole=everyone)


def _fifth(data: PoseData) -> Bools:
    shuffled = np.random.default_rng(0).permutation(len(data.images))
    # By image, so that two people of one photograph never lie on both sides.
    mask_N = np.isin(data.image_N, shuffled[: max(1, len(shuffled) // 5)])
    if mask_N.all() or not mask_N.any():
        raise DataError(f"{data.name}: {len(data)} people are too few to split into training and test")
    return mask_N


def held_out(data: PoseData, share: float, never: Bools | None = None) -> Bools:
    """Return which people are held out: a hash of the picture's content decides, or of the group's name.

    So a person keeps its side while a folder grows, is renamed or merged, and two people of one photograph share it.
    """
    names = data.groups or data.pictures()
    mask_N = split_groups(names, share, "hold out", never)
    if mask_N.all() or not mask_N.any():
        what = "groups" if data.groups else "images"
        raise DataError(f"{data.name}: {len(set(names))} {what} are too few to hold {share:.0%} of them out")
    return mask_N


def _lsp(data_root: Path | None, _sizes: Sizes) -> Dataset:
    folder = find("lsp", data_root)
    lsp, lspet = _read_lsp(folder, None), _read_lspet(find("lspet", data_root), None)
    if len(lsp) != 2000:
        raise DataError(f"LSP has 2,000 people, {folder} has {len(lsp)}: the split would be another")
    train = join("lsp", lsp.subset(np.arange(1000)), lspet)
    return Dataset(name="lsp", train=train, test=lsp.subset(np.arange(1000, 2000), "lsp-test"), first=1000)


def _lspet(data_root: Path | None, _sizes: Sizes) -> Dataset:
    everyone = _read_lspet(find("lspet", data_root), None)
    return Dataset(name="lspet", train=everyone.subset([]), test=everyone)


def _mpii(data_root: Path | None, _sizes: Sizes) -> Dataset:
    from .mpii import read_mpii_parts

    train, valid = read_mpii_parts(find("mpii", data_root))
    return Dataset(name="mpii", train=train, test=valid)


def _synthetic(_data_root: Path | None, sizes: Sizes) -> Dataset:
    from .synthetic import read_people

    easy = read_people(seed=0, count=sizes.initial + sizes.test, domain="easy")
    hard = read_people(seed=0, count=sizes.pool, domain="hard")
    train = join("synthetic", easy.subset(np.arange(sizes.initial)), hard)
    test = easy.subset(np.arange(sizes.initial, len(easy)), "synthetic-test")
    return Dataset(name="synthetic", train=train, test=test, first=sizes.initial)


def _synthetic_hard(_data_root: Path | None, sizes: Sizes) -> Dataset:
    from .synthetic import read_people

    everyone = read_people(seed=1, count=max(sizes.test, ENOUGH), domain="hard")
    return Dataset(name="synthetic-hard", train=everyone.subset([]), test=everyone)


_OPENERS: dict[str, Callable[[Path | None, Sizes], Dataset]] = {
    "lsp": _lsp, "lspet": _lspet, "mpii": _mpii, "synthetic": _synthetic, "synthetic-hard": _synthetic_hard,
}  # fmt: skip


# --- Where datasets lie


def data_root_of(data_root: Path | None) -> Path:
    """Return the data root: as given, else $ALPOSE_DATA."""
    if data_root is not None:
        return data_root
    value = os.environ.get("ALPOSE_DATA")
    if not value:
        raise ConfigError("no data root: give --data-root DATA or set ALPOSE_DATA to the folder of the datasets")
    return Path(value)


def find(dataset: DatasetName, data_root: Path | None) -> Path:
    """Return the folder of a dataset: ``data_root/NAME``, or ``data_root`` itself where that is the dataset."""
    root = data_root_of(data_root)
    named = root / dataset
    recognises = READERS[dataset].recognises
    begun = dataset in ("lsp", "lspet") and ((named / "joints.mat").is_file() or (named / "images").is_dir())
    if named.is_dir() and (begun or recognises(named)):
        return named  # a check can say what is missing
    if recognises(root):
        return root
    state = "holds nothing of it" if named.is_dir() else "does not exist"
    raise DataNotFoundError(
        f"the dataset {dataset} is not in {root}: {named} {state}, and {root} itself is not a {dataset} folder.\n"
        + how_to_place(SOURCES[dataset], root)
    )
