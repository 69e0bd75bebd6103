"""Which libraries a shared library wants, read from its file: nothing is loaded, no tool is called.

The layout is that of https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_RPATH, DT_RUNPATH = 0, 1, 5, 10, 14, 15, 29
MAX_BYTES = 1 << 22
"""Of a table: far beyond any real one."""


@dataclass(frozen=True, slots=True)
class Linkage:
    """What the loader is told by one shared library."""

    needed: tuple[str, ...]
    """Names of the libraries that it must find, such as ``libnvinfer.so.10``."""
    soname: str | None
    """Its own."""
    search: tuple[str, ...]
    """Folders that it adds to the search; ``$ORIGIN`` is its own."""


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def linkage(path: Path) -> Linkage:
    """Read a shared library's dynamic section.

    Raises:
        DataError: no ELF file, a damaged one, or one without a dynamic section.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            return _linkage(file)
        except (struct.error, DataError, IndexError, OverflowError) as error:
            raise DataError(f"{path} is not a readable shared library: {error}") from error


def _linkage(file: BinaryIO) -> Linkage:
    head = file.read(64)
    if head[:4] != b"\x7fELF" or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise DataError("it does not begin as an ELF file does")
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    segments = _segments(file, head, wide, order)
    dynamic = next((segment for segment in segments if segment.kind == PT_DYNAMIC), None)
    if dynamic is None:
        raise DataError("it has no dynamic section")
    entries = list(struct.iter_unpack(f"{order}{'qQ' if wide else 'iI'}", _read(
        file, dynamic.offset, dynamic.size - dynamic.size % (16 if wide else 8))))  # fmt: skip
    end = next((place for place, (tag, _) in enumerate(entries) if tag == DT_NULL), len(entries))
    single = {tag: value for tag, value in entries[:end] if tag != DT_NEEDED}
    if DT_STRTAB not in single or DT_STRSZ not in single:
        raise DataError("its dynamic section has no table of names")
    names = _read(file, _offset(single[DT_STRTAB], segments), single[DT_STRSZ])
    search = [_name(names, single[tag]) for tag in (DT_RPATH, DT_RUNPATH) if tag in single]
    return Linkage(
        needed=tuple(_name(names, value) for tag, value in entries[:end] if tag == DT_NEEDED),
        soname=_name(names, single[DT_SONAME]) if DT_SONAME in single else None,
        search=tuple(folder for folders in search for folder in folders.split(":") if folder),
    )


def _segments(file: BinaryIO, head: bytes, wide: bool, order: str) -> list[_Segment]:
    """The program headers: what lies where, in the file and in memory."""
    start = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
    form = struct.Struct(f"{order}{'IIQQQQQQ' if wide else 'IIIIIIII'}")
    if size < form.size:
        raise DataError(f"its program headers have {size} bytes each, and {form.size} are needed")
    table = _read(file, start, size * count)
    found = []
    for place in range(count):
        values = form.unpack_from(table, place * size)
        # The flags stand second in a wide header and seventh in a narrow one.
        kind, offset, address, length = (
            (values[0], values[2], values[3], values[5]) if wide else (values[0], values[1], values[2], values[4])
        )
        found.append(_Segment(kind, offset, address, length))
    return found


def _offset(address: int, segments: list[_Segment]) -> int:
    for segment in segments:
        if segment.kind == PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise DataError(f"the address {address:#x} lies in no part of it")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    if not 0 <= size <= MAX_BYTES or offset >= 1 << 40:  # beyond any library, and before what cannot be sought
        raise DataError(f"a table of {size} bytes at {offset}")
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise DataError(f"it ends at {offset + len(content)} where {offset + size} bytes are needed")
    return content


def _name(names: bytes, start: int) -> str:
    end = names.find(b"\0", start)
    if not 0 <= start < len(names) or end < 0:
        raise DataError(f"a name at {start} of {len(names)} bytes")
    return names[start:end].decode(errors="replace")
