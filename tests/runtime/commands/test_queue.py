"""``alpose-monitor queue …`` on real queues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from alpose.runtime.commands import main
from alpose.runtime.queue import Picture, Queue, Record
from alpose.runtime.queue.images import JPEG, PNG, decode, encode
from alpose.runtime.skeleton import LSP

BUNDLE = "ab" * 32


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)


def record(number: int, queue: Queue, **changes: Any) -> Record:
    rng = np.random.default_rng(number)
    facts: dict[str, Any] = {
        "id": queue.new_id(), "captured_ns": queue.now_ns(), "captured_monotonic_ns": number, "device": "car-17",
        "camera": "seat", "bundle": BUNDLE, "frame_width": 64, "frame_height": 48, "box": (8.0, 4.0, 40.0, 44.0),
        "place": "track", "keypoints_J2": rng.uniform((10, 6), (38, 42), (14, 2)).astype("f4"),
        "scores_J": np.ones(14, dtype="f4"), "predicted_loss": 0.5, "failure_probability": 0.1 + 0.1 * number,
        "embedding_D": np.eye(1, 4, dtype="f2")[0], "flagged": True, "reasons": (("budget", 0.8, 0.7),),
        "threshold": 0.7, "inclusion_probability": 1.0,
    }  # fmt: skip
    return Record(**facts | changes)


def picture(number: int, media_type: str = PNG) -> Picture:
    frame_HW3 = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
    encoded = encode(frame_HW3, media_type)
    return Picture.of(encoded.data, width=64, height=48, captured_ns=number, media_type=encoded.media_type)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three records: two budgets of one camera, one control frame of another, whose picture is JPEG."""
    path = tmp_path / "flagged.db"
    with Queue(path) as queue:
        queue.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
        queue.put(record(1, queue), [picture(1)])
        queue.put(record(8, queue), [picture(8)])
        queue.put(record(2, queue, camera="cabin", flagged=False, reasons=(("control", 0.0003, 0.001),),
                         control_draw=0.0003, inclusion_probability=0.001), [picture(2, JPEG)])  # fmt: skip
    return path


def listed(path: Path, *options: str) -> list[dict[str, Any]]:
    result = run("queue", "ls", path, "--json", *options)
    assert result.exit_code == 0, result.output
    records: list[dict[str, Any]] = json.loads(result.output)["records"]
    return records


def probabilities(records: list[dict[str, Any]]) -> list[float]:
    return [round(one["failure_probability"], 3) for one in records]


def test_ls_orders_and_filters(path: Path) -> None:
    assert probabilities(listed(path)) == [0.2, 0.9, 0.3]
    assert probabilities(listed(path, "--order", "value"))[0] == 0.9
    assert probabilities(listed(path, "--reason", "control")) == [0.3]
    assert probabilities(listed(path, "--camera", "seat")) == [0.2, 0.9]
    assert listed(path, "--device", "car-18") == []
    assert probabilities(listed(path, "--limit", "2")) == [0.2, 0.9]
    assert listed(path, "--state", "pulled") == []


