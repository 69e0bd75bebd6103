"""Scoring a whole pool: shard by shard, here or on a Ray cluster, going on where an earlier call stopped.

What a model said of a picture is kept under the cache by model, boxes and pool. A picture that is there with the same state
is not scored again; one that changed, or came since, is. The order of everything is that of the pictures' names, so that
neither shards nor the order of their arrival have a say.

Shapes: P pictures, N people, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import write_atomically

from ..cycles.ray_executor import Call, run_calls
from ..data.records import Bools, Floats
from ..device import DeviceContext, Precision, device_context
from ..methods.catalog import METHODS
from ..methods.strategies import DEFAULT
from ..progress import progress
from .boxes import Detect, Detections, key_of, read_detections
from .pictures import Listing, list_pictures
from .scorers import About, Scorer, open_scorer
from .shards import SCHEMA, Shard, ShardFile, ShardScores, block_for, person_id, score_shard

log = logging.getLogger("alpose")

Executor = Literal["local", "ray"]
Ids = npt.NDArray[np.bytes_]

SHARD = 256
"""Pictures of a shard: what is lost with a process that is killed."""
DUPLICATE = "another picture has the same content"


@dataclass(frozen=True, slots=True, eq=False)
class PoolScores:
    """A scored pool, one row a person; at ten million rows some hundred bytes each, and the embeddings on the disk."""

    listing: Listing
    about: About
    id_N: Ids
    """32 hex digits each; see :func:`~.shards.person_id`."""
    picture_N: npt.NDArray[np.int64]
    """Row of the listing; people of one picture follow each other."""
    failure_N: Floats
    score_N: Floats | None
    """By the method of the catalog that was asked for; None where it needs no score of its own."""
    embedding_ND: npt.NDArray[np.float16]
    """Rows of unit length, memory-mapped."""
    left_out: Mapping[str, str]
    """Pictures without anybody to choose, and why."""
    notes: Mapping[str, str]
    """Pictures with people who cannot be chosen beside some who can."""
    detections_left_out: Mapping[str, int]
    scored_now: int
    """Pictures; the others had been scored by an earlier call."""
    folder: Path
    """Where the shards lie."""
    place_N2: npt.NDArray[np.int32]
    """Shard of ``shards``, and row in it."""
    shards: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.id_N)

    def people_of(self, pictures: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Rows of everybody on these pictures."""
        return np.flatnonzero(np.isin(self.picture_N, pictures))

    def details(self, rows: npt.NDArray[np.integer]) -> Iterator[tuple[int, ShardScores, int]]:
        """Rows with what was stored of them: (row, its shard, row in the shard); each shard is read once, in any order."""
        for shard in np.unique(self.place_N2[rows, 0]):
            with ShardFile(self.shards[shard]) as opened:
                whole = opened.whole()
            for row in rows[self.place_N2[rows, 0] == shard]:
                yield int(row), whole, int(self.place_N2[row, 1])


def score_pool(
    model: str | Path,
    pool: str | Path,
    cache: Path,
    *,
    boxes: str | Path | Detect | None = None,
    least_score: float = 0.3,
    by: str = DEFAULT,
    machine: DeviceContext | None = None,
    executor: Executor = "local",
    shard: int = SHARD,
) -> PoolScores:
    """Score everybody in a pool.

    Args:
        model: folder of a checkpoint, of a model of ``fit --pose``, or of a bundle.
        pool: a folder, or an address that fsspec opens.
        cache: where scores are kept.
        boxes: a COCO file of detections; a function from a picture, RGB (H, W, 3), to boxes (N, 4); None: each picture is
            one person. With ``ray`` a function goes to the workers.
        least_score: of detections, in the file.
        by: how people will be chosen.
        machine: where to compute.
        executor: ``ray`` scores the shards on a cluster, which must see model and pool under the same paths.
        shard: pictures of a shard. It changes what is lost by a kill, and no score.

    Raises:
        DataNotFoundError: there is no model, no pool, or no picture in it.
        ConfigError: this model cannot choose so, or takes no boxes.
        DataError: nobody was found in the whole pool.
    """
    if shard < 1:
        raise ConfigError(f"a shard has at least 1 picture, got {shard}")
    machine = machine or device_context()
    scorer = open_scorer(Path(model), machine, by)
    if boxes is not None and not scorer.about.rule.around_person:
        raise ConfigError(
            f"--boxes: {scorer.about.name} looks at the whole picture ({scorer.about.rule.kind}), whoever is on it: leave it out"
        )
    listing = list_pictures(pool)
    if listing.others:
        log.info("%s: %d files are no pictures by their names, and are passed over", listing.files, listing.others)
    found = read_detections(Path(boxes), least_score) if isinstance(boxes, str | Path) else None
    for reason, count in (found.left_out if found else {}).items():
        log.info("%s: %d detections left out %s", boxes, count, reason)
    where: Detections | Detect | None = found if found is not None else boxes if callable(boxes) else None
    folder = cache / f"pool-{_key(scorer.about, where, listing, by)}"
    has = _stored(folder)
    now = {name: row for row, name in enumerate(listing.names) if has.get(name) != listing.states[row]}
    shards = list(_cut(listing, list(now.values()), where, shard))
    opener = Opener(str(Path(model).resolve()), by, machine.device.type, machine.precision)
    first = len(listing) - len(now)
    if first:
        log.info("%s: %d of %d pictures were scored before", listing.files, first, len(listing))
    run = _on_ray if executor == "ray" else _here
    for _ in progress(run(shards, opener, scorer, folder), f"scoring {listing.files}", len(listing), first):
        pass
    return _gathered(folder, listing, scorer.about, by, found.left_out if found else {}, len(now))


