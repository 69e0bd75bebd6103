"""Where queues are: local files, folders and patterns, and anything that fsspec opens."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alpose.runtime.errors import AlposeError, DataError, DataNotFoundError, MissingExtraError
from alpose.runtime.queue import acknowledgements
from alpose.runtime.queue.acknowledgements import Acknowledgement
from alpose.runtime.queue.tables import APPLICATION_ID

log = logging.getLogger("alpose")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_MAGIC = re.compile(r"[*?\[]")
_SECRET = re.compile(
    r"token|secret|sig|pass|pwd|auth|credential|key|session|code|jwt|^s[a-z]{1,2}$|^x-(amz|goog)-", re.IGNORECASE
)
"""Names of a query's values that are not for other eyes."""
LONGEST_SHOWN = 40
"""Characters of a query's value; a longer one may be a secret under any name."""
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az"})
"""Protocols, as fsspec names them."""
DAMAGED = ".damaged-"
"""Part of the name of a queue that its monitor moved aside."""
UNFINISHED = (".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", "~")
"""Endings that copying programs give to what they have not copied whole; others begin with a dot."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A queue on this machine."""

    path: Path

    @property
    def url(self) -> str:
        """As it is remembered in an inbox; bytes that are not UTF-8 are written as ``\\xfc``."""
        return os.fsencode(self.path.absolute()).decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """A queue behind fsspec."""

    url: str
    """Without secrets."""
    path: str
    """As the file system names it."""
    files: Any = field(repr=False, compare=False)
    """The file system."""

    @property
    def protocols(self) -> frozenset[str]:
        """Names that fsspec has for the file system."""
        protocol = self.files.protocol
        return frozenset((protocol,) if isinstance(protocol, str) else protocol)

    def beside(self, ending: str) -> str:
        """A file whose name is this one's with an ending; a web address has its query behind the name."""
        path, mark, query = self.path.partition("?") if self.protocols & {"http", "https"} else (self.path, "", "")
        return f"{path}{ending}{mark}{query}"

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where it is not there. Asked anew each time."""
        with over_the_line():
            self.files.invalidate_cache()
            try:
                return int(self.files.info(path)["size"] or 0)
            except FileNotFoundError:
                return None

    def state(self) -> tuple[Any, ...]:
        """Changes when the file does, as far as the server tells."""
        with over_the_line():
            self.files.invalidate_cache()
            info = self.files.info(self.path)
        return tuple(str(info.get(key)) for key in ("size", "mtime", "LastModified", "ETag", "modified"))

    def content(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file, or a part of it."""
        with over_the_line():
            found: bytes = self.files.cat_file(path, start=start, end=stop)
        return found

    def acknowledge(self, name: str, said: Acknowledgement) -> None:
        """Leave an acknowledgement beside the queue, whole or not at all where the server can rename."""
        folder = self.beside(".ack")
        content = acknowledgements.to_bytes(said)
        self.files.makedirs(folder, exist_ok=True)
        if (
            self.protocols & OBJECT_STORES
        ):  # a file is there whole or not at all; renaming would read brackets as a pattern
            self.files.pipe_file(f"{folder}/{name}", content)
            return
        part = f"{folder}/.{name}.part"
        self.files.pipe_file(part, content)
        self.files.mv(part, f"{folder}/{name}")


Source = LocalSource | RemoteSource


@contextmanager
def over_the_line() -> Iterator[None]:
    """What a server or its client raises becomes :class:`ConnectionError`: each has errors of its own."""
    try:
        yield
    except (OSError, AlposeError):
        raise
    except Exception as error:
        raise ConnectionError(f"{type(error).__name__}: {scrubbed(str(error))[:300]}") from error


def find(sources: tuple[str, ...], options: Mapping[str, Any] | None = None) -> list[Source]:
    """Every queue that these name; :class:`DataNotFoundError` where one names none.

    Args:
        sources: paths, folders (every queue in them), patterns, URLs with or without patterns.
        options: for fsspec, such as credentials; taken from its own configuration otherwise.
    """
    found: dict[str, Source] = {}
    for source in sources:
        here = _remote(source, options or {}) if _URL.match(source) else _local(source)
        if not here:
            raise DataNotFoundError(
                f"{without_secrets(source)} names no queue: give a file, a folder with queues, or a URL"
            )
        for one in here:
            found.setdefault(one.url, one)
    return list(found.values())


