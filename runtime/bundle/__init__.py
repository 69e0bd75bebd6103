"""Reading a bundle: the folder that carries one exported model to a device. ``docs/bundle.md`` is its specification.

A bundle is opened whole or not at all: every file is there, is the one that ``bundle.json`` names by its sha256, and
says the same as the others. Nothing is unpickled and no path that stands in a file is followed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..crop import CropRule
from ..errors import BundleError, DataError, DataNotFoundError, SignatureError
from ..io import file_sha256
from ..skeleton import Skeleton
from .golden import Golden
from .keys import MAX_BYTES as MAX_SIGNATURE_BYTES
from .keys import Signature, verify
from .manifest import (
    CARD,
    DIGEST,
    ENGINES,
    GOLDEN,
    HASHED,
    MANIFEST,
    MODEL,
    REQUIRED,
    SIGNATURE,
    WEIGHTS,
    CalibrationFacts,
    Manifest,
    Threshold,
    check_golden,
    crop_to_json,
)

__all__ = ["Bundle", "FileCheck", "check_files"]

MAX_MANIFEST_BYTES = 16 << 20
"""Far beyond any manifest: a larger file is damaged or hostile."""
MAX_HASHED_BYTES = {MODEL: 4 << 30, GOLDEN: 1 << 30, CARD: 256 << 20, WEIGHTS: 64 << 30}
"""The same for the files that it names; none of them is read before its size is known."""
_AGAIN = "Copy or export the bundle again"
NOT_ITSELF = "it is not what it claims"


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What is known about one entry of a bundle's folder."""

    name: str
    problem: str | None
    """None where nothing is wrong."""
    checked: bool = True
    """False where there was nothing sound to compare it with."""

    @property
    def verdict(self) -> str:
        """For a table."""
        return "FAILED" if self.problem else "ok" if self.checked else "not checked"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are whole and agree. Open it with :meth:`open`."""

    folder: Path
    manifest: Manifest
    golden: Golden = field(repr=False)
    sha256: str
    """Of ``bundle.json``, which holds the hashes of the other files: the identity of the bundle."""
    signed_by: str | None
    """The trusted key that signed it, hex; None where the bundle was opened without one."""

    @classmethod
    def open(cls, folder: str | Path, public_key: str | Path | None = None) -> Bundle:
        """Read and check a bundle; nothing is executed and no engine is started.

        Args:
            folder: ``NAME.alpose``.
            public_key: 64 hex digits or the path of a ``.pub`` file; any bundle that this key did not sign is refused.

        Raises:
            DataNotFoundError: there is no such folder.
            SignatureError: the key did not sign this bundle.
            BundleError: anything else; the message names every bad file.
        """
        found = _inspect(Path(folder), public_key)
        if found.untrusted is not None:
            raise SignatureError(f"{found.folder}: {found.untrusted}")
        bad = [f"{check.name}: {check.problem}" for check in found.checks if check.problem]
        if bad or found.manifest is None or found.golden is None:
            raise BundleError(f"{found.folder} is refused.\n  " + "\n  ".join(bad))
        return cls(found.folder, found.manifest, found.golden, found.sha256, found.signed_by)

    @property
    def skeleton(self) -> Skeleton:
        """Names, links and mirror pairs of the joints."""
        return self.manifest.skeleton

    @property
    def crop(self) -> CropRule:
        """How frames are cut."""
        return self.manifest.crop

    @property
    def calibration(self) -> CalibrationFacts | None:
        """Thresholds and histogram; None for a bundle that was exported without calibration data."""
        return self.manifest.calibration

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Where to flag; empty without calibration."""
        return self.calibration.thresholds if self.calibration else ()

    @property
    def model_path(self) -> Path:
        """The graph. Prefer :meth:`model_bytes`, which cannot have changed since it was checked."""
        return self.folder / MODEL

    @property
    def engines(self) -> Path:
        """Where engines that were built on this device lie; the folder may not exist."""
        return self.folder / ENGINES

    def facts(self) -> dict[str, object]:
        """What a record needs to be read when its bundle is not at hand: joints, crop, calibration."""
        manifest = self.manifest
        return {
            "skeleton": manifest.skeleton.to_json(),
            "crop": crop_to_json(manifest.crop, manifest.schema),
            "precision": manifest.precision,
            "head": manifest.head,
            "dimensions": manifest.dimensions,
            "created": manifest.created,
            "calibration": None if manifest.calibration is None else dict(manifest.calibration.facts),
        }

    def threshold(self, catch: float) -> float:
        """The threshold on ``failure_probability`` that catches this share of failures.

        :class:`DataError` where the bundle promises none.
        """
        if self.calibration is None:
            raise DataError(
                f"{self.folder} was exported without calibration data: it has no thresholds. Export it again with some"
            )
        return self.calibration.threshold(catch)

    @property
    def weights_path(self) -> Path | None:
        """The file with the graph's weights; None where the graph has them inside, as nearly all do."""
        return self.folder / WEIGHTS if WEIGHTS in self.manifest.files else None

    def model_bytes(self) -> bytes:
        """The graph, read and compared with its sha256 once more: what is returned is what was checked.

        Weights beside it are compared too, and stay where they are.
        """
        with open(self.model_path, "rb") as file:
            content = file.read(MAX_HASHED_BYTES[MODEL])
        if hashlib.sha256(content).hexdigest() != self.manifest.files[MODEL]:
            raise BundleError(f"{self.model_path} changed after the bundle was opened: open it again")
        if self.weights_path is not None and file_sha256(self.weights_path) != self.manifest.files[WEIGHTS]:
            raise BundleError(f"{self.weights_path} changed after the bundle was opened: open it again")
        return content


