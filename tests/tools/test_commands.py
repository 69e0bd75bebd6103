"""``alpose-harvest`` from an inbox to a dataset, as people call it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.queue import Picture, Queue, images
from alpose.runtime.queue.record import PictureInfo, Record
from alpose.runtime.skeleton import LSP, MPII, Skeleton
from alpose.tools import sample
from alpose.tools.annotation.exporting import gather, to_image
from alpose.tools.batch import Batch
from alpose.tools.cli import main
from alpose.tools.dataset import ANNOTATIONS
from alpose.tools.field.labelled import read_labelled, read_tallies
from alpose.tools.formats import FORMATS
from alpose.tools.formats.coco import Coco, document
from alpose.tools.formats.files import open_files
from alpose.tools.inbox import Inbox
from alpose.tools.labels import Handout
from alpose.trainer.data.coco import read_coco

from .harvest import BUDGET, bring, call, correct, nudge, value_of
from .per_image import PerImage
from .queues import make_record

# --- select


def test_select_writes_a_batch_that_says_why_and_is_not_offered_again(inbox: Path) -> None:
    first = value_of(call("select", inbox, "--budget", BUDGET, "--name", "week-1", "--json"))
    second = value_of(call("select", inbox, "--budget", 99, "--name", "week-2", "--min-distance", 0, "--json"))

    chosen = first["batch"]["choices"]
    assert len(chosen) == BUDGET
    assert [choice["rank"] for choice in chosen] == list(range(1, BUDGET + 1))
    assert all(choice["reason"] for choice in chosen)
    assert {choice["stream"] for choice in chosen} == {"value", "control"}
    assert sum(row["value"] + row["control"] for row in first["devices"]) == BUDGET
    assert first["to_fetch"] == first["sealed"] == 0
    assert first["triggers"]["budget"] > 0
    # Every frame is annotated once; each control frame had its one draw.
    later = second["batch"]["choices"]
    assert not {choice["id"] for choice in chosen} & {choice["id"] for choice in later}
    assert len(later) == 22 - BUDGET
    assert {choice["stream"] for choice in later} == {"value"}
    assert second["batch"]["counted"] == {"chosen before": BUDGET}
    assert "another --name" in call("select", inbox, "--budget", 1, "--name", "week-1", fails=True).stderr


def test_select_says_what_it_left_out_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle("b" * 64, "driver", {"skeleton": LSP.to_json()})
        queue.put(make_record(queue, rng, store="keypoints"), [])
        for _ in range(3):
            record = make_record(queue, rng)
            queue.put(record, [Picture.of(b"jpeg" + rng.bytes(20), width=640, height=480, captured_ns=1)])
    bring(tmp_path / "inbox", tmp_path / "q.db", images=())

    text = call("select", "inbox", "--budget", 9, "--control", 0, "--name", "b").output
    assert "left out: 1 only their keypoints were stored" in text
    assert "pull SOURCE --into inbox --images b" in text
    assert "the budget was 9" in text
    refused = call("export", "inbox", "--to", "coco", fails=True)
    assert "3 of the batch are left out, not fetched yet" in refused.stderr
    assert not (tmp_path / "b-coco").exists()


# --- export


def test_the_pose_is_put_into_the_pictures_pixels() -> None:
    """A crop at half size: the inverse of frame_xy = (image_xy + 0.5) * scale + origin."""
    facts = PictureInfo(0, 1, "image/jpeg", False, 100, 80, (30.0, 40.0), 2.0, "0" * 64, 1)
    image_N2 = np.array([[0.0, 0.0], [99.0, 79.0], [10.25, 3.5]])
    frame_N2 = (image_N2 + 0.5) * facts.scale + facts.origin

    assert np.allclose(to_image(frame_N2, facts), image_N2)


def test_coco_is_a_folder_that_the_trainer_and_pycocotools_read(inbox: Path, batch: Batch) -> None:
    text = call("export", inbox, "--to", "coco").output
    folder = Path("week-1-coco")
    people = read_coco(folder)

    assert "alpose-harvest import CORRECTED.json" in text
    assert len(people) == BUDGET
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert [name.partition("_")[0] for name in names] == [f"{rank:05d}" for rank in range(1, BUDGET + 1)]
    assert [name[6:38] for name in names] == [choice.id for choice in batch.choices]
    with Inbox(inbox) as opened:
        entry = opened.entries([batch.choices[0].id])[0]
        assert (folder / "images" / names[0]).read_bytes() == opened.image(entry.record.id).read_bytes()  # type: ignore[union-attr]
    # The rendered pictures are whole frames: the pose stands where the device saw it.
    labelled_J = people.labelled_NJ[0]
    assert np.allclose(people.joints_NJ2[0][labelled_J], entry.record.keypoints_J2[labelled_J], atol=0.006)
    assert people.image(0).shape[:2] == (entry.record.frame_height, entry.record.frame_width)
    api = pytest.importorskip("pycocotools.coco")
    loaded = api.COCO(str(next((folder / "annotations").iterdir())))
    assert len(loaded.getAnnIds()) == BUDGET


def test_a_picture_that_is_not_what_the_device_sent_goes_to_nobody(inbox: Path, batch: Batch) -> None:
    first = batch.choices[0].id
    with Inbox(inbox) as opened:
        path = opened.image(first)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-100] + b"junk" * 25)
    shown = call("export", inbox, "--to", "coco").output
    assert "damaged in the inbox" in shown
    assert "restore the inbox" in shown
    assert len(read_coco(Path("week-1-coco"))) == BUDGET - 1


def test_export_again_brings_what_came_since_and_spares_what_is_not_its_own(inbox: Path, batch: Batch) -> None:
    first = batch.choices[0].id
    with Inbox(inbox) as opened:
        path = opened.image(first)
        assert path is not None
        hidden = path.rename(path.with_suffix(".away"))
        opened.lost(first)
    assert value_of(call("export", inbox, "--to", "cvat", "--json"))["missing"] == {"not fetched yet": [first]}
    hidden.rename(path)
    assert value_of(call("export", inbox, "--to", "cvat", "--json"))["frames"] == BUDGET
    ((packed,), _) = open_files(Path("week-1-cvat/annotations.zip"))
    assert len(packed.value["images"]) == len(list(Path("week-1-cvat/images").iterdir())) == BUDGET

    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    assert "something else" in call("export", inbox, "--to", "cvat", "--out", "mine", fails=True).output
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_label_studio_gets_urls_and_reasons(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "label-studio", "--image-url", "https://images.example/", "--link")
    tasks = json.loads(Path("week-1-label-studio/tasks.json").read_text())

    assert [task["data"]["alpose_id"] for task in tasks] == [choice.id for choice in batch.choices]
    image = tasks[0]["data"]["image"]
    assert image.startswith("https://images.example/00001_")
    linked = Path("week-1-label-studio/images") / image.rpartition("/")[2]
    with Inbox(inbox) as opened:
        assert linked.samefile(opened.image(batch.choices[0].id))
    assert batch.choices[0].reason in tasks[0]["data"]["alpose_summary"]
    assert any("budget 0." in task["data"]["alpose_summary"] for task in tasks)
    assert tasks[0]["predictions"][0]["model_version"].startswith("sample ")


# --- import


def test_a_correction_comes_back_with_all_that_the_field_report_needs(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    last = batch.choices[-1].id
    came = correct(next(Path("week-1-coco/annotations").iterdir()), {last: nudge(2, 7.0)}, Path("came.json"))

    done = value_of(call("import", came, "--into", "dataset", "--json"))
    assert (done["accepted"], done["corrected"], done["problems"], done["unknown"]) == (BUDGET - 1, 1, [], [])
    moved = {one["joint"]: one["moved"] for one in done["joints"]}
    assert moved == {joint: int(joint == LSP.joints[2]) for joint in LSP.joints}
    assert next(one["largest_px"] for one in done["joints"] if one["moved"]) == pytest.approx(7.0, abs=0.01)

    labelled = read_labelled(Path("dataset"))
    drawn = [choice for choice in batch.choices if choice.stream == "control"]
    assert np.isfinite(labelled.control_N).sum() == len(drawn) > 0
    probability = drawn[0].select_probability
    assert probability is not None
    assert np.nanmax(labelled.control_N) == pytest.approx(sample.CONTROL_RATE * probability)
    assert {(tally.device, tally.lost) for tally in read_tallies(Path("dataset"))} == {("car-17", 0), ("car-3", 0)}
    assert "fleet" in call("report", "dataset").output
    with Inbox(inbox) as opened:
        assert opened.columns().annotated_N.sum() == BUDGET
        assert (
            value_of(call("select", inbox, "--budget", 1, "--json"))["batch"]["counted"]["annotated before"] == BUDGET
        )
    api = pytest.importorskip("pycocotools.coco")
    assert len(api.COCO(str(Path("dataset") / ANNOTATIONS)).getAnnIds()) == BUDGET


def test_parts_are_legal_in_any_order_and_twice_is_once(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    whole = next(Path("week-1-coco/annotations").iterdir())
    third, fifth = batch.choices[2].id, batch.choices[4].id
    part = correct(whole, {third: nudge(0, 5.0)}, Path("part.json"))
    more = correct(whole, {third: nudge(0, 5.0), fifth: nudge(1, 4.0)}, Path("more.json"))

    # CVAT cannot say who looked: what lies behind the last correction waits.
    first = value_of(call("import", part, "--into", "dataset", "--json"))
    assert (first["accepted"], first["corrected"], len(first["unopened"])) == (2, 1, BUDGET - 3)
    before = (Path("dataset") / ANNOTATIONS).read_bytes()
    again = value_of(call("import", part, "--into", "dataset", "--json"))
    assert (again["merged"]["added"], again["merged"]["unchanged"]) == (0, 3)
    assert (Path("dataset") / ANNOTATIONS).read_bytes() == before
    then = value_of(call("import", part, more, "--into", "dataset", "--json"))
    assert (then["merged"]["added"], then["merged"]["total"], then["problems"]) == (2, 5, [])
    everything = value_of(call("import", more, "--into", "dataset", "--unchanged", "accept", "--json"))
    assert everything["merged"]["total"] == BUDGET


def test_files_of_one_batch_are_decided_together(inbox: Path, batch: Batch) -> None:
    """The last corrected pose may stand in another file; and a correction counts before an older state of its frame."""
    call("export", inbox, "--to", "coco")
    whole = next(Path("week-1-coco/annotations").iterdir())
    third, last = batch.choices[2].id, batch.choices[-1].id
    halves = []
    for number, half in enumerate((batch.choices[:5], batch.choices[5:])):
        document = json.loads(correct(whole, {last: nudge(0, 5.0)}, Path("all.json")).read_text())
        ids = {choice.id for choice in half}
        document["images"] = [one for one in document["images"] if one["file_name"][6:38] in ids]
        kept = {one["id"] for one in document["images"]}
        document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
        halves.append(Path(f"half-{number}.json"))
        halves[-1].write_text(json.dumps(document))

    for name, files in (("one", halves), ("two", halves[::-1])):
        done = value_of(call("import", *files, "--into", name, "--json"))
        assert (done["accepted"], done["corrected"]) == (BUDGET - 1, 1)
        assert (done["unopened"], done["problems"]) == ([], [])

    later = correct(whole, {third: nudge(0, 5.0), last: nudge(0, 5.0)}, Path("later.json"))
    done = value_of(call("import", *halves, later, "--into", "three", "--json"))
    assert (done["accepted"], done["corrected"], done["problems"]) == (BUDGET - 2, 2, [])


def test_a_contradiction_is_listed_and_kept_until_it_is_said_otherwise(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    whole, first = next(Path("week-1-coco/annotations").iterdir()), batch.choices[0].id
    one = correct(whole, {first: nudge(0, 5.0)}, Path("one.json"))
    other = correct(whole, {first: nudge(0, 9.0)}, Path("other.json"))
    call("import", one, "--into", "dataset", "--unchanged", "skip")
    for _ in range(2):
        assert first in call("import", other, "--into", "dataset", "--unchanged", "skip").output
    assert len(list(Path("dataset/field/conflicts").iterdir())) == 1

    def x() -> float:
        return float(read_coco(Path("dataset")).joints_NJ2[0, 0, 0])

    kept = x()
    call("import", other, "--into", "dataset", "--unchanged", "skip", "--on-conflict", "replace")
    assert x() == pytest.approx(kept + 4.0, abs=0.011)
    both = value_of(call("import", one, other, "--into", "two", "--unchanged", "skip", "--json"))
    assert any("another answer in an earlier file" in problem for problem in both["problems"])


def test_frames_that_nobody_knows_are_written_down(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    whole = next(Path("week-1-coco/annotations").iterdir())
    stranger = "0" * 32
    Path("came.json").write_text(whole.read_text().replace(batch.choices[0].id, stranger))
    for _ in range(2):
        done = value_of(call("import", "came.json", "--into", "dataset", "--unchanged", "accept", "--json"))
        assert (done["unknown"], done["merged"]["total"]) == ([stranger], BUDGET - 1)
    (kept,) = Path("dataset/field/unknown").iterdir()
    (answer,) = json.loads(kept.read_text())
    assert (answer["id"], answer["joints"], len(answer["keypoints"])) == (stranger, list(LSP.joints), 3 * len(LSP))

    text = whole.read_text()
    for number, choice in enumerate(batch.choices):
        text = text.replace(choice.id, f"{number:032x}")
    Path("all.json").write_text(text)
    lost = call("import", "all.json", "--into", "other", fails=True)
    assert "is that the inbox" in lost.output
    assert not (Path("other") / ANNOTATIONS).exists()


def test_the_format_is_told_by_the_content(inbox: Path, batch: Batch) -> None:
    """Label Studio's export under a name that says nothing, and CVAT's archive, in one command."""
    call("export", inbox, "--to", "label-studio")
    call("export", inbox, "--to", "cvat")
    tasks = json.loads(Path("week-1-label-studio/tasks.json").read_text())
    for number, task in enumerate(tasks[:4]):
        task["annotations"] = [{"id": number, "completed_by": 1, "result": task.pop("predictions")[0]["result"]}]
    Path("a.txt").write_text(json.dumps(tasks))
    ((packed,), _) = open_files(Path("week-1-cvat/annotations.zip"))
    Path("c.json").write_bytes(packed.content)
    correct(Path("c.json"), {batch.choices[5].id: nudge(0, 3.0)}, Path("c.json"))
    with zipfile.ZipFile("b", "w") as zipped:
        zipped.write("c.json", "annotations/person_keypoints_default.json")

    done = value_of(call("import", "a.txt", "b", "--into", "dataset", "--json"))
    assert done["forms"] == {"a.txt": "label-studio", "b": "coco"}
    assert (done["corrected"], done["accepted"], done["problems"]) == (1, 5, [])
    assert len(done["unopened"]) == BUDGET - 6


# --- what is there already


def test_each_page_has_a_name_of_its_own_and_only_its_newer_state_takes_its_place(inbox: Path, batch: Batch) -> None:
    call("gallery", inbox)
    whole = (inbox / "gallery.html").read_bytes()
    call("gallery", inbox, "--batch", batch.name)
    assert (inbox / "gallery.html").read_bytes() == whole
    assert batch.name.encode() in (inbox / f"gallery-{batch.name}.html").read_bytes()
    call("gallery", inbox, "--limit", 3)
    assert len((inbox / "gallery.html").read_bytes()) < len(whole)
    said = call("gallery", inbox, "--batch", batch.name, "--out", inbox / "gallery.html", fails=True).stderr
    assert "is there already, and is something else: give another --out, or --force" in said
    Path("mine.html").write_text("my notes")
    call("gallery", inbox, "--out", "mine.html", fails=True)
    assert Path("mine.html").read_text() == "my notes"
    call("gallery", inbox, "--out", "mine.html", "--force")
    assert Path("mine.html").read_text() != "my notes"


def test_select_with_nothing_left_writes_no_batch_and_says_what_to_do(inbox: Path, batch: Batch) -> None:
    call("select", inbox, "--budget", 1000, "--control", 500, "--name", "rest")
    there = sorted(path.name for path in (inbox / "batches").iterdir())
    result = call("select", inbox, "--budget", 5, fails=True)
    assert result.exit_code == 1
    assert "nothing is left to choose" in result.stderr
    assert "22 chosen before" in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in (inbox / "batches").iterdir()) == there
    assert "batch rest" in call("export", inbox, "--to", "coco").output


def test_what_waits_for_its_draw_is_said_where_nothing_else_is_left(inbox: Path) -> None:
    call("select", inbox, "--budget", 1000, "--control", 0, "--min-distance", 0)
    result = call("select", inbox, "--budget", 5, "--control", 0, fails=True)
    assert "of the control stream, which wait for their draw" in result.stderr
    assert "give --control a share" in result.stderr


# --- an inbox that may only be read

NOBODY = 65534
LOOKING = f"""
import os, sys
from click.testing import CliRunner
from alpose.tools.cli import main

