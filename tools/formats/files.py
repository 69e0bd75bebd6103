"""The files that come back from annotators, by themselves, in archives or in folders; JSON in whatever encoding it has."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alpose.runtime.errors import DataError

from ..labels import id_in

SUFFIXES, TEXT = (".json",), ".txt"
"""How the names of label files end, unless a format says otherwise."""
README = "README.txt"
"""What a format writes for people, with the command that imports."""
UNCHANGED = """\
   A part of the batch is enough. Poses that come back as they went out, after the last corrected one in this order, are
   taken for not looked at; say --unchanged accept when all of them were.
"""
"""For people, of formats that do not tell an accepted pose from one that nobody has opened."""
ZIP, OTHER_ARCHIVES = ".zip", (".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".tar", ".zst")
UNPACK = "is an archive in it that was not read: unpack it, and import what it holds"
LINES_SHOWN = 3
"""Files that a message names, where none of many can be read."""
MAX_BYTES = 1 << 30
"""Of a file with labels, also inside an archive."""
APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""How the files ``._NAME`` begin, in which macOS keeps what other file systems have no place for."""
PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"PK\x03\x04": "ZIP",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}  # fmt: skip
"""First bytes of archives, by what made them."""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A file with labels."""

    name: str
    """For messages: ``came.json``, or ``came.zip:annotations/labels.json``."""
    content: bytes = field(repr=False)
    value: Any = field(repr=False)
    """Its JSON value; None where it is not JSON, and then ``problem`` says why."""
    problem: str | None = None

    @property
    def text(self) -> str:
        """Its content as text, of any of the encodings that tools write, without a byte-order mark."""
        return decoded(self.content).removeprefix("\ufeff")

    @property
    def claims_labels(self) -> bool:
        """Whether its name says that it holds labels: a text has the id of a record in it, and any other is a note."""
        return not self.name.lower().endswith(TEXT) or id_in(self.name) is not None


def open_files(path: Path, suffixes: Sequence[str] = SUFFIXES) -> tuple[list[LabelFile], list[str]]:
    """The files that may hold labels in a file, an archive, or a folder with archives, and what in it cannot be read.

    Nothing is unpacked to the disk. Whether a file does hold labels, its content tells.

    Args:
        path: what came back.
        suffixes: how the names of label files end; a file that is given by itself may have any name.

    :class:`DataError` where nothing can be read at all.
    """
    if path.is_dir():
        return _of_folder(path, suffixes)
    if zipfile.is_zipfile(path):
        return _of_archive(path, path.name, suffixes)
    return [_of_file(path, path.name)], []


def shortened(lines: Sequence[str], separator: str = "; ") -> str:
    """The first lines in one, and the number of the others."""
    more = [f"and {len(lines) - LINES_SHOWN} more"] if len(lines) > LINES_SHOWN else []
    return separator.join([*lines[:LINES_SHOWN], *more])


def _of_file(path: Path, name: str) -> LabelFile:
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{name} is larger than {MAX_BYTES} bytes: it is not a file with labels")
    content = path.read_bytes()
    kind = next((kind for start, kind in PACKED.items() if content.startswith(start)), None)
    if kind == "ZIP":
        raise DataError(f"{name} is a ZIP archive that was cut off or damaged: copy or export it again")
    if kind is not None:
        raise DataError(f"{name} is packed with {kind}: unpack it, and import the files in it or a ZIP archive")
    if content.startswith(APPLE_DOUBLE):
        raise DataError(f"{name} is what macOS keeps beside a file, not the file itself: import the one without ._")
    return _parsed(name, content)


def _of_folder(path: Path, suffixes: Sequence[str]) -> tuple[list[LabelFile], list[str]]:
    """The files of a folder that an archive of it would give, and those of the ZIP archives in it."""
    paths = {one.relative_to(path).as_posix(): one for one in sorted(path.rglob("*")) if one.is_file()}
    folder = path.name or path.resolve().name
    files: list[LabelFile] = []
    problems = []
    for name in _candidates(folder, paths, (*suffixes, ZIP)):
        where = f"{folder}/{name}"
        try:
            if zipfile.is_zipfile(paths[name]):
                found, odd = _of_archive(paths[name], where, suffixes)
                files += found
                problems += odd
            else:
                files.append(_of_file(paths[name], where))
        except DataError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{where} cannot be read: {error.strerror or error}")
    if not files:
        raise DataError(shortened(problems))
    return files, [*problems, *(f"{folder}/{name} {UNPACK}" for name in _packed(paths, OTHER_ARCHIVES))]


def _of_archive(path: Path, where: str, suffixes: Sequence[str]) -> tuple[list[LabelFile], list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            names = [entry.filename for entry in entries]
            chosen = set(_candidates(where, names, suffixes))
            files, problems = [], []
            for entry in entries:
                if entry.filename not in chosen:
                    continue
                name = f"{where}:{entry.filename}"
                try:
                    files.append(_parsed(name, _read(archive, entry)))
                except DataError as error:
                    problems.append(f"{name} {error}")
    except DataError:  # It is a ValueError too, and says already what is wrong.
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise DataError(f"{where} is a damaged archive ({error}): copy or export it again") from error
    if not files:
        raise DataError(shortened(problems))
    return files, [*problems, *(f"{where}:{name} {UNPACK}" for name in _packed(names, (ZIP, *OTHER_ARCHIVES)))]


def _candidates(where: str, names: Collection[str], suffixes: Sequence[str]) -> list[str]:
    """The names of an archive or a folder that end as those of label files do."""
    found = [name for name in names if _ends_with(name, suffixes)]
    if not found:
        if _packed(names, (ZIP, *OTHER_ARCHIVES)):
            raise DataError(
                f"{where} holds other archives and no label files: unpack it, and import the archives in it"
            )
        raise no_labels(where, suffixes)
    return found


def no_labels(where: str, suffixes: Sequence[str]) -> DataError:
    """The error of an archive or a folder in which there is nothing to read."""
    endings = ", ".join(suffixes)
    return DataError(f"{where} holds no file with labels ({endings}): export them as COCO Keypoints 1.0, or as JSON")


def _packed(names: Collection[str], suffixes: Sequence[str]) -> list[str]:
    return [name for name in names if _ends_with(name, suffixes)]


def _ends_with(name: str, suffixes: Sequence[str]) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.flag_bits & 1:
        raise DataError("is encrypted: unpack the archive with its password, and import the JSON")
    try:
        with archive.open(entry) as file:
            content = file.read(MAX_BYTES + 1)
    except NotImplementedError as error:
        raise DataError(f"is compressed in an unusual way ({error}): pack it again as a plain ZIP archive") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"is damaged ({error}): copy or export the archive again") from error
    except Exception as error:  # lzma has an error of its own
        raise DataError(f"cannot be unpacked ({type(error).__name__}: {error})") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"is larger than {MAX_BYTES} bytes: it is not a file with labels")
    return content


def decoded(content: bytes) -> str:
    """Text as tools write it: UTF-8 with or without a byte-order mark, UTF-16 or UTF-32.

    A letter that cannot be read becomes a replacement character: ids and numbers are ASCII, and a name is for people.
    """
    return content.decode(json.detect_encoding(content), errors="replace")


def _parsed(name: str, content: bytes) -> LabelFile:
    """Parse JSON, also with numbers that JSON does not have."""
    try:
        return LabelFile(name, content, json.loads(decoded(content)))
    except (ValueError, RecursionError) as error:
        return LabelFile(name, content, None, f"it is not readable as JSON: {error}")