@dataclass(frozen=True, slots=True)
class Opener:
    """All that a worker needs to open the model as the driver did."""

    model: str
    by: str
    device: str
    precision: Precision


@lru_cache(maxsize=2)
def _opened(opener: Opener) -> Scorer:
    """On a worker, once for all of its shards."""
    return open_scorer(Path(opener.model), device_context(opener.device, opener.precision), opener.by)


def _score(opener: Opener, shard: Shard, _before: Any = None) -> bytes:
    """On a worker: the file of a shard."""
    steps = score_shard(shard, _opened(opener), block=block_for(opener.device))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            scores: ShardScores = end.value
            return scores.to_bytes()


def _here(shards: list[Shard], opener: Opener, scorer: Scorer, folder: Path) -> Iterator[str]:
    """Yields the name of each picture that is done."""
    for shard in shards:
        scores = yield from score_shard(shard, scorer, block=block_for(opener.device))
        _keep(folder, scores.to_bytes(), shard)


def _on_ray(shards: list[Shard], opener: Opener, scorer: Scorer, folder: Path) -> Iterator[str]:
    """The same from a cluster: a shard whose worker or node dies is scored again elsewhere."""
    calls = [Call(str(number), _score, (opener, shard)) for number, shard in enumerate(shards)]
    for name, content in run_calls(calls, gpu=opener.device == "cuda"):
        shard = shards[int(name)]
        _keep(folder, content, shard)
        yield from shard.names


def _keep(folder: Path, content: bytes, shard: Shard) -> None:
    """The file is named by its pictures: nobody's file is overwritten by another's."""
    named = hashlib.sha256("\0".join([*shard.names, *shard.states]).encode(errors="surrogateescape")).hexdigest()[:24]
    write_atomically(folder / f"{named}.npz", content)


def _cut(listing: Listing, rows: list[int], where: Detections | Detect | None, size: int) -> Iterator[Shard]:
    boxes = where.of(listing.names) if isinstance(where, Detections) else None
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        names, states = (tuple(column[row] for row in part) for column in (listing.names, listing.states))
        of_each = None if boxes is None else tuple(boxes[row] for row in part)
        found = None if isinstance(where, Detections) else where
        yield Shard(listing.files, names, states, of_each if of_each is not None else found)


def _key(about: About, where: Detections | Detect | None, listing: Listing, by: str) -> str:
    """Hash of all that makes the numbers, apart from the pictures."""
    boxes = "whole" if where is None else where.key if isinstance(where, Detections) else key_of(where)
    extra = by if by in METHODS and METHODS[by].of_maps else ""
    made_of = [SCHEMA, about.sha256, about.computed, boxes, listing.files.url, extra]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:20]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def _stored(folder: Path) -> dict[str, str]:
    """The state in which each picture was scored; a damaged file is put aside, and its pictures are scored again."""
    found: dict[str, str] = {}
    for path in _files(folder):
        try:
            with ShardFile(path) as shard:
                found |= {one.name: one.state for one in shard.pictures}
        except DataError as error:
            log.warning("%s; its pictures are scored again", error)
            os.replace(path, path.with_suffix(".damaged"))
    return found


