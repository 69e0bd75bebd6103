"""Several people on one frame, from a queue to labels and back: one picture, and each label in its own record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.queue import Picture, Queue
from alpose.runtime.queue.images import encode
from alpose.runtime.skeleton import LSP
from alpose.tools.annotation.exporting import write_batch
from alpose.tools.annotation.importing import Imported, import_labels
from alpose.tools.batch import Batch, Choice
from alpose.tools.dataset import ANNOTATIONS
from alpose.tools.field.labelled import read_labelled
from alpose.tools.formats.files import open_files
from alpose.tools.inbox import Inbox
from alpose.tools.labels import HIDDEN
from alpose.tools.pull.pull import plan, pull
from alpose.tools.pull.reader import Reader
from alpose.tools.pull.sources import LocalSource

from .per_image import PerImage
from .queues import BUNDLE, make_record

WIDTH, HEIGHT = 320, 240
FRAMES = 3
SEATS = {"driver": (20.0, 20.0, 140.0, 220.0), "codriver": (150.0, 30.0, 300.0, 230.0)}


def joints_in(box: tuple[float, float, float, float], seed: int) -> Any:
    x0, y0, x1, y1 = box
    return np.random.default_rng(seed).uniform((x0 + 5, y0 + 5), (x1 - 5, y1 - 5), (14, 2)).astype(np.float32)


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """Three frames with two people each, and one with a driver alone."""
    path, rng = tmp_path / "q.db", np.random.default_rng(0)
    with Queue(path) as opened:
        opened.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
        for number in range(FRAMES + 1):
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            captured_ns = 10**18 + number
            picture = Picture.of(encode(pixels).data, width=WIDTH, height=HEIGHT, captured_ns=captured_ns)
            for place, (seat, box) in enumerate(SEATS.items()):
                if number < FRAMES or not place:
                    record = make_record(
                        opened, rng, captured_ns=captured_ns, camera=seat, box=box, keypoints_J2=joints_in(box, 10 * number + place)
                    )  # fmt: skip
                    opened.put(record, [picture])
        assert opened.info().pictures == FRAMES + 1
    return path


@pytest.fixture
def inbox(queue: Path, tmp_path: Path) -> Path:
    with Inbox(tmp_path / "inbox", create=True) as opened:
        assert pull(opened, LocalSource(queue)).problem is None
    return tmp_path / "inbox"


def seats(opened: Inbox) -> dict[tuple[int, str], str]:
    """(number of the frame, seat) → id."""
    entries = opened.entries(id_.decode() for id_ in opened.columns().id_N)
    return {(entry.record.captured_ns - 10**18, entry.record.camera): entry.record.id for entry in entries}


def choose(opened: Inbox, ids: list[str], name: str = "week-1") -> Batch:
    choices = tuple(
        Choice(id=id_, rank=rank, reason="asked for", stream="value", select_probability=None)
        for rank, id_ in enumerate(ids, start=1)
    )
    batch = Batch(name=name, created="2025-01-01T00:00:00+00:00", strategy="top", budget=len(ids), choices=choices,
                  counted={})  # fmt: skip
    opened.add_batch(batch, [])
    return batch


def went_out(
    inbox: Path, to: str, out: Path, who: Callable[[int, str], bool] = lambda number, seat: True
) -> dict[Any, str]:
    """Export everybody whom ``who`` says; ids by frame and seat."""
    with Inbox(inbox) as opened:
        ids = seats(opened)
        batch = choose(opened, [id_ for key, id_ in sorted(ids.items()) if who(*key)], name=out.name)
        write_batch(opened, batch, to, out)
    return ids


def brought(inbox: Path, path: Path, dataset: Path, **options: Any) -> Imported:
    with Inbox(inbox) as opened:
        return import_labels(opened, [path], dataset, **options)


def labels(dataset: Path) -> dict[str, dict[str, Any]]:
    """The annotation of each record, by its id; people whom annotators added under ``added``."""
    document = json.loads((dataset / ANNOTATIONS).read_text())
    images = {image["id"]: image["alpose"]["id"] for image in document["images"]}
    found: dict[str, dict[str, Any]] = {}
    for one in document["annotations"]:
        said = one["alpose"]
        id_ = "added" if said["status"] == "added" else said.get("record", {}).get("id", images[one["image_id"]])
        assert id_ not in found
        found[id_] = one
    return found


def nudged(annotation: dict[str, Any], by_px: float) -> None:
    annotation["keypoints"] = [
        value + by_px if place % 3 == 0 else value for place, value in enumerate(annotation["keypoints"])
    ]


def test_a_pull_fetches_the_picture_once_and_the_inbox_holds_it_once(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    real = Reader.pictures

    def counted(self: Reader, id_: str) -> Any:
        fetched.append(id_)
        return real(self, id_)

    monkeypatch.setattr(Reader, "pictures", counted)
    with Queue(queue, readonly=True) as opened:
        size = sum({one.sha256: len(one.data) for _, pictures in opened.pull() for one in pictures}.values())
    with Inbox(tmp_path / "inbox", create=True) as inbox:
        assert plan(inbox, LocalSource(queue)).would_fetch_bytes == size
        first = pull(inbox, LocalSource(queue), images=[])
        assert first.new == 2 * FRAMES + 1
        ids = seats(inbox)
        # One person of a frame now, the other in a later pull.
        pull(inbox, LocalSource(queue), images=[ids[0, "driver"]])
        done = pull(inbox, LocalSource(queue), acknowledge=True)
        assert (done.fetched, done.acknowledged, done.damaged) == (2 * FRAMES, 2 * FRAMES + 1, 0)
        assert len(fetched) == FRAMES + 1
        for id_ in ids.values():
            assert inbox.is_whole(id_)
        for number in range(FRAMES):
            mine, other = (inbox.image(ids[number, seat]) for seat in SEATS)
            assert mine is not None
            assert other is not None
            assert os.path.samefile(mine, other)
        assert inbox.on_same_frame(ids[FRAMES, "driver"]) == []


def test_a_file_that_somebody_damaged_is_not_handed_on(queue: Path, tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", create=True) as inbox:
        pull(inbox, LocalSource(queue), images=[])
        ids = seats(inbox)
        pull(inbox, LocalSource(queue), images=[ids[0, "driver"]])
        image = inbox.image(ids[0, "driver"])
        assert image is not None
        image.write_bytes(bytes(image.stat().st_size))
        pull(inbox, LocalSource(queue), images=[ids[0, "codriver"]])
        assert inbox.is_whole(ids[0, "codriver"])
        assert not inbox.is_whole(ids[0, "driver"])


def test_an_export_has_one_image_with_everybody_who_was_chosen(inbox: Path, tmp_path: Path) -> None:
    with Inbox(inbox) as opened:
        ids = seats(opened)
        batch = choose(opened, [ids[0, "codriver"], ids[1, "driver"], ids[0, "driver"], ids[FRAMES, "driver"]])
        done = write_batch(opened, batch, "coco", tmp_path / "out")
    assert (done.pictures, done.people) == (3, 4)
    names = [f"00001_{ids[0, 'codriver']}.jpg", f"00002_{ids[1, 'driver']}.jpg", f"00004_{ids[FRAMES, 'driver']}.jpg"]
    assert sorted(os.listdir(tmp_path / "out" / "images")) == names
    ((file,), _) = open_files(tmp_path / "out" / "annotations")
    assert [image["file_name"] for image in file.value["images"]] == names
    people = [(one["image_id"], one["attributes"]["record"]) for one in file.value["annotations"]]
    assert people == [(1, ids[0, "codriver"]), (1, ids[0, "driver"]), (2, ids[1, "driver"]), (3, ids[FRAMES, "driver"])]


def test_a_format_that_knows_one_person_a_task_gets_a_picture_for_each(inbox: Path, tmp_path: Path) -> None:
    from alpose.tools.formats import FORMATS, register

    register(PerImage())
    try:
        with Inbox(inbox) as opened:
            done = write_batch(opened, choose(opened, sorted(seats(opened).values())), PerImage.name, tmp_path / "out")
        assert done.pictures == done.people == len(os.listdir(tmp_path / "out" / "images")) == 2 * FRAMES + 1
    finally:
        del FORMATS[PerImage.name]


@pytest.mark.parametrize("attributes", [True, False], ids=["with-attributes", "without"])
def test_each_label_of_a_coco_file_goes_to_its_own_record(inbox: Path, tmp_path: Path, attributes: bool) -> None:
    ids = went_out(inbox, "coco", tmp_path / "out")
    (path,) = (tmp_path / "out" / "annotations").glob("*.json")
    document = json.loads(path.read_text())
    for one in document["annotations"]:
        if one["attributes"]["record"] in (ids[0, "codriver"], ids[1, "driver"]):
            nudged(one, 3.0)
        if not attributes:
            del one["attributes"]
    document["annotations"].reverse()  # in no order of ours
    path.write_text(json.dumps(document))
    done = brought(inbox, path, tmp_path / "dataset")
    assert done.problems == ()
    # Work got as far as the second picture: all on the first two were seen, the others were perhaps not opened.
    assert (done.corrected, done.accepted, len(done.unopened)) == (2, 2, 3)
    assert done.merged is not None
    assert (done.merged.added, done.merged.total) == (4, 2)
    found = labels(tmp_path / "dataset")
    moved = {id_: max(one["alpose"]["distance_px"]) for id_, one in found.items()}
    assert moved == {
        ids[0, "driver"]: 0.0, ids[0, "codriver"]: pytest.approx(3, abs=0.02), ids[1, "driver"]: pytest.approx(3, abs=0.02),
        ids[1, "codriver"]: 0.0,
    }  # fmt: skip
    again = brought(inbox, path, tmp_path / "dataset", unchanged="accept")
    assert again.merged is not None
    assert (again.merged.added, again.merged.unchanged, again.merged.conflicts) == (3, 4, ())
    assert len(os.listdir(tmp_path / "dataset" / "images")) == again.merged.total == FRAMES + 1
    rows = read_labelled(tmp_path / "dataset")
    assert sorted(rows.id_N) == sorted(ids.values())
    assert not rows.failed_N.any()
    with Inbox(inbox) as opened:
        assert opened.columns().annotated_N.all()


def test_label_studio_gives_everybody_a_rectangle_and_takes_them_back(inbox: Path, tmp_path: Path) -> None:
    ids = went_out(inbox, "label-studio", tmp_path / "out")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert len(tasks) == FRAMES + 1
    for place, task in enumerate(tasks):
        result = task.pop("predictions")[0]["result"]
        boxes = [region["id"] for region in result if region["type"] == "rectanglelabels"]
        assert len(boxes) == (2 if place < FRAMES else 1)
        for region in result:
            if place == 0 and region.get("parentID") == boxes[1]:
                region["value"]["x"] += 50.0  # onto the other person's place, and still the codriver's
            if place == 1:
                region.pop("score", None)
        if place == 1:  # nobody sits there: all joints deleted
            result = [region for region in result if region.get("parentID") != boxes[0]]
        task["annotations"] = [{"id": place, "completed_by": 1, "was_cancelled": False, "result": result}]
    assert "2 people" in tasks[0]["data"]["alpose_summary"]
    path = tmp_path / "came.json"
    path.write_text(json.dumps(tasks))
    done = brought(inbox, path, tmp_path / "dataset")
    assert done.problems == ()
    assert (done.corrected, done.accepted) == (2, 2 * FRAMES - 1)
    found = labels(tmp_path / "dataset")
    assert set(found) == set(ids.values())
    first, second = sorted(SEATS)  # the order of the batch
    assert max(found[ids[0, second]]["alpose"]["distance_px"]) == pytest.approx(160, abs=0.1)
    assert found[ids[1, first]]["num_keypoints"] == 0
    assert found[ids[1, second]]["num_keypoints"] == 14


def test_yolo_pose_has_a_line_a_person_and_boxes_tell_whose_it_is(inbox: Path, tmp_path: Path) -> None:
    ids = went_out(inbox, "yolo-pose", tmp_path / "out")
    files = sorted((tmp_path / "out" / "labels").glob("*.txt"))
    assert [len(file.read_text().splitlines()) for file in files] == [2] * FRAMES + [1]
    lines = [line.split() for line in files[0].read_text().splitlines()]
    lines.reverse()
    for line in lines:
        if float(line[1]) > 0.5:  # the one on the right
            line[5::3] = [f"{float(x) + 4 / WIDTH:.6f}" for x in line[5::3]]
    files[0].write_text("".join(" ".join(line) + "\n" for line in lines))
    done = brought(inbox, tmp_path / "out" / "labels", tmp_path / "dataset", unchanged="accept")
    assert done.problems == ()
    assert (done.corrected, done.accepted) == (1, 2 * FRAMES)
    found = labels(tmp_path / "dataset")
    assert set(found) == set(ids.values())
    assert max(found[ids[0, "codriver"]]["alpose"]["distance_px"]) == pytest.approx(4, abs=0.02)


def test_people_come_one_after_the_other_and_join_the_image_that_is_there(inbox: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    ids = went_out(inbox, "coco", tmp_path / "first", lambda number, seat: seat == "driver")
    brought(inbox, next((tmp_path / "first" / "annotations").glob("*.json")), dataset, unchanged="accept")
    assert set(labels(dataset)) == {ids[number, "driver"] for number in range(FRAMES + 1)}
    went_out(inbox, "coco", tmp_path / "second", lambda number, seat: seat == "codriver")
    done = brought(inbox, next((tmp_path / "second" / "annotations").glob("*.json")), dataset, unchanged="accept")
    assert done.merged is not None
    assert (done.merged.added, done.merged.total, done.problems) == (FRAMES, FRAMES + 1, ())
    assert set(labels(dataset)) == set(ids.values())
    assert len(os.listdir(dataset / "images")) == FRAMES + 1
    assert len(read_labelled(dataset)) == 2 * FRAMES + 1


def test_somebody_whom_an_annotator_adds_just_where_the_model_knew_one_is_that_one(inbox: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    ids = went_out(inbox, "coco", tmp_path / "out", lambda number, seat: seat == "driver")
    (path,) = (tmp_path / "out" / "annotations").glob("*.json")
    document = json.loads(path.read_text())
    known = np.column_stack([joints_in(SEATS["codriver"], 1) + 1.0, np.full(14, 2.0)])
    elsewhere = np.column_stack([np.linspace(290, 310, 14), np.linspace(2, 20, 14), np.full(14, 2.0)])
    for number, joints_J3 in enumerate((known, elsewhere)):
        added = {**document["annotations"][number], "id": 100 + number, "keypoints": joints_J3.ravel().tolist()}
        del added["attributes"]
        document["annotations"].append(added)
    path.write_text(json.dumps(document))
    done = brought(inbox, path, dataset, unchanged="accept")
    assert done.problems == ()
    found = labels(dataset)
    assert set(found) == {*(ids[number, "driver"] for number in range(FRAMES + 1)), ids[0, "codriver"], "added"}
    assert max(found[ids[0, "codriver"]]["alpose"]["distance_px"]) == pytest.approx(2**0.5, abs=0.02)
    with Inbox(inbox) as opened:  # it is not offered again
        annotated = {id_.decode() for id_ in opened.columns().id_N[opened.columns().annotated_N]}
    assert ids[0, "codriver"] in annotated


def test_a_person_without_a_pose_is_named_and_the_others_are_taken(inbox: Path, tmp_path: Path) -> None:
    ids = went_out(inbox, "coco", tmp_path / "out")
    (path,) = (tmp_path / "out" / "annotations").glob("*.json")
    document = json.loads(path.read_text())
    gone, empty = ids[0, "driver"], ids[1, "codriver"]
    document["annotations"] = [one for one in document["annotations"] if one["attributes"]["record"] != gone]
    for one in document["annotations"]:
        if one["attributes"]["record"] == empty:  # nobody is there
            one["keypoints"], one["num_keypoints"] = [0] * 42, 0
    path.write_text(json.dumps(document))
    done = brought(inbox, path, tmp_path / "dataset", unchanged="accept")
    [problem] = done.problems
    assert gone in problem
    assert "where the model was asked to look" in problem
    found = labels(tmp_path / "dataset")
    assert set(found) == set(ids.values()) - {gone}
    assert found[empty]["num_keypoints"] == 0
    assert all(v == HIDDEN for v in found[empty]["keypoints"][2::3])
