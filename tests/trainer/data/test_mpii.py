from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from alpose.runtime.crop import square_crop
from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.skeleton import MPII
from alpose.trainer.data.mpii import (
    MAT_NAME,
    newell_split,
    newell_valid_people,
    read_mpii,
    read_mpii_json,
    read_mpii_mat,
)

from .folders import EMPTY, point, rect, struct_array, two_points, write_mpii


def test_mat_with_all_that_the_official_file_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crowd = struct_array([
        rect({"point": struct_array([point(0, 120, 300, "1"), point(1, 121, 250, "0"), point(9, 122.5, 60, EMPTY)])}),
        rect(EMPTY),  # a person without joints
        rect(two_points(200), scale=EMPTY, objpos=EMPTY),
        rect(two_points(220), x1=EMPTY),
    ])  # fmt: skip
    single = rect({"point": point(6, 50, 60, 0)})  # one person, one joint: structs instead of arrays
    root = write_mpii(
        tmp_path,
        [
            ("015601864.jpg", crowd, 1),
            ("015601865.jpg", single, 1),
            ("015601866.jpg", EMPTY, 1),  # nobody
            ("015601867.jpg", {"scale": 3.0, "objpos": {"x": 5.0, "y": 6.0}}, 0),  # test set: no joints at all
        ],
    )
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_mpii_mat(root)
    assert data.ids == ("mpii/015601864#0", "mpii/015601864#2", "mpii/015601864#3", "mpii/015601865#0")
    assert data.skeleton == MPII
    assert data.image_N.tolist() == [0, 0, 0, 1]
    assert "1 images of the test set, 1 people without joints" in caplog.text
    assert "1 people without a box" in caplog.text

    assert np.flatnonzero(data.labelled_NJ[0]).tolist() == [0, 1, 9]
    assert np.flatnonzero(data.visible_NJ[0]).tolist() == [0, 9], "empty is_visible counts as visible"
    np.testing.assert_allclose(data.joints_NJ2[0, 9], (121.5, 59), err_msg="MATLAB counts from 1")
    assert np.flatnonzero(data.labelled_NJ[3]).tolist() == [6]
    assert not data.visible_NJ[3, 6]

    np.testing.assert_allclose(data.boxes_N4[0], (150 - 200, 230 - 200, 150 + 200, 230 + 200))
    np.testing.assert_allclose(data.boxes_N4[1], (199, 59, 199, 299), err_msg="the box of the joints")
    assert data.head_N is not None
    np.testing.assert_allclose(data.head_N, (50, 50, np.nan, 50))


def test_box_with_the_usual_margin_is_the_crop_of_other_toolkits(tmp_path: Path) -> None:
    data = read_mpii_mat(write_mpii(tmp_path, [("1.jpg", rect(two_points()), 1)]))
    crop = square_crop(data.boxes_N4[0], margin=1.25, size_px=256)
    centre, scale = np.array([151.0, 201.0]), 2.0
    centre[1] += 15 * scale  # HRNet lib/dataset/mpii.py
    scale *= 1.25
    assert crop.width == pytest.approx(200 * scale)
    assert (crop.x0 + crop.width / 2, crop.y0 + crop.width / 2) == pytest.approx(tuple(centre - 1))


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "C:\\x.jpg", "a\\..\\..\\b.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    entry = {"image": name, "center": [1, 1], "scale": 1, "joints": [[1, 1]] * 16, "joints_vis": [1] * 16}
    write_json(tmp_path, "valid", [entry])
    with pytest.raises(DataError, match="leaves the folder"):
        read_mpii_json(tmp_path)


def test_mat_that_is_something_else_is_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / MAT_NAME, {"RELEASE": {"annolist": EMPTY, "img_train": EMPTY}})
    with pytest.raises(DataError, match="annolist holds 0 images"):
        read_mpii_mat(tmp_path)
    with pytest.raises(DataNotFoundError, match="annotation file"):
        read_mpii_mat(tmp_path / "elsewhere")


def test_joint_id_out_of_range_is_refused(tmp_path: Path) -> None:
    root = write_mpii(tmp_path, [("1.jpg", rect({"point": point(16, 5, 5)}), 1)])
    with pytest.raises(DataError, match="joint id 16"):
        read_mpii_mat(root)


def write_json(root: Path, name: str, entries: list[dict[str, Any]]) -> Path:
    (root / "annot").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    (root / "annot" / f"{name}.json").write_text(json.dumps(entries))
    return root


def entry(image: str, scale: float = 2.0) -> dict[str, Any]:
    joints = [[float(j), 100.0] for j in range(1, 16)] + [[-1.0, -1.0]]
    vis = [1] * 15 + [0]
    return {"image": image, "center": [11.0, 21.0], "scale": scale, "joints": joints, "joints_vis": vis}


