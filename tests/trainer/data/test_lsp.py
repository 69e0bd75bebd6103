from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.skeleton import LSP
from alpose.trainer.data.lsp import read_joints, read_lsp, read_lspet

from .folders import lsp_joints, lspet_joints, write_lsp, write_lspet, write_mat_and_images


def test_lsp_counts_every_joint_as_labelled(tmp_path: Path) -> None:
    data = read_lsp(write_lsp(tmp_path / "lsp"))
    expected_NJ3 = lsp_joints(3)
    assert data.ids == ("lsp/im0001", "lsp/im0002", "lsp/im0003")
    assert data.skeleton == LSP
    assert data.labelled_NJ.all()
    np.testing.assert_array_equal(data.visible_NJ, expected_NJ3[..., 2] == 0)
    np.testing.assert_allclose(data.joints_NJ2, expected_NJ3[..., :2], rtol=1e-6)
    np.testing.assert_allclose(data.boxes_N4[:, 2:], expected_NJ3[..., :2].max(axis=1), rtol=1e-6)
    assert data.image(1).shape == (100, 100, 3)


def test_lspet_masks_by_the_flag_and_keeps_raw_positions(tmp_path: Path) -> None:
    data = read_lspet(write_lspet(tmp_path / "lspet"))
    unlabelled_NJ = ~data.labelled_NJ
    assert unlabelled_NJ.any()
    np.testing.assert_array_equal(data.labelled_NJ, lspet_joints(3)[..., 2] == 1)
    np.testing.assert_array_equal(data.visible_NJ, data.labelled_NJ)
    assert (data.joints_NJ2[unlabelled_NJ] == (0, -31.5)).all()
    assert (data.boxes_N4 > 0).all(), "garbage positions stay out of the boxes"


def test_either_axis_order_reads_the_same(tmp_path: Path) -> None:
    joints_NJ3 = lsp_joints(4)
    scipy.io.savemat(tmp_path / "a.mat", {"joints": joints_NJ3.transpose(2, 1, 0)})
    scipy.io.savemat(tmp_path / "b.mat", {"joints": joints_NJ3.transpose(1, 2, 0)})
    one, other = read_joints(tmp_path / "a.mat"), read_joints(tmp_path / "b.mat")
    assert (one[2], other[2]) == ("3,14,N", "14,3,N")
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("shape", [(14, 2, 5), (5, 14, 3), (14, 3), (3, 16, 5)])
def test_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.zeros(shape)})
    with pytest.raises(DataError, match=r"joints\.mat: 'joints' has shape"):
        read_joints(tmp_path / "joints.mat")


@pytest.mark.parametrize(("value", "message"), [(2.0, "must be 0 or 1"), (np.nan, "not finite")])
def test_values_that_are_no_flags_are_refused(tmp_path: Path, value: float, message: str) -> None:
    joints_NJ3 = lsp_joints(2)
    joints_NJ3[1, 3, 2] = value
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints_NJ3.transpose(2, 1, 0)})
    with pytest.raises(DataError, match=message):
        read_joints(tmp_path / "joints.mat")


def test_files_in_each_others_place_are_noticed(tmp_path: Path) -> None:
    lsp, lspet = write_lsp(tmp_path / "a"), write_lspet(tmp_path / "b")
    with pytest.raises(DataError, match="Read it as lspet"):
        read_lsp(lspet)
    with pytest.raises(DataError, match="Read it as lsp,"):
        read_lspet(lsp)


def test_people_without_labels_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    joints_NJ3 = lspet_joints(3)
    joints_NJ3[1] = (0, -5, 0)
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_lspet(write_mat_and_images(tmp_path, joints_NJ3.transpose(1, 2, 0), 3, 5))
    assert data.ids == ("lspet/im00001", "lspet/im00003")
    assert "kept 2 people, left out 1 people without a labelled joint" in caplog.text
    assert int(data.image(1)[0, 0, 0]) == 3, "ids and images stay together"


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    root = write_lsp(tmp_path / "lsp")
    (root / "joints.mat").unlink()
    with pytest.raises(DataNotFoundError, match=r"joints\.mat does not exist"):
        read_lsp(root)
    scipy.io.savemat(root / "joints.mat", {"other": np.zeros(3)})
    with pytest.raises(DataError, match="no variable 'joints'; it has: other"):
        read_lsp(root)
    (root / "joints.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(600))
    with pytest.raises(DataError, match=r"newer MATLAB \(-v7\.3\)"):
        read_lsp(root)


@pytest.mark.real_data
def test_real_lsp(real_folder: Callable[[str], Path]) -> None:
    data = read_lsp(real_folder("lsp"))
    assert len(data) == 2000
    assert data.labelled_NJ.all()
    assert int((~data.visible_NJ).sum()) == 2044
    assert data.ids[0] == "lsp/im0001"
    assert data.joints_NJ2.min() > 0
    assert data.joints_NJ2[..., 1].min() < 0.5, "a file that counted from 1 would begin at 0.5"


@pytest.mark.real_data
def test_real_lspet(real_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    data = read_lspet(real_folder("lspet"))
    assert len(data) == 10000
    assert int((~data.labelled_NJ).sum()) == 16787
    assert int(data.labelled_NJ.all(axis=1).sum()) == 3945
    assert float(data.joints_NJ2[data.labelled_NJ][:, 0].min()) == 0, "a file that counted from 1 would have no 0"
    assert np.isfinite(data.boxes_N4).all()
    assert not caplog.records
