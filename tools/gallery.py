"""The frames of an inbox as one HTML page: most valuable first, with the pose that the model saw.

The page needs no network. Thumbnails are in it; the large view shows the whole picture from the inbox's own file where
the page lies beside the inbox, and the thumbnail elsewhere. Nothing that a record says becomes markup: the template
escapes, the script only sets text, and a Content-Security-Policy forbids every script and style but the page's own.

Coordinates of poses and boxes are those of SVG over the picture: edges, the first pixel reaches from 0 to 1. A record's
are centres in the frame: ``x = (frame_x - origin) / scale``, see :class:`alpose.runtime.queue.record.Picture`.

Shapes: N records of the inbox, J joints, H W picture.
"""

from __future__ import annotations

import base64
import heapq
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from alpose.runtime.errors import DataError
from alpose.runtime.queue import images
from alpose.runtime.queue.record import PictureInfo, Record
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.pages import formatting as fmt
from alpose.trainer.pages import kit
from alpose.trainer.pages.pose import Stroke, strokes

from .batch import Batch, Choice
from .inbox import Inbox
from .inbox_database import Entry
from .screen import utc

Sort = Literal["value", "time"]
State = Literal["picture", "keypoints only", "sealed", "not fetched", "missing", "damaged"]
"""What became of a frame's picture."""
TROUBLE: tuple[State, ...] = ("damaged", "missing")

LIMIT = 2000
CHUNK = 500
"""Records that are read in one step of finding the most valuable."""
LONG_SIDE, QUALITY = 240, 70
"""Of a thumbnail, in pixels, and of its JPEG."""
MARGIN = 1.3
"""Side of the square that is shown, in long sides of the box: a little more than the model looked at."""
LEAST_SIDE = 24.0
"""Pixels: a smaller box shows nothing."""

STORED = {"full": "the whole frame", "crop": "what the model looked at", "keypoints": "none"}