def check_files(folder: str | Path, public_key: str | Path | None = None) -> tuple[FileCheck, ...]:
    """Every entry of a bundle's folder with what is wrong with it, for a table; :meth:`Bundle.open` raises instead."""
    return _inspect(Path(folder), public_key).checks


@dataclass(slots=True)
class _Inspection:
    folder: Path
    checks: tuple[FileCheck, ...] = ()
    manifest: Manifest | None = None
    golden: Golden | None = None
    sha256: str = ""
    signed_by: str | None = None
    untrusted: SignatureError | None = None


def _inspect(folder: Path, public_key: str | Path | None) -> _Inspection:
    """Check everything that can be, and keep what was read, so that nothing is read twice."""
    problems = _entries(folder)
    found = _Inspection(folder)
    manifest = _read(folder, MANIFEST, MAX_MANIFEST_BYTES, problems)
    digest = _read(folder, DIGEST, 1024, problems)
    signature = _read(folder, SIGNATURE, MAX_SIGNATURE_BYTES, problems) if SIGNATURE in problems else None

    # What the signature does not cover is not even parsed.
    if manifest is not None:
        found.sha256 = hashlib.sha256(manifest).hexdigest()
        if public_key is not None:
            try:
                found.signed_by = verify(manifest, signature, public_key)
            except SignatureError as error:
                found.untrusted = error
                problems[SIGNATURE] = str(error)
        if digest is not None and digest != f"{found.sha256}\n".encode():
            problems[MANIFEST] = f"its sha256 is not the one in {DIGEST}: one of the two was changed. {_AGAIN}"
            problems[DIGEST] = f"it is not the sha256 of {MANIFEST}: one of the two was changed. {_AGAIN}"
        if signature is not None and problems[SIGNATURE] is None:
            _check_signature_file(signature, found.sha256, problems)
    sound = not any(problems.get(name) for name in (MANIFEST, DIGEST, SIGNATURE))
    if manifest is not None and sound:
        try:
            found.manifest = Manifest.from_bytes(manifest)
        except DataError as error:
            problems[MANIFEST] = str(error)
    if found.manifest is not None:
        found.golden = _check_hashes(folder, found.manifest, problems)
    found.checks = tuple(
        FileCheck(name, problem, checked=found.manifest is not None or name not in (*HASHED, WEIGHTS))
        for name, problem in problems.items()
    )
    return found


