"""An MCAP file, read by the format's own reader."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import LSP, Queue
from alpose.runtime.queue.images import decode, encode
from alpose.runtime.queue.record import Picture
from alpose.tools.batch import Batch
from alpose.tools.inbox import Inbox

from .harvest import bring, call, value_of
from .queues import make_record

reader: Any = pytest.importorskip("mcap.reader", reason="the extra alpose[mcap] is not installed")


def messages(path: Path) -> list[tuple[Any, Any, Any, Any]]:
    with open(path, "rb") as file:
        return [(schema, channel, message, json.loads(message.data))
                for schema, channel, message in reader.make_reader(file, validate_crcs=True).iter_messages()]  # fmt: skip


def test_pictures_clips_poses_and_verdicts_stand_at_their_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle("a" * 64, "driver", {"skeleton": LSP.to_json()})
        record = make_record(queue, rng, bundle="a" * 64, device="car 17", camera="seat")
        pictures = []
        for position in (-1, 0, 1):
            made = encode(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            pictures.append(
                Picture.of(made.data, width=80, height=60, captured_ns=record.captured_ns + position * 10**8,
                           position=position, origin=(99.5, 49.5), scale=2.0)
            )  # fmt: skip
        queue.put(record, pictures)
    bring(tmp_path / "inbox", tmp_path / "q.db")
    done = value_of(call("mcap", tmp_path / "inbox", "--out", tmp_path / "x.mcap", "--json"))

    assert (done["records"], done["pictures"], done["missing"]) == (1, 3, {})
    found = messages(tmp_path / "x.mcap")
    by_topic = {channel.topic: [one for one in found if one[1].topic == channel.topic] for _, channel, _, _ in found}
    assert set(by_topic) == {"/car_17/seat/image", "/car_17/seat/pose", "/car_17/seat/verdict"}
    assert {one[0].name for one in found} == {"foxglove.CompressedImage", "foxglove.ImageAnnotations", "alpose.Record"}
    assert all(one[0].encoding == "jsonschema" and one[1].message_encoding == "json" for one in found)
    images = by_topic["/car_17/seat/image"]
    assert [message.log_time - record.captured_ns for _, _, message, _ in images] == [-(10**8), 0, 10**8]
    for (_, _, _, value), picture in zip(images, pictures, strict=True):
        assert value["format"] == "jpeg"
        assert value["timestamp"]["sec"] * 10**9 + value["timestamp"]["nsec"] == picture.captured_ns
        assert base64.b64decode(value["data"]) == picture.data
        assert decode(base64.b64decode(value["data"])).shape == (60, 80, 3)
    ((_, _, _, pose),) = by_topic["/car_17/seat/pose"]
    links, joints, box = pose["points"]
    assert (links["type"], joints["type"], box["type"]) == (4, 1, 2)
    assert len(links["points"]) == 2 * len(links["outline_colors"]) == 2 * len(LSP.links)
    # In pixels of the picture, which is a part of the frame at half its size.
    expected_J2 = (record.keypoints_J2 - (99.5, 49.5)) / 2 - 0.5
    assert np.abs(np.array([(one["x"], one["y"]) for one in joints["points"]]) - expected_J2).max() < 0.01
    assert pose["texts"][0]["text"].startswith(f"P(fail) {record.failure_probability:.2f}")
    ((_, _, _, verdict),) = by_topic["/car_17/seat/verdict"]
    assert verdict["id"] == done_id(tmp_path)
    assert verdict["failure_probability"] == pytest.approx(record.failure_probability)


def done_id(folder: Path) -> str:
    with Queue(folder / "q.db", readonly=True) as queue:
        return queue.peek()[0].id


def test_a_batch_alone_and_what_has_no_picture_is_counted(inbox: Path, batch: Batch) -> None:
    said = call("mcap", inbox, "--batch", batch.name)
    assert f"{len(batch.choices)} records" in said.stdout
    assert not (inbox / "flagged.mcap").exists()
    ids = [value["id"] for _, channel, _, value in messages(inbox / "week-1.mcap") if channel.topic.endswith("verdict")]
    assert sorted(ids) == sorted(choice.id for choice in batch.choices)
    for path in list((inbox / "frames").rglob("*.jpg"))[:3]:
        path.unlink()
    done = value_of(call("mcap", inbox, "--json"))
    assert done["missing"] == {"not fetched yet": 3}


def test_a_pose_that_is_not_finite_is_written_without_what_json_cannot_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle("a" * 64, "driver", {"skeleton": LSP.to_json()})
        lost_J2 = np.full((14, 2), np.nan, dtype=np.float32)
        record = make_record(queue, rng, bundle="a" * 64, keypoints_J2=lost_J2, failure_probability=float("nan"))
        data = encode(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).data
        queue.put(record, [Picture.of(data, width=80, height=60, captured_ns=record.captured_ns)])
    bring(tmp_path / "inbox", tmp_path / "q.db")
    call("mcap", tmp_path / "inbox")
    found = {channel.topic: value for _, channel, _, value in messages(tmp_path / "inbox" / "flagged.mcap")}
    assert found["/car-1/verdict"]["failure_probability"] is None
    assert found["/car-1/pose"]["points"][0]["points"] == []


def test_cameras_whose_names_are_the_same_in_plain_letters_have_topics_of_their_own(tmp_path: Path) -> None:
    cameras = [("car 17", "Rücksitz"), ("car_17", "Rücksitz"), ("car 17", "R cksitz"), ("car 17", ""), ("car_17", "")]
    rng = np.random.default_rng(0)
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle("a" * 64, "driver", {"skeleton": LSP.to_json()})
        data = encode(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).data
        for device, camera in cameras:
            record = make_record(queue, rng, bundle="a" * 64, device=device, camera=camera)
            queue.put(record, [Picture.of(data, width=80, height=60, captured_ns=record.captured_ns)])
    bring(tmp_path / "inbox", tmp_path / "q.db")
    call("mcap", tmp_path / "inbox")
    cameras_of: dict[str, set[tuple[str, str]]] = {}
    for _, channel, _, value in messages(tmp_path / "inbox" / "flagged.mcap"):
        cameras_of.setdefault(channel.topic, set()).add((channel.metadata["device"], channel.metadata["camera"]))
        if channel.topic.endswith("verdict"):
            assert (value["device"], value["camera"]) == (channel.metadata["device"], channel.metadata["camera"])
    assert len(cameras_of) == 3 * 5
    assert all(len(of) == 1 for of in cameras_of.values())
    assert all(topic.isascii() for topic in cameras_of)


def test_pictures_that_are_damaged_here_or_came_so_are_counted_and_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = encode(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).data
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle("a" * 64, "driver", {"skeleton": LSP.to_json()})
        ids = []
        for data in (good, good, b"\xff\xd8\xff no picture at all", good):
            record = make_record(queue, rng, bundle="a" * 64)
            queue.put(record, [Picture.of(data, width=80, height=60, captured_ns=record.captured_ns)])
            ids.append(record.id)
    bring(tmp_path / "inbox", tmp_path / "q.db")
    with Inbox(tmp_path / "inbox") as inbox:
        path = inbox.image(ids[1])
    assert path is not None
    path.write_bytes(good[:-40] + bytes(40))
    done = value_of(call("mcap", tmp_path / "inbox", "--json"))
    assert (done["records"], done["pictures"]) == (4, 2)
    assert done["missing"] == {"damaged in the inbox": 1, "as damaged as their device sent them": 1}
    found = messages(tmp_path / "inbox" / "flagged.mcap")
    for _, channel, _, value in found:
        if channel.topic.endswith("image"):
            assert base64.b64decode(value["data"]) == good
    assert sum(channel.topic.endswith("verdict") for _, channel, _, _ in found) == 4
    # Nor do annotators get them.
    call("select", tmp_path / "inbox", "--budget", 4, "--min-distance", 0, "--control", 0)
    said = call("export", tmp_path / "inbox", "--to", "coco", "--out", tmp_path / "work")
    assert "1 of the batch are left out, as damaged as their device sent them; nothing can be done" in said.stderr
    assert "2 frames of batch" in said.stdout


def test_the_file_of_the_same_frames_is_renewed_and_any_other_stays(inbox: Path, batch: Batch) -> None:
    other = Path("other.mcap")
    call("mcap", inbox, "--out", other)
    before = other.read_bytes()
    call("mcap", inbox, "--out", other)
    said = call("mcap", inbox, "--batch", batch.name, "--out", other, fails=True)
    assert "other.mcap is there already" in said.stderr
    assert len(other.read_bytes()) == len(before)
    other.write_bytes(before[:999])
    call("mcap", inbox, "--out", other, fails=True)
    call("mcap", inbox, "--batch", batch.name, "--out", other, "--force")
    call("mcap", inbox, "--batch", batch.name, "--out", other)


def test_people_on_one_frame_share_its_picture_and_one_message_of_poses(tmp_path: Path) -> None:
    """Two cameras of one device see two people each at the same time."""
    rng = np.random.default_rng(0)
    data = {camera: encode(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).data for camera in ("front", "rear")}
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle("a" * 64, "driver", {"skeleton": LSP.to_json()})
        for camera in ("front", "rear", "front", "rear"):
            record = make_record(queue, rng, bundle="a" * 64, camera=camera, captured_ns=10**18)
            queue.put(record, [Picture.of(data[camera], width=80, height=60, captured_ns=10**18)])
    bring(tmp_path / "inbox", tmp_path / "q.db")
    done = value_of(call("mcap", tmp_path / "inbox", "--json"))
    assert (done["records"], done["pictures"], done["missing"]) == (4, 2, {})
    found = messages(tmp_path / "inbox" / "flagged.mcap")
    for camera in data:
        mine = [
            (channel.topic.rpartition("/")[2], value)
            for _, channel, _, value in found
            if f"/{camera}/" in channel.topic
        ]
        assert sorted(topic for topic, _ in mine) == ["image", "pose", "verdict", "verdict"]
        (image,) = (value for topic, value in mine if topic == "image")
        assert base64.b64decode(image["data"]) == data[camera]
        (pose,) = (value for topic, value in mine if topic == "pose")
        assert len(pose["texts"]) == 2
        assert len({text["position"]["y"] for text in pose["texts"]}) == 2
        assert len(pose["points"]) == 2 * 3
