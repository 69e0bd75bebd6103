"""The benchmark on datasets that people bring: MPII's JSON form and COCO folders, made from rendered people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP, MPII
from alpose.trainer.cycles.base_model import BaseModel
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.run import RunConfig, open_run
from alpose.trainer.data.records import PoseData
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import DeviceContext

from .own_data import write_coco_folder, write_images


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A COCO folder of two parts; image 3 of each is cut off, image 4 is missing."""
    people = read_people(seed=3, count=60, domain="easy")
    for part, rows in (("train", np.arange(40)), ("val", np.arange(40, 60))):
        write_coco_folder(people.subset(rows), tmp_path / "mine", f"person_keypoints_{part}", f"{part}-")
        broken = tmp_path / "mine" / "images" / f"{part}-00003.jpg"
        broken.write_bytes(broken.read_bytes()[:300])
        (tmp_path / "mine" / "images" / f"{part}-00004.jpg").unlink()
    return str(tmp_path / "mine")


def write_mpii(people: PoseData, root: Path, part: str) -> None:
    names = write_images(people, root / "images", part)
    (root / "annot").mkdir(exist_ok=True)
    entries = []
    for row, name in enumerate(names):
        joints_J2 = np.zeros((len(MPII), 2))
        known_J = np.zeros(len(MPII), dtype=bool)
        for place, joint in enumerate(MPII.joints):
            source = {"upper_neck": "neck"}.get(joint, joint)
            if source in LSP.joints and people.labelled_NJ[row, LSP.index(source)]:
                joints_J2[place], known_J[place] = people.joints_NJ2[row, LSP.index(source)] + 1, True
        x0, y0, x1, y1 = (float(value) for value in people.boxes_N4[row])
        entries.append({"image": name, "center": [(x0 + x1) / 2 + 1, (y0 + y1) / 2 + 1], "scale": max(x1 - x0, y1 - y0) / 200,
                        "joints": joints_J2.tolist(), "joints_vis": known_J.astype(int).tolist()})  # fmt: skip
    (root / "annot" / f"{part}.json").write_text(json.dumps(entries))


def config(dataset: str, **changes: Any) -> RunConfig:
    plain = {"methods": ("random", "entropy"), "budget": 6, "initial": 16, "select_only": True}
    return RunConfig.from_preset("smoke", dataset, **{**plain, **changes})


def test_a_coco_folder_with_broken_images_runs_and_says_who_is_left_out(
    mine: str, tmp_path: Path, cpu: DeviceContext, caplog: pytest.LogCaptureFixture
) -> None:
    results = run_benchmark(config(mine), tmp_path / "run", cpu, data_root=None, cache=tmp_path / "cache")

    assert [row.method for row in results.rows] == ["random", "entropy"]
    assert results.config["people"] == 38
    assert results.config["test_people"] == 18
    assert results.config["left_out"] == 4
    assert all(row.labelled == 16 and row.pool == 22 for row in results.rows)
    assert "train-00003.jpg" in caplog.text
    assert "val-00004.jpg" in caplog.text


def test_seeds_draw_different_initial_sets_where_the_dataset_fixes_none(
    mine: str, tmp_path: Path, cpu: DeviceContext
) -> None:
    run = config(mine, seeds=2, methods=("random",))
    run_benchmark(run, tmp_path / "run", cpu, data_root=None, cache=tmp_path / "cache")

    labelled = [
        set(json.loads((tmp_path / f"run/seed-{seed}/base/model.json").read_text())["facts"]["labelled_ids"])
        for seed in (0, 1)
    ]
    assert len(labelled[0]) == len(labelled[1]) == 16
    assert labelled[0] != labelled[1]


def test_too_large_an_initial_set_says_so(mine: str, tmp_path: Path, cpu: DeviceContext) -> None:
    with pytest.raises(ConfigError, match="cannot label 100 of 38 people"):
        run_benchmark(config(mine, initial=100), tmp_path / "run", cpu, data_root=None, cache=tmp_path / "cache")


@pytest.mark.parametrize("profile", ["standard", "official-2021"])
def test_mpii_in_its_json_form_runs_with_pckh(tmp_path: Path, cpu: DeviceContext, profile: Any) -> None:
    people = read_people(seed=4, count=50, domain="easy")
    write_mpii(people.subset(np.arange(36)), tmp_path / "mpii", "train")
    write_mpii(people.subset(np.arange(36, 50)), tmp_path / "mpii", "valid")
    results = run_benchmark(
        config("mpii", profile=profile), tmp_path / "run", cpu, data_root=tmp_path, cache=tmp_path / "cache"
    )

    assert results.config["profile_details"]["threshold"] == 0.5
    assert "head diagonal" in results.config["profile_details"]["normaliser"]
    for row in results.rows:
        assert row.unscored == 0
        assert row.base_test_pck is not None


def test_base_models_of_version_0_1_0_are_taken_over(
    mine: str, tmp_path: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It told pictures apart by file name and size; what was trained for days is not trained again."""
    run = open_run(config(mine, methods=("random",)), tmp_path / "run", None, tmp_path / "cache", cpu)
    base = BaseModel(run, 0, ())
    base.model()
    path = tmp_path / "run/seed-0/base/model.json"
    value = json.loads(path.read_text())
    value["facts"]["key"] = base._key(by_file_name=True)
    path.write_text(json.dumps(value))
    monkeypatch.setattr("alpose.trainer.cycles.base_model.train_pose", None)  # would fail if called

    assert BaseModel(run, 0, ()).model().facts["key"] == base._key(by_file_name=True) != base._key()
