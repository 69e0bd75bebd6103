"""``alpose-train select``: from a scored pool of pictures to the batch that annotators open.

The people of the chosen pictures become records of an inbox, as if a device had sent them, so that formats, gallery and import are those of
the harvest. A record's ``device`` is the pool's name and its ``camera`` the picture's place in it.

::

    OUT/
      selection.json         every chosen picture with its reason, and every picture that was passed over
      inbox/                 the records, the chosen pictures and the batch: what alpose-harvest works on
      FORMAT/                what annotators open

Shapes: N people, D embedding, M chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import write_json
from alpose.runtime.queue.fields import MAX_NAME
from alpose.runtime.queue.ledger import BundleInfo
from alpose.runtime.queue.record import Picture, Record, encode
from alpose.trainer.data.images import ImageError, orientation
from alpose.trainer.methods.strategies import BY_FAILURE, DEFAULT, STRATEGIES
from alpose.trainer.pool.pictures import decode, digest

from .annotation.exporting import Written, write_batch
from .batch import POOL, Batch, Choice
from .formats import format_named
from .inbox import Inbox
from .inbox_database import Columns, Raw

if TYPE_CHECKING:
    from alpose.trainer.device import DeviceContext
    from alpose.trainer.pool.boxes import Detect
    from alpose.trainer.pool.scores import Executor, PoolScores
    from alpose.trainer.pool.shards import Seen, ShardScores

log = logging.getLogger("alpose")

SELECTION, INBOX = "selection.json", "inbox"
KIND, SCHEMA = "alpose pool selection", 1
JPEG_QUALITY = 95
"""Of a picture that is written anew."""
BESIDE = "on the same picture"
"""Why somebody is in a batch for whom nobody asked."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pick:
    """One person who was chosen, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What was chosen from a pool, and what became of the rest."""

    out: Path
    batch: Batch
    written: Written
    pictures: tuple[tuple[str, str], ...]
    """Place in the pool and reason of each chosen picture, most wanted first."""
    listed: int
    people: int
    """Who could be chosen."""
    left_out: Mapping[str, str]
    """Pictures that were passed over, and why."""
    notes: Mapping[str, str]
    turned: int
    """Chosen pictures that were written anew, upright or as JPEG."""
    others: int
    """Files in the pool that are no pictures."""
    scored_now: int
    by: str
    model: str
    calibrated: bool

    def to_json(self) -> dict[str, Any]:
        """``selection.json``, and what ``--json`` prints."""
        return {
            "kind": KIND, "schema": SCHEMA, "out": str(self.out), "folders": [str(folder) for folder in self.written.folders],
            "batch": self.batch.name, "by": self.by, "model": self.model, "calibrated": self.calibrated,
            "pool": {"pictures": self.listed, "people": self.people, "other_files": self.others,
                     "scored_now": self.scored_now},
            "pictures": [{"picture": name, "reason": reason} for name, reason in self.pictures],
            "people": len(self.batch.choices), "written_anew": self.turned, "left_out": dict(self.left_out),
            "notes": dict(self.notes),
        }  # fmt: skip


def select_pool(
    model: str | Path,
    pool: str | Path,
    out: str | Path,
    *,
    budget: int,
    by: str = DEFAULT,
    to: str = "label-studio",
    boxes: str | Path | Detect | None = None,
    least_score: float = 0.3,
    after: Sequence[str | Path] = (),
    seed: int = 0,
    cache: str | Path | None = None,
    machine: DeviceContext | None = None,
    executor: Executor = "local",
    shard: int | None = None,
    name: str | None = None,
) -> Selected:
    """Choose the pictures of a pool that are worth labelling next, and write the batch.

    An interrupted call goes on where it stopped, and another choice from the same pool and model scores nothing again.

    Args:
        model: folder of a checkpoint, of a model of ``fit --pose``, or of a bundle.
        pool: a folder of pictures, or an address that fsspec opens, such as ``s3://bucket/folder``.
        out: a folder that is new, empty, or what an interrupted call left.
        budget: pictures; everybody on a chosen one comes along.
        by: a strategy by failure (``value``, ``top``, ``odds``), see :mod:`alpose.trainer.methods.strategies`; or a method of the
            catalog.
        to: a registered annotation format.
        boxes: a COCO file of detections; a function from a picture, RGB (H, W, 3), to boxes (N, 4); None: each picture is
            one person.
        least_score: of a detection that is taken for a person.
        after: folders of earlier calls: their people are not chosen again, and what is chosen is unlike them.
        seed: of ``random`` and ``odds``.
        cache: where scores are kept; ``~/.cache/alpose`` by default.
        machine: where to compute; by default a GPU where there is one.
        executor: ``ray`` scores on a Ray cluster.
        shard: pictures that are scored together.
        name: of the batch; by default date and time.

    Raises:
        ConfigError: this model cannot choose so; ``out`` holds a selection already.
        DataError: there is nobody to choose; ``out`` holds something else.
    """
    from alpose.trainer.cli_options import default_cache
    from alpose.trainer.pool.scores import SHARD, score_pool

    out = Path(out)
    if budget < 1:
        raise ConfigError(f"--budget must be at least 1, got {budget}")
    format_named(to)
    if (out / SELECTION).exists():
        raise ConfigError(f"{out} holds a selection already: choose another --out")
    mine = (INBOX, to, f".{SELECTION}.")
    if out.exists() and not all(entry.name in mine or entry.name.startswith(mine[2]) for entry in out.iterdir()):
        raise DataError(f"{out} holds something else than an unfinished selection: give another --out")
    earlier = _earlier(after)
    scores = score_pool(model, pool, Path(cache) if cache else default_cache(), boxes=boxes, least_score=least_score, by=by,
                        machine=machine, executor=executor, shard=shard or SHARD)  # fmt: skip
    picks = choose(scores, by, budget, seed=seed, earlier=earlier)
    if not picks:
        raise DataError(f"{scores.listing.files}: everybody was chosen before; there is nobody left to choose")
    return _write(scores, picks, by, out, to, budget, name)


