"""Unpacking zip and tar.gz archives of anybody's: plain files only, and none beside the folder they belong to."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from alpose.runtime.errors import DataError

from ..progress import bar
from .safe_paths import inside
from .sources import CHUNK_BYTES


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
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DataError(f"{archive} is damaged: {error}") from error


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
    with tarfile.open(archive, "r|*") as opened:
        for member in bar(opened, desc=f"unpacking {archive.name}", unit="file"):
            target = inside(folder, member.name, archive)
            if member.isdir():
                continue
            if not member.isfile():
                raise DataError(f"{archive}: the member {member.name!r} is not a plain file; only those are unpacked")
            size += member.size
            _check_room(member.size, folder, archive)
            file = opened.extractfile(member)
            assert file is not None
            with file:
                _write(file, target)


def _check_room(size: int, folder: Path, archive: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"{archive} unpacks to {size:,} bytes, and {folder} has {free:,} left")


def _write(file: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as out:
        shutil.copyfileobj(file, out, CHUNK_BYTES)
