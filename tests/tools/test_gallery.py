"""The gallery: what it shows, in which order, and that no record can make it do anything else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.errors import DataNotFoundError
from alpose.runtime.queue import Queue, images
from alpose.runtime.queue.record import Picture
from alpose.runtime.skeleton import LSP
from alpose.tools import gallery as gallery_module
from alpose.tools.batch import Batch, Choice
from alpose.tools.commands.frames import gallery as command
from alpose.tools.gallery import Gallery, gather, render, square, value
from alpose.tools.inbox import Inbox
from alpose.tools.pull.pull import pull
from alpose.tools.pull.sources import LocalSource
from alpose.trainer.pages.pose import LEVELS, strokes

from .queues import BUNDLE, make_record

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def picture(size: tuple[int, int] = (64, 48), **options: Any) -> Picture:
    encoded = images.encode(np.full((size[1], size[0], 3), 90, dtype=np.uint8))
    return Picture.of(encoded.data, width=size[0], height=size[1], captured_ns=1, **options)


def filled(folder: Path, records: list[dict[str, Any]], pictures: list[list[Picture]] | None = None) -> list[str]:
    """An inbox that pulled these from a queue; their ids."""
    rng = np.random.default_rng(1)
    with Queue(folder / "q.db") as queue:
        queue.add_bundle(BUNDLE, HOSTILE, {"skeleton": LSP.to_json()})
        made = [make_record(queue, rng, **{"frame_width": 64, "frame_height": 48, **one}) for one in records]
        for place, record in enumerate(made):
            assert queue.put(record, pictures[place] if pictures else [picture()]).kept
    with Inbox(folder / "inbox", create=True) as inbox:
        assert pull(inbox, LocalSource(folder / "q.db")).problem is None
    return [record.id for record in made]


def show(folder: Path, **options: Any) -> tuple[Gallery, str]:
    with Inbox(folder / "inbox") as inbox:
        found = gather(inbox, **options)
    return found, render(found, inbox=folder / "inbox", page=folder / "inbox" / "gallery.html")


class Page(HTMLParser):
    """Elements with their attributes, and what stands in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            tag, text = self.inside[-1]
            self.inside[-1] = (tag, text + data)

    def frames(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(next(text for tag, text in self.inside if tag == "script"))
        return found


def ids(found: Gallery) -> list[str]:
    return [card.entry.record.id for card in found.cards]


def test_the_page_allows_its_own_style_and_script_alone_and_words_stay_words(tmp_path: Path) -> None:
    filled(tmp_path, [{"device": HOSTILE, "reasons": ((HOSTILE, 1.0, 0.5),)}])
    page = Page(show(tmp_path)[1])

    (policy,) = (a["content"] or "" for tag, a in page.elements if "http-equiv" in a)
    digests = {tag: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
               for tag, content in page.inside}  # fmt: skip
    assert f"style-src 'sha256-{digests['style']}'" in policy
    assert f"script-src 'sha256-{digests['script']}'" in policy  # the last script is the one that runs
    assert not [a for _, a in page.elements if "style" in a], "the policy would refuse it"
    (frame,) = page.frames()
    assert (frame["device"], frame["reasons"]) == (HOSTILE, [HOSTILE])
    assert frame["bundle"].startswith(HOSTILE)


def test_the_most_valuable_are_exactly_the_most_valuable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    records = [{"failure_probability": float(p), "novelty": float(novelty)} for p, novelty in
               zip(rng.random(60), rng.random(60) * 1.5, strict=True)]  # fmt: skip
    records[7] = {"failure_probability": float("nan"), "novelty": float("nan")}
    made = filled(tmp_path, records)
    monkeypatch.setattr(gallery_module, "CHUNK", 4)
    with Inbox(tmp_path / "inbox") as inbox:
        worth = {entry.record.id: value(entry.record) for entry in inbox.entries(made)}
        for limit in (1, 7, 59, 60, 100):
            found = gather(inbox, limit=limit)
            assert ids(found) == sorted(made, key=lambda id_: (-worth[id_], id_))[:limit]
            assert found.of == 60
    assert worth[made[7]] == 1.0  # a model that answers NaN is as wrong as can be


def test_the_newest_and_a_batch(tmp_path: Path) -> None:
    made = filled(tmp_path, [{"captured_ns": t} for t in (5, 1, 9, 2**62, -(2**62))])
    assert ids(show(tmp_path, sort="time", limit=3)[0]) == [made[3], made[2], made[0]]

    batch = Batch(name="b", created="2026-01-01", strategy="top", budget=2, counted={}, choices=tuple(
        Choice(id=made[place], rank=rank, reason="why <b>", stream="value", select_probability=None)
        for rank, place in ((1, 4), (2, 0))))  # fmt: skip
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add_batch(batch, [])
        inbox.mark("annotated", [made[0]])
    found, text = show(tmp_path, batch=batch)
    frames = Page(text).frames()
    assert {frame["id"]: (frame["rank"], frame["state"]) for frame in frames} == {
        made[4]: (1, "chosen"), made[0]: (2, "annotated")}  # fmt: skip
    assert ["Batch", "b, 1: why <b>"] in next(frame["facts"] for frame in frames if frame["rank"] == 1)
    assert found.of == 2


def test_what_became_of_a_picture_is_shown_and_counted(tmp_path: Path) -> None:
    def broken() -> list[Picture]:
        return [Picture.of(b"\xff\xd8\xff no picture at all", width=64, height=48, captured_ns=1)]

    made = filled(
        tmp_path, [{}, {"store": "keypoints"}, {}, {}, {}, {}],
        [[picture()], [], [picture()], broken(), [picture(sealed=True)], [picture()]],
    )  # fmt: skip
    with Inbox(tmp_path / "inbox") as inbox:
        (inbox.image(made[2]) or Path()).unlink()
        changed = inbox.image(made[5]) or Path()
        changed.write_bytes(picture((32, 32)).data)
    found, text = show(tmp_path)

    states = {card.entry.record.id: card.thumbnail.state for card in found.cards}
    assert [states[id_] for id_ in made] == ["picture", "keypoints only", "missing", "damaged", "sealed", "damaged"]
    assert '<dt>Damaged</dt><dd><span class="trouble">2</span></dd>' in text
    assert all(card.thumbnail.strokes for card in found.cards)
    assert [card.thumbnail.source is not None for card in found.cards].count(True) == 1


def test_a_frame_that_was_not_fetched(tmp_path: Path) -> None:
    filled(tmp_path, [{}])
    with Inbox(tmp_path / "other", create=True) as inbox:
        pull(inbox, LocalSource(tmp_path / "q.db"), images=())
        assert [card.thumbnail.state for card in gather(inbox).cards] == ["not fetched"]


def test_joints_lie_on_the_pixels_of_a_crop(tmp_path: Path) -> None:
    """A red square in the frame, cut out and made smaller: the joint that is there must be drawn on its red."""
    frame_HW3 = np.zeros((200, 300, 3), dtype=np.uint8)
    frame_HW3[140:148, 220:228] = (255, 0, 0)
    encoded = images.encode(frame_HW3[100:180, 160:280], images.PNG, long_side=60, offset=(160, 100))
    assert encoded.scale == 2.0
    stored = Picture.of(encoded.data, width=encoded.width, height=encoded.height, captured_ns=1,
                        media_type="image/png", origin=encoded.origin, scale=encoded.scale)  # fmt: skip
    keypoints_J2 = np.full((14, 2), 223.5, dtype=np.float32)
    keypoints_J2[:, 1] = 143.5
    filled(tmp_path, [{"keypoints_J2": keypoints_J2, "store": "crop", "box": (170, 110, 260, 170),
                       "frame_width": 300, "frame_height": 200}], [[stored]])  # fmt: skip
    found, text = show(tmp_path)
    (card,) = found.cards
    x, y = map(float, re.findall(r"M(\S+) (\S+)h0", card.thumbnail.strokes[-1].path)[0])
    assert (x, y) == (32.0, 22.0)
    pixels_HW3 = images.decode(encoded.data)
    assert (pixels_HW3[int(y) - 1 : int(y) + 1, int(x) - 1 : int(x) + 1, 0] > 200).all()

    (shown,) = Page(text).frames()
    assert shown["size"] == [60, 40]
    whole = tmp_path / "inbox" / shown["file"]
    assert whole.read_bytes() == encoded.data
    view = [
        float(number)
        for number in re.findall(r'viewBox="([^"]+)" aria-hidden="true"><path class="box"', text)[0].split()
    ]
    assert view == list(card.thumbnail.view)
    thumb_HW3 = images.decode(base64.b64decode((card.thumbnail.source or "").partition(",")[2]))
    assert thumb_HW3.shape[:2] == (view[3], view[2])


def test_a_pose_is_coloured_by_side_and_faint_where_unsure() -> None:
    keypoints_J2 = np.arange(28, dtype=np.float32).reshape(14, 2)
    scores_J = np.ones(14)
    scores_J[LSP.index("left_wrist")] = 0.0
    keypoints_J2[LSP.index("head_top")] = np.nan
    keypoints_J2[LSP.index("right_ankle")] = (1e20, 0)
    drawn = {(one.style, one.level, one.joints): one.path for one in strokes(keypoints_J2, scores_J, LSP)}

    wrist, elbow = LSP.index("left_wrist"), LSP.index("left_elbow")
    assert drawn["l", 1, False] == f"M{2 * elbow}.0 {2 * elbow + 1}.0L{2 * wrist}.0 {2 * wrist + 1}.0"
    assert drawn["l", 1, True] == f"M{2 * wrist}.0 {2 * wrist + 1}.0h0"
    assert drawn["r", LEVELS, True].count("h0") == 5  # six of the right side, the ankle is nowhere
    everything = "".join(drawn.values())
    assert "nan" not in everything
    assert "e+" not in everything
    styles = [one.style for one in strokes(keypoints_J2, scores_J, LSP) if not one.joints]
    assert styles.index("rim") < min(styles.index(side) for side in "lrm")


def test_without_its_skeleton_only_joints_are_drawn() -> None:
    keypoints_J2 = np.ones((3, 2), dtype=np.float32)
    for skeleton in (None, LSP):  # LSP has 14 joints
        drawn = strokes(keypoints_J2, np.ones(3), skeleton)
        assert {(one.style, one.joints) for one in drawn} == {("rim", True), ("m", True)}


@given(
    box=st.tuples(*[st.floats(-1e4, 1e4) for _ in range(4)]),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
)
def test_what_is_shown_lies_in_the_picture(box: tuple[float, float, float, float], width: int, height: int) -> None:
    x, y, across, down = square(box, width, height)
    assert 0 <= x <= x + across <= width
    assert 0 <= y <= y + down <= height
    assert across > 0
    assert down > 0
    if 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height:
        assert x <= box[0] + 1
        assert y <= box[1] + 1
        assert x + across >= box[2] - 1
        assert y + down >= box[3] - 1


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    filled(tmp_path, [{}, {"store": "keypoints"}, {}], [[picture()], [], [picture()]])
    inbox = tmp_path / "inbox"
    said = CliRunner().invoke(command, [str(inbox), "--limit", "2", "--sort", "time"], catch_exceptions=False)
    assert said.exit_code == 0
    assert "2 frames of 3" in said.output
    assert len(Page((inbox / "gallery.html").read_text()).frames()) == 2
    assert CliRunner().invoke(command, [str(inbox), "--out", str(tmp_path / "p.html")]).exit_code == 0
    (frame, *_) = [one for one in Page((tmp_path / "p.html").read_text()).frames() if one["file"]]
    assert frame["file"].startswith("inbox/frames/")
    with pytest.raises(DataNotFoundError, match="no batch"):
        CliRunner().invoke(command, [str(inbox), "--batch", "none"], catch_exceptions=False)


def test_an_empty_inbox_has_a_page_too(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox", create=True).close()
    assert "no frame here yet" in show(tmp_path)[1]
