"""The pictures of an inbox: ``frames/9f/9f….jpg``, named by the id of their record alone.

An id is 32 hex digits or is refused: no path that stands in a record is used. Beside a sealed picture, which ends in
``.sealed``, its image lies once it was opened.
"""

from __future__ import annotations

from pathlib import Path

from alpose.runtime.errors import DataError
from alpose.runtime.io import write_atomically
from alpose.runtime.queue.record import Picture, PictureInfo, is_hex

SEALED = ".sealed"
SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}


class Frames:
    """The folder of the pictures.

    Args:
        folder: made when the first picture comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, id_: str, picture: Picture) -> None:
        """Keep a picture as the device stored it; one that lies here already is not written again."""
        path = self._path(id_, picture.position, SUFFIXES[picture.media_type] + (SEALED if picture.sealed else ""))
        if not _holds(path, picture.data):
            write_atomically(path, picture.data)

    def store_unsealed(self, id_: str, fact: PictureInfo, image: bytes) -> Path:
        """Put an image beside the sealed box that it came in."""
        path = self._path(id_, fact.position, SUFFIXES[fact.media_type])
        write_atomically(path, image)
        return path

    def image(self, id_: str, position: int = 0) -> Path | None:
        """The picture's file, if it is here and open."""
        for suffix in SUFFIXES.values():
            path = self._path(id_, position, suffix)
            if path.exists():
                return path
        return None

    def read(self, id_: str, fact: PictureInfo) -> bytes | None:
        """A picture as the device stored it, hash-checked; None where it is not here."""
        path = self._path(id_, fact.position, SUFFIXES[fact.media_type] + (SEALED if fact.sealed else ""))
        try:
            return fact.joined(path.read_bytes()).data
        except (OSError, DataError):
            return None

    def _path(self, id_: str, position: int, suffix: str) -> Path:
        if not is_hex(id_, 32):
            raise DataError(f"{id_[:40]!r} is no id of a record: 32 hex digits")
        place = f".{position:+d}" if position else ""
        return self.folder / id_[-2:] / f"{id_}{place}{suffix}"


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
