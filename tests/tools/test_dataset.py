"""What an import leaves on the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import LSP, MPII
from alpose.tools.batch import Batch, Choice
from alpose.tools.dataset import ANNOTATIONS, merge
from alpose.tools.field.labelled import read_labelled, read_tallies
from alpose.tools.labels import HIDDEN, Answer, Correction, Item, Pose, Task, by_joint, compare, looked_at
from alpose.trainer.data.coco import read_coco

from .tasks import HEIGHT, WIDTH, make_task


def item(task: Task, folder: Path, **facts: Any) -> Item:
    image = folder / "inbox" / f"{task.id}.jpg"
    image.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(image), np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    known = {"id": task.id, "device": "car-17", "camera": "", "bundle": "b" * 64, "captured_ns": 1, "flagged": True,
             "failure_probability": task.failure_probability, "predicted_loss": 1.0, "threshold": 0.5,
             "inclusion_probability": 1.0, "control_draw": None, "control_rate": 0.0, "stream": "value",
             "select_probability": None, "batch": "week-1", "reasons": []}  # fmt: skip
    return Item(task=task, image=image, facts={**known, **facts})


def answer(task: Task, shift: float = 0.0) -> Answer:
    labelled_J = task.visibility_J > 0
    pose = Pose(joints=LSP.joints, keypoints_J2=np.where(labelled_J[:, None], task.keypoints_J2 + shift, 0.0),
                visibility_J=task.visibility_J)  # fmt: skip
    return Answer(id=task.id, people=(pose,), where="")


def compared(task: Task, shift: float = 0.0, **changes: Any) -> Correction:
    return compare(replace(answer(task, shift), **changes), task, LSP, 0.01)


@pytest.fixture
def tasks() -> list[Task]:
    return [make_task(rank, LSP) for rank in range(1, 7)]


def put(dataset: Path, folder: Path, tasks: list[Task], shift: float = 0.0, **options: Any) -> Any:
    items = {task.id: item(task, folder) for task in tasks}
    corrections = [compared(task, shift) for task in tasks]
    return merge(dataset, LSP, items, corrections, **options)


def test_a_dataset_grows_by_parts_and_every_reader_understands_it(tasks: list[Task], tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    first = put(dataset, tmp_path, tasks[:2])
    ids_before = read_coco(dataset).ids
    again = put(dataset, tmp_path, tasks[:2])
    rest = put(dataset, tmp_path, tasks[1:], shift=0.0)

    assert (first.added, again.added, again.unchanged) == (2, 0, 2)
    assert (rest.added, rest.unchanged, rest.total) == (4, 1, 6)
    people = read_coco(dataset)
    assert people.ids[:2] == ids_before
    assert people.image(5).shape == (HEIGHT, WIDTH, 3)
    labelled_J = tasks[3].visibility_J > 0
    assert np.allclose(people.joints_NJ2[3][labelled_J], tasks[3].keypoints_J2[labelled_J], atol=0.006)
    assert np.array_equal(people.labelled_NJ[3], labelled_J)
    api = pytest.importorskip("pycocotools.coco")
    assert len(api.COCO(str(dataset / ANNOTATIONS)).getAnnIds()) == 6


def test_batches_of_one_name_from_two_inboxes_are_kept_apart(tasks: list[Task], tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"

    def batch(of: list[Task], created: str) -> Batch:
        choices = tuple(Choice(id=task.id, rank=rank, reason="", stream="value", select_probability=None)
                        for rank, task in enumerate(of, start=1))  # fmt: skip
        return Batch(name="week-1", created=created, strategy="top", budget=3, choices=choices, counted={})

    for part, created in ((tasks[:3], "2026-01-01T00:00:00+00:00"), (tasks[3:], "2026-01-02T00:00:00+00:00")):
        for _ in range(2):  # twice changes nothing
            put(dataset, tmp_path, part, batches=[batch(part, created)])
    stored = sorted(path.name for path in (dataset / "field" / "batches").glob("*.json"))
    assert stored == ["week-1-2.json", "week-1.json"]
    images = json.loads((dataset / ANNOTATIONS).read_bytes())["images"]
    assert [one["alpose"]["batch"] for one in images] == ["week-1"] * 3 + ["week-1-2"] * 3


def test_a_contradiction_is_written_down_and_nothing_is_lost(tasks: list[Task], tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    put(dataset, tmp_path, tasks[:3])
    before = (dataset / ANNOTATIONS).read_bytes()
    kept = put(dataset, tmp_path, tasks[:1], shift=5.0)

    assert kept.conflicts == (tasks[0].id,)
    assert (dataset / ANNOTATIONS).read_bytes() == before
    (written,) = (dataset / "field" / "conflicts").glob("*.json")
    (conflict,) = json.loads(written.read_text())
    assert conflict["came"][0] == pytest.approx(conflict["there"][0] + 5.0, abs=0.011)

    replaced = put(dataset, tmp_path, tasks[:1], shift=5.0, on_conflict="replace")
    assert replaced.replaced == 1
    assert read_coco(dataset).joints_NJ2[0, 0, 0] == pytest.approx(tasks[0].keypoints_J2[0, 0] + 5.0, abs=0.011)


def test_an_import_that_is_cut_off_leaves_the_old_dataset(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "dataset"
    put(dataset, tmp_path, tasks[:2])
    items = {task.id: item(task, tmp_path) for task in tasks}
    items[tasks[4].id] = replace(items[tasks[4].id], image=tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError):
        merge(dataset, LSP, items, [compared(task) for task in tasks])

    assert len(read_coco(dataset)) == 2
    assert put(dataset, tmp_path, tasks).total == 6


def test_another_skeleton_is_refused(tasks: list[Task], tmp_path: Path) -> None:
    put(tmp_path / "dataset", tmp_path, tasks)
    with pytest.raises(DataError, match="another dataset"):
        merge(tmp_path / "dataset", MPII, {}, [])


def test_the_field_report_reads_what_an_import_writes(tasks: list[Task], tmp_path: Path) -> None:
    """Two frames of the control stream, drawn one in four at a rate of 0.001; one of the two is not labelled yet."""
    drawn = {"stream": "control", "control_draw": 0.0004, "control_rate": 0.001, "select_probability": 0.25,
             "flagged": False}  # fmt: skip
    items = {task.id: item(task, tmp_path) for task in tasks}
    items |= {task.id: item(task, tmp_path, **drawn) for task in tasks[:2]}
    batch = Batch(
        name="week-1", created="", strategy="value", budget=6, counted={},
        choices=tuple(Choice(id=t.id, rank=t.rank, reason="", select_probability=0.25 if t.rank <= 2 else None,
                             stream="control" if t.rank <= 2 else "value") for t in tasks),
    )  # fmt: skip
    tallies = [{"device": "car-17", "bundle": "b" * 64, "frames": 9000, "flagged": 40, "control": 9, "lost": 3}]
    dataset = tmp_path / "dataset"
    labelled = [tasks[0], *tasks[2:]]
    corrections = [compared(task, 3.0 * (task.rank == 3)) for task in labelled]
    merge(dataset, LSP, items, corrections, batches=[batch], tallies=tallies, bundles={"b" * 64: "driver"})

    found = read_labelled(dataset)
    assert found.control_N[0] == pytest.approx(0.001 * 0.25 * 0.5)
    assert np.isnan(found.control_N[1:]).all()
    assert found.flagged_N.tolist() == [False, True, True, True, True]
    # The joint outside of the image has no label; all others are where the model had them, or 4 px away.
    assert found.pck_N[0] == 1.0
    (tally,) = read_tallies(dataset)
    assert (tally.frames, tally.lost) == (9000, 3)


def test_unchanged_poses_count_as_accepted_up_to_the_last_corrected_one(tasks: list[Task]) -> None:
    rank = {task.id: task.rank for task in tasks}
    corrections = [compared(task, 3.0 * (task.rank == 4), looked_at=False) for task in tasks]

    def split(unchanged: Any) -> tuple[list[int], list[int]]:
        seen, unopened = looked_at(corrections, rank, unchanged)
        return [rank[one.id] for one in seen], [rank[one.id] for one in unopened]

    assert split("auto") == ([1, 2, 3, 4], [5, 6])
    assert split("accept") == ([1, 2, 3, 4, 5, 6], [])
    assert split("skip") == ([4], [1, 2, 3, 5, 6])
    # A tool that tells makes the question go away.
    sure = [replace(one, looked_at=True) for one in corrections]
    assert len(looked_at(sure, rank, "skip")[0]) == 6


def test_correction_distances_are_reported_by_joint(tasks: list[Task]) -> None:
    poses = [answer(task).people[0] for task in tasks[:3]]
    poses[0].keypoints_J2[5] += (6.0, 8.0)
    removed_J = poses[1].visibility_J.copy()
    removed_J[5] = HIDDEN
    poses[1] = replace(poses[1], visibility_J=removed_J)
    corrections = [compared(task, people=(pose,)) for task, pose in zip(tasks, poses, strict=False)]
    by_name = {one.joint: one for one in by_joint(corrections, LSP.joints)}

    assert (by_name["left_ankle"].labelled, by_name["left_ankle"].moved) == (2, 1)
    assert by_name["left_ankle"].median_px == pytest.approx(10.0)
    assert by_name["neck"].moved == 0
    assert [one.status for one in corrections] == ["corrected", "corrected", "accepted"]
