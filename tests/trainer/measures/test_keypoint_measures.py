"""OKS and AP as pycocotools has them, PCKh and the faces' error by hand."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import COCO, LSP
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.measures.keypoint_measures import average_precision, interocular_nme, oks, oks_of, pckh, sigmas_of


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_oks_and_ap_agree_with_pycocotools(seed: int) -> None:
    """One prediction for each of 60 people, some joints without labels, scores that know something."""
    coco_eval = pytest.importorskip("pycocotools.cocoeval")
    coco = pytest.importorskip("pycocotools.coco")
    random = np.random.default_rng(seed)
    people = 60
    true_NJ2 = random.uniform(0, 200, (people, 17, 2))
    labelled_NJ = random.random((people, 17)) < 0.7
    labelled_NJ[:, 0] = True
    noise_N = random.gamma(1.0, 8.0, people)
    said_NJ2 = true_NJ2 + random.normal(0, 1, true_NJ2.shape) * noise_N[:, None, None]
    area_N, score_N = random.uniform(5e3, 6e4, people), np.exp(-noise_N / 20) + random.normal(0, 0.1, people)
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": n + 1} for n in range(people)], "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 1, "iscrowd": 0, "area": area_N[n], "bbox": [0, 0, 200, 200],
             "num_keypoints": int(labelled_NJ[n].sum()),
             "keypoints": np.column_stack([true_NJ2[n], 2 * labelled_NJ[n]]).ravel().tolist()}
            for n in range(people)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([
            {"image_id": n + 1, "category_id": 1, "score": float(score_N[n]),
             "keypoints": np.column_stack([said_NJ2[n], np.ones(17)]).ravel().tolist()}
            for n in range(people)
        ])  # fmt: skip
        evaluation = coco_eval.COCOeval(truth, found, "keypoints")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]
    mine_N = oks(np.linalg.norm(said_NJ2 - true_NJ2, axis=2), labelled_NJ, area_N, sigmas_of(COCO))
    theirs_N = [float(evaluation.ious[n + 1, 1][0, 0]) for n in range(people)]
    assert mine_N == pytest.approx(theirs_N, abs=1e-9)
    assert average_precision(mine_N, score_N) == pytest.approx(precision.mean(), abs=1e-9)


def test_joints_that_coco_does_not_have_enter_no_oks() -> None:
    """LSP's neck and head top; a person with these alone has none."""
    sigma_J = sigmas_of(LSP)
    assert np.isnan(sigma_J[-2:]).all()
    assert np.isfinite(sigma_J[:-2]).all()
    distance_NJ, labelled_NJ = np.zeros((2, 14)), np.ones((2, 14), np.bool_)
    distance_NJ[:, -2:], labelled_NJ[1, :12] = 1e9, False
    found_N = oks(distance_NJ, labelled_NJ, np.full(2, 100.0), sigma_J)
    assert found_N[0] == 1.0
    assert np.isnan(found_N[1])
    assert average_precision(found_N, np.ones(2)) == pytest.approx(1.0)
    assert average_precision(found_N[1:], np.ones(1)) is None


def test_the_box_stands_for_the_area_of_a_person() -> None:
    """A wrist that is off by the side of the box times its deviation, others without labels; joints that COCO lacks."""
    people = read_people(seed=0, count=1)
    labelled_NJ = np.zeros_like(people.labelled_NJ)
    labelled_NJ[0, [people.skeleton.index("left_wrist"), people.skeleton.index("neck")]] = True
    people = replace(
        people, labelled_NJ=labelled_NJ, visible_NJ=labelled_NJ, boxes_N4=np.array([[10, 20, 60, 70]], np.float32)
    )
    found = oks_of(people, np.full(labelled_NJ.shape, 50 * 2 * 0.062))
    assert found == pytest.approx(np.exp(-0.5))


def test_pckh_by_hand() -> None:
    """Half of 0.6 of a head of 100 px is 30 px; who has no head is left out."""
    distance_NJ = np.array([[29.0, 31.0, 0.0], [0.0, 0.0, 0.0]])
    labelled_NJ = np.array([[True, True, False], [True, True, True]])
    assert pckh(distance_NJ, labelled_NJ, np.array([100.0, np.nan])) == 0.5
    assert pckh(distance_NJ, labelled_NJ, np.array([np.nan, np.nan])) is None


def test_the_error_of_a_face_by_hand() -> None:
    """Mean of 2 and 4 px over eyes 30 px apart; none where an eye has no label."""
    joints_NJ2 = np.array([[[0, 0], [30, 0], [9, 9]]] * 2, np.float32)
    labelled_NJ = np.array([[True, True, False], [True, False, True]])
    found_N = interocular_nme(np.array([[2.0, 4.0, 99.0]] * 2), joints_NJ2, labelled_NJ, (0, 1))
    assert found_N[0] == pytest.approx(0.1)
    assert np.isnan(found_N[1])
    with pytest.raises(DataError, match="two of 3 points"):
        interocular_nme(np.zeros((2, 3)), joints_NJ2, labelled_NJ, (1, 1))