def _gathered(
    folder: Path, listing: Listing, about: About, by: str, detections: Mapping[str, int], scored_now: int
) -> PoolScores:  # fmt: skip
    """All shards as one table in the order of the listing, each content once."""
    row_of = {name: row for row, name in enumerate(listing.names)}
    paths = tuple(_files(folder))
    sha_P = np.zeros(len(listing), "S32")
    shard_P, start_P, people_P = (np.full(len(listing), -1, np.int64) for _ in range(3))
    problem: dict[int, str] = {}
    for number, path in enumerate(paths):
        with ShardFile(path) as shard:
            start = 0
            for one in shard.pictures:
                row = row_of.get(one.name, -1)
                if row >= 0 and shard_P[row] < 0 and one.state == listing.states[row]:
                    sha_P[row] = (one.sha256 or "")[:32].encode()
                    shard_P[row], start_P[row], people_P[row] = number, start, one.people
                    if one.problem is not None:
                        problem[row] = one.problem
                start += one.people
    known_P = sha_P != b""
    _, first = np.unique(sha_P[known_P], return_index=True)
    once_P = np.zeros(len(listing), np.bool_)
    once_P[np.flatnonzero(known_P)[first]] = True
    for row in np.flatnonzero(known_P & ~once_P & (people_P > 0)).tolist():
        problem[row] = DUPLICATE
        people_P[row] = 0
    people_P = np.maximum(people_P, 0)
    total = int(people_P.sum())
    if not total:
        said = "; ".join(list(dict.fromkeys(problem.values()))[:3])
        raise DataError(f"{listing.files}: nobody to choose on any of its {len(listing)} pictures ({said})")
    begin_P = np.cumsum(people_P) - people_P
    return _table(folder, listing, about, by, detections, scored_now, paths, problem,
                  (shard_P, start_P, people_P, begin_P))  # fmt: skip


def _table(
    folder: Path, listing: Listing, about: About, by: str, detections: Mapping[str, int], scored_now: int,
    paths: tuple[Path, ...], problem: Mapping[int, str], places: tuple[npt.NDArray[np.int64], ...],
) -> PoolScores:  # fmt: skip
    shard_P, start_P, people_P, begin_P = places
    total = int(people_P.sum())
    id_N, failure_N = np.zeros(total, "S32"), np.zeros(total, np.float32)
    place_N2 = np.zeros((total, 2), np.int32)
    score_N = np.zeros(total, np.float32) if by in about.methods else None
    embedding_ND: npt.NDArray[np.float16] | None = None
    order_P = np.argsort(shard_P, kind="stable")
    ends = np.searchsorted(shard_P[order_P], np.arange(len(paths) + 1))
    for number, path in enumerate(paths):
        rows_P = order_P[ends[number] : ends[number + 1]]
        to_N, from_N = (_spans(begin[rows_P], people_P[rows_P]) for begin in (begin_P, start_P))
        if not len(to_N):
            continue
        with ShardFile(path) as shard:
            part_ND = shard["embedding_ND"]
            if embedding_ND is None:
                embedding_ND = _on_disk(folder, (total, part_ND.shape[1]))
            embedding_ND[to_N], failure_N[to_N] = part_ND[from_N], shard["failure_N"][from_N]
            if score_N is not None:
                score_N[to_N] = shard[f"by.{by}"][from_N]
            box_N4, picture_N = shard["box_N4"][from_N], shard["picture_N"][from_N]
            id_N[to_N] = [
                person_id(str(shard.pictures[row].sha256), box_4).encode()
                for row, box_4 in zip(picture_N, box_N4, strict=True)
            ]
        place_N2[to_N] = np.stack([np.full(len(to_N), number), from_N], axis=1)
    assert embedding_ND is not None
    names = listing.names
    empty_P: Bools = people_P == 0
    return PoolScores(
        listing, about, id_N, np.repeat(np.arange(len(listing)), people_P), failure_N, score_N, embedding_ND,
        {names[row]: why for row, why in sorted(problem.items()) if empty_P[row]},
        {names[row]: why for row, why in sorted(problem.items()) if not empty_P[row]},
        detections, scored_now, folder, place_N2, paths,
    )  # fmt: skip


def _spans(begin_P: npt.NDArray[np.int64], count_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``begin``, ``begin + 1``, … so many of each, one after the other."""
    before_P = np.cumsum(count_P) - count_P
    return np.repeat(begin_P - before_P, count_P) + np.arange(int(count_P.sum()))


def _on_disk(folder: Path, shape: tuple[int, int]) -> npt.NDArray[np.float16]:
    """An array in a file that has no name any more: it goes with whoever has it open, however that ends."""
    with tempfile.TemporaryFile(dir=folder) as file:
        array = np.memmap(file, np.float16, mode="w+", shape=shape)
    return array
