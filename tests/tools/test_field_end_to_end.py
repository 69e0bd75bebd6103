"""From queues to the field report, through every part that has a say in a frame's probability; the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alpose.runtime.queue import Picture, Queue
from alpose.runtime.skeleton import LSP
from alpose.tools.annotation.exporting import item_of
from alpose.tools.batch import Batch
from alpose.tools.dataset import merge
from alpose.tools.field.labelled import read_labelled, read_tallies
from alpose.tools.field.report import FieldReport, field_report
from alpose.tools.inbox import Inbox
from alpose.tools.labels import VISIBLE, Answer, Pose, compare
from alpose.tools.pull.pull import pull
from alpose.tools.pull.sources import LocalSource
from alpose.tools.select import choose

from .queues import BUNDLE, make_record, quick_folder

FRAMES, RATE, WRONG_PX = 2000, 0.1, 300.0


class Car:
    """A device whose frames become harder every week: a wrong pose has every joint elsewhere."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.queue, self.inbox, self.dataset = folder / "q.db", folder / "inbox", folder / "dataset"
        self.rng = np.random.default_rng(seed)
        self.true: dict[str, np.ndarray] = {}
        self.right: list[float] = []

    def drives(self, wrong_share: float) -> None:
        """A week: 2,000 frames, of which the control stream and what is likely to be wrong are kept, and pulled often."""
        rng = self.rng
        wrong_N = rng.random(FRAMES) < wrong_share
        doubt_N = np.where(wrong_N, rng.beta(4, 2, FRAMES), rng.beta(2, 4, FRAMES))
        flagged_N, draw_N = doubt_N > 0.75, rng.random(FRAMES)
        control_N = draw_N < RATE
        self.right += (1.0 - wrong_N).tolist()
        with Queue(self.queue, max_bytes=4 << 20) as queue:
            queue.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
            for day in np.array_split(np.arange(FRAMES), 2):
                items = []
                for row in day[flagged_N[day] | control_N[day]]:
                    true_J2 = rng.uniform(20, 300, (len(LSP), 2))
                    drawn = [("control", float(draw_N[row]), RATE)] if control_N[row] else []
                    record = make_record(
                        queue, rng, flagged=bool(flagged_N[row]), failure_probability=float(doubt_N[row]),
                        keypoints_J2=(true_J2 + WRONG_PX * wrong_N[row]).astype(np.float32),
                        control_draw=float(draw_N[row]) if control_N[row] else None,
                        reasons=(*([("budget", float(doubt_N[row]), 0.75)] if flagged_N[row] else []), *drawn),
                    )  # fmt: skip
                    self.true[record.id] = true_J2 - 0.5
                    items.append((record, (Picture.of(rng.bytes(5000), width=640, height=480, captured_ns=1),), ()))
                queue.put_many(items)
                queue.tally(device="car-1", bundle=BUNDLE, at_ns=10**18, frames=len(day),
                            flagged=int(flagged_N[day].sum()), control=int(control_N[day].sum()), kept=len(items))  # fmt: skip
                with Inbox(self.inbox, create=True) as inbox:
                    assert pull(inbox, LocalSource(self.queue)).problem is None

    def choose(self, name: str) -> Batch:
        with Inbox(self.inbox) as inbox:
            return choose(inbox, 200, control=80, name=name, seed=int(self.rng.integers(2**31))).batch

    def label(self, batch: Batch, share: float = 1.0) -> FieldReport:
        """What annotators who start at the top have done of a batch, and what the report says then."""
        with Inbox(self.inbox) as inbox:
            items, corrections = {}, []
            for choice in batch.choices[: round(share * len(batch.choices))]:
                (entry,) = inbox.entries([choice.id])
                item = item_of(inbox, entry, choice, batch.name)
                assert not isinstance(item, str)
                pose = Pose(joints=LSP.joints, keypoints_J2=self.true[choice.id],
                            visibility_J=np.full(len(LSP), VISIBLE))  # fmt: skip
                answer = Answer(id=choice.id, people=(pose,), where="")
                items[choice.id] = item
                corrections.append(compare(answer, item.task, LSP, 0.01))
            merge(self.dataset, LSP, items, corrections, batches=[batch], tallies=inbox.field_tallies())
        return field_report(read_labelled(self.dataset), read_tallies(self.dataset))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_report_is_about_the_frames_that_were_drawn_from(seed: int) -> None:
    """Two weeks, a queue that thins its control stream out, annotators who are late: each report covers its truth."""
    with quick_folder() as folder:
        two_weeks(Car(folder, seed))


def two_weeks(car: Car) -> None:
    car.drives(0.15)
    first = car.choose("week-1")
    truth = np.mean(car.right)
    # The annotators take their time; the cars drive on, in the rain, and everything that they send is pulled.
    car.drives(0.6)
    second = car.choose("week-2")

    report = car.label(first)
    assert report.fleet.frames == FRAMES
    assert report.fleet.pck is not None
    assert report.fleet.pck.low <= truth <= report.fleet.pck.high
    half = car.label(second, share=0.5)
    assert half.fleet.frames == 2 * FRAMES
    assert half.fleet.pck is not None
    assert half.fleet.pck.low <= np.mean(car.right) <= half.fleet.pck.high
    assert half.fleet.naive_pck is not None
    assert half.fleet.naive_pck < half.fleet.pck.low
    drawn = [choice for choice in (*first.choices, *second.choices) if choice.stream == "control"]
    assert car.label(second).fleet.labelled_control == len(drawn)
