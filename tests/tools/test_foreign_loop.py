"""The loop with a net of somebody else's: its skeleton goes from the bundle to the field report, and to its own trainer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alpose.runtime import Monitor, Queue
from alpose.runtime.bundle import Bundle
from alpose.runtime.skeleton import COCO
from alpose.runtime.triggers import parse
from alpose.tools.annotation.exporting import item_of
from alpose.tools.dataset import merge
from alpose.tools.field.labelled import read_labelled, read_tallies
from alpose.tools.field.report import field_report
from alpose.tools.inbox import Inbox
from alpose.tools.labels import VISIBLE, Answer, Pose, compare
from alpose.tools.pull.pull import pull
from alpose.tools.pull.sources import LocalSource
from alpose.tools.select import choose

pytest.importorskip("torch")
pytest.importorskip("onnx")

FRAMES = 30


def test_a_foreign_skeleton_goes_all_the_way_round(tmp_path: Path) -> None:
    from alpose.export.foreign import export_uncalibrated
    from alpose.trainer.data.coco import read_coco

    from ..trainer.foreign import nets

    net = nets.regression(tmp_path / "net.onnx", scores=True, flat=False, batch=1)
    bundle = export_uncalibrated(net, tmp_path / "net.alpose")
    assert Bundle.open(bundle).skeleton.joints == COCO.joints

    # On the device: joints have a confidence, and a joint's doubt can keep a frame.
    rng = np.random.default_rng(0)
    trigger = parse('Threshold(0.0001, joints=("left_wrist", "right_wrist")) | Control(rate=0.5)')
    with Monitor(bundle, Queue(tmp_path / "q.db"), trigger, "cpu", 1) as monitor:
        frames = [rng.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(FRAMES)]
        verdicts = [monitor(frame, (20, 10, 100, 90)) for frame in frames]
        monitor.flush()
    assert all(verdict.flagged and verdict.kept for verdict in verdicts)
    assert {reason.trigger for reason in verdicts[0].reasons} <= {"left_wrist", "right_wrist", "control"}

    # On the server: pulled, chosen, and labelled by somebody who moves the left wrist.
    dataset = tmp_path / "dataset"
    with Inbox(tmp_path / "inbox", create=True) as inbox:
        assert pull(inbox, LocalSource(tmp_path / "q.db")).problem is None
        batch = choose(inbox, FRAMES, control=10, name="week-1", seed=0).batch
        items, corrections = {}, []
        for choice in batch.choices:
            (entry,) = inbox.entries([choice.id])
            item = item_of(inbox, entry, choice, batch.name)
            assert not isinstance(item, str)
            assert entry.record.confidence is not None
            np.testing.assert_allclose(item.task.scores_J, entry.record.confidence, atol=1e-6)
            moved_J2 = item.task.keypoints_J2.copy()
            moved_J2[COCO.index("left_wrist")] += 30
            pose = Pose(joints=COCO.joints, keypoints_J2=moved_J2, visibility_J=np.full(len(COCO), VISIBLE))
            items[choice.id] = item
            corrections.append(compare(Answer(id=choice.id, people=(pose,), where=""), item.task, COCO, 0.01))
        merge(dataset, COCO, items, corrections, batches=[batch], tallies=inbox.field_tallies())
    report = field_report(read_labelled(dataset), read_tallies(dataset))
    assert report.fleet.labelled == len(batch.choices)

    # What their own trainer reads: COCO keypoints with their 17 joints.
    (annotations,) = (dataset / "annotations").glob("*.json")
    content = json.loads(annotations.read_text())
    assert content["categories"][0]["keypoints"] == list(COCO.joints)
    assert all(len(each["keypoints"]) == 3 * len(COCO) for each in content["annotations"])
    assert read_coco(dataset).skeleton.joints == COCO.joints