def test_json_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_json(tmp_path, "valid", [entry("a.jpg"), entry("b.jpg"), entry("a.jpg"), {"image": "c.jpg"}])
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_mpii_json(root, "valid")
    assert data.ids == ("mpii/a#0", "mpii/b#0", "mpii/a#1")
    assert data.image_N.tolist() == [0, 1, 0]
    assert data.labelled_NJ.sum(axis=1).tolist() == [15, 15, 15]
    np.testing.assert_allclose(data.joints_NJ2[0, 0], (0, 99))
    np.testing.assert_allclose(data.boxes_N4[0], (10 - 200, 50 - 200, 10 + 200, 50 + 200))
    assert "left out 1 people without joints" in caplog.text
    assert "2 of 2 images are missing" in caplog.text


def test_json_form_reads_both_files_or_one(tmp_path: Path) -> None:
    write_json(tmp_path, "valid", [entry("a.jpg")])
    write_json(tmp_path, "train", [entry("b.jpg"), entry("c.jpg")])
    assert len(read_mpii(tmp_path)) == 3
    assert read_mpii(tmp_path, "valid").ids == ("mpii/a#0",)
    assert len(read_mpii(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    "damage",
    [{"joints": [[1, 2]] * 15}, {"joints_vis": [1] * 3}, {"center": [1]}, {"scale": "large"}, {"center": None}],
)
def test_json_entry_that_is_no_person_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    root = write_json(tmp_path, "valid", [entry("a.jpg"), entry("b.jpg") | damage])
    with pytest.raises(DataError, match=r"valid\.json: entry 1"):
        read_mpii_json(root)


def test_json_form_that_is_no_list_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path, "valid", [])
    (tmp_path / "annot" / "valid.json").write_text("{}")
    with pytest.raises(DataError, match="must hold a list"):
        read_mpii_json(tmp_path)


def write_newell(path: Path, name: str, character_codes: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if character_codes:
            file["imgname"] = np.array([[float(ord(letter)) for letter in name] + [0.0]])
        else:
            file["imgname"] = np.array([name.encode()])
        file["person"] = np.array([2.0])
        file["center"] = np.array([[151.0, 201 + 15 * 2.0]])
        file["scale"] = np.array([2.0 * 1.25])
        file["normalize"] = np.array([30.0])
    return path


@pytest.mark.parametrize("character_codes", [False, True])
def test_newell_list_comes_back_to_our_coordinates(tmp_path: Path, character_codes: bool) -> None:
    people = newell_valid_people(write_newell(tmp_path / "valid.h5", "015601864.jpg", character_codes))
    assert people.ids == ("mpii/015601864#2",)
    np.testing.assert_allclose(people.centre_V2, [[150, 200]])
    np.testing.assert_allclose(people.scale_V, [2])
    np.testing.assert_allclose(people.head_V, [50])


def test_newell_split_goes_by_image(tmp_path: Path) -> None:
    crowd = struct_array([rect(two_points()), rect(two_points(150))])
    root = write_mpii(tmp_path, [("1.jpg", crowd, 1), ("2.jpg", rect(two_points()), 1), ("3.jpg", crowd, 1)])
    write_newell(root / "annot" / "newell_valid.h5", "3.jpg", False)
    data = read_mpii_mat(root)
    train, valid = newell_split(data, {"3.jpg"})
    assert valid.ids == ("mpii/3#0", "mpii/3#1"), "also the people that Newell's list leaves out"
    assert train.ids == ("mpii/1#0", "mpii/1#1", "mpii/2#0")
    assert read_mpii(root, "train").ids == train.ids
    assert read_mpii(root, "valid").ids == valid.ids
    (root / "annot" / "newell_valid.h5").unlink()
    with pytest.raises(DataNotFoundError, match="Newell's list"):
        read_mpii(root, "valid")


@pytest.mark.real_data
def test_real_newell_list(real_folder: Callable[[str], Path]) -> None:
    people = newell_valid_people(real_folder("mpii-mini") / "annot" / "newell_valid.h5")
    assert len(people.images) == 2958
    assert len(set(people.images)) == 2729
    assert len(set(people.ids)) == 2958
    # The head size that the JSON form gives through scale is the one that Newell measured on the head box.
    np.testing.assert_allclose(people.head_V, 200 * people.scale_V / (8 * 0.6), rtol=1e-5)


@pytest.mark.real_data
def test_real_json_form_agrees_with_newell(real_folder: Callable[[str], Path]) -> None:
    root = real_folder("mpii-mini")
    data = read_mpii(root)
    people = newell_valid_people(root / "annot" / "newell_valid.h5")
    rows = [people.ids.index(id_) for id_ in data.ids]
    assert len(data) == 5
    assert data.head_N is not None
    np.testing.assert_allclose(data.head_N, people.head_V[rows], rtol=1e-4)
    assert (data.labelled_NJ.sum(axis=1) == [16, 16, 14, 14, 16]).all()
    assert data.image(0).shape == (720, 1280, 3)