def without_secrets(url: str) -> str:
    """An address that tells one source from every other and gives nothing away: the user stays, a password goes, and of a
    token in the query only a digest is left."""
    found = _URL.fullmatch(url)
    if found is None:
        return url
    scheme, host, path = found.groups()
    user, at, host = host.rpartition("@")
    if scheme.lower() in ("http", "https"):
        path = path.partition("#")[0]
    path, mark, query = path.partition("?")
    shown = "&".join(_without_secret(part) for part in query.split("&"))
    return f"{scheme}://{user.partition(':')[0]}{at}{host}{path}{mark}{shown}"


def _without_secret(part: str) -> str:
    name, equals, _ = part.partition("=")
    if not _SECRET.search(name) and len(part) <= LONGEST_SHOWN:
        return part
    digest = hashlib.sha256(part.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name}=…{digest}" if equals else f"…{digest}"


def scrubbed(text: str) -> str:
    """What a client says of an error, with every URL in it without secrets."""
    return _IN_TEXT.sub(lambda found: without_secrets(found[0]), text)


def _local(source: str) -> list[Source]:
    path = Path(source)
    if path.is_file():
        return [LocalSource(path)]
    if path.is_dir():
        return [LocalSource(found) for found in sorted(path.iterdir()) if _is_queue(found)]
    if not _MAGIC.search(source):
        return []
    # A bracket may be a part of a name: where nothing matches the pattern, it is one.
    names = glob.glob(source, recursive=True) or glob.glob(source.replace("[", "[[]"), recursive=True)
    return [one for name in sorted(names) if _is_whole(name) for one in _local(name)]


def _is_whole(name: str) -> bool:
    """Whether a file in a folder is meant to be read: nothing that is still being copied, or was moved aside."""
    base = PurePosixPath(name).name
    return not (base.startswith(".") or base.endswith(UNFINISHED) or DAMAGED in base)


def _is_queue(path: Path) -> bool:
    """Whether a file in a folder is a queue of ours, by its header; one that looks like it and is none is logged."""
    if not path.is_file() or not _is_whole(path.name):
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError as error:
        log.warning("%s is left out, it cannot be read: %s", path, error)
        return False
    ours = header[:15] == b"SQLite format 3" and header[68:72] == APPLICATION_ID.to_bytes(4, "big")
    if not ours and path.suffix == ".db":
        log.warning("%s is left out: %s", path, "it is not a queue" if header else "it is empty, or not copied yet")
    return ours


def _remote(source: str, options: Mapping[str, Any]) -> list[Source]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", f"pulling from {without_secrets(source)}", "harvest") from error
    safe = without_secrets(source)
    try:
        files, path = fsspec.core.url_to_fs(source, **options)
        if source.lower().startswith(
            ("http://", "https://")
        ):  # has no folders, and a question mark is part of the name
            files.info(path)
            paths = [path]
        elif not _MAGIC.search(path) or files.exists(path):
            found = files.info(path)
            paths = [path] if found["type"] != "directory" else _queues_in(files, path)
        else:
            paths = files.glob(path) or files.glob(path.replace("[", "[[]"))
            paths = sorted(str(one) for one in paths if _is_whole(str(one)))
    except ImportError as error:
        raise MissingExtraError(
            str(getattr(error, "name", None) or error), f"pulling from {safe}", "harvest"
        ) from error
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{safe} is not there, or nobody answers: is the address right?") from error
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{safe} cannot be reached: {type(error).__name__}: {scrubbed(str(error))[:300]}") from error
    return [RemoteSource(safe if one == path else _url_of(source, one), one, files) for one in paths]


def _queues_in(files: Any, folder: str) -> list[str]:
    names = (str(name) for name in files.ls(folder, detail=False))
    return sorted(name for name in names if name.endswith(".db") and _is_whole(name))


def _url_of(source: str, found: str) -> str:
    """The address of a file that a pattern or a folder found; some file systems name the host in the path."""
    match = _URL.fullmatch(source)
    assert match is not None
    scheme, host, _ = match.groups()
    path = found.lstrip("/")
    bare = host.rpartition("@")[2]
    path = path[len(bare) + 1 :] if bare and path.startswith(f"{bare}/") else path
    return without_secrets(f"{scheme}://{host}/{path}")
