"""A picture is the hash of its content, a person is picture and place: copies and renamed folders are the same people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.data.catalog import held_out, open_dataset
from alpose.trainer.data.coco import read_coco
from alpose.trainer.data.crops import CropConfig, unseen_crops
from alpose.trainer.data.records import split_groups, trained, who_trained

from .folders import coco_person, write_lsp


def write_folder(root: Path, count: int = 30, part: str = "labels", people: int = 2) -> Path:
    """Some people on each picture; a driver has every eighth picture."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for row in range(count):
        file = f"{part}-{row}.png"
        cv2.imwrite(str(root / "images" / file), np.random.default_rng([len(part), row]).integers(0, 255, (64, 64, 3)))
        images.append({"id": row, "file_name": file, "driver": f"driver {row % 8}"})
        annotations += [coco_person(row * 10 + k, row, bbox=[1 + 9 * k, 2, 20, 30]) for k in range(people)]
    category = {"id": 2, "name": "x", "keypoints": ["a", "b", "c"]}
    document = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "annotations" / f"{part}.json").write_text(json.dumps(document))
    return root


def renamed(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.parent / "elsewhere" / "other name"))


def with_other_file_names(folder: Path) -> Path:
    copy = renamed(folder)
    path = copy / "annotations" / "labels.json"
    value = json.loads(path.read_text())
    for image in value["images"]:
        (copy / "images" / image["file_name"]).rename(copy / "images" / f"x{image['file_name']}")
        image["file_name"] = f"x{image['file_name']}"
    path.write_text(json.dumps(value))
    return copy


@pytest.mark.parametrize("changed", [renamed, with_other_file_names])
def test_a_copy_holds_the_same_people(tmp_path: Path, changed: Callable[[Path], Path]) -> None:
    folder = write_folder(tmp_path / "D")
    first, copy = read_coco(folder), read_coco(changed(folder))
    assert first.ids != copy.ids
    assert first.people_keys() == copy.people_keys()
    assert len(set(first.people_keys())) == len(first)
    np.testing.assert_array_equal(held_out(first, 0.3), held_out(copy, 0.3))


def test_people_of_one_picture_lie_on_one_side(tmp_path: Path) -> None:
    data = read_coco(write_folder(tmp_path / "D"))
    for mask_N in (held_out(data, 0.3), split_groups(data.split_names(), 0.3, "validation")):
        assert len({(picture, side) for picture, side in zip(data.pictures(), mask_N.tolist(), strict=True)}) == 30


def test_who_trained_is_known_in_a_copy_and_never_calibrates(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "D")
    data = read_coco(folder)
    facts = {"labelled_ids": list(data.ids[:20]), "labelled_people": list(data.people_keys()[:20])}
    copy = read_coco(renamed(folder))
    seen = who_trained(facts)
    assert trained(copy, seen).tolist() == [True] * 20 + [False] * 40
    unseen = unseen_crops(copy, data.skeleton, CropConfig(size_px=64), tmp_path / "cache", seen)
    assert unseen.data.ids == copy.ids[20:]
    # One of two people on a picture trained: neither calibrates. The very people are still told apart.
    one = who_trained({"labelled_people": [data.people_keys()[0]]})
    assert trained(copy, one).tolist()[:3] == [True, True, False]
    assert trained(copy, one, exactly=True).tolist()[:3] == [True, False, False]


def test_an_old_checkpoint_names_its_people_by_id(tmp_path: Path) -> None:
    data = read_coco(write_folder(tmp_path / "D"))
    assert trained(data, who_trained({"labelled_ids": [data.ids[3]]})).tolist().index(True) == 3
    assert not trained(data, who_trained({})).any()


def test_other_people_of_the_same_names_are_not_taken_for_them(tmp_path: Path) -> None:
    mine = read_coco(write_folder(tmp_path / "a" / "D"))
    other = write_folder(tmp_path / "b" / "D")
    for path in (other / "images").iterdir():
        cv2.imwrite(str(path), 255 - np.asarray(cv2.imread(str(path))))
    theirs = read_coco(other)
    assert mine.ids == theirs.ids
    assert not trained(
        theirs, who_trained({"labelled_ids": list(mine.ids), "labelled_people": mine.people_keys()})
    ).any()


def test_nobody_who_trained_is_held_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "D")
    data = read_coco(folder)
    seen = set(data.people_keys()[:40])
    dataset = open_dataset(str(folder), hold_out=0.3, seen=seen)
    assert len(dataset.train) + len(dataset.test) == len(data)
    assert not trained(dataset.test, seen).any()


def test_a_hold_out_by_group_takes_whole_groups(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "D")
    dataset = open_dataset(str(folder), hold_out=0.5, group_by="driver")
    sides = [set(part.groups or ()) for part in (dataset.train, dataset.test)]
    assert all(sides)
    assert not sides[0] & sides[1]
    with pytest.raises(DataError, match="no field 'camera' to group by"):
        open_dataset(str(folder), group_by="camera")


def test_a_folder_with_train_and_val_calibrates_on_val(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "D", part="person_keypoints_train", people=1)
    write_folder(folder, count=5, part="person_keypoints_val", people=1)
    assert len(open_dataset(str(folder)).for_calibration()) == 5
    assert len(open_dataset(str(folder), split="train").for_calibration()) == 30
    val = folder / "annotations" / "person_keypoints_val.json"
    assert len(open_dataset(str(val)).for_calibration()) == 5
    assert len(open_dataset("coco", folder).for_calibration()) == 5
    with pytest.raises(ConfigError, match="does not say it"):
        open_dataset(str(write_lsp(tmp_path / "lsp")), group_by="driver")
