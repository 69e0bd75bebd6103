"""How datasets are published, and how they get into a data root: download, check, unpack, move into place.

What is there is left alone, what broke off is continued, and what is not the dataset never gets there. Archives may be
anybody's: plain files only, and none beside the folder that they belong to.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import http.client
import logging
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from alpose.runtime.errors import AlposeError, ConfigError, DataError
from alpose.runtime.io import file_sha256

from ..progress import bar
from .records import inside

Fetchable: TypeAlias = Literal["lsp", "lspet", "hr-lspet", "mpii", "coco"]
"""Datasets that can be downloaded. hr-lspet (LSPET in its original resolution) has no reader."""

CHUNK_BYTES = 1 << 20

logger = logging.getLogger("alpose")


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


# --- a dataset


class DownloadError(AlposeError, OSError):
    """A download that did not work; the message says what to place where instead."""


def fetch(
    source: Source,
    data_root: Path,
    *,
    mirror: str | None = None,
    only: tuple[str, ...] = (),
    report: Callable[[str], None] = logger.info,
    attempts: int = 5,
    pause_s: float = 2.0,
) -> Path:
    """Download, check and unpack a dataset into ``data_root/NAME``; what is already there is left alone.

    A partial download is continued. An archive that lies in ``data_root/.downloads`` already is used instead
    of downloading. Archives are unpacked beside the target, checked, and only then moved into place.

    Args:
        source: one of :data:`SOURCES`.
        data_root: folder that holds the datasets; created when absent.
        mirror: an address that replaces everything before the archives' file names.
        only: file names of archives to take; empty for all.
        report: called with one line per step.
        attempts: tries per archive.
        pause_s: seconds before the second try, doubled for each further one.
    """
    source = _restrict(_mirrored(source, mirror), only)
    folder = data_root / source.name
    if source.joints_sha256 and (folder / "joints.mat").is_file() and not hash_mismatches(source, folder):
        report(f"{source.name}: already complete in {folder}, hashes match")
        return folder
    for url in source.archives:
        archive = archive_path(data_root, url)
        stamp = folder / f".fetched-{archive.name}"
        if stamp.exists() and not source.joints_sha256:
            report(f"{source.name}: {archive.name} was unpacked into {folder} before, left alone")
            continue
        try:
            if archive.is_file():
                report(f"{source.name}: using {archive}")
            else:
                report(f"{source.name}: downloading {url}")
                download(url, archive, attempts=attempts, pause_s=pause_s)
            with _unpacked(archive, data_root) as unpacked:
                top = _unwrap(unpacked, source.top)
                if wrong := hash_mismatches(source, top):
                    raise DataError(f"what {archive.name} holds is not {source.name}: {'; '.join(wrong)}")
                moved = _move_files(top, folder)
        except DataError as error:
            archive.unlink(missing_ok=True)  # or the next try would use it again
            raise DownloadError(
                f"{error}. It came from {url} and was removed; nothing was placed in {folder}.\n"
                + how_to_place(source, data_root)
            ) from error
        except OSError as error:
            raise DownloadError(f"{source.name}: {error}.\n" + how_to_place(source, data_root)) from error
        stamp.touch()
        archive.unlink()
        report(f"{source.name}: {moved:,} files of {archive.name} are in {folder}")
    return folder


def _mirrored(source: Source, mirror: str | None) -> Source:
    """The same archives below another address."""
    if mirror is None:
        return source
    names = (PurePosixPath(urlsplit(url).path).name for url in source.archives)
    return replace(source, archives=tuple(f"{mirror.rstrip('/')}/{name}" for name in names))


def _restrict(source: Source, only: tuple[str, ...]) -> Source:
    """Only the archives with these file names."""
    by_name = {PurePosixPath(urlsplit(url).path).name: url for url in source.archives}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise ConfigError(f"{source.name} has no archive {', '.join(unknown)}; it has: {', '.join(by_name)}")
    return replace(source, archives=tuple(by_name[name] for name in only)) if only else source


@contextmanager
def _unpacked(archive: Path, data_root: Path) -> Iterator[Path]:
    """A temporary folder beside the target with the contents of an archive."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=data_root) as folder:
        unpack(archive, Path(folder))
        yield Path(folder)


