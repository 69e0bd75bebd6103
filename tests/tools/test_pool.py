"""``alpose-train select``: a pool of pictures is scored, chosen from, annotated, and its labels come back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.runtime.skeleton import COCO, LSP
from alpose.tools.formats import FORMATS
from alpose.tools.inbox import Inbox
from alpose.tools.pool import Selected, choose, select_pool
from alpose.trainer.cli import main
from alpose.trainer.data.coco import read_coco
from alpose.trainer.device import device_context
from alpose.trainer.methods.catalog import METHODS, Method
from alpose.trainer.pool.scorers import open_scorer, ways
from alpose.trainer.pool.scores import PoolScores, score_pool

from .harvest import call, value_of
from .pools import fill, halves, own_model, pixels, with_orientation
from .test_format_contract import RETURNS

CPU = device_context("cpu", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("pools") / "pool")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def chosen(model: Path, pool: Path, cache: Path, tmp_path: Path) -> Callable[..., Selected]:
    def run(out: str = "out", pool: Path | str = pool, **options: Any) -> Selected:
        return select_pool(
            model, pool, tmp_path / out, machine=CPU, **{"cache": cache, "budget": 4, "name": "week-1", **options}
        )

    return run


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def picks(selected: Selected) -> list[tuple[str, str]]:
    return [(choice.id, choice.reason) for choice in selected.batch.choices]


def scored(model: Path, pool: Path | str, cache: Path, **options: Any) -> PoolScores:
    return score_pool(model, pool, cache, machine=CPU, **options)


OWN_WAYS = (
    "value",
    "top",
    "odds",
    "clusters",
    "random",
    "coreset",
    "entropy",
    "multipeak",
    "multipeak-2021",
    "multipeak-2022",
    "epck",
    "ll++",
)


def test_a_model_of_ours_can_choose_in_every_way_that_is_tested_here(model: Path) -> None:
    assert set(ways(open_scorer(model, CPU).about)) == set(OWN_WAYS)


@pytest.mark.parametrize("by", OWN_WAYS)
def test_every_way_chooses_the_same_people_whatever_the_shards(
    by: str, model: Path, pool: Path, tmp_path: Path
) -> None:
    found = []
    for size in (1, 5, 100):
        scores = scored(model, pool, tmp_path / f"cache-{size}", by=by, shard=size)
        picks = choose(scores, by, 7, seed=3)
        assert len({scores.picture_N[pick.row] for pick in picks}) == 7
        assert all(pick.reason for pick in picks)
        found.append([(scores.id_N[pick.row], scores.failure_N[pick.row], pick.reason) for pick in picks])
    assert found[0] == found[1] == found[2]


def test_a_method_that_somebody_registers_chooses_from_a_pool_too(
    model: Path, pool: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_number(pool: Any) -> Any:
        return np.asarray(pool.scored.embedding_ND[:, 0], np.float32)

    monkeypatch.setitem(METHODS, "first-number", Method("first-number", METHODS["random"].look, score=first_number))
    scores = scored(model, pool, cache, by="first-number")
    picks = choose(scores, "first-number", 3, seed=0)
    order = np.argsort(-scores.embedding_ND[:, 0].astype(np.float32), kind="stable")
    assert [pick.row for pick in picks] == order[:3].tolist()
    assert picks[0].reason.startswith("first-number 0.")
    assert picks[0].reason.endswith("number 1 of 12 people")


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_goes_out_and_comes_back(name: str, chosen: Callable[..., Selected], tmp_path: Path) -> None:
    done = chosen(to=name)
    (folder,) = done.written.folders
    assert folder == tmp_path / "out" / name
    came = RETURNS[name](folder, {})
    assert isinstance(came, Path)
    result = value_of(call("import", came, "--inbox", tmp_path / "out" / "inbox", "--into", tmp_path / "dataset",
                           "--unchanged", "accept", "--json"))  # fmt: skip
    assert (result["accepted"], result["problems"], result["merged"]["added"]) == (4, [], 4)
    people = read_coco(tmp_path / "dataset")
    assert people.skeleton.joints == LSP.joints
    # The pictures are the pool's own bytes, and the dataset knows which.
    places = {image["alpose"]["camera"] for path in (tmp_path / "dataset" / "annotations").glob("*.json")
              for image in json.loads(path.read_text())["images"]}  # fmt: skip
    assert places == {name for name, _ in done.pictures}


def test_the_command_says_why_and_where_and_what_next(model: Path, pool: Path, cache: Path, tmp_path: Path) -> None:
    arguments = (
        "select",
        "--model",
        model,
        "--pool",
        pool,
        "--budget",
        5,
        "--to",
        "cvat",
        "--cache",
        cache,
        "--device",
        "cpu",
    )
    result = train(*arguments, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "12 people on 12 pictures" in result.stdout
    assert (
        f"alpose-harvest import annotated.zip --inbox {tmp_path / 'a' / 'inbox'}" in result.stdout
        or "--inbox" in result.stdout
    )
    value = json.loads((tmp_path / "a" / "selection.json").read_text())
    assert [bool(one["reason"]) for one in value["pictures"]] == [True] * 5
    assert {one["picture"] for one in value["pictures"]} <= {path.name for path in pool.iterdir()}
    as_json = train(*arguments, "--out", tmp_path / "b", "--json", "--by", "random")
    assert json.loads(as_json.stdout)["by"] == "random"
    again = train(*arguments, "--out", tmp_path / "a")
    assert again.exit_code == 2
    assert "holds a selection already" in again.output
    wrong = train(*arguments, "--out", tmp_path / "c", "--by", "oracle-loss")
    assert wrong.exit_code == 2
    assert "true labels" in wrong.output
    assert "value, top, odds, clusters, random, coreset" in wrong.output


def test_another_choice_scores_nothing_again_and_an_earlier_one_is_left_out(
    chosen: Callable[..., Selected], tmp_path: Path
) -> None:
    first = chosen("first", to="coco", by="coreset")
    second = chosen("second", to="coco", by="coreset", after=[tmp_path / "first"])
    ranked = chosen("ranked", to="coco", by="epck", budget=100, after=[tmp_path / "first"])
    assert {choice.id for choice in ranked.batch.choices}.isdisjoint(choice.id for choice in first.batch.choices)
    assert len(ranked.pictures) == 8
    third = chosen("third", to="coco", budget=100, after=[tmp_path / "first", tmp_path / "second"], by="top")
    assert second.scored_now == third.scored_now == 0
    sets = [{choice.id for choice in one.batch.choices} for one in (first, second, third)]
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & sets[2]
    assert sum(map(len, sets)) == 12
    with pytest.raises(DataError, match="nobody left"):
        chosen("fourth", to="coco", after=[tmp_path / name for name in ("first", "second", "third")])


# --- Pictures as they come


def test_broken_pictures_are_listed_and_passed_over(
    model: Path, tmp_path: Path, chosen: Callable[..., Selected]
) -> None:
    pool = fill(tmp_path / "pool", 6)
    jpeg = (pool / "000000.jpg").read_bytes()
    (pool / "empty.jpg").write_bytes(b"")
    (pool / "text.png").write_text("this is no picture")
    (pool / "torn.jpg").write_bytes(jpeg[: len(jpeg) // 20])
    (pool / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (pool / "folder.jpg").mkdir()
    os.mkfifo(pool / "pipe.jpg")
    (pool / "notes.txt").write_text("no picture by its name")
    (pool / ".hidden.jpg").write_bytes(jpeg)
    done = chosen(pool=pool, to="coco", budget=100, cache=tmp_path / "cache")
    assert set(done.left_out) == {"empty.jpg", "text.png", "torn.jpg", "dangling.jpg", "pipe.jpg"}
    assert all(done.left_out.values())
    assert len(done.pictures) == 6
    assert done.others == 2
    assert json.loads((done.out / "selection.json").read_text())["left_out"] == dict(done.left_out)
    # They are known: nothing is read again.
    assert chosen("again", pool=pool, to="coco", cache=tmp_path / "cache").scored_now == 0


def test_a_pool_of_broken_pictures_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.jpg").write_text("no")
    with pytest.raises(DataError, match=r"nobody to choose on any of its 1 pictures.*cannot be decoded"):
        scored(model, tmp_path / "pool", tmp_path / "cache")
    with pytest.raises(DataNotFoundError, match="has no picture"):
        scored(
            model,
            shutil.copytree(tmp_path / "pool", tmp_path / "none", ignore=lambda *_: ["a.jpg"]),
            tmp_path / "cache",
        )


def test_of_pictures_with_one_content_the_first_is_taken(model: Path, tmp_path: Path) -> None:
    pool = fill(tmp_path / "pool", 6)
    (pool / "z").mkdir()
    for name in ("000001.png", "000003.jpg"):
        shutil.copy(pool / name, pool / "z" / name)
    for size in (1, 3, 100):
        scores = scored(model, pool, tmp_path / f"cache-{size}", shard=size)
        assert len(scores) == 6
        assert scores.left_out == dict.fromkeys(
            ("z/000001.png", "z/000003.jpg"), "another picture has the same content"
        )


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_exif_turns_is_scored_and_handed_out_upright(
    orientation: int, model: Path, tmp_path: Path, chosen: Callable[..., Selected]
) -> None:
    quarter_turns = {3: 2, 6: 1}[orientation]
    upright = pixels(5)
    stored = np.ascontiguousarray(np.rot90(upright, quarter_turns))
    pool = fill(tmp_path / "pool", 1)
    done, jpeg = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert done
    (pool / "turned.jpg").write_bytes(with_orientation(jpeg.tobytes(), orientation))
    cv2.imwrite(str(tmp_path / "upright.png"), upright)
    plain = fill(tmp_path / "plain", 1)
    shutil.copy(tmp_path / "upright.png", plain / "turned.png")
    both = [scored(model, each, tmp_path / "cache") for each in (pool, plain)]
    assert both[0].failure_N == pytest.approx(both[1].failure_N, abs=0.02)
    selected = chosen(pool=pool, to="coco", cache=tmp_path / "cache")
    assert selected.turned == 1
    with Inbox(selected.out / "inbox") as inbox:
        (entry,) = [
            entry
            for entry in inbox.entries(one.id for one in selected.batch.choices)
            if entry.record.camera == "turned.jpg"
        ]
        path = inbox.image(entry.record.id)
        assert (entry.pictures[0].width, entry.pictures[0].height) == (80, 60)
    # As any reader sees it, whether it heeds EXIF or not.
    for flags in (cv2.IMREAD_COLOR, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION):
        seen: Any = cv2.imread(str(path), flags)
        assert np.abs(seen.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("ending", ["bmp", "webp", "tiff"])
def test_other_kinds_of_picture_are_handed_out_as_jpeg(
    ending: str, tmp_path: Path, chosen: Callable[..., Selected]
) -> None:
    (tmp_path / "pool").mkdir()
    cv2.imwrite(str(tmp_path / "pool" / f"a.{ending}"), pixels(1))
    done = chosen(pool=tmp_path / "pool", to="coco", cache=tmp_path / "cache")
    assert done.turned == 1
    assert [path.suffix for path in (done.written.folders[0] / "images").iterdir()] == [".jpg"]


def test_scores_of_another_precision_are_others(model: Path, pool: Path, tmp_path: Path) -> None:
    exact = scored(model, pool, tmp_path)
    rough = score_pool(model, pool, tmp_path, machine=device_context("cpu", "bf16"))
    assert (exact.scored_now, rough.scored_now) == (12, 12)
    assert not np.array_equal(exact.failure_N, rough.failure_N)


def test_only_what_changed_is_scored_again(model: Path, tmp_path: Path) -> None:
    pool, cache = fill(tmp_path / "pool"), tmp_path / "cache"
    before = scored(model, pool, cache, shard=5)
    cv2.imwrite(str(pool / "000004.png"), pixels(100))
    cv2.imwrite(str(pool / "new.png"), pixels(101))
    (pool / "000001.png").unlink()
    after = scored(model, pool, cache, shard=5)
    assert (before.scored_now, after.scored_now, len(after)) == (12, 2, 12)
    fresh = scored(model, pool, tmp_path / "other", shard=7)
    np.testing.assert_array_equal(after.id_N, fresh.id_N)
    np.testing.assert_array_equal(after.embedding_ND, fresh.embedding_ND)


def test_a_picture_that_changes_after_it_was_scored_is_not_handed_out(
    chosen: Callable[..., Selected], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alpose.trainer.pool.scores as module

    pool = fill(tmp_path / "pool", 3)

    def and_change(*arguments: Any, **options: Any) -> PoolScores:
        found = score_pool(*arguments, **options)
        cv2.imwrite(str(pool / "000001.png"), pixels(200))
        return found

    monkeypatch.setattr(module, "score_pool", and_change)
    done = chosen(pool=pool, to="coco", cache=tmp_path / "cache")
    assert list(done.left_out) == ["000001.png"]
    assert "changed since it was scored" in done.left_out["000001.png"]
    assert len(done.pictures) == 2


def test_a_damaged_file_of_scores_is_put_aside_and_scored_again(
    model: Path, pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = scored(model, pool, tmp_path, shard=4)
    path = before.shards[1]
    path.write_bytes(path.read_bytes()[:-300])
    after = scored(model, pool, tmp_path, shard=4)
    assert after.scored_now == 4
    assert "scored again" in caplog.text
    np.testing.assert_array_equal(after.failure_N, before.failure_N)


# --- Where people are


def detections(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_boxes_of_a_file_and_of_a_function_are_the_same_people(model: Path, pool: Path, tmp_path: Path) -> None:
    # By number as COCO has it, by name, and by place; the second person of each is below.
    calls = [number if number % 3 == 0 else f"{number:06d}.png" for number in range(12)]
    entries = [{"image_id": call, "category_id": 1, "bbox": box, "score": 0.9}
               for call in calls for box in ([0, 0, 40, 59], [40, 0, 39, 59])]  # fmt: skip
    entries += [{"image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.1},
                {"image_id": 0, "category_id": 3, "bbox": [1, 1, 9, 9], "score": 0.9},
                {"image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 9], "score": 0.9},
                {"image_id": 999, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.9}]  # fmt: skip
    by_file = scored(model, pool, tmp_path, boxes=detections(tmp_path / "a.json", entries))
    by_function = scored(model, pool, tmp_path, boxes=halves)
    assert len(by_file) == 24
    assert sum(by_file.detections_left_out.values()) == 3
    np.testing.assert_array_equal(by_file.id_N, by_function.id_N)
    np.testing.assert_array_equal(by_file.failure_N, by_function.failure_N)
    document = {
        "images": [{"id": 7, "file_name": "000003.jpg"}], "categories": [{"id": 5, "name": "person"}, {"id": 1, "name": "car"}],
        "annotations": [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 40, 59]}, {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }  # fmt: skip
    one = scored(model, pool, tmp_path, boxes=detections(tmp_path / "b.json", document))
    assert one.id_N.tolist() == [by_file.id_N[6]]
    assert set(one.left_out.values()) == {"nobody on it"}


def test_everybody_on_a_chosen_picture_comes_along(chosen: Callable[..., Selected]) -> None:
    done = chosen(to="label-studio", boxes=halves)
    assert len(done.pictures) == 4
    assert len(done.batch.choices) == 8
    assert done.written.pictures == 4
    tasks = json.loads((done.written.folders[0] / "tasks.json").read_text())
    assert len(tasks) == 4
    ranks: dict[str, list[int]] = {}
    with Inbox(done.out / "inbox") as inbox:
        for choice, entry in zip(done.batch.choices, inbox.entries(one.id for one in done.batch.choices), strict=True):
            ranks.setdefault(entry.record.camera, []).append(choice.rank)
    assert list(ranks) == [name for name, _ in done.pictures]
    assert all(ranks[name] == [2 * place + 1, 2 * place + 2] for place, name in enumerate(ranks))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "has no box of a person: it is empty"),
        ({"categories": []}, "is not a COCO file of detections"),
        ([{"image_id": 1, "bbox": [0, 0, 5, 5], "score": 0.1}], "1 with a score below 0.3"),
        ([{"image_id": "elsewhere.jpg", "bbox": [0, 0, 5, 5]}], "none of its 12 pictures has a box"),
        ([{"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]}, {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5]}],
         "does not say which is a person"),
        ([{"image_id": 1, "bbox": "wide"}], "1 whose box has no side"),
    ],
)  # fmt: skip
def test_detections_that_cannot_be_used_are_refused_with_the_reason(
    entries: Any, message: str, model: Path, pool: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        scored(model, pool, tmp_path, boxes=detections(tmp_path / "a.json", entries))


def test_a_name_that_means_two_pictures_is_refused(model: Path, tmp_path: Path) -> None:
    fill(tmp_path / "pool" / "a", 2)
    cv2.imwrite(str(tmp_path / "pool" / "000001.png"), pixels(50))
    entries = detections(tmp_path / "d.json", [{"image_id": 1, "bbox": [0, 0, 40, 40]}])
    with pytest.raises(DataError, match=r"may belong to 000001.png or to a/000001.png"):
        scored(model, tmp_path / "pool", tmp_path, boxes=entries)


def test_boxes_outside_of_a_picture_and_twins_are_noted(model: Path, pool: Path, tmp_path: Path) -> None:
    scores = scored(model, pool, tmp_path, boxes=lambda image: [[0, 0, 40, 40], [500, 500, 600, 600], [0, 0, 40, 40]])
    assert len(scores) == 12
    assert set(scores.notes.values()) == {"2 of its 3 boxes lie outside of it, have no side, or are there twice"}


# --- Models, places, interruptions


def foreign_model(net: Path, folder: Path) -> Path:
    """What fit --pose writes of a net, with the score that costs nothing."""
    from alpose.trainer.foreign.heads import build_detector, free_scores
    from alpose.trainer.foreign.model import ForeignModel, save
    from alpose.trainer.foreign.net import open_net
    from alpose.trainer.foreign.reader import NetReader
    from alpose.trainer.foreign.recognition.recognise import examine
    from alpose.trainer.foreign.recognition.stated import Stated

    opened = open_net(net, examine(net, Stated()).spec)
    joints = len(opened.spec.skeleton)
    config = free_scores(NetReader(opened.spec, opened.shapes).facts, range(joints))["mean score"]
    save(ForeignModel(opened.spec, net, opened.shapes, build_detector(config, joints), {}), folder)
    return folder


def test_a_foreign_net_and_a_bundle_score_a_pool_too(pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from alpose.export.foreign import export_uncalibrated

    from ..trainer.foreign import nets

    net = nets.regression(tmp_path / "net.onnx", scores=True, flat=False, batch=1)
    found = []
    for model in (foreign_model(net, tmp_path / "foreign"), export_uncalibrated(net, tmp_path / "net.alpose")):
        done = select_pool(model, pool, tmp_path / f"out-{model.name}", budget=12, by="random", to="label-studio",
                           cache=tmp_path, machine=CPU)  # fmt: skip
        with Inbox(done.out / "inbox") as inbox:
            entries = inbox.entries(one.id for one in done.batch.choices)
            assert inbox.skeleton_of(entries[0].record.bundle).joints == COCO.joints
        found.append({entry.record.camera: entry.record for entry in entries})
    assert len(found[0]) == 12
    for name, record in found[0].items():
        np.testing.assert_allclose(record.keypoints_J2, found[1][name].keypoints_J2, atol=0.01)
        np.testing.assert_allclose(record.embedding_D, found[1][name].embedding_D, atol=0.01)
    with pytest.raises(
        ConfigError,
        match=r"has nothing that entropy ranks by. With this model: value, top, odds, clusters, random, coreset",
    ):
        scored(tmp_path / "net.alpose", pool, tmp_path, by="entropy")


def test_a_net_that_looks_at_whole_pictures_takes_no_boxes(pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from ..trainer.foreign import nets

    model = foreign_model(nets.yolo(tmp_path / "net.onnx"), tmp_path / "foreign")
    assert len(scored(model, pool, tmp_path)) == 12
    with pytest.raises(ConfigError, match="looks at the whole picture"):
        scored(model, pool, tmp_path, boxes=halves)


def test_what_is_no_model_is_refused(pool: Path, tmp_path: Path) -> None:
    result = train(
        "select", "--model", tmp_path, "--pool", pool, "--budget", 1, "--to", "coco", "--out", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "holds no model" in result.output
    result = train(
        "select", "--model", tmp_path / "no", "--pool", pool, "--budget", 1, "--to", "coco", "--out", tmp_path / "out"
    )
    assert "does not exist" in result.output


def test_a_pool_behind_an_address_is_chosen_from_as_a_folder_is(
    pool: Path, chosen: Callable[..., Selected], tmp_path: Path
) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for path in pool.iterdir():
        files.pipe_file(f"/bucket/pool/{path.name}", path.read_bytes())
    try:
        here, there = chosen("here", to="coco"), chosen("there", pool="memory://bucket/pool", to="coco")
    finally:
        files.rm("/bucket", recursive=True)
    assert picks(here) == picks(there)
    assert here.pictures == there.pictures
    with pytest.raises(DataError, match="is not an address that fsspec knows"):
        chosen("no", pool="nothing-such://bucket/pool", to="coco")


def test_a_pool_in_a_bucket(model: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    from alpose.trainer.pool.pictures import _file_system

    from .pull.test_remote import closing_s3

    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_DEFAULT_REGION", "us-east-1"),
                        ("AWS_ENDPOINT_URL", f"http://{host}:{port}")):  # fmt: skip
        monkeypatch.setenv(name, value)
    with ExitStack() as opened:
        opened.callback(server.stop)
        files = opened.enter_context(closing_s3(s3fs.S3FileSystem(skip_instance_cache=True)))
        files.mkdir("pictures")
        for path in list(pool.iterdir())[:4]:
            files.put_file(str(path), f"pictures/week 1/{path.name}")
        opened.callback(_file_system.cache_clear)
        opened.enter_context(closing_s3(_file_system("s3://pictures/week 1")[0]))
        there = scored(model, "s3://pictures/week 1", tmp_path, shard=3)
        assert scored(model, "s3://pictures/week 1", tmp_path, shard=3).scored_now == 0
    here = scored(model, pool, tmp_path)
    assert (len(there), there.scored_now, there.left_out) == (4, 4, {})
    assert set(there.id_N) <= set(here.id_N)
    assert set(there.failure_N) <= set(here.failure_N)


SCRIPT = """
import sys, time
from pathlib import Path
from alpose.tools.pool import select_pool
from alpose.trainer.device import device_context
from alpose.trainer.pool.pictures import Files

