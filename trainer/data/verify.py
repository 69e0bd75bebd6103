"""Checks that a dataset on disk is what it should be: counts, hashes, meaning of the labels, every image.

LSP and LSPET are held against the published files. MPII and COCO folders may be parts of the whole, so their
counts are reported, and what must hold for any part is checked.

Shapes: N people, J joints.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import AlposeError
from alpose.runtime.io import file_sha256
from alpose.runtime.skeleton import with_flip_pairs

from ..progress import progress
from .catalog import READERS, DatasetName, Reader, find, reader_of
from .coco import annotation_files, read_coco
from .download import SOURCES, images_sha256
from .images import ImageError, ImageFiles, content_of, orientation
from .lsp import AxisOrder, not_positions, read_joints
from .mpii import MAT_PLACES, NEWELL_PLACES, newell_valid_people, read_mpii
from .records import PoseData

LspName: TypeAlias = Literal["lsp", "lspet"]

TORSO_DIAGONALS = ((8, 3), (9, 2))
"""Right shoulder to left hip and left shoulder to right hip, in LSP's joint order."""

LISTED = 20
"""Broken images that the table names."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold."""

    what: str
    expected: str
    found: str

    @property
    def ok(self) -> bool:
        """It holds."""
        return self.expected == self.found


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What was found in one dataset folder."""

    dataset: str
    folder: str
    people: int
    images: int
    """Images that were decoded without an error."""
    checks: tuple[Check, ...]
    facts: tuple[tuple[str, str], ...]
    """Counts that are good to know and have no right value."""
    broken: tuple[str, ...]
    """Images that are missing, cut off or not decodable, and annotations that cannot be read, with the reason."""

    @property
    def ok(self) -> bool:
        """Every check holds and no image is broken."""
        return not self.broken and all(check.ok for check in self.checks)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found, one part per folder."""

    dataset: str
    parts: tuple[FolderReport, ...]

    @property
    def ok(self) -> bool:
        """Every part is as it should be."""
        return bool(self.parts) and all(part.ok for part in self.parts)

    @property
    def summary(self) -> str:
        """One line: the verdict and the number of images and people."""
        images = " + ".join(f"{part.images:,}" for part in self.parts)
        people = " + ".join(f"{part.people:,}" for part in self.parts)
        failed = sum(not check.ok for part in self.parts for check in part.checks)
        broken = sum(len(part.broken) for part in self.parts)
        verdict = "ok" if self.ok else f"FAILED ({failed} checks, {broken} broken or missing images)"
        return f"{self.dataset}: {images} images, {people} people: {verdict}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        parts = []
        for part in self.parts:
            value = asdict(part)
            value["checks"] = [asdict(check) | {"ok": check.ok} for check in part.checks]
            value["facts"] = dict(part.facts)
            parts.append(value | {"ok": part.ok})
        return {"dataset": self.dataset, "ok": self.ok, "summary": self.summary, "parts": parts}

    def lines(self) -> list[str]:
        """A table for people."""
        lines: list[str] = []
        for part in self.parts:
            lines.append(f"{part.dataset}  {part.folder}")
            width = max((len(what) for what, _ in _rows(part)), default=0)
            lines += [f"  {what:<{width}}  {value}" for what, value in _rows(part)]
            lines += [f"  broken: {name}" for name in part.broken[:LISTED]]
            if len(part.broken) > LISTED:
                lines.append(f"  and {len(part.broken) - LISTED:,} more; the JSON form lists all")
            lines.append("")
        # A name on the disk need not be text that a terminal can show.
        return [line.encode(errors="backslashreplace").decode() for line in (*lines, self.summary)]