def _unwrap(folder: Path, top: str) -> Path:
    """The folder that holds ``top``: the one given or the only one in it."""
    if not top or (folder / top).exists():
        return folder
    holders = [path for path in folder.iterdir() if (path / top).exists()]
    if len(holders) != 1:
        raise DataError(
            f"the archive has no {top} at its top; it holds {sorted(p.name for p in folder.iterdir())[:10]}"
        )
    return holders[0]


def _move_files(source: Path, target: Path) -> int:
    """Move every file of a folder to the same place below another; how many there were."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    return len(files)


# --- one file ----------------------------------------------------------------------------------------------


def download(url: str, target: Path, *, attempts: int = 5, pause_s: float = 2.0, timeout_s: float = 30.0) -> None:
    """Fetch a file, continuing what an earlier try left in ``TARGET.part``; complete or not at all.

    Raises :class:`DownloadError` after ``attempts`` tries, or at once when the server says that there is no
    such file.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url}: only http and https addresses are downloaded")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(attempts):
        try:
            _continue(url, part, timeout_s)
            os.replace(part, target)
            return
        except (OSError, http.client.HTTPException) as error:
            failure = error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code == 416:  # the part is longer than the file: another file lies there now
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    break
        logger.warning("%s: try %d of %d failed: %s", url, attempt + 1, attempts, failure or type(failure).__name__)
        if attempt + 1 < attempts:
            time.sleep(pause_s * 2**attempt)
    kept = f"; {part.stat().st_size:,} bytes are kept in {part} and will be continued" if part.exists() else ""
    raise DownloadError(f"could not download {url}: {failure}{kept}")


def _continue(url: str, part: Path, timeout_s: float) -> None:
    """One try: append what is missing. Raises OSError when fewer bytes came than were announced."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "alpose"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - download() allows http and https only
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"*/{have}"):
            error.close()
            return  # the part is the whole file
        raise
    with response:
        if response.status != 206:  # the server does not continue: from the start
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError(f"asked to continue at byte {have}, got {response.headers.get('Content-Range')!r}")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            open(part, "ab" if have else "wb") as file,
            bar(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as shown,
        ):
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                shown.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


# --- an archive


def unpack(archive: Path, folder: Path) -> None:
    """Extract a zip or tar.gz.

    Members that would leave the folder, links and devices are refused; damage is a :class:`DataError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        else:
            with open(archive, "rb") as file:
                start = file.read(60)
            raise DataError(f"{archive} is neither a zip nor a tar archive; it begins with {start!r}")
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the archive
        # A compression or an encryption that is not known is no damage, but ends here too.
        raise DataError(f"{archive} cannot be unpacked, it is damaged or of an unusual kind: {error}") from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
        for member in members:
            inside(folder, member.filename, archive)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{archive}: the member {member.filename!r} is a link; only plain files are unpacked")
        _check_room(sum(member.file_size for member in members), folder, archive)
        for member in bar(members, desc=f"unpacking {archive.name}", unit="file"):
            with opened.open(member) as file:
                _write(file, inside(folder, member.filename, archive))


def _unpack_tar(archive: Path, folder: Path) -> None:
    size = 0
    with open(archive, "rb") as file:
        start = file.read(6)
    openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), open)
    with opener(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as opened:
        for member in bar(opened, desc=f"unpacking {archive.name}", unit="file"):
            target = inside(folder, member.name, archive)
            if member.isdir():
                continue
            if not member.isfile():
                raise DataError(f"{archive}: the member {member.name!r} is not a plain file; only those are unpacked")
            size += member.size
            _check_room(member.size, folder, archive)
            content = opened.extractfile(member)
            assert content is not None
            with content:
                _write(content, target)
        while stream.read(CHUNK_BYTES):  # the checksum stands at the end, and tarfile does not read it
            pass


def _check_room(size: int, folder: Path, archive: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{archive} unpacks to {size:,} bytes, and {folder} has {free:,} left")


def _write(file: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as out:
        shutil.copyfileobj(file, out, CHUNK_BYTES)


# --- hashes


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
