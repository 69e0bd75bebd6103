"""The frames of an inbox as one HTML page: most valuable first, with the pose that the model saw.

The page needs no network. Thumbnails are in it; the large view shows the whole picture from the inbox's own file where
the page lies beside the inbox, and the thumbnail elsewhere. Nothing that a record says becomes markup: the template
escapes, the script only sets text, and a Content-Security-Policy forbids every script and style but the page's own.

Shapes: N records of the inbox.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alpose.runtime.errors import DataError
from alpose.runtime.queue.record import Record
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.report import form

from .batch import Batch, Choice
from .inbox import Inbox
from .inbox_records import Entry
from .tables import utc
from .thumbnail import Thumbnail, thumbnail

Sort = Literal["value", "time"]
SORTS: tuple[Sort, ...] = get_args(Sort)

LIMIT = 2000
CHUNK = 500
"""Records that are looked at in one step of finding the most valuable."""

STORED = {"full": "the whole frame", "crop": "what the model looked at", "keypoints": "none"}

Report = Callable[[int, int], None]
"""(done, of)."""


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
        """The failure probability as a share of the bar; None where the model gave none."""
        probability = self.entry.record.failure_probability
        return min(max(probability, 0.0), 1.0) if math.isfinite(probability) else None

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
    def pictures(self) -> Counter[str]:
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
    here = resources.files("alpose.tools")
    style, script = (_own(here / name) for name in ("gallery.css", "gallery.js"))
    style = _own(resources.files("alpose.trainer.report") / "report.css") + style
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(form=form)
    text: str = environment.from_string(_own(here / "gallery.html.j2")).render(
        css=Markup(style),  # our own files
        js=Markup(script),
        policy=f"default-src 'none'; img-src data: file: 'self'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
        inbox=inbox.resolve().name,
        gallery=gallery,
        cards=gallery.cards,
        bundles=sorted({card.bundle for card in gallery.cards}),
        devices=len({card.entry.record.device for card in gallery.cards}),
        hidden=[(state, count) for state, count in sorted(gallery.pictures.items()) if state != "picture"],
        frames=[_facts(card, page.resolve().parent) for card in gallery.cards],
    )
    return text


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
        ("Failure probability", form.number(record.failure_probability)),
        ("Predicted loss", form.significant(record.predicted_loss)),
        ("Novelty", form.number(record.novelty)),
        ("Value", form.number(value(record))),
        ("Kept for", kept or "—"),
        ("Threshold in force", "" if record.threshold is None else form.number(record.threshold)),
        ("Probability of being kept", form.significant(record.inclusion_probability)),
        ("Control stream", "" if record.control_draw is None else f"drawn, rate {entry.control_rate:.3g}"),
        ("Temporal jump", "" if record.jump is None else form.significant(record.jump)),
        ("Limb lengths", "" if record.limbs is None else form.significant(record.limbs)),
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


def _own(file: Any) -> str:
    text: str = file.read_text(encoding="utf-8")
    return text


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