def verify(
    dataset: DatasetName | Path, data_root: Path | None = None, split: str | None = None, flip_pairs: str | None = None
) -> VerifyReport:
    """Check a dataset by name below a data root, or a folder by its path.

    A dataset that is not there at all is a :class:`DataNotFoundError`; anything wrong with one that is there is in
    the report.

    Args:
        dataset: a name, or a folder or file; ``lsp`` stands for LSP and LSPET, as the benchmark needs both.
        data_root: where datasets lie; None looks at $ALPOSE_DATA.
        split: in COCO form, which annotation files; None for all.
        flip_pairs: which joints change places in a mirror, in place of what their names say.
    """
    if dataset in ("lsp", "lspet"):
        names: tuple[LspName, ...] = ("lsp", "lspet") if dataset == "lsp" else ("lspet",)
        return VerifyReport(str(dataset), tuple(verify_lsp(name, find(name, data_root)) for name in names))
    folder = dataset if isinstance(dataset, Path) else find(dataset, data_root)
    reader = reader_of(folder) if isinstance(dataset, Path) else READERS[dataset]
    if reader.name == "mpii":
        return VerifyReport(str(dataset), (verify_mpii(folder),))
    if reader.name == "coco":
        return VerifyReport(
            str(dataset), tuple(verify_coco(path, flip_pairs) for path in annotation_files(folder, split))
        )
    parts = (split,) if split else reader.parts(folder) or (None,)
    return VerifyReport(str(dataset), tuple(verify_part(reader, folder, part, flip_pairs) for part in parts))


def verify_lsp(name: LspName, folder: Path) -> FolderReport:
    """LSP or LSPET against what was published."""
    source = SOURCES[name]
    count, digits = (2000, 4) if name == "lsp" else (10000, 5)
    mat, images = folder / "joints.mat", folder / "images"
    checks: list[Check] = []
    facts: list[tuple[str, str]] = []
    people = 0
    try:
        joints_NJ2, flag_NJ, found_order = read_joints(mat)
    except AlposeError as error:
        checks.append(Check("joints.mat is readable", "yes", f"no: {error}"))
    else:
        people = len(flag_NJ)
        checks.append(Check("joints.mat sha256", str(source.joints_sha256), file_sha256(mat)))
        checks += lsp_label_checks(name, joints_NJ2, flag_NJ, found_order)
    paths = tuple(images / f"im{row:0{digits}d}.jpg" for row in range(1, count + 1))
    sizes_M2, _, broken = decode_all(ImageFiles(paths), f"decoding {name}")
    checks.append(Check("images sha256", str(source.images_sha256), images_sha256(images)))
    checks.append(Check("images decoded", f"{count:,}", f"{len(paths) - len(broken):,}"))
    if people == count:
        labelled_NJ = np.ones_like(flag_NJ) if name == "lsp" else flag_NJ
        facts.append(("labelled joints outside their image", f"{_outside(joints_NJ2, labelled_NJ, sizes_M2):,}"))
    return FolderReport(name, str(folder), people, len(paths) - len(broken), tuple(checks), tuple(facts), broken)


def lsp_label_checks(
    name: LspName,
    joints_NJ2: npt.NDArray[np.float32],
    flag_NJ: npt.NDArray[np.bool_],
    order: AxisOrder,
) -> list[Check]:
    """Counts that the published labels have, and what the third value means in this file."""
    garbage_NJ = not_positions(joints_NJ2)
    zeros, ones = int((~flag_NJ).sum()), int(flag_NJ.sum())
    if name == "lsp":
        return [
            Check("axes of joints", "3,14,N", order),
            Check("people", "2,000", f"{len(flag_NJ):,}"),
            Check("joints visible (third value 0)", "25,956 of 28,000", f"{zeros:,} of {flag_NJ.size:,}"),
            Check("joints occluded (third value 1)", "2,044 of 28,000", f"{ones:,} of {flag_NJ.size:,}"),
            Check("joints without a position", "0", f"{int(garbage_NJ.sum()):,}"),
        ]
    torso_N = np.any([flag_NJ[:, a] & flag_NJ[:, b] for a, b in TORSO_DIAGONALS], axis=0)
    return [
        Check("axes of joints", "14,3,N", order),
        Check("people", "10,000", f"{len(flag_NJ):,}"),
        Check("joints labelled (third value 1)", "123,213 of 140,000", f"{ones:,} of {flag_NJ.size:,}"),
        Check("joints not labelled (third value 0)", "16,787 of 140,000", f"{zeros:,} of {flag_NJ.size:,}"),
        Check("joints without a position", "16,787", f"{int(garbage_NJ.sum()):,}"),
        Check("labels and positions contradict", "0", f"{int((garbage_NJ == flag_NJ).sum()):,}"),
        Check("people with all 14 joints", "3,945", f"{int(flag_NJ.all(axis=1).sum()):,}"),
        Check("people without a labelled joint", "0", f"{int((~flag_NJ.any(axis=1)).sum()):,}"),
        Check("people without a torso diagonal", "1,705", f"{int((~torso_N).sum()):,}"),
    ]


