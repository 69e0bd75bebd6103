"""The pictures of a pool: the files of a folder, or of anything that fsspec lists, with their content.

A picture goes by its place below the pool, with slashes: ``cabin/00017.jpg``. Nothing but the listing names a file that is
read. Whether a picture changed is told by its size and time, or by what the server says in their place.

Shapes: H W picture.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError, MissingExtraError

from ..data.images import ImageError, content_of

log = logging.getLogger("alpose")

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""What OpenCV reads; a file of another name is not taken for a picture."""
STATES = ("size", "ETag", "LastModified", "mtime", "modified", "created", "md5")
"""What servers say of a file that changes with it."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSWORD = re.compile(r"(://[^/@:]*):[^/@]*@")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the pictures lie; it goes to other machines, which open it by themselves."""

    url: str
    """An absolute folder of this machine, or an address as fsspec knows them."""

    def __str__(self) -> str:
        """Without a password."""
        return _PASSWORD.sub(r"\1@", self.url)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return _URL.match(self.url) is None

    def read(self, name: str) -> bytes:
        """The content of a picture; :class:`~alpose.trainer.data.images.ImageError` where it cannot be read."""
        if self.is_local:
            return content_of(Path(self.url) / name)
        files, root = _file_system(self.url)
        try:
            found: bytes = files.cat_file(f"{root}/{name}")
        except Exception as error:  # every file system has errors of its own
            raise ImageError(f"{name}: {type(error).__name__}: {str(error)[:200]}") from error
        return found


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a pool, by name."""

    files: Files
    names: tuple[str, ...]
    states: tuple[str, ...]
    """Changes when the picture does."""
    others: int
    """Files that are not pictures, by their names."""

    def __len__(self) -> int:
        return len(self.names)


def list_pictures(pool: str | Path) -> Listing:
    """List a pool.

    Raises:
        DataNotFoundError: there is no such folder, or no picture in it.
        MissingExtraError: a package is missing that reads this kind of address.
        DataError: the server refuses.
    """
    text = str(pool)
    files = Files(text.rstrip("/") if _URL.match(text) else str(Path(text).resolve()))
    if files.is_local and not Path(files.url).is_dir():
        raise DataNotFoundError(
            f"{pool} is not a folder: give one with pictures, or an address such as s3://bucket/folder"
        )
    found, others = [], 0
    for name, state in _walk(Path(files.url)) if files.is_local else _remote(files):
        base = name.rpartition("/")[2]
        if os.path.splitext(base)[1].lower() in SUFFIXES and not base.startswith("."):
            found.append((name, state))
        else:
            others += 1
    if not found:
        raise DataNotFoundError(f"{files} has no picture ({', '.join(sorted(SUFFIXES))}); it has {others} other files")
    found.sort()
    return Listing(files, tuple(name for name, _ in found), tuple(state for _, state in found), others)


def decode(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """A picture as people and browsers see it: turned as EXIF says, RGB (H, W, 3), contiguous.

    :class:`~alpose.trainer.data.images.ImageError` where it cannot be decoded.
    """
    import cv2

    try:
        bgr_HW3 = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded as an image: {str(error)[:200]}") from error
    if bgr_HW3 is None:
        raise ImageError(f"{name}: cannot be decoded as an image ({len(content)} bytes)")
    return np.ascontiguousarray(bgr_HW3[..., ::-1])


def digest(content: bytes) -> str:
    """What tells a picture from every other, whatever it is called."""
    return hashlib.sha256(content).hexdigest()


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """Every file below a folder; what cannot be looked at is listed as well, and found out when it is read."""

    def unreadable(error: OSError) -> None:
        log.warning("%s is left out: %s", error.filename, error.strerror or error)

    for folder, _, names in os.walk(root, onerror=unreadable):
        for name in names:
            path = os.path.join(folder, name)
            try:
                facts = os.stat(path)
                state = f"{facts.st_size}/{facts.st_mtime_ns}"
            except OSError as error:
                state = type(error).__name__
            yield os.path.relpath(path, root).replace(os.sep, "/"), state


def _remote(files: Files) -> Iterator[tuple[str, str]]:
    system, root = _file_system(files.url)
    try:
        system.invalidate_cache()
        found = system.find(root, detail=True)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{files} is not there, or nobody answers: is the address right?") from error
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{files} cannot be listed: {type(error).__name__}: {str(error)[:300]}") from error
    for path, facts in found.items():
        name = str(path)[len(root) :].lstrip("/")
        if name:
            yield name, "/".join(str(facts[key]) for key in STATES if facts.get(key) is not None)


@lru_cache(maxsize=8)
def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", "a pool behind an address", "harvest") from error
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(
            str(getattr(error, "name", None) or error), "this kind of address", "harvest"
        ) from error
    except ValueError as error:
        raise DataError(f"{_PASSWORD.sub(chr(92) + '1@', url)} is not an address that fsspec knows: {error}") from error
    return system, str(root).rstrip("/")