# --- Who is chosen


def choose(
    scores: PoolScores, by: str, budget: int, *, seed: int, earlier: frozenset[bytes] = frozenset()
) -> list[Pick]:
    """People, most wanted first, until ``budget`` pictures have somebody; who is in ``earlier`` is not chosen again."""
    taken_N = np.isin(scores.id_N, np.array(sorted(earlier), "S32")) if earlier else np.zeros(len(scores), np.bool_)
    available = int((~taken_N).sum())
    wanted = min(budget, available)
    while wanted:
        picks = list(_choose_people(scores, by, wanted, seed, taken_N))
        pictures = len({int(scores.picture_N[pick.row]) for pick in picks})
        if pictures >= budget or len(picks) < wanted or wanted == available:
            return _first_pictures(scores, picks, budget)
        # The first picks of a longer choice are the shorter one.
        wanted = min(available, wanted + max(2 * (budget - pictures), wanted // 4))
    return []


def _first_pictures(scores: PoolScores, picks: list[Pick], budget: int) -> list[Pick]:
    seen: set[int] = set()
    kept = []
    for pick in picks:
        picture = int(scores.picture_N[pick.row])
        if picture in seen or len(seen) < budget:
            seen.add(picture)
            kept.append(pick)
    return kept


def _choose_people(
    scores: PoolScores, by: str, k: int, seed: int, taken_N: npt.NDArray[np.bool_]
) -> Iterator[Pick]:  # fmt: skip
    if by in BY_FAILURE:
        yield from _by_failure(scores, by, k, seed, taken_N)
        return
    from alpose.trainer.methods.selection import select

    # Whoever was taken has the lowest score there is; a method that gives none does not know of them.
    more = int(taken_N.sum()) if scores.score_N is None else 0
    selection = select(by, _pool(scores, by, seed, taken_N), k + more)
    left = k
    open_count = int((~taken_N).sum())
    for rank, row in enumerate(selection.rows_M.tolist(), start=1):
        if taken_N[row] or not left:
            continue
        left -= 1
        if by == "random":
            reason = "by chance"
        elif by == "coreset":
            reason = f"coreset: number {k - left}, far from everybody chosen before"
        else:
            reason = f"{by} {selection.score_N[row]:.3g}, number {rank:,} of {open_count:,} people"
        yield Pick(row, reason)


def _by_failure(scores: PoolScores, by: str, k: int, seed: int, taken_N: npt.NDArray[np.bool_]) -> Iterator[Pick]:
    """The choice of :mod:`.select`, of one device whose frames are all here."""
    from .select import select

    count = len(scores)
    no_N, zero_N = np.zeros(count, np.bool_), np.zeros(count, np.int64)
    columns = Columns(
        id_N=scores.id_N, device_N=zero_N, devices=[pool_name(scores)], bundle_N=zero_N, captured_ns_N=zero_N,
        failure_probability_N=scores.failure_N, embedding_ND=scores.embedding_ND, control_N=no_N, pictures_N=~no_N,
        fetched_N=~no_N, deleted_N=no_N, drawn_N=no_N, chosen_N=taken_N, annotated_N=no_N,
    )  # fmt: skip
    chosen = select(columns, k, np.random.default_rng(seed), strategy=by, control=0)
    ids = np.array([choice.id for choice in chosen.choices], "S32")
    order = np.argsort(scores.id_N, kind="stable")
    rows = order[np.searchsorted(scores.id_N, ids, sorter=order)]
    for row, choice in zip(rows.tolist(), chosen.choices, strict=True):
        # A pool is one device, of which there is nothing to say.
        yield Pick(row, choice.reason.rpartition(", ")[0] if STRATEGIES[by].fair else choice.reason)


def _pool(scores: PoolScores, by: str, seed: int, taken_N: npt.NDArray[np.bool_]) -> Any:
    """The pool as a method of the catalog sees it. What a pool's scores do not keep is empty: no method reads it without labels."""
    from alpose.trainer.methods.catalog import METHODS
    from alpose.trainer.methods.selection import Pool
    from alpose.trainer.scoring import Scored

    count = len(scores)
    score_N = None if scores.score_N is None else np.where(taken_N, -np.inf, scores.score_N).astype(np.float32)
    unknown_N = np.full(count, np.nan, np.float32)
    named = {} if score_N is None else {by: score_N}
    head = METHODS[by].head
    columns = dict.fromkeys(
        ("predicted_NJ2", "distance_NJ", "peak_NJ", "coarsest_ND"), np.empty((count, 0), np.float32)
    )
    scored = Scored(
        **columns, true_loss_N=unknown_N, entropy_N=named.get("entropy", unknown_N),
        multipeak_N=named.get("multipeak", unknown_N), embedding_ND=scores.embedding_ND,  # type: ignore[arg-type]
        predicted_loss=named if head and head.group == "loss" else {}, auxiliary=named if head else {},
        forms=named if METHODS[by].of_maps else {},
    )  # fmt: skip
    rows = np.flatnonzero(taken_N)
    # Where nobody is known to be labelled the middle of the pool stands for them.
    start_LD = scores.embedding_ND[rows].astype(np.float32) if len(rows) else _middle(scores.embedding_ND)[None]
    nobody = np.empty((len(start_LD), 0), np.float32)
    nothing = np.full(len(start_LD), np.nan, np.float32)
    labelled = Scored(nobody, nobody, nobody, nothing, nothing, nothing, start_LD, nobody, {})
    return Pool(scored=scored, labelled=labelled, image_pck_N=unknown_N, rng=np.random.default_rng(seed))


def _middle(embedding_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    total_D = np.zeros(embedding_ND.shape[1])
    for start in range(0, len(embedding_ND), 65_536):
        total_D += embedding_ND[start : start + 65_536].sum(axis=0, dtype=np.float64)
    return np.asarray(total_D / len(embedding_ND), np.float32)


def _earlier(after: Sequence[str | Path]) -> frozenset[bytes]:
    """Everybody who was chosen by earlier calls."""
    ids: set[bytes] = set()
    for folder in after:
        with Inbox(Path(folder) / INBOX) as inbox:
            ids |= {choice.id.encode() for batch in inbox.batches() for choice in batch.choices}
    return frozenset(ids)


# --- What is written


def pool_name(scores: PoolScores) -> str:
    """What a record's device is called: the last part of the pool's place."""
    last = scores.listing.files.url.rstrip("/").rpartition("/")[2]
    return _printable(last) or "pool"


def _write(
    scores: PoolScores, picks: list[Pick], by: str, out: Path, to: str, budget: int, name: str | None
) -> Selected:  # fmt: skip
    why: dict[int, list[Pick]] = {}
    for pick in picks:
        why.setdefault(int(scores.picture_N[pick.row]), []).append(pick)
    reason_of = {pick.row: pick.reason for pick in picks}
    names, left_out = scores.listing.names, dict(scores.left_out)
    now = datetime.now(timezone.utc)
    choices: list[Choice] = []
    chosen: list[tuple[str, str]] = []
    turned = 0
    with Inbox(out / INBOX, create=True) as inbox:
        about = scores.about
        inbox.add_bundles([BundleInfo(about.sha256, about.name, about.facts)])
        source = inbox.source(str(scores.listing.files), now.isoformat(timespec="seconds"))
        of_picture = _people(scores, np.array(list(why), np.int64))
        for picture, its in why.items():
            people = of_picture[picture]
            _, shard, place = people[0]
            try:
                shown, anew = _shown(scores, shard.pictures[shard.picture_N[place]])
            except ImageError as error:
                left_out[names[picture]] = str(error)
                log.warning("left out: %s", error)
                continue
            turned += anew
            raws = [_record(scores, names[picture], shard, place, row, shown) for row, shard, place in people]
            added = inbox.add(source, raws)
            if added.refused:
                raise DataError(f"{names[picture]}: its record is refused: {inbox.refused()[:1]}")
            for place_in, raw in enumerate(raws):
                if place_in == 0 or not inbox.link_pictures(raw.id):
                    inbox.store_pictures(raw.id, [shown])
            first = [pick.row for pick in its]
            for row in [*first, *(row for row, _, _ in people if row not in first)]:
                choices.append(Choice(id=scores.id_N[row].decode(), rank=len(choices) + 1, stream="value",
                                      reason=reason_of.get(row, BESIDE), select_probability=None))  # fmt: skip
            chosen.append((names[picture], its[0].reason))
        if not choices:
            raise DataError(
                f"none of the {len(why)} chosen pictures can be read any more: {next(iter(left_out.items()))}"
            )
        batch = _batch(inbox, Batch(
            name=name or now.strftime("%Y%m%d-%H%M%S"), created=now.isoformat(timespec="seconds"), strategy=POOL + by,
            budget=budget, choices=tuple(choices), counted=_counted(scores, left_out, len(chosen)),
        ))  # fmt: skip
        written = write_batch(inbox, batch, to, out / to, link=True)
    selected = Selected(
        out=out, batch=batch, written=written, pictures=tuple(chosen), listed=len(scores.listing), people=len(scores),
        left_out=left_out, notes=scores.notes, turned=turned, others=scores.listing.others, scored_now=scores.scored_now,
        by=by, model=scores.about.name, calibrated=scores.about.calibrated,
    )  # fmt: skip
    write_json(out / SELECTION, selected.to_json())
    return selected


def _batch(inbox: Inbox, batch: Batch) -> Batch:
    """Written, or the one that an interrupted call wrote, if it is of the same choices."""
    for old in inbox.batches():
        if old.choices == batch.choices and old.strategy == batch.strategy:
            return old
        raise DataError(
            f"{inbox.folder} holds the unfinished batch {old.name}, of other choices: remove the folder, or give another --out"
        )
    inbox.add_batch(batch, ())
    return batch


def _counted(scores: PoolScores, left_out: Mapping[str, str], chosen: int) -> dict[str, int]:
    return {"passed over": len(left_out), "not chosen": len(np.unique(scores.picture_N)) - chosen}


def _people(scores: PoolScores, pictures: Rows) -> dict[int, list[tuple[int, ShardScores, int]]]:
    """Everybody on these pictures, in the order of their rows."""
    found: dict[int, list[tuple[int, ShardScores, int]]] = {int(picture): [] for picture in pictures}
    for row, shard, place in scores.details(scores.people_of(pictures)):
        found[int(scores.picture_N[row])].append((row, shard, place))
    return {picture: sorted(people, key=lambda one: one[0]) for picture, people in found.items()}


def _shown(scores: PoolScores, seen: Seen) -> tuple[Picture, bool]:
    """A picture as annotators get it, and whether it was written anew.

    Tools do not agree on pictures that EXIF turns, and records hold JPEG and PNG alone: those are written upright, and
    as what they can hold. Everything else keeps its bytes.
    """
    content = scores.listing.files.read(seen.name)
    if digest(content) != seen.sha256:
        raise ImageError(f"{seen.name}: changed since it was scored: run the command again")
    jpeg, png = content.startswith(b"\xff\xd8"), content.startswith(b"\x89PNG")
    anew = orientation(content) != 1 if jpeg else not png or b"eXIf" in content
    if anew:
        bgr_HW3 = decode(content, seen.name)[..., ::-1]
        options = [] if png else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        done, encoded = cv2.imencode(".png" if png else ".jpg", bgr_HW3, options)
        if not done:
            raise ImageError(f"{seen.name}: cannot be written anew")
        content = encoded.tobytes()
    kind = "image/png" if png else "image/jpeg"
    return Picture.of(content, width=seen.width, height=seen.height, captured_ns=0, media_type=kind), anew


def _record(
    scores: PoolScores, name: str, shard: ShardScores, place: int, row: int, picture: Picture
) -> Raw:  # fmt: skip
    x0, y0, x1, y1 = (float(value) for value in shard.box_N4[place])
    whole = (x0, y0, x1, y1) == (0, 0, picture.width - 1, picture.height - 1)
    record = Record(
        id=scores.id_N[row].decode(), captured_ns=0, captured_monotonic_ns=0, device=pool_name(scores),
        camera=_printable(name), bundle=scores.about.sha256, frame_width=picture.width, frame_height=picture.height,
        box=(x0, y0, x1, y1), place="whole" if whole else "box", keypoints_J2=shard.keypoints_NJ2[place], scores_J=shard.scores_NJ[place],
        predicted_loss=float(shard.loss_N[place]), failure_probability=float(shard.failure_N[place]), embedding_D=shard.embedding_ND[place],
        flagged=False, inclusion_probability=1.0,
        confidence=tuple(round(min(max(float(value), 0.0), 1.0), 4) for value in shard.confidence_NJ[place]),
    )  # fmt: skip
    encoded = encode(record, [picture])
    return Raw(record.id, encoded.sha256, encoded.manifest, encoded.arrays, 1.0)


def _printable(text: str) -> str:
    """A name that a record can hold: printable, and not too long; the end of a path says more than its beginning."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in safe)[-MAX_NAME:]
