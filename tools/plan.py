"""What a pull would do: ``alpose-harvest pull --dry-run``. Manifests are read; nothing is written, here or on a device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from alpose.runtime.errors import AlposeError, DataError
from alpose.runtime.queue.record import decode

from .inbox import Inbox
from .reader import open_reader
from .sources import Source, scrubbed


@dataclass(slots=True)
class Planned:
    """What a pull would find and do at one source."""

    url: str
    how: str = ""
    new: int = 0
    known: int = 0
    refused: int = 0
    would_fetch: int = 0
    would_fetch_bytes: int = 0
    would_acknowledge: int = 0
    would_delete: int = 0
    """Of what is or would be here whole; what was acknowledged before is deleted too."""
    moved_bytes: int = 0
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan(
    inbox: Inbox | None,
    source: Source,
    *,
    images: Collection[str] | None = None,
    acknowledge: bool = False,
    delete: bool = False,
) -> Planned:
    """Look at one source and say what :func:`alpose.tools.pull.pull` with the same arguments would do.

    Args:
        inbox: None where there is none yet.
        source: where from.
        images, acknowledge, delete: as of a pull.
    """
    planned = Planned(source.url)
    try:
        with open_reader(source) as reader:
            planned.how = reader.how
            try:
                for raw in reader.raws():
                    _add(planned, inbox, raw.id, raw.sha256, raw.manifest, raw.arrays, images)
            finally:
                planned.moved_bytes = reader.moved.bytes
            reader.require_unchanged()
    except (AlposeError, OSError) as error:
        said = str(error) if isinstance(error, AlposeError) else f"{type(error).__name__}: {error}"
        planned.problem = scrubbed(said)
    if not (acknowledge or delete):
        planned.would_acknowledge = 0
    if not delete:
        planned.would_delete = 0
    return planned


def _add(
    planned: Planned, inbox: Inbox | None, id_: str, sha256: str, manifest: bytes, arrays: bytes,
    images: Collection[str] | None,
) -> None:  # fmt: skip
    """One record of the source."""
    try:
        record, pictures = decode(manifest, arrays, sha256)
        if record.id != id_:
            raise DataError("the row's id is not the manifest's")
    except DataError:
        planned.refused += 1
        return
    here = None
    if inbox is not None and inbox.has(id_):
        if inbox.sha256(id_) != sha256:
            planned.refused += 1
            return
        (here,) = inbox.entries([id_])
        planned.known += 1
        if here.fetched and here.source != planned.url:  # came by another way, which answers for it
            return
    else:
        planned.new += 1
    wanted = bool(pictures) and not (here and here.fetched) and (images is None or id_ in images)
    if wanted:
        planned.would_fetch += 1
        planned.would_fetch_bytes += sum(picture.size for picture in pictures)
    if wanted or not pictures or (here and here.fetched):
        planned.would_acknowledge += not (here and here.acknowledged)
        planned.would_delete += 1
