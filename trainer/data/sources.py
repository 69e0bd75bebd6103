"""Where datasets come from, where they lie, and by which hashes they are known.

A data root holds one folder per dataset (``DATA/lsp``, ``DATA/lspet``, ``DATA/mpii``, ``DATA/coco``). It is
given by ``--data-root`` or $ALPOSE_DATA, and may also be the folder of the one dataset that is wanted.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from alpose.runtime.errors import ConfigError, DataNotFoundError

Dataset: TypeAlias = Literal["lsp", "lspet", "mpii", "coco"]
"""Datasets that can be read by name."""
Fetchable: TypeAlias = Literal["lsp", "lspet", "hr-lspet", "mpii", "coco"]
"""Datasets that can be downloaded. hr-lspet (LSPET in its original resolution) has no reader."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """How one dataset is published and what it looks like once it is in place."""

    name: Fetchable
    archives: tuple[str, ...]
    """Addresses of zip and tar.gz files."""
    tree: tuple[str, ...]
    """What lies in the dataset folder, one line each, for people."""
    top: str
    """A path that must be in the dataset folder; archives with one more folder around it are unwrapped."""
    joints_sha256: str | None = None
    """sha256 of ``joints.mat``."""
    images_sha256: str | None = None
    """sha256 of what ``sha256sum *.jpg`` prints in ``images/``."""


SOURCES: dict[Fetchable, Source] = {
    "lsp": Source(
        name="lsp",
        archives=("http://sam.johnson.io/research/lsp_dataset.zip",),
        tree=("joints.mat", "images/im0001.jpg ... im2000.jpg"),
        top="joints.mat",
        joints_sha256="ddcfcbe904106bfbf26561c8d11720ca62a11c7a861548064b3bae84cb396b2a",
        images_sha256="bffeb951d2f19456aca3aff580daadb4a759ff139ca2c4aa9076dd996b762ff3",
    ),
    "lspet": Source(
        name="lspet",
        archives=("http://sam.johnson.io/research/lspet_dataset.zip",),
        tree=("joints.mat", "images/im00001.jpg ... im10000.jpg"),
        top="joints.mat",
        joints_sha256="cc66465117888d9f43aac78c15c4548e37df5022640a193f2002fd084cba13ef",
        images_sha256="3533771070b7e44d26ba0296810607c461d0d7125727a6276082b321457f96af",
    ),
    "hr-lspet": Source(
        name="hr-lspet",
        archives=("https://datasets.d2.mpi-inf.mpg.de/hr-lspet/hr-lspet.zip",),
        tree=("joints.mat", "im00001.png ..."),
        top="",
    ),
    "mpii": Source(
        name="mpii",
        archives=(
            "https://datasets.d2.mpi-inf.mpg.de/andriluka14cvpr/mpii_human_pose_v1.tar.gz",
            "https://datasets.d2.mpi-inf.mpg.de/andriluka14cvpr/mpii_human_pose_v1_u12_2.zip",
        ),
        tree=(
            "images/015601864.jpg ... (about 25,000 images)",
            "mpii_human_pose_v1_u12_2/mpii_human_pose_v1_u12_1.mat",
            "annot/newell_valid.h5 (only for the train/valid split: Newell's valid.h5)",
        ),
        top="",
    ),
    "coco": Source(
        name="coco",
        archives=(
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            "http://images.cocodataset.org/zips/val2017.zip",
            "http://images.cocodataset.org/zips/train2017.zip",
        ),
        tree=(
            "annotations/person_keypoints_train2017.json",
            "annotations/person_keypoints_val2017.json",
            "train2017/ (118,287 images)",
            "val2017/ (5,000 images)",
        ),
        top="",
    ),
}


# --- where datasets lie ------------------------------------------------------------------------------------


def data_root_of(data_root: Path | None) -> Path:
    """The data root: as given, else $ALPOSE_DATA."""
    if data_root is not None:
        return data_root
    value = os.environ.get("ALPOSE_DATA")
    if not value:
        raise ConfigError("no data root: give --data-root DATA or set ALPOSE_DATA to the folder of the datasets")
    return Path(value)


def find(dataset: Dataset, data_root: Path | None) -> Path:
    """The folder of a dataset: ``data_root/NAME``, or ``data_root`` itself where it looks like that
    dataset."""
    root = data_root_of(data_root)
    named = root / dataset
    if named.is_dir() and _is_begun(dataset, named):
        return named
    if _looks_like(dataset, root):
        return root
    state = "holds nothing of it" if named.is_dir() else "does not exist"
    raise DataNotFoundError(
        f"the dataset {dataset} is not in {root}: {named} {state}, and {root} itself is not a {dataset} folder.\n"
        + how_to_place(SOURCES[dataset], root)
    )


def how_to_place(source: Source, data_root: Path) -> str:
    """What to place where by hand, and the command that checks it."""
    folder = data_root / source.name
    tree = "\n".join(f"    {folder}/{line}" for line in source.tree)
    archives = "\n".join(f"    {archive_path(data_root, url)}" for url in source.archives)
    check = f"alpose-train data verify --dataset {source.name} --data-root {data_root}"
    return (
        f"Place the files so that they lie like this:\n{tree}\n"
        f"or place the archives, as published, here:\n{archives}\n"
        f"and run: alpose-train data fetch --dataset {source.name} --data-root {data_root}"
        + ("" if source.name == "hr-lspet" else f"\nThen check them with: {check}")
    )


def archive_path(data_root: Path, url: str) -> Path:
    """Where an archive lies until it is unpacked, downloaded or placed by hand."""
    return data_root / ".downloads" / PurePosixPath(urlsplit(url).path).name


def _looks_like(dataset: Dataset, folder: Path) -> bool:
    """A folder that is unmistakably this dataset; LSP and LSPET differ in the digits of their image names."""
    if dataset in ("lsp", "lspet"):
        pattern = re.compile(r"im\d{4}\.jpg" if dataset == "lsp" else r"im\d{5}\.jpg")
        images = folder / "images"
        return (
            (folder / "joints.mat").is_file()
            and images.is_dir()
            and any(pattern.fullmatch(path.name) for path in images.iterdir())
        )
    return _is_begun(dataset, folder)


def _is_begun(dataset: Dataset, folder: Path) -> bool:
    """At least the labels or the images are there, so that a check can say what is missing."""
    if dataset == "coco":
        return any((folder / "annotations").glob("*.json"))
    if dataset == "mpii":
        mats = ("*.mat", "annot/*.mat", "mpii_human_pose_v1_u12_2/*.mat", "annot/*.json")
        return any(True for pattern in mats for _ in folder.glob(pattern))
    return (folder / "joints.mat").is_file() or (folder / "images").is_dir()


# --- hashes ------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def images_sha256(folder: Path) -> str:
    """sha256 of what ``sha256sum *.jpg`` prints in a folder, names sorted by their bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.jpg"), key=lambda path: os.fsencode(path.name)):
        digest.update(f"{file_sha256(path)}  {path.name}\n".encode())
    return digest.hexdigest()


def hash_mismatches(source: Source, folder: Path) -> tuple[str, ...]:
    """What differs from the known hashes, one line each; empty when all is well or no hash is known."""
    lines = []
    for name, expected, hash_of in (
        ("joints.mat", source.joints_sha256, file_sha256),
        ("images", source.images_sha256, images_sha256),
    ):
        path = folder / name
        if expected is None:
            continue
        found = hash_of(path) if path.exists() else "missing"
        if found != expected:
            lines.append(f"{name}: sha256 {found}, expected {expected}")
    return tuple(lines)
