"""Where queues are: local files, folders and patterns, and anything that fsspec opens."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from alpose.runtime.errors import AlposeError, DataError, DataNotFoundError, MissingExtraError
from alpose.runtime.queue import acknowledgements
from alpose.runtime.queue.acknowledgements import Acknowledgement
from alpose.runtime.queue.tables import APPLICATION_ID

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_MAGIC = re.compile(r"[*?\[]")
NOT_QUEUES = (".damaged-",)
"""Parts of names that a queue's neighbours have."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A queue on this machine."""

    path: Path

    @property
    def url(self) -> str:
        """As it is remembered in an inbox."""
        return str(self.path.absolute())


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """A queue behind fsspec."""

    url: str
    """Without secrets."""
    path: str
    """As the file system names it."""
    files: Any = field(repr=False, compare=False)
    """The file system."""

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
        folder = f"{self.path}.ack"
        content = acknowledgements.to_bytes(said)
        self.files.makedirs(folder, exist_ok=True)
        part, target = f"{folder}/.{name}.part", f"{folder}/{name}"
        self.files.pipe_file(part, content)
        self.files.mv(part, target)


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
    """A URL without password, query and fragment, where tokens travel; the user stays."""
    if not _URL.match(url):
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")
    user = host[0].partition(":")[0]
    return urlunsplit((parts.scheme, f"{user}@{host[2]}" if user else host[2], parts.path, "", ""))


def scrubbed(text: str) -> str:
    """What a client says of an error, with every URL in it without secrets."""
    return _IN_TEXT.sub(lambda found: without_secrets(found[0]), text)


def _local(source: str) -> list[Source]:
    path = Path(source)
    if path.is_file():
        return [LocalSource(path)]
    if path.is_dir():
        return [LocalSource(found) for found in sorted(path.iterdir()) if found.is_file() and _is_queue(found)]
    return (
        [one for name in sorted(glob.glob(source, recursive=True)) for one in _local(name)]
        if _MAGIC.search(source)
        else []
    )


def _is_queue(path: Path) -> bool:
    """Whether a file in a folder is a queue of ours, by its header."""
    if any(part in path.name for part in NOT_QUEUES):
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError:
        return False
    return header[:15] == b"SQLite format 3" and header[68:72] == APPLICATION_ID.to_bytes(4, "big")


def _remote(source: str, options: Mapping[str, Any]) -> list[Source]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", f"pulling from {without_secrets(source)}", "harvest") from error
    safe = without_secrets(source)
    scheme = urlsplit(source).scheme
    try:
        files, path = fsspec.core.url_to_fs(source, **options)
        if scheme in ("http", "https"):  # has no folders, and a question mark is part of the name
            files.info(path)
            paths = [path]
        elif _MAGIC.search(path):
            paths = sorted(str(one) for one in files.glob(path))
        elif files.isdir(path):
            paths = sorted(str(one) for one in files.glob(f"{path.rstrip('/')}/*.db"))
        else:
            files.info(path)
            paths = [path]
    except ImportError as error:
        raise MissingExtraError(
            str(getattr(error, "name", None) or error), f"pulling from {safe}", "harvest"
        ) from error
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{safe} is not there, or nobody answers: is the address right?") from error
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{safe} cannot be reached: {type(error).__name__}: {scrubbed(str(error))[:300]}") from error
    paths = [one for one in paths if not any(part in PurePosixPath(one).name for part in NOT_QUEUES)]
    return [RemoteSource(_url_of(source, path, one), one, files) for one in paths]


def _url_of(source: str, path: str, found: str) -> str:
    """The URL of a file that a pattern or a folder found."""
    safe = without_secrets(source)
    if found == path:
        return safe
    parts = urlsplit(safe)
    tail = found if found.startswith("/") else f"/{found}"
    if parts.netloc and tail.startswith(f"/{parts.netloc}/"):  # buckets stand in the path
        tail = tail[len(parts.netloc) + 1 :]
    return urlunsplit((parts.scheme, parts.netloc, tail, "", ""))