def test_ls_is_a_table_whose_ids_other_commands_take(path: Path) -> None:
    result = run("queue", "ls", path)
    lines = result.output.splitlines()
    assert "P(fail)" in lines[0]
    assert [line.split()[3] for line in lines[1:4]] == ["0.20", "0.90", "0.30"]
    assert "budget" in lines[1]
    assert "control" in lines[3]
    assert "3 records" in result.output
    shown = run("queue", "show", path, lines[2].split()[0], "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["failure_probability"] == pytest.approx(0.9)


def test_show_prints_every_fact(path: Path) -> None:
    first = listed(path)[0]
    result = run("queue", "show", path, first["id"])
    for words in ("car-17", "seat", "budget 0.8 >= 0.7", "inclusion_probability", first["sha256"], "64 x 48"):
        assert words in result.output


def test_show_without_an_id_takes_the_most_valuable_record(path: Path, tmp_path: Path) -> None:
    shown = json.loads(run("queue", "show", path, "--json").output)
    assert shown["failure_probability"] == pytest.approx(0.9)
    Queue(tmp_path / "empty.db").close()
    assert "holds no record" in run("queue", "show", tmp_path / "empty.db").output


def test_an_id_that_is_unknown_or_begins_several_is_an_error_in_one_line(path: Path) -> None:
    for beginning, words in (("ffff", "has no record ffff"), ("0", "give more digits")):
        result = run("queue", "show", path, beginning)
        assert result.exit_code == 2
        assert words in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_a_picture_is_saved_as_its_very_bytes_or_in_another_form(path: Path, tmp_path: Path) -> None:
    first = listed(path)[0]["id"]
    assert run("queue", "show", path, first, "--save", tmp_path / "a.png").exit_code == 0
    with Queue(path, readonly=True) as queue:
        assert (tmp_path / "a.png").read_bytes() == queue.pictures(first)[0].data
    assert run("queue", "show", path, first, "--save", tmp_path / "a.jpg").exit_code == 0
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"
    for options, words in (
        ((tmp_path / "a.gif",), "ends in"),
        ((tmp_path / "b.png", "--position", "-3"), "position -3"),
    ):
        result = run("queue", "show", path, first, "--save", *options)
        assert result.exit_code == 2
        assert words in result.output


def test_a_drawn_picture_shows_the_pose_where_it_is(path: Path, tmp_path: Path) -> None:
    with Queue(path, readonly=True) as queue:
        first = queue.peek()[0]
    assert run("queue", "show", path, first.id, "--save", tmp_path / "a.png", "--draw").exit_code == 0
    drawn_HW3 = decode((tmp_path / "a.png").read_bytes())
    assert drawn_HW3.shape == (48, 64, 3)
    for x, y in first.keypoints_J2:
        spot = drawn_HW3[round(float(y)), round(float(x))].astype(int)
        assert np.abs(spot - 20).max() > 60
    assert (drawn_HW3[:2, 60:] == 20).all()


def test_a_sealed_picture_needs_its_key(tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    from alpose.runtime.bundle.keys import sealer

    made = run("queue", "keygen", tmp_path / "fleet")
    assert made.exit_code == 0, made.output
    assert "x25519" in made.output
    path = tmp_path / "flagged.db"
    plain = picture(3)
    with Queue(path) as queue:
        box = sealer(tmp_path / "fleet.pub")(plain.data)
        queue.put(record(1, queue), [Picture.of(box, width=64, height=48, captured_ns=1, media_type=PNG, sealed=True)])
    first = listed(path)[0]["id"]
    refused = run("queue", "show", path, first, "--save", tmp_path / "a.png")
    assert refused.exit_code == 2
    assert "--key" in refused.output
    assert run("queue", "show", path, first, "--save", tmp_path / "a.png", "--key", tmp_path / "fleet").exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == plain.data


@pytest.mark.parametrize(
    "command",
    ["ls", "ls --json", "show", "show --json", "check", "purge --everything --dry-run", "delete --force --dry-run ID"],
)
@pytest.mark.parametrize("live", [False, True])
def test_what_only_looks_writes_no_byte_and_evicts_nothing(path: Path, command: str, live: bool) -> None:
    with Queue(path, max_bytes=400 << 20, half_life_s=3600.0) as queue:
        id = queue.peek()[0].id
        if not live:
            queue.close()
        before = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
        verb, *options = command.replace("ID", id).split()
        result = run("queue", verb, path, *options)
        assert result.exit_code == 0, result.output
        after = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
    assert after == before


def test_a_command_that_changes_records_leaves_the_settings_of_the_file(path: Path) -> None:
    with Queue(path, max_bytes=400 << 20, half_life_s=3600.0) as queue:
        id = queue.peek()[0].id
    assert run("queue", "acknowledge", path, id).exit_code == 0
    assert run("queue", "delete", path, id, "--yes").exit_code == 0
    with Queue(path) as queue:
        info = queue.info()
        assert (info.records, info.max_bytes) == (2, 400 << 20)
        assert not [name for name, _ in info.counters if name == "evicted_total"]


def test_json_is_json_whatever_a_model_answered(path: Path) -> None:
    with Queue(path) as queue:
        numbers = np.array([np.nan, np.inf] * 14, dtype="f4")
        bad = record(3, queue, keypoints_J2=numbers.reshape(14, 2), scores_J=numbers[:14], predicted_loss=np.inf,
                     failure_probability=np.nan, box=(np.nan, 0.0, np.inf, 1.0), reasons=(("cooldown", 1.0, np.inf),))  # fmt: skip
        id = queue.put(bad, [picture(3)]).id
    for command in (["ls", path], ["show", path, id]):
        result = run("queue", *command, "--json")
        assert result.exit_code == 0, result.output
        json.loads(result.output, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        assert run("queue", *command).exit_code == 0


def test_purge_asks_and_a_dry_run_removes_nothing(path: Path) -> None:
    dry = run("queue", "purge", path, "--camera", "seat", "--dry-run")
    assert dry.exit_code == 0
    assert "2 records would be removed" in dry.output
    assert run("queue", "purge", path, "--camera", "seat", input="n\n").exit_code == 1
    assert len(listed(path)) == 3
    assert run("queue", "purge", path, "--camera", "seat", input="y\n").exit_code == 0
    assert probabilities(listed(path)) == [0.3]
    assert run("queue", "purge", path, "--everything", "--yes").exit_code == 0
    assert listed(path) == []


def test_what_was_removed_is_one_json_value_on_standard_output(path: Path) -> None:
    dry = run("queue", "purge", path, "--camera", "seat", "--dry-run", "--json")
    would = json.loads(dry.stdout)["would_remove"]
    asked = run("queue", "purge", path, "--camera", "seat", "--json", input="y\n").stdout

    assert would > 0
    assert json.loads(asked[asked.index("{") :]) == {"queue": str(path), "removed": would}


def test_purge_by_age_keeps_what_is_young(path: Path) -> None:
    assert "no such records" in run("queue", "purge", path, "--older-than", "1h", "--yes").output
    assert run("queue", "purge", path, "--older-than", "0s", "--yes").exit_code == 0
    assert listed(path) == []


def test_purge_without_a_condition_is_wrong_usage(path: Path) -> None:
    assert run("queue", "purge", path, "--yes").exit_code == 2
    assert run("queue", "purge", path, "--everything", "--camera", "seat", "--yes").exit_code == 2
    assert run("queue", "purge", path, "--older-than", "soon", "--yes").exit_code == 2
    assert len(listed(path)) == 3


def test_only_what_was_acknowledged_is_deleted_without_force(path: Path) -> None:
    ids = [one["id"] for one in listed(path)]
    refused = run("queue", "delete", path, *ids[:2], "--yes")
    assert refused.exit_code == 2
    assert "2 of 2 records were not acknowledged" in refused.output
    assert "1 records acknowledged" in run("queue", "acknowledge", path, ids[0]).output
    assert run("queue", "delete", path, ids[0], "--yes").exit_code == 0
    assert run("queue", "delete", path, ids[1], "--yes", "--force").exit_code == 0
    assert [one["id"] for one in listed(path)] == ids[2:]


def test_check_says_by_its_exit_status_whether_all_is_whole(path: Path) -> None:
    sound = run("queue", "check", path)
    assert sound.exit_code == 0, sound.output
    assert "3 records, 3 pictures: ok" in sound.output
    needle = picture(8).data[-40:]
    content = path.read_bytes()
    assert content.count(needle) == 1
    path.write_bytes(content.replace(needle, bytes(40)))
    torn = run("queue", "check", path)
    assert torn.exit_code == 1, torn.output
    assert "DAMAGED" in torn.output
    assert not json.loads(run("queue", "check", path, "--json").output)["ok"]


def test_recover_saves_what_is_whole(path: Path, tmp_path: Path) -> None:
    needle = picture(8).data[-40:]
    path.write_bytes(path.read_bytes().replace(needle, bytes(40)))
    before = path.read_bytes()
    result = run("queue", "recover", path, "--into", tmp_path / "new.db")
    assert result.exit_code == 0, result.output
    assert "saved 2 records" in result.output
    assert probabilities(listed(tmp_path / "new.db")) == [0.2, 0.3]
    assert path.read_bytes() == before
