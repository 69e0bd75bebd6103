"""Files that are whole or not there, JSON with errors that name the place, and frozen dataclasses as JSON.

Everything alpose leaves on a disk goes through here, so that a reader never sees half a file, a power cut leaves the old
content or the new, and a damaged or foreign file is refused with its name and the field that is wrong.

A dataclass is a JSON object of its fields. A class whose form in a file differs from its fields has two methods of its
own, ``to_json(self)`` and ``from_json(cls, value, where)``; the functions here call them wherever the class occurs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, Union

import numpy as np

from .errors import AlposeError, ConfigError, DataError, DataNotFoundError

T = TypeVar("T")

ABANDONED_SECONDS = 3600.0
"""A temporary file this old belongs to no living writer."""


# --- Files and folders ---------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file so that its name stands for the old content or the new, also after a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file in the same folder; it becomes ``path`` when the block ends without an error.

    The content is flushed to the disk before the rename and the folder after it. Two writers of one path never write
    into one temporary file, because each has a name of its own. Folders that are missing on the way are made.

    An error of the disk, such as a full one, is an :class:`OSError` that names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with _naming(path, temporary):
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet, with its permissions: its name stands for all of it, or is not there.

    Raises :class:`FileExistsError` where something is there, which stays as it is, and errors as :func:`replacing`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with _naming(path, temporary):
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)  # unlike a rename it takes no other file's place
            except OSError:
                if path.exists():
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
                os.rename(temporary, path)  # a file system without links
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def require_writable(path: Path, count: int = 1 << 16) -> None:
    """Raise the :class:`OSError`, naming ``path``, that writing so many bytes there would; for what tells no errors itself.

    Folders that are missing on the way are made; nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with _naming(path, temporary):
        try:
            temporary.write_bytes(bytes(count))
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Say ``path`` in an error of the disk that says no file, as of a full one, or one that nobody has heard of."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or temporary).startswith(str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def bring_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy or hard-link a file, whole or not at all; one of the same size that is there already is left alone."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    with replacing(target) as temporary:
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)


def write_folder_atomically(folder: Path, files: Mapping[str, bytes | Path], *, replace: bool = False) -> Path:
    """Write a folder of files so that its name stands for all of them or for none; a path is a file to be copied.

    A folder cannot take the place of another in one step. Killed while it replaces one, ``folder`` may be absent, with
    the former one whole beside it as ``.NAME.*.old``.

    Raises:
        ConfigError: something is there that may not be replaced, or appeared meanwhile.
        OSError: of the disk, as :func:`replacing`.
    """
    remove_abandoned(folder.parent, folder.name)
    temporary, former = temporary_name(folder), temporary_name(folder, "old")
    try:
        with _naming(folder, temporary):
            temporary.mkdir(parents=True)
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, temporary / name)
                else:
                    (temporary / name).write_bytes(content)
                sync(temporary / name)
            sync(temporary)
        if replace and folder.exists():
            os.rename(folder, former)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if former.exists() and not folder.exists():
                os.rename(former, folder)
            raise ConfigError(
                f"{folder} appeared or changed while it was written ({error}): nothing was replaced"
            ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)
    for former in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        # Under another name first: whatever ends with .old is whole, and can be renamed back.
        waste = temporary_name(folder)
        with contextlib.suppress(FileNotFoundError):  # another writer of this folder was here first
            os.rename(former, waste)
        shutil.rmtree(waste, ignore_errors=True)
    return folder


def temporary_name(path: Path, ending: str = "tmp") -> Path:
    """Return a hidden name beside a path that no other writer has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in a folder: of the file or folder of this name, or of any."""
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk: a rename is only kept when the folder that holds the name is."""
    if os.name != "posix" and path.is_dir():
        return  # other systems cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(source: Path | BinaryIO) -> str:
    """The sha256 of a file of any size, or of the rest of an open one, in hex."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file_sha256(file)
    digest = hashlib.sha256()
    while piece := source.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


# --- JSON files ----------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> Path:
    """Write JSON, whole or not at all; dataclasses are written as :func:`to_json` gives them."""
    return write_atomically(path, json_bytes(value, indent=indent))


def json_bytes(value: Any, *, indent: int | None = 1, ensure_ascii: bool = True) -> bytes:
    """Return the content of a JSON file."""
    text = json_text(value, indent=indent, ensure_ascii=ensure_ascii)
    return (text + "\n").encode() if indent else text.encode()


def json_text(value: Any, *, indent: int | None = 1, ensure_ascii: bool = True) -> str:
    """Return JSON for a file or a terminal. Raises :class:`DataError` for what JSON cannot say, such as NaN."""
    try:
        return json.dumps(to_json(value), indent=indent, allow_nan=False, ensure_ascii=ensure_ascii)
    except (TypeError, ValueError) as error:
        raise DataError(f"not plain JSON (finite numbers, texts, lists, objects): {error}") from error