model, pool, out, cache = map(Path, sys.argv[1:])
read = Files.read
Files.read = lambda files, name: time.sleep(600) if name == "000007.png" else read(files, name)
select_pool(model, pool, out, budget=4, to="coco", cache=cache, machine=device_context("cpu", "fp32"), shard=2, name="week-1")
"""


def test_after_a_kill_the_same_call_goes_on(
    model: Path, pool: Path, tmp_path: Path, chosen: Callable[..., Selected]
) -> None:
    command = [sys.executable, "-c", SCRIPT, *map(str, (model, pool, tmp_path / "out", tmp_path / "cache"))]
    process = subprocess.Popen(command)
    try:
        give_up = time.monotonic() + 120
        while len(list((tmp_path / "cache").glob("pool-*/*.npz"))) < 3 and time.monotonic() < give_up:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    # Three shards of two pictures; the fourth was on its way.
    assert len(list((tmp_path / "cache").glob("pool-*/*.npz"))) == 3
    assert not (tmp_path / "out").exists()
    done = chosen(to="coco", cache=tmp_path / "cache")
    assert done.scored_now == 6
    alone = chosen("alone", to="coco", cache=tmp_path / "another")
    assert picks(done) == picks(alone)


def test_an_interrupted_batch_is_finished_and_another_one_is_not_mixed_with_it(
    chosen: Callable[..., Selected], tmp_path: Path
) -> None:
    first = chosen(to="coco")
    (tmp_path / "out" / "selection.json").unlink()
    shutil.rmtree(tmp_path / "out" / "coco")
    assert picks(chosen(to="coco")) == picks(first)
    (tmp_path / "out" / "selection.json").unlink()
    with pytest.raises(DataError, match="unfinished batch week-1, of other choices"):
        chosen(to="coco", budget=5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("not yours")
    with pytest.raises(DataError, match="holds something else"):
        chosen("other", to="coco")
