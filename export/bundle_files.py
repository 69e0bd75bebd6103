"""Writing a bundle: everything or nothing, whatever interrupts it. Needs numpy alone.

What is written is held to the same rules as what is opened, before anything is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.bundle import (
    DIGEST,
    ENGINES,
    GOLDEN,
    HASHED,
    MANIFEST,
    MODEL,
    REQUIRED,
    SIGNATURE,
    Manifest,
    check_golden,
)
from alpose.runtime.bundle.golden import Golden
from alpose.runtime.bundle.keys import sign
from alpose.runtime.bundle.manifest import KIND, SCHEMA
from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError

STALE_SECONDS = 3600.0
"""A half-written folder this old belongs to no living export: writing takes seconds."""


def golden_bytes(golden: Golden) -> bytes:
    """The content of ``golden.npz``; the same golden frames give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden.arrays())  # type: ignore[arg-type]
    return buffer.getvalue()


def manifest_bytes(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The content of ``bundle.json``: the facts, completed by kind, schema and the hashes of the files.

    Raises :class:`DataError` for facts or files that :meth:`alpose.runtime.bundle.Bundle.open` would refuse.
    """
    if set(files) != set(HASHED):
        missing, extra = sorted(set(HASHED) - set(files)), sorted(set(files) - set(HASHED))
        raise DataError(f"a bundle has the files {', '.join(HASHED)}: missing {missing}, unknown {extra}")
    if not files[MODEL]:
        raise DataError(f"{MODEL} is empty: there is no graph to carry")
    own = {"kind": KIND, "schema": SCHEMA, "files": {name: hashlib.sha256(files[name]).hexdigest() for name in HASHED}}
    clash = sorted(key for key, value in own.items() if key in facts and facts[key] != value)
    if clash:
        raise DataError(f"the manifest's {clash} are set when a bundle is written: leave them out")
    value = {"kind": KIND, "schema": SCHEMA, **facts, **own}
    try:
        content = (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"the manifest is not plain JSON (finite numbers, texts, lists, objects): {error}") from error
    manifest = Manifest.from_bytes(content)
    check_golden(manifest, Golden.from_bytes(files[GOLDEN]))
    return content


def write_bundle(
    folder: Path,
    files: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    replace: bool = False,
    sign_key: Path | None = None,
) -> Path:
    """Write a whole bundle beside its place, flush it to disk, and rename it there.

    Killed at any moment, ``folder`` is what it was before, the new bundle, or (while one replaces another) absent with
    the former one whole beside it as ``.NAME.alpose.*.old``. Engines inside a bundle that is replaced go with it: they
    belong to its graph.

    Args:
        folder: ``NAME.alpose``; the folder that holds it exists.
        files: ``model.onnx``, ``golden.npz`` and ``card.html`` by name.
        manifest: the content of ``bundle.json`` without kind, schema and files.
        replace: whether a bundle that is there may be replaced. Anything that is not a bundle never is.
        sign_key: private key file to sign with.
    """
    content = manifest_bytes(manifest, files)
    everything = {**files, MANIFEST: content, DIGEST: f"{hashlib.sha256(content).hexdigest()}\n".encode()}
    if sign_key is not None:
        everything[SIGNATURE] = sign(content, sign_key)
    _check_place(folder, replace)
    _remove_stale(folder)
    beside = _beside(folder, "tmp")
    try:
        beside.mkdir()
        for name, part in everything.items():
            _write_and_sync(beside / name, part)
        _sync_folder(beside)
        _move_into_place(beside, folder, replace)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync_folder(folder.parent)
    _remove_former(folder)
    return folder


def _check_place(folder: Path, replace: bool) -> None:
    if folder.suffix != ".alpose" or folder.name == ".alpose":
        raise ConfigError(f"{folder}: the name of a bundle ends with .alpose, as in {folder.name or 'driver'}.alpose")
    if not folder.parent.is_dir():
        raise DataNotFoundError(f"{folder.parent} does not exist: make the folder that shall hold the bundle first")
    if not folder.exists() and not folder.is_symlink():
        return
    if not replace:
        raise ConfigError(f"{folder} exists: give another name, or say that it may be replaced (--force, replace=True)")
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{folder} is a file or a link, not a bundle: it is not replaced. Give another name")
    strange = sorted({entry.name for entry in folder.iterdir()} - {*REQUIRED, SIGNATURE, ENGINES})
    if strange:
        raise ConfigError(f"{folder} holds {strange[:5]}, which no bundle does: it is not replaced. Give another name")


def _move_into_place(beside: Path, folder: Path, replace: bool) -> None:
    former = _beside(folder, "old")
    if replace and folder.exists():
        os.rename(folder, former)
    try:
        os.rename(beside, folder)
    except OSError as error:
        if former.exists() and not folder.exists():
            os.rename(former, folder)
        raise ConfigError(
            f"{folder} appeared or changed while it was written ({error}): nothing was replaced"
        ) from error


def _beside(folder: Path, ending: str) -> Path:
    """A name of its own, so that two exports of one bundle never write into one folder."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{ending}")


def _remove_former(folder: Path) -> None:
    for former in folder.parent.glob(f".{folder.name}.*.old"):
        # Under another name first: whatever ends with .old is whole, and can be renamed back.
        waste = _beside(folder, "tmp")
        with contextlib.suppress(FileNotFoundError):  # another export of this bundle was here first
            os.rename(former, waste)
        shutil.rmtree(waste, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _write_and_sync(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename is only on disk when the folder that holds the name is."""
    if os.name != "posix":
        return  # other systems cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