def run(line):
    result = CliRunner().invoke(main, line.split())
    return f"{{result.exit_code}} {{result.output}} {{result.exception!r}}".replace(chr(10), " | ")

first, _, then = sys.stdin.read().partition(chr(10) * 2)
for line in first.split(chr(10)):
    run(line)  # what this imports may lie where nobody may read
if os.getuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
for line in then.strip().split(chr(10)):
    print(run(line), flush=True)
"""


def looking(inbox: Path, out: Path) -> str:
    return "\n".join([
        f"status {inbox} --json",
        f"gallery {inbox} --out {out}/page.html",
        f"export {inbox} --to coco --out {out}/work",
        f"import {out}/work --inbox {inbox} --into {out}/dataset --unchanged accept",
        f"report {out}/dataset",
        f"gallery {inbox}",
        f"select {inbox} --budget 3",
        f"pull {inbox}/inbox.db --into {inbox}",
    ])  # fmt: skip


@pytest.fixture
def readonly(inbox: Path, batch: Batch) -> Iterator[Path]:
    """A copy of the inbox where nobody may write, for a process of another user, and a folder beside it where they may."""
    folder = Path(tempfile.mkdtemp(prefix="alpose-"))
    shutil.copytree(inbox, folder / "inbox")
    (folder / "out").mkdir()
    for path in (folder / "inbox").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (folder / "inbox").chmod(0o555)
    folder.chmod(0o755)
    (folder / "out").chmod(0o777)
    yield folder
    for path in [folder / "inbox", *(folder / "inbox").rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no users on this system")
@pytest.mark.parametrize("log", [False, True], ids=["at rest", "with a log"])
def test_an_inbox_is_read_by_those_who_may_not_write_it(log: bool, readonly: Path, inbox: Path) -> None:
    plain, inbox, out = inbox, readonly / "inbox", readonly / "out"
    writer = None
    if log:  # as a killed pull leaves it
        writer = Inbox(inbox)
        writer.source("file:///new.db", "2026-01-01")
        for ending in ("-wal", "-shm"):
            (inbox / f"inbox.db{ending}").chmod(0o444)
    before = state(inbox)
    done = subprocess.run([sys.executable, "-c", LOOKING], input=f"{looking(plain, plain.parent / 'out')}\n\n{looking(inbox, out)}",
                          capture_output=True, text=True, check=False, cwd=out)  # fmt: skip
    if writer is not None:
        writer.close()
    said = done.stdout.splitlines()
    assert [line[0] for line in said] == ["0"] * 5 + ["2", "1", "1"], done.stdout + done.stderr
    assert '"records": 14' in said[0]
    assert "10 accepted" in said[3]
    assert "does not learn that these frames are annotated" in said[3]
    assert "say with --out where to write" in said[5]
    assert "cannot be written by this user" in said[6]
    if not log:
        assert state(inbox) == before


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_export_that_somebody_has_worked_in_is_not_written_over(name: str, inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", name, "--out", "work")
    Path("work/corrected.json").write_text("{}")
    (inbox / "batches" / "week-1.json").touch()
    call("export", inbox, "--to", name, "--out", "work")
    Path("work/corrected.json").write_text("[]")  # not one of ours
    call("export", inbox, "--to", name, "--out", "work")
    path = next(path for path in sorted(Path("work").rglob("*"))
                if path.suffix in (".json", ".zip", ".txt") and path.name not in ("batch.json", "corrected.json", "README.txt", ".exported.json"))  # fmt: skip
    path.write_bytes(path.read_bytes() + b" ")
    said = call("export", inbox, "--to", name, "--out", "work", fails=True).stderr
    assert f"{path} was changed since it was written" in said
    assert path.read_bytes().endswith(b" ")
    call("export", inbox, "--to", name, "--out", "work", "--force")
    assert not path.read_bytes().endswith(b" ")
    other = next(one for one in FORMATS if one != name)
    assert f"holds the batch for {name}" in call("export", inbox, "--to", other, "--out", "work", fails=True).stderr


# --- odd files beside ours


@pytest.mark.parametrize(
    ("name", "content"),
    [("._week-1", "\0\5"), ("my notes", "{}"), ("half", '{"kind": "alp'), ("list", "[]"), ("empty", "")],
)
def test_a_file_that_is_no_batch_stops_nothing(name: str, content: str, inbox: Path, batch: Batch) -> None:
    (inbox / "batches" / f"{name}.json").write_text(content)
    assert [one["name"] for one in value_of(call("status", inbox, "--json"))["batches"]] == ["week-1"]
    assert "batch week-1" in call("export", inbox, "--to", "coco").output
    call("export", inbox, "--to", "coco", "--batch", name, fails=True)


@pytest.mark.parametrize("name", ["bundles", "failures", "batches/week-1"])
@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_damaged_file_of_a_dataset_is_one_line(name: str, content: str, inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    call("import", "week-1-coco", "--into", "dataset", "--unchanged", "accept")
    path = Path("dataset/field") / f"{name}.json"
    path.write_text(content)
    result = call("report", "dataset", fails=True)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert result.stderr.count("\n") == 1


def test_folders_of_another_kind_are_told_apart(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    assert "inbox is an inbox: give the folder of a dataset" in call(
        "import", "week-1-coco", "--into", inbox, "--unchanged", "accept", fails=True).stderr  # fmt: skip
    assert not (inbox / "annotations").exists()
    assert f"none of its {BUDGET} people comes from a harvest" in call("report", "week-1-coco", fails=True).stderr


def test_a_damaged_inbox_is_one_line(inbox: Path, batch: Batch) -> None:
    path = inbox / "inbox.db"
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 8192] = bytes(len(content) - 16384)
    path.write_bytes(content)
    for command in (["status"], ["gallery"], ["export", "--to", "coco"], ["select", "--budget", 3]):
        result = call(command[0], inbox, *command[1:], fails=True)
        assert result.exit_code == 1
        assert "inbox.db" in result.stderr
        assert "Restore it, or pull into another folder" in result.stderr


# --- what a failure is


def calibrated(inbox: Path, failure: Any, margin: float = 1.25) -> None:
    """As if the bundle had been exported with ``--failure``."""
    calibration = {"failure": failure, "profile": "standard"}
    with closing(sqlite3.connect(inbox / "inbox.db")) as db, db:
        facts = {"skeleton": LSP.to_json(), "crop": {"size_px": 64, "margin": margin}, "calibration": calibration}
        db.execute("UPDATE bundle SET facts = ?", (json.dumps(facts),))


@pytest.mark.parametrize(
    ("failure", "shift", "fails"),
    [
        (None, 20.0, False),
        ({"name": "image-pck", "limit": 1.0}, 300.0, True),
        ({"name": "any-joint", "limit": None}, 5.0, False),
        ({"name": "any-joint", "limit": None}, 300.0, True),
        ({"name": "mean-error", "limit": 0.001}, 20.0, True),
        ({"name": "mean-error", "limit": 0.9}, 20.0, False),
    ],
)
def test_a_failure_is_what_the_bundle_was_calibrated_for(
    failure: Any, shift: float, fails: bool, inbox: Path, batch: Batch
) -> None:
    """One joint of one frame is moved: half of the joints are right in any case."""
    if failure is not None:
        calibrated(inbox, failure)
    call("export", inbox, "--to", "coco")
    last = batch.choices[-1].id
    came = correct(next(Path("week-1-coco/annotations").iterdir()), {last: nudge(0, shift)}, Path("came.json"))
    call("import", came, "--into", "dataset", "--unchanged", "accept")

    labelled = read_labelled(Path("dataset"))
    assert labelled.failed_N[labelled.id_N == last].tolist() == [fails]
    assert labelled.failed_N.sum() == fails
    report = value_of(call("report", "dataset", "--json"))
    assert report["failure"] == (failure or {"name": "image-pck", "limit": 0.5})
    assert report["definition"] in call("report", "dataset").output
    assert report["definition"] in Path("dataset/field/report.html").read_text()


def test_bundles_that_call_different_things_a_failure_are_not_mixed(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "coco")
    call("import", next(Path("week-1-coco/annotations").iterdir()), "--into", "dataset", "--unchanged", "accept")
    path = Path("dataset") / ANNOTATIONS
    document = json.loads(path.read_text())
    other = "d" * 64
    for image in document["images"][:3]:
        image["alpose"]["bundle"] = other
    path.write_text(json.dumps(document))
    definitions = {sample.BUNDLE: {"failure": {"name": "any-joint", "limit": None}},
                   other: {"failure": {"name": "mean-error", "limit": 0.2}, "crop_margin": 1.25}}  # fmt: skip
    Path("dataset/field/failures.json").write_text(json.dumps(definitions))
    Path("dataset/field/bundles.json").write_text(json.dumps({sample.BUNDLE: "first", other: "second"}))

    refused = call("report", "dataset", fails=True).stderr
    assert "first 5a3b1e00" in refused
    assert "second dddd" in refused
    assert "--bundle" in refused
    second, first = (value_of(call("report", "dataset", "--bundle", name, "--json")) for name in ("second", "5a3b"))
    assert [one["failure"]["name"] for one in (first, second)] == ["any-joint", "mean-error"]
    assert 0 < second["fleet"]["labelled"] <= 3 < first["fleet"]["labelled"] <= BUDGET - 3
    assert "it knows: first" in call("report", "dataset", "--bundle", "third", fails=True).stderr


# --- formats of one's own


class Own(Coco):
    """Another format, without a README."""

    name = "own"
    returns = "CORRECTED.own"

    def write(self, handout: Handout, folder: Path) -> None:
        (folder / "poses.own").write_text(json.dumps(document(handout.tasks, handout.skeleton)))


def test_commands_name_the_formats_that_are_registered(
    inbox: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "own", Own())
    names = "|".join(FORMATS)
    assert names in call("export", "--help").output
    assert names.replace("|", ", ") in call("import", "--help").output
    assert f"--to {names} --batch" in call("select", inbox, "--budget", 3, "--seed", 3).output
    said = call("export", inbox, "--batch", batch.name, "--to", "own").output
    assert "reads and writes the format own" in said
    assert "alpose-harvest import CORRECTED.own" in said
    assert names.replace("|", ", ") in call("export", inbox, "--to", "other", fails=True).output


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_one_file_an_image_comes_back_in_a_folder_or_an_archive(
    packed: bool, inbox: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not labels is passed over, what no format knows is named; and the last corrected pose counts for all files."""
    monkeypatch.setitem(FORMATS, "per-image", PerImage())
    call("export", inbox, "--to", "per-image", "--out", "out")
    came = Path("out/points")
    (came / "README.txt").write_text("no labels")
    (came / "other.json").write_text("{}")
    last = sorted(came.glob("*.points"))[-1]
    head, first, *rest = last.read_text().splitlines()
    joint, x, y, _ = first.split()
    last.write_text("\n".join([head, f"{joint} {float(x) + 5:.2f} {y} 2", *rest]))
    if packed:
        came = Path(shutil.make_archive("came", "zip", came))

    done = value_of(call("import", came, "--into", "dataset", "--json"))

    assert (done["accepted"], done["corrected"], done["unopened"]) == (BUDGET - 1, 1, [])
    assert done["problems"] == []
    (note,) = done["notes"]
    assert "2 files without poses of people" in note
    assert {"README.txt", "other.json"} <= set(note.replace(",", "").split())
    assert done["forms"] == {came.name: "per-image"}