def verify_mpii(folder: Path) -> FolderReport:
    """MPII in either form, whole or in part."""
    facts: list[tuple[str, str]] = []
    mat = any((folder / place).is_file() for place in MAT_PLACES)
    facts.append(("form", "official MATLAB file" if mat else "JSON"))

    def extra(data: PoseData) -> list[Check]:
        assert data.head_N is not None
        facts.append(("people with a head size", f"{int(np.isfinite(data.head_N).sum()):,} of {len(data):,}"))
        newell = folder / NEWELL_PLACES[0]
        return [_newell_check(data, newell)] if newell.is_file() else []

    return _verify_any("mpii", folder, lambda: read_mpii(folder), extra, facts)


def verify_coco(json_path: Path, flip_pairs: str | None = None) -> FolderReport:
    """One annotation file in COCO form with its images, whole or in part."""
    problems: list[str] = []
    return _verify_joints("coco", json_path, lambda: read_coco(json_path, broken=problems), flip_pairs, problems)


def verify_part(reader: Reader, folder: Path, part: str | None, flip_pairs: str | None = None) -> FolderReport:
    """Check a part of any other kind of dataset folder."""
    return _verify_joints(reader.name, folder, lambda: reader.read(folder, part), flip_pairs, [])


def _verify_joints(
    name: str, folder: Path, read: Callable[[], PoseData], flip_pairs: str | None, problems: list[str]
) -> FolderReport:
    """Check a folder whose joints are its own: which of them change places in a mirror is shown."""
    facts: list[tuple[str, str]] = []

    def extra(data: PoseData) -> list[Check]:
        skeleton = data.skeleton if flip_pairs is None else with_flip_pairs(data.skeleton, flip_pairs)
        pairs = ", ".join(f"{skeleton.joints[a]}/{skeleton.joints[b]}" for a, b in skeleton.flip_pairs)
        facts.append(("joints", f"{len(skeleton)} ({skeleton.name})"))
        facts.append(("mirror pairs", pairs or "none: training will mirror nothing; state them with --flip-pairs"))
        return [Check("annotations that cannot be read", "0", f"{len(problems):,}")]

    report = _verify_any(name, folder, read, extra, facts)
    return replace(report, broken=(*problems, *report.broken))


def _verify_any(
    name: str,
    folder: Path,
    read: Callable[[], PoseData],
    extra: Callable[[PoseData], list[Check]],
    facts: list[tuple[str, str]],
) -> FolderReport:
    """What must hold for any dataset: it can be read, its images decode, its numbers are usable."""
    try:
        data = read()
    except AlposeError as error:
        return FolderReport(name, str(folder), 0, 0, (Check("labels are readable", "yes", f"no: {error}"),), (), ())
    images = data.images if isinstance(data.images, ImageFiles) else ImageFiles(())
    sizes_M2, turned_M, broken = decode_all(images, f"decoding {name}")
    usable_N = np.isfinite(data.boxes_N4).all(axis=1) & (data.boxes_N4[:, 2:] > data.boxes_N4[:, :2]).any(axis=1)
    good = len(images) - len(broken)
    checks = [
        Check("people with a usable box", f"{len(data):,}", f"{int(usable_N.sum()):,}"),
        Check("images decoded", f"{len(images):,}", f"{good:,}"),
    ]
    if len(data) == 0:
        checks.append(Check("people with labelled joints", "at least 1", "0"))
    if images.stated is not None:
        wrong = sum(stated not in (None, tuple(found)) and min(found) >= 0
                    for stated, found in zip(images.stated, sizes_M2.tolist(), strict=True))  # fmt: skip
        checks.append(Check("images of another size than the labels say", "0", f"{wrong:,}"))
    checks += extra(data)
    if turned_M.any():
        read_as = "upright, as browsers show them" if images.upright else "as they are stored"
        facts.append(("images that EXIF turns", f"{int(turned_M.sum()):,}, read {read_as}"))
    labelled, visible = int(data.labelled_NJ.sum()), int(data.visible_NJ.sum())
    outside = _outside(data.joints_NJ2, data.labelled_NJ, sizes_M2[data.image_N]) if len(images) else 0
    facts += [
        ("joints labelled", f"{labelled:,} of {data.labelled_NJ.size:,}"),
        ("labelled joints said to be occluded", f"{labelled - visible:,}"),
        ("labelled joints outside their image", f"{outside:,}"),
    ]
    return FolderReport(name, str(folder), len(data), good, tuple(checks), tuple(facts), broken)


