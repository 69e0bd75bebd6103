"""Getting a dataset: download its archives, check what they hold, and put it into the data root.

What is there is left alone, what broke off is continued, and what is not the dataset never gets there.
"""

from __future__ import annotations

import http.client
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from alpose.runtime.errors import AlposeError, ConfigError, DataError

from ..progress import bar
from .archives import unpack
from .sources import CHUNK_BYTES, Source, archive_path, hash_mismatches, how_to_place

logger = logging.getLogger("alpose")


class DownloadError(AlposeError, OSError):
    """A download that did not work; the message says what to place where instead."""


def fetch(
    source: Source,
    data_root: Path,
    *,
    mirror: str | None = None,
    only: tuple[str, ...] = (),
    report: Callable[[str], None] = logger.info,
    attempts: int = 5,
    pause_s: float = 2.0,
) -> Path:
    """Download, check and unpack a dataset into ``data_root/NAME``; what is already there is left alone.

    A partial download is continued. An archive that lies in ``data_root/.downloads`` already is used instead
    of downloading. Archives are unpacked beside the target, checked, and only then moved into place.

    Args:
        source: one of :data:`SOURCES`.
        data_root: folder that holds the datasets; created when absent.
        mirror: an address that replaces everything before the archives' file names.
        only: file names of archives to take; empty for all.
        report: called with one line per step.
        attempts: tries per archive.
        pause_s: seconds before the second try, doubled for each further one.
    """
    source = _restrict(_mirrored(source, mirror), only)
    folder = data_root / source.name
    if source.joints_sha256 and (folder / "joints.mat").is_file() and not hash_mismatches(source, folder):
        report(f"{source.name}: already complete in {folder}, hashes match")
        return folder
    for url in source.archives:
        archive = archive_path(data_root, url)
        stamp = folder / f".fetched-{archive.name}"
        if stamp.exists() and not source.joints_sha256:
            report(f"{source.name}: {archive.name} was unpacked into {folder} before, left alone")
            continue
        try:
            if archive.is_file():
                report(f"{source.name}: using {archive}")
            else:
                report(f"{source.name}: downloading {url}")
                download(url, archive, attempts=attempts, pause_s=pause_s)
            with _unpacked(archive, data_root) as unpacked:
                top = _unwrap(unpacked, source.top)
                if wrong := hash_mismatches(source, top):
                    raise DataError(f"what {archive.name} holds is not {source.name}: {'; '.join(wrong)}")
                moved = _move_files(top, folder)
        except DataError as error:
            archive.unlink(missing_ok=True)  # or the next try would use it again
            raise DownloadError(
                f"{error}. It came from {url} and was removed; nothing was placed in {folder}.\n"
                + how_to_place(source, data_root)
            ) from error
        except OSError as error:
            raise DownloadError(f"{source.name}: {error}.\n" + how_to_place(source, data_root)) from error
        stamp.touch()
        archive.unlink()
        report(f"{source.name}: {moved:,} files of {archive.name} are in {folder}")
    return folder


def _mirrored(source: Source, mirror: str | None) -> Source:
    """The same archives below another address."""
    if mirror is None:
        return source
    names = (PurePosixPath(urlsplit(url).path).name for url in source.archives)
    return replace(source, archives=tuple(f"{mirror.rstrip('/')}/{name}" for name in names))


def _restrict(source: Source, only: tuple[str, ...]) -> Source:
    """Only the archives with these file names."""
    by_name = {PurePosixPath(urlsplit(url).path).name: url for url in source.archives}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise ConfigError(f"{source.name} has no archive {', '.join(unknown)}; it has: {', '.join(by_name)}")
    return replace(source, archives=tuple(by_name[name] for name in only)) if only else source


@contextmanager
def _unpacked(archive: Path, data_root: Path) -> Iterator[Path]:
    """A temporary folder beside the target with the contents of an archive."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=data_root) as folder:
        unpack(archive, Path(folder))
        yield Path(folder)


def _unwrap(folder: Path, top: str) -> Path:
    """The folder that holds ``top``: the one given or the only one in it."""
    if not top or (folder / top).exists():
        return folder
    holders = [path for path in folder.iterdir() if (path / top).exists()]
    if len(holders) != 1:
        raise DataError(
            f"the archive has no {top} at its top; it holds {sorted(p.name for p in folder.iterdir())[:10]}"
        )
    return holders[0]


def _move_files(source: Path, target: Path) -> int:
    """Move every file of a folder to the same place below another; how many there were."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    return len(files)


# --- one file ----------------------------------------------------------------------------------------------


def download(url: str, target: Path, *, attempts: int = 5, pause_s: float = 2.0, timeout_s: float = 30.0) -> None:
    """Fetch a file, continuing what an earlier try left in ``TARGET.part``; complete or not at all.

    Raises :class:`DownloadError` after ``attempts`` tries, or at once when the server says that there is no
    such file.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url}: only http and https addresses are downloaded")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(attempts):
        try:
            _continue(url, part, timeout_s)
            os.replace(part, target)
            return
        except (OSError, http.client.HTTPException) as error:
            failure = error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code == 416:  # the part is longer than the file: another file lies there now
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    break
        logger.warning("%s: try %d of %d failed: %s", url, attempt + 1, attempts, failure or type(failure).__name__)
        if attempt + 1 < attempts:
            time.sleep(pause_s * 2**attempt)
    kept = f"; {part.stat().st_size:,} bytes are kept in {part} and will be continued" if part.exists() else ""
    raise DownloadError(f"could not download {url}: {failure}{kept}")


def _continue(url: str, part: Path, timeout_s: float) -> None:
    """One try: append what is missing. Raises OSError when fewer bytes came than were announced."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "alpose"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - download() allows http and https only
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"*/{have}"):
            error.close()
            return  # the part is the whole file
        raise
    with response:
        if response.status != 206:  # the server does not continue: from the start
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError(f"asked to continue at byte {have}, got {response.headers.get('Content-Range')!r}")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            open(part, "ab" if have else "wb") as file,
            bar(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as shown,
        ):
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                shown.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")
