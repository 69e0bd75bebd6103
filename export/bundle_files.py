"""Writing a bundle: everything or nothing, whatever interrupts it. Needs numpy alone.

What is written is held to the same rules as what is opened, before anything is written.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.bundle.golden import Golden
from alpose.runtime.bundle.keys import sign
from alpose.runtime.bundle.manifest import (
    DIGEST,
    ENGINES,
    GOLDEN,
    HASHED,
    KIND,
    MANIFEST,
    MODEL,
    REQUIRED,
    SCHEMA,
    SIGNATURE,
    WEIGHTS,
    Manifest,
    check_golden,
)
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import file_sha256, json_bytes, write_folder_atomically
from alpose.runtime.types import CONFIDENCE


def golden_bytes(golden: Golden) -> bytes:
    """The content of ``golden.npz``; the same golden frames give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden.arrays())  # type: ignore[arg-type]
    return buffer.getvalue()


def manifest_bytes(facts: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> bytes:
    """The content of ``bundle.json``: the facts, completed by kind, schema and the hashes of the files.

    Without the output ``confidence`` it is schema 1.

    Raises :class:`DataError` for facts or files that :meth:`alpose.runtime.bundle.Bundle.open` would refuse.
    """
    if set(files) - {WEIGHTS} != set(HASHED):
        missing, extra = sorted(set(HASHED) - set(files)), sorted(set(files) - {*HASHED, WEIGHTS})
        raise DataError(f"a bundle has the files {', '.join(HASHED)}: missing {missing}, unknown {extra}")
    if not files[MODEL]:
        raise DataError(f"{MODEL} is empty: there is no graph to carry")
    schema = SCHEMA if CONFIDENCE in facts.get("outputs", ()) else 1
    own = {
        "kind": KIND,
        "schema": schema,
        "files": {name: _sha256(files[name]) for name in (*HASHED, WEIGHTS) if name in files},
    }
    clash = sorted(key for key, value in own.items() if key in facts and facts[key] != value)
    if clash:
        raise DataError(f"the manifest's {clash} are set when a bundle is written: leave them out")
    value = {"kind": KIND, "schema": schema, **facts, **own}
    try:
        content = json_bytes(value, ensure_ascii=False)
    except DataError as error:
        raise DataError(f"the manifest is {error}") from error
    manifest = Manifest.from_bytes(content)
    golden = files[GOLDEN]
    assert isinstance(golden, bytes)
    check_golden(manifest, Golden.from_bytes(golden))
    return content


def _sha256(content: bytes | Path) -> str:
    return file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def write_bundle(
    folder: Path,
    files: Mapping[str, bytes | Path],
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
        files: ``model.onnx``, ``golden.npz`` and ``card.html`` by name, and the path of ``model.weights`` where there is one.
        manifest: the content of ``bundle.json`` without kind, schema and files.
        replace: whether a bundle that is there may be replaced. Anything that is not a bundle never is.
        sign_key: private key file to sign with.
    """
    content = manifest_bytes(manifest, files)
    everything: dict[str, bytes | Path] = {
        **files,
        MANIFEST: content,
        DIGEST: f"{hashlib.sha256(content).hexdigest()}\n".encode(),
    }
    if sign_key is not None:
        everything[SIGNATURE] = sign(content, sign_key)
    check_place(folder, replace)
    return write_folder_atomically(folder, everything, replace=replace)


def check_place(folder: Path, replace: bool) -> None:
    """Refuse a place where a bundle cannot be written, before anything is computed for it."""
    if folder.suffix != ".alpose" or folder.name == ".alpose":
        raise ConfigError(f"{folder}: the name of a bundle ends with .alpose, as in {folder.name or 'driver'}.alpose")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists() and not folder.is_symlink():
        return
    if not replace:
        raise ConfigError(f"{folder} exists: give another name, or say that it may be replaced (--force, replace=True)")
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{folder} is a file or a link, not a bundle: it is not replaced. Give another name")
    strange = sorted({entry.name for entry in folder.iterdir()} - {*REQUIRED, SIGNATURE, ENGINES, WEIGHTS})
    if strange:
        raise ConfigError(f"{folder} holds {strange[:5]}, which no bundle does: it is not replaced. Give another name")