def decode_all(images: ImageFiles, what: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], tuple[str, ...]]:
    """Width and height (M, 2) of every image, -1 where it is broken; which EXIF turns (M,); the broken with the reason."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(progress(pool.map(lambda row: _decode(images, row), range(len(images))), what, len(images)))
    broken = tuple(
        f"{path}: {size}" for path, (size, _) in zip(images.paths, found, strict=True) if isinstance(size, str)
    )
    sizes = [(-1, -1) if isinstance(size, str) else size for size, _ in found]
    turned_M = np.array([turned for _, turned in found], dtype=np.bool_)
    return np.array(sizes, dtype=np.int64).reshape(len(images), 2), turned_M, broken


def _decode(images: ImageFiles, row: int) -> tuple[tuple[int, int] | str, bool]:
    """Width and height of an image, or what is wrong with it, and whether EXIF turns it."""
    try:
        content = content_of(images.paths[row])
    except ImageError as error:
        return str(error).removeprefix(f"{images.paths[row]}: "), False
    turned = orientation(content) > 1
    # Some versions of OpenCV fill what is missing with grey and say nothing.
    if content.startswith(b"\xff\xd8") and not _jpeg_is_whole(content):
        return f"JPEG is cut off after {len(content):,} bytes", turned
    if content.startswith(b"\x89PNG") and not _png_is_whole(content):
        return f"PNG is cut off after {len(content):,} bytes", turned
    try:
        height, width = images.read(row).shape[:2]
    except ImageError:
        return f"cannot be decoded as an image ({len(content):,} bytes)", turned
    return (width, height), turned


def _jpeg_is_whole(content: bytes) -> bool:
    """Whether the segments of a JPEG lead to its end; what lies behind the end, such as a film, is no matter."""
    place = 2
    while 0 <= (place := content.find(b"\xff", place)) < len(content) - 1:
        marker = content[place + 1]
        if marker == 0xD9:
            return True
        if marker == 0xFF:  # filling
            place += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # within the picture's data
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _png_is_whole(content: bytes) -> bool:
    """Whether the chunks of a PNG lead to its end."""
    place = 8
    while place + 12 <= len(content):
        if content[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False


def _outside(
    joints_NJ2: npt.NDArray[np.float32], labelled_NJ: npt.NDArray[np.bool_], sizes_N2: npt.NDArray[np.int64]
) -> int:
    """Labelled joints beyond the edge of their image; images that did not decode count for nothing."""
    beyond_NJ = ((joints_NJ2 < -0.5) | (joints_NJ2 > sizes_N2[:, None] - 0.5)).any(axis=-1)
    return int((beyond_NJ & labelled_NJ & (sizes_N2[:, :1] >= 0)).sum())


def _newell_check(data: PoseData, path: Path) -> Check:
    """Head sizes of the people that Newell's list knows agree with it to a thousandth."""
    people = newell_valid_people(path)
    known = {
        (name, round(x), round(y)): head
        for name, (x, y), head in zip(people.images, people.centre_V2.tolist(), people.head_V.tolist(), strict=True)
    }
    assert isinstance(data.images, ImageFiles)
    assert data.head_N is not None
    centre_N2 = (data.boxes_N4[:, :2] + data.boxes_N4[:, 2:]) / 2
    centre_N2[:, 1] -= 15 * (data.boxes_N4[:, 2] - data.boxes_N4[:, 0]) / 200
    found = agreed = 0
    for row, (x, y) in enumerate(centre_N2.tolist()):
        head = known.get((data.images.paths[int(data.image_N[row])].name, round(x), round(y)))
        if head is not None:
            found += 1
            agreed += abs(float(data.head_N[row]) / head - 1) < 1e-3
    what = f"head sizes agree with {path.name}, {len(people.images):,} people"
    return Check(what, f"{found:,} of {found:,}", f"{agreed:,} of {found:,}")


def _rows(part: FolderReport) -> list[tuple[str, str]]:
    """The table of one folder."""
    rows = [("people", f"{part.people:,}"), ("images", f"{part.images:,}")]
    for check in part.checks:
        value = f"ok      {check.found}" if check.ok else f"FAILED  {check.found}, expected {check.expected}"
        rows.append((check.what, value))
    return rows + [(what, f"        {value}") for what, value in part.facts]
