"""Pictures of people: read when they are asked for, upright as their EXIF says, with errors that name the file."""

from __future__ import annotations

import functools
import hashlib
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError

log = logging.getLogger("alpose")


class ImageError(DataError):
    """One image that is missing or cannot be decoded; the message names it."""


class Images(Protocol):
    """Where pixels come from: files on disk, or a renderer."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One image, uint8 (H, W, 3) RGB. Raises :class:`ImageError`, which names the image."""
        ...

    def describe(self, index: int) -> str:
        """What tells this picture from every other and is the same for every copy: a hash of its content, or a seed."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images on disk, decoded with OpenCV; grey images become RGB.

    A picture that EXIF turns is read as it is stored, as the published datasets are labelled, or upright, as browsers
    and a Monitor show it. Where the labels state its size, the size decides.
    """

    paths: tuple[Path, ...]
    upright: bool = False
    stated: tuple[tuple[int, int] | None, ...] | None = None
    """Width and height of each image according to the labels."""

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One image, uint8 (H, W, 3) RGB."""
        path = self.paths[index]
        encoded = np.frombuffer(content_of(path), dtype=np.uint8)
        image_HW3 = _decoded(encoded, self.upright)
        if image_HW3 is None:
            raise ImageError(f"{path}: cannot be decoded as an image ({encoded.size} bytes)")
        stated = self.stated[index] if self.stated else None
        if stated and image_HW3.shape[1::-1] != stated:
            other_HW3 = _decoded(encoded, not self.upright)
            if other_HW3 is not None and other_HW3.shape[1::-1] == stated:
                image_HW3 = other_HW3
        return np.ascontiguousarray(image_HW3[..., ::-1])  # OpenCV decodes to BGR

    def describe(self, index: int) -> str:
        """Hash of the file's content; a file that cannot be read goes by its name."""
        path = self.paths[index]
        try:
            state = path.stat()
            if not path.is_file():
                return f"missing:{path.name}"
            # Whatever changes the content changes one of these, so that it is read once in a process.
            return _content(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        except OSError:
            return f"missing:{path.name}"


def content_of(path: Path) -> bytes:
    """The bytes of an image's file; :class:`ImageError` where it cannot be read, or is a pipe, which would be waited for."""
    try:
        if not path.is_file():
            path.stat()
            raise ImageError(f"{path}: is not a file")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error


def _decoded(encoded: npt.NDArray[np.uint8], upright: bool) -> npt.NDArray[np.uint8] | None:
    import cv2  # here: without the train extra the commands say what to install

    flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.imdecode(encoded, flags) if encoded.size else None


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image that stands upright, from its head alone where it is JPEG or PNG; None where it is not there.

    An image that cannot be decoded has no size either.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content.startswith(b"\x89PNG") and content[12:16] == b"IHDR":
        return struct.unpack_from(">II", content, 16)
    size = _jpeg_size(content) if content.startswith(b"\xff\xd8") else None
    if size is not None:
        return size[::-1] if orientation(content) >= 5 else size
    image_HW3 = _decoded(np.frombuffer(content, dtype=np.uint8), upright=True)
    return None if image_HW3 is None else (image_HW3.shape[1], image_HW3.shape[0])


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """From the frame header of a JPEG (ITU T.81, B.2.2); None where there is none."""
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, place + 5)
            return (width, height) if width and height else None
        place += 1 if marker == 0xFF else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def orientation(content: bytes) -> int:
    """How EXIF says that a JPEG is turned, 1 to 8; 1, as it is stored, where it says nothing."""
    start = content.find(b"Exif\0\0", 0, 1 << 16)
    tiff = content[start + 6 : start + 6 + (1 << 16)] if start >= 0 else b""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is None:
            return 1
        at = struct.unpack_from(f"{order}I", tiff, 4)[0]
        for entry in range(struct.unpack_from(f"{order}H", tiff, at)[0]):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
            if tag == 0x112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


@functools.lru_cache(maxsize=1 << 20)
def _content(path: Path, *_state: int) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class JoinedImages:
    """Several image sources one after the other."""

    parts: tuple[Images, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def _find(self, index: int) -> tuple[Images, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One image, uint8 (H, W, 3) RGB."""
        part, row = self._find(index)
        return part.read(row)

    def describe(self, index: int) -> str:
        """As the part that holds the image describes it."""
        part, row = self._find(index)
        return part.describe(row)


def name_and_size(images: Images, index: int) -> str:
    """A picture's file and its size in bytes, by which a data set is known again."""
    if isinstance(images, JoinedImages):
        return name_and_size(*images._find(index))
    if not isinstance(images, ImageFiles):
        return images.describe(index)
    path = images.paths[index]
    return f"{path.name}:{path.stat().st_size if path.is_file() else -1}"


def image_files(
    paths: Sequence[Path], source: Path | str, stated: Sequence[tuple[int, int] | None] | None = None
) -> ImageFiles:
    """Return images on disk; missing ones are counted in the log, and fail when they are read."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        log.warning("%s: %d of %d images are missing, the first is %s", source, len(missing), len(paths), missing[0])
    return ImageFiles(tuple(paths), stated is not None, None if stated is None else tuple(stated))