def test_a_folder_of_coco_files_is_taken_like_an_archive_and_one_without_labels_is_refused(
    inbox: Path, batch: Batch
) -> None:
    call("export", inbox, "--to", "coco")
    done = value_of(call("import", "week-1-coco", "--into", "dataset", "--unchanged", "accept", "--json"))
    assert (done["accepted"], done["problems"]) == (BUDGET, [])
    said = call("import", "week-1-coco/images", "--into", "other", fails=True)
    assert "images holds no file with labels" in said.stderr


# --- several skeletons


def two_skeletons(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for bundle, skeleton in (("a" * 64, LSP), ("c" * 64, MPII)):
        with Queue(folder / f"{skeleton.name}.db") as queue:
            queue.add_bundle(bundle, skeleton.name, {"skeleton": skeleton.to_json()})
            queue.tally(device="car", bundle=bundle, at_ns=10**18, frames=100, flagged=2, control=0, kept=2)
            for _ in range(2):
                queue.put(*_of(queue, rng, bundle, skeleton))
        bring(folder / "inbox", folder / f"{skeleton.name}.db")


def _of(queue: Queue, rng: np.random.Generator, bundle: str, skeleton: Skeleton) -> tuple[Record, list[Picture]]:
    record = make_record(queue, rng, bundle=bundle, keypoints_J2=rng.uniform(0, 400, (len(skeleton), 2)).astype(np.float32),
                         scores_J=np.full(len(skeleton), np.nan, dtype=np.float32), failure_probability=float("nan"))  # fmt: skip
    made = images.encode(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    return record, [Picture.of(made.data, width=640, height=480, captured_ns=1)]


def test_each_skeleton_has_its_folder_and_its_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a model that says NaN of itself breaks nothing on the way."""
    monkeypatch.chdir(tmp_path)
    two_skeletons(tmp_path)
    call("select", "inbox", "--budget", 4, "--control", 0, "--name", "b")
    for to in ("coco", "cvat", "label-studio"):
        folders = value_of(call("export", "inbox", "--to", to, "--json"))["folders"]
        assert sorted(Path(folder).name.partition("-")[2] for folder in folders) == ["lsp", "mpii"]
    files = {skeleton: next(Path("b-coco").glob(f"*-{skeleton}/annotations/*.json")) for skeleton in ("lsp", "mpii")}
    together = call("import", *files.values(), "--into", "dataset", "--unchanged", "accept", fails=True)
    assert "one skeleton" in together.output
    assert not Path("dataset").exists()
    for skeleton, path in files.items():
        done = value_of(call("import", path, "--into", skeleton, "--unchanged", "accept", "--json"))
        assert done["merged"]["added"] == 2
        assert [tally.bundle[0] for tally in read_tallies(Path(skeleton))] == [{"lsp": "a", "mpii": "c"}[skeleton]]
        assert len(read_coco(Path(skeleton))) == 2
    assert (
        "another dataset" in call("import", files["mpii"], "--into", "lsp", "--unchanged", "accept", fails=True).output
    )
    with Inbox("inbox") as opened:
        assert len(gather(opened, opened.batch("b"))) == 4


# --- the command itself


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = ("import sys; from alpose.tools.cli import main; main(['--help'], standalone_mode=False); "
            "assert not {'torch', 'scipy', 'cv2', 'matplotlib', 'fsspec'} & sys.modules.keys()")  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"COLUMNS": "100"})  # fmt: skip
    for command in main.commands:
        assert f"  {command} " in run.stdout


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_yolo_pose_goes_out_is_corrected_and_comes_back(packed: bool, inbox: Path, batch: Batch) -> None:
    """As Roboflow gives it back: other names around ours, a note, a label for detection, and one file that is empty."""
    call("export", inbox, "--to", "yolo-pose", "--out", "out")
    labels = sorted(Path("out/labels").iterdir())
    words = labels[-1].read_text().split()
    words[5] = f"{float(words[5]) + 0.05:.6f}"
    labels[-1].write_text(" ".join(words) + "\r\n")
    labels[1].write_text("")
    labels[2].write_text(f"0 0.5 0.5 0.2 0.2\n{labels[2].read_text()}")
    Path("out/README.dataset.txt").write_text("0 notes")
    came = Path(shutil.make_archive("came", "zip", "out")) if packed else Path("out")

    done = value_of(call("import", came, "--into", "dataset", "--json"))

    assert (done["accepted"], done["corrected"], done["unopened"]) == (BUDGET - 2, 1, [])
    assert done["forms"] == {came.name: "yolo-pose"}
    assert len(done["problems"]) == 2
    bare, boxed = sorted(done["problems"])
    assert f"{labels[1].name}: " in bare
    assert "has no pose" in bare
    assert f"{labels[2].name}: line 1 is a box without joints" in boxed