def read_json(path: Path, *, lenient: bool = False) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    ``lenient`` is for files of other tools: a letter that is not UTF-8 becomes a replacement character. Raises :class:`DataError` or :class:`DataNotFoundError`, naming the file.
    """
    try:
        content = path.read_bytes()
        if lenient and json.detect_encoding(content).startswith("utf-8"):
            return json.loads(content.decode("utf-8-sig", errors="replace"))
        return json.loads(content)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}") from error


def parse_json(content: bytes) -> Any:
    """Read strict JSON in UTF-8: no key twice, no NaN or infinity, no absurd depth; else :class:`DataError`."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant,
                          parse_float=_finite_float, parse_int=_short_int)  # fmt: skip
    except (ValueError, RecursionError) as error:  # includes damaged UTF-8 and damaged JSON
        raise DataError(f"not readable as JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"a key stands twice in one object: {sorted({key for key in keys if keys.count(key) > 1})}")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _short_int(text: str) -> int:
    value = int(text)
    if abs(value) >= 1 << 63:
        raise ValueError(f"a whole number of {len(text)} digits does not fit 64 bits")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond what a float holds")
    return value


# --- Dataclasses as JSON -------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Return plain JSON values: dataclasses and mappings as objects, sequences and arrays as lists, paths as texts."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return fields_to_json(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def fields_to_json(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass in their order, for a class that adds to them in its own ``to_json``."""
    return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """Build a dataclass from the JSON values of :func:`to_json`.

    A field with a default may be missing, so that files of older versions are read. Raises :class:`DataError` that
    names the place and the field for an unknown or missing key, a value of another type, or one the class refuses.
    """
    if own := getattr(cls, "from_json", None):
        return typing.cast("T", own(value, where))
    return fields_from_json(cls, value, where)


def fields_from_json(cls: type[T], value: Any, where: str = "") -> T:
    """Build a dataclass from an object of its fields, for a class that takes something off in its own ``from_json``."""
    where = where or cls.__name__
    known = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected an object with the keys {', '.join(known)}, got {_shown(value)}")
    needed = {name for name, item in known.items()
              if item.default is item.default_factory is dataclasses.MISSING}  # fmt: skip
    missing, unknown = sorted(needed - set(value)), sorted(set(value) - set(known))
    if missing or unknown:
        said = [f"{words} {', '.join(names)}" for words, names in (("missing", missing), ("unknown", unknown)) if names]
        raise DataError(f"{where}: {'; '.join(said)}. Expected the keys {', '.join(known)}")
    types_by_name = typing.get_type_hints(cls)
    parts = {name: _value(types_by_name[name], item, _place(where, name)) for name, item in value.items()}
    try:
        return cls(**parts)
    except (AlposeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


def _place(where: str, name: str) -> str:
    return f"{where}: {name}" if where.endswith(".json") else f"{where}.{name}"


def _value(wanted: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type of a field wants it."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any or wanted is object:
        return value
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in arguments):
            raise DataError(f"{where} must be one of {', '.join(map(str, arguments))}, got {_shown(value)}")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin in (tuple, list, Sequence):
        return _list(origin, arguments, value, where)
    if origin in (dict, Mapping) or wanted is dict:
        if not isinstance(value, dict):
            raise DataError(f"{where} must be an object, got {_shown(value)}")
        kind = arguments[1] if arguments else Any
        return {key: _value(kind, item, f"{where}.{key}") for key, item in value.items()}
    if hasattr(wanted, "from_json") or dataclasses.is_dataclass(wanted):
        return from_json(wanted, value, where)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    words, fits = _PLAIN.get(wanted, (str(wanted), lambda _: False))
    if not fits(value):
        raise DataError(f"{where} must be {words}, got {_shown(value)}")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", _number),
    type(None): ("null", lambda value: value is None),
}


def _one_of(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _value(kind, value, where)
            except DataError as error:
                errors.append(str(error))
    raise DataError(" or ".join(errors) + (" (or null)" if type(None) in kinds else ""))


def _list(origin: Any, arguments: Sequence[Any], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list, got {_shown(value)}")
    any_length = origin is not tuple or arguments[1:] == (Ellipsis,)
    if not any_length and len(value) != len(arguments):
        raise DataError(f"{where} must be a list of {len(arguments)}, got {_shown(value)}")
    kinds = [arguments[0]] * len(value) if any_length else arguments
    items = [
        _value(kind, item, f"{where}[{place}]") for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return items if origin is list else tuple(items)


def _shown(value: Any) -> str:
    return f"{str(value)[:80]!r}" if not isinstance(value, str) else repr(value[:80])