Report = Callable[[int, int], None]
"""(done, of)."""
View = tuple[float, float, float, float]
"""(x, y, width, height)."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A frame small enough to be one of thousands: a JPEG of what the model looked at, and its pose as paths."""

    state: State
    source: str | None
    """Data URI, of ``view`` alone."""
    file: Path | None
    """The whole picture."""
    size: tuple[int, int]
    """Of the whole picture, or of the frame where there is none."""
    view: View
    box: str
    """Where the person was looked for: SVG path data."""
    strokes: tuple[Stroke, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One frame of the page."""

    entry: Entry
    thumbnail: Thumbnail
    bundle: str
    """For people."""
    choice: Choice | None
    """Why it is in the batch that is shown."""

    @property
    def state(self) -> str:
        """How far it has come."""
        return "annotated" if self.entry.annotated else "chosen" if self.entry.batch else "new"

    @property
    def triggers(self) -> list[str]:
        """Names of what kept it, each once."""
        return list(dict.fromkeys(name for name, _, _ in self.entry.record.reasons))

    @property
    def value(self) -> float:
        """What it is worth."""
        return value(self.entry.record)

    @property
    def bar(self) -> float | None:
        """The failure probability as a share of the bar; None where the model gave none, or nobody is there."""
        probability = self.entry.record.failure_probability
        known = math.isfinite(probability) and self.entry.record.occupied is not False
        return min(max(probability, 0.0), 1.0) if known else None

    @property
    def level(self) -> str:
        """Of the bar's colour."""
        return "none" if self.bar is None else ("low", "middle", "high")[min(2, int(3 * self.bar))]

    @property
    def taken(self) -> str:
        """When, for people."""
        return utc(self.entry.record.captured_ns)


@dataclass(frozen=True, slots=True)
class Gallery:
    """What the page shows."""

    cards: tuple[Card, ...]
    of: int
    """Frames that could have been shown: the inbox's, or the batch's."""
    batch: Batch | None
    sort: Sort

    @property
    def pictures(self) -> Counter[State]:
        """Cards by the state of their picture."""
        return Counter(card.thumbnail.state for card in self.cards)


def value(record: Record) -> float:
    """What a frame is worth, 0 to 1: hardness × novelty, as its queue ranks it. A model that answers NaN is wrong."""
    hardness = 1.0 if math.isnan(record.failure_probability) else min(max(record.failure_probability, 0.0), 1.0)
    novelty = 1.0 if math.isnan(record.novelty) else min(max(record.novelty, 0.0), 1.0)
    return hardness * novelty


def gather(
    inbox: Inbox,
    *,
    batch: Batch | None = None,
    limit: int = LIMIT,
    sort: Sort = "value",
    report: Report = lambda done, of: None,
) -> Gallery:
    """Find the frames and make their thumbnails.

    Args:
        inbox: where they are.
        batch: only its choices, the first ``limit`` of them; None: all records.
        limit: at most so many: the most valuable, or the latest.
        sort: the order at first, which the page can change.
        report: told about progress.
    """
    if batch is not None:
        entries, of = inbox.entries(choice.id for choice in batch.choices[:limit]), len(batch.choices)
    else:
        entries, of = _latest(inbox, limit) if sort == "time" else _most_valuable(inbox, limit), len(inbox)
    entries.sort(key=_newest if sort == "time" else _worth)
    names = {sha256: f"{facts.name} · {sha256[:8]}" for sha256, facts in inbox.bundles().items()}
    skeletons = {bundle: _skeleton(inbox, bundle) for bundle in {entry.record.bundle for entry in entries}}
    choices = {choice.id: choice for choice in batch.choices} if batch else {}
    cards = []
    for place, entry in enumerate(entries, start=1):
        bundle = entry.record.bundle
        cards.append(Card(entry=entry, thumbnail=thumbnail(inbox, entry, skeletons[bundle]),
                          bundle=names.get(bundle, bundle[:8]), choice=choices.get(entry.record.id)))  # fmt: skip
        report(place, len(entries))
    return Gallery(tuple(cards), of, batch, sort)


def render(gallery: Gallery, *, inbox: Path, page: Path) -> str:
    """The page. The same gallery gives the same bytes.

    Args:
        gallery: what to show.
        inbox: for its name.
        page: where it will lie, so that it can name the whole pictures by relative paths.
    """
    name, cards, batch = inbox.resolve().name, gallery.cards, gallery.batch
    bundles = sorted({card.bundle for card in cards})
    order = "newest first" if gallery.sort == "time" else "most valuable first"
    states = sorted(gallery.pictures.items())
    of = f" of {fmt.count(gallery.of)}" if gallery.of > len(cards) else ""
    shown = kit.Page(
        title=page_title(inbox, batch),
        kicker="gallery",
        heading=name,
        subheading=f"batch {batch.name}, chosen by {batch.strategy}" if batch else f"frames of the fleet, {order}",
        facts=(
            ("Frames", f"{fmt.count(len(cards))}{of}"),
            ("Devices", fmt.count(len({card.entry.record.device for card in cards}))),
            *((("Bundle", bundles[0]),) if len(bundles) == 1 else ()),
            ("With a picture", fmt.count(gallery.pictures["picture"])),
            *((state.capitalize(), _count(state, count)) for state, count in states if state != "picture"),
        ),
    )
    return shown.render(
        "alpose.tools:gallery.html.j2",
        styles=["alpose.tools:gallery.css"],
        script=kit.read("alpose.tools:gallery.js"),
        gallery=gallery,
        cards=cards,
        bundles=bundles,
        frames=[_facts(card, page.resolve().parent) for card in cards],
    )


def page_title(inbox: Path, batch: Batch | None) -> str:
    """What the page of an inbox, or of one of its batches, is called."""
    return f"{inbox.resolve().name}: gallery" + (f" of batch {batch.name}" if batch else "")


def _count(state: State, count: int) -> str:
    """How many pictures are in a state; one that means trouble stands out."""
    return Markup('<span class="trouble">{}</span>' if state in TROUBLE else "{}").format(fmt.count(count))


def _most_valuable(inbox: Inbox, limit: int) -> list[Entry]:
    """Exactly the best ``limit`` of any number, without reading them all: a frame is worth at most its hardness."""
    columns = inbox.columns()
    hardness_N = np.clip(np.nan_to_num(columns.failure_probability_N, nan=1.0), 0.0, 1.0)
    hardest_N = np.argsort(-hardness_N, kind="stable")
    best: list[tuple[float, int, Entry]] = []
    for start in range(0, len(hardest_N), CHUNK):
        rows = hardest_N[start : start + CHUNK]
        if len(best) == limit and best[0][0] >= hardness_N[rows[0]]:
            break
        for row, entry in zip(rows, inbox.entries(columns.id_N[row].decode() for row in rows), strict=True):
            item = (value(entry.record), -int(row), entry)
            if len(best) < limit:
                heapq.heappush(best, item)
            else:
                heapq.heappushpop(best, item)
    return [entry for _, _, entry in best]


def _latest(inbox: Inbox, limit: int) -> list[Entry]:
    columns = inbox.columns()
    rows = np.argsort(columns.captured_ns_N, kind="stable")[::-1][:limit]
    return inbox.entries(columns.id_N[row].decode() for row in rows)


def _worth(entry: Entry) -> tuple[float, str]:
    return -value(entry.record), entry.record.id


def _newest(entry: Entry) -> tuple[int, str]:
    return -entry.record.captured_ns, entry.record.id


def _skeleton(inbox: Inbox, bundle: str) -> Skeleton | None:
    try:
        return inbox.skeleton_of(bundle)
    except DataError:
        return None


def _facts(card: Card, folder: Path) -> dict[str, Any]:
    """What the page's script filters and sorts by, and what the large view says."""
    record, picture = card.entry.record, card.thumbnail
    return {
        "id": record.id,
        "device": record.device,
        "reasons": card.triggers or ["none"],
        "bundle": card.bundle,
        "state": card.state,
        "picture": picture.state,
        "value": value(record),
        "failure": card.bar if card.bar is not None else 1.0,
        "time": record.captured_ns / 1e6,
        "rank": card.choice.rank if card.choice else 0,
        "size": picture.size,
        "file": _relative(picture.file, folder),
        "facts": [(term, text) for term, text in _words(card) if text],
    }


def _words(card: Card) -> Sequence[tuple[str, str]]:
    entry, record = card.entry, card.entry.record
    chosen = f"{entry.batch}{f', {card.choice.rank}: {card.choice.reason}' if card.choice else ''}"
    kept = "; ".join(f"{name} {value:.3g} (limit {limit:.3g})" for name, value, limit in record.reasons)
    left, top, right, bottom = record.box
    return (
        ("Device", f"{record.device}{f' · {record.camera}' if record.camera else ''}"),
        ("Taken", f"{card.taken} UTC"),
        ("Bundle", card.bundle),
        (
            "Failure probability",
            "nobody is there" if record.occupied is False else fmt.number(record.failure_probability),
        ),
        ("Predicted loss", fmt.significant(record.predicted_loss)),
        ("Novelty", fmt.number(record.novelty)),
        ("Value", fmt.number(value(record))),
        ("Kept for", kept or "—"),
        ("Threshold in force", "" if record.threshold is None else fmt.number(record.threshold)),
        ("Probability of being kept", fmt.significant(record.inclusion_probability)),
        ("Control stream", "" if record.control_draw is None else f"drawn, rate {entry.control_rate:.3g}"),
        ("Temporal jump", "" if record.jump is None else fmt.significant(record.jump)),
        ("Limb lengths", "" if record.limbs is None else fmt.significant(record.limbs)),
        ("Looked at", f"{record.place}: {left:.0f}, {top:.0f} to {right:.0f}, {bottom:.0f}"),
        ("Frame", f"{record.frame_width} × {record.frame_height} px"),
        ("Picture", STORED[record.store] if card.thumbnail.state == "picture" else card.thumbnail.state),
        ("Episode", "" if record.episode in (None, record.id) else f"of {record.episode}"),
        ("Batch", chosen if entry.batch else ""),
        ("State", card.state),
        ("On the device", "deleted" if entry.deleted else "acknowledged" if entry.acknowledged else "still there"),
        ("Came from", entry.source),
    )


def _relative(file: Path | None, folder: Path) -> str | None:
    if file is None:
        return None
    try:
        return quote(Path(os.path.relpath(file.resolve(), folder)).as_posix())
    except ValueError:  # another drive
        return None


def thumbnail(inbox: Inbox, entry: Entry, skeleton: Skeleton | None) -> Thumbnail:
    """Make one; a picture that is not there or does not decode becomes a state, not an error.

    Args:
        inbox: where its picture is.
        entry: the record.
        skeleton: of its bundle; without one only joints are drawn.
    """
    record = entry.record
    fact = next((fact for fact in entry.pictures if fact.position == 0), None)
    rgb_HW3, state, file = _picture(inbox, entry, fact)
    if rgb_HW3 is None or fact is None:
        size, origin, scale = (record.frame_width, record.frame_height), (-0.5, -0.5), 1.0
    else:
        size, origin, scale = (rgb_HW3.shape[1], rgb_HW3.shape[0]), fact.origin, fact.scale
    keypoints_J2 = (record.keypoints_J2.astype(np.float64) - origin) / scale
    x0, y0, x1, y1 = ((value - origin[place % 2]) / scale for place, value in enumerate(record.box))
    box = f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z" if all(map(math.isfinite, (x0, y0, x1, y1))) else ""
    view = square((x0, y0, x1, y1), *size)
    return Thumbnail(
        state=state,
        source=None if rgb_HW3 is None else _data_uri(rgb_HW3, view),
        file=file,
        size=size,
        view=view,
        box=box,
        strokes=strokes(keypoints_J2, record.certainty_J, skeleton),
    )


def square(box_4: tuple[float, float, float, float], width: int, height: int) -> View:
    """The square around a box, in whole pixels, moved and cut to lie in a picture; all of it where the box is none."""
    x0, y0, x1, y1 = box_4
    if not all(map(math.isfinite, box_4)) or x1 <= x0 or y1 <= y0:
        return (0, 0, width, height)
    side = max(MARGIN * max(x1 - x0, y1 - y0), LEAST_SIDE)
    x, across = _within((x0 + x1) / 2, side, width)
    y, down = _within((y0 + y1) / 2, side, height)
    return (x, y, across, down)


def _within(centre: float, side: float, length: int) -> tuple[int, int]:
    whole = min(math.ceil(min(side, length)), length)
    return round(min(max(centre - whole / 2, 0), length - whole)), whole


def _picture(
    inbox: Inbox, entry: Entry, fact: PictureInfo | None
) -> tuple[npt.NDArray[np.uint8] | None, State, Path | None]:
    """Pixels, what became of them, and the file of an open picture."""
    if fact is None:
        return None, "keypoints only", None
    if not entry.fetched:
        return None, "not fetched", None
    id_ = entry.record.id
    file = inbox.image(id_)
    if file is None:
        stored = fact.sealed and inbox.picture_bytes(id_, fact) is not None
        return None, "sealed" if stored else "missing", None
    try:
        # What was opened here has no hash in its record: that is of the sealed box.
        data = file.read_bytes() if fact.sealed else inbox.picture_bytes(id_, fact)
        if data is None:
            return None, "damaged", None
        return images.decode(data), "picture", file
    except (OSError, DataError):
        return None, "damaged", None


def _data_uri(rgb_HW3: npt.NDArray[np.uint8], view: Sequence[float]) -> str:
    x, y, across, down = (int(value) for value in view)
    encoded = images.encode(rgb_HW3[y : y + down, x : x + across], images.JPEG, QUALITY, LONG_SIDE)
    return f"data:{encoded.media_type};base64,{base64.b64encode(encoded.data).decode()}"