def _entries(folder: Path) -> dict[str, str | None]:
    """Every entry that is there or should be, with what is wrong with it so far."""
    if not folder.exists():
        left = sorted(folder.absolute().parent.glob(f".{folder.name}.*.old"))
        more = f". A replacement was interrupted: the former bundle is {left[-1]}, rename it back" if left else ""
        raise DataNotFoundError(f"{folder} does not exist: a bundle is a folder NAME.alpose{more}")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file: a bundle is a folder NAME.alpose with {', '.join(REQUIRED)}")
    if not any((folder / name).exists() for name in REQUIRED):
        raise DataNotFoundError(
            f"{folder} is not a bundle: it holds none of {', '.join(REQUIRED)}. Give a folder NAME.alpose"
        )
    problems: dict[str, str | None] = {}
    for name in REQUIRED:
        problems[name] = _kind_problem(folder / name, stat.S_ISREG, f"is missing. {_AGAIN}")
    for entry in sorted(folder.iterdir()):
        if entry.name in (SIGNATURE, ENGINES, WEIGHTS):
            wanted = stat.S_ISDIR if entry.name == ENGINES else stat.S_ISREG
            problems[entry.name] = _kind_problem(entry, wanted, None)
        elif entry.name not in problems:
            problems[entry.name] = "does not belong to a bundle: remove it"
    return problems


def _kind_problem(path: Path, wanted: Callable[[int], bool], missing: str | None) -> str | None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return missing
    except OSError as error:
        return f"cannot be read: {error}"
    # A link could point elsewhere by the time the file is used, and a pipe would block.
    return None if wanted(mode) else "is not a plain file, or not a folder where one belongs: links are not followed"


def _read(folder: Path, name: str, limit: int, problems: dict[str, str | None]) -> bytes | None:
    """The content of a file of at most ``limit`` bytes, or None with the problem noted."""
    if problems[name] is not None:
        return None
    try:
        with open(folder / name, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        problems[name] = f"cannot be read: {error}"
        return None
    if len(content) > limit:
        problems[name] = f"is larger than {limit} bytes: {NOT_ITSELF}. {_AGAIN}"
        return None
    return content


def _check_signature_file(signature: bytes, sha256: str, problems: dict[str, str | None]) -> None:
    """Damage shows without any key; whether the signer is trusted does not."""
    try:
        said = Signature.from_bytes(signature)
    except SignatureError as error:
        problems[SIGNATURE] = str(error)
        return
    if said.manifest_sha256 != sha256:
        problems[SIGNATURE] = f"it was made for another {MANIFEST}: sign the bundle again, or get it again"
        problems[MANIFEST] = problems[MANIFEST] or f"it was changed after it was signed ({SIGNATURE}). {_AGAIN}"


def _check_hashes(folder: Path, manifest: Manifest, problems: dict[str, str | None]) -> Golden | None:
    """Compare the other files with the manifest; the golden frames are read from the bytes that were hashed."""
    golden = None
    if WEIGHTS in problems and WEIGHTS not in manifest.files:
        problems[WEIGHTS] = f"does not belong to this bundle, whose {MANIFEST} does not name it: remove it"
    for name in manifest.files:
        if problems.setdefault(name, None if (folder / name).exists() else f"is missing. {_AGAIN}") is not None:
            continue
        try:
            with open(folder / name, "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > MAX_HASHED_BYTES[name]:
                    problems[name] = f"has {size} bytes, more than {MAX_HASHED_BYTES[name]}: {NOT_ITSELF}. {_AGAIN}"
                    continue
                content = file.read() if name == GOLDEN else b""
                sha256 = hashlib.sha256(content).hexdigest() if name == GOLDEN else file_sha256(file)
        except OSError as error:
            problems[name] = f"cannot be read: {error}"
            continue
        if sha256 != manifest.files[name]:
            problems[name] = f"its sha256 is not the one in {MANIFEST}: it was changed or damaged. {_AGAIN}"
        elif name == GOLDEN:
            try:
                golden = Golden.from_bytes(content)
                check_golden(manifest, golden)
            except DataError as error:
                problems[name] = str(error)
    return golden
