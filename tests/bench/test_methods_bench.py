"""The bench of the methods runs end to end in a toy size, calls a checkout as it is, and sees who differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alpose.runtime.errors import ConfigError, DataNotFoundError
from bench import methods
from bench._methods import OURS, REFERENCE, TINY, embeddings, pck_table, works
from bench._reference_methods import ReferenceMethods, load_methods

ACTIVE = """
import os
import numpy as np
import torch
from tqdm import tqdm


class ActiveLearningDataset:
    def __init__(self, *args, **kwargs):
        raise AssertionError("there are no images")


class ActiveLearning:
    def _labelled(self):
        assert self.conf.model["load"] and not self.conf.resume_training
        return np.load(os.path.join(self.conf.model["load_path"], "model_checkpoints/annotation.npy"))

    def _outputs(self, train, rows):
        loader = torch.utils.data.DataLoader(
            ActiveLearningDataset(train, indices=rows, conf=self.conf),
            batch_size=self.conf.experiment_settings["batch_size"], num_workers=2,
        )
        assert torch.cuda.device_count() == 1
        return [self.pose_model(images) for images in tqdm(loader)][0]

    def _keep(self, train, selection, method):
        self._uniquecounts(dataset=train, selection=selection, method=method)
        np.save(os.path.join(self.conf.model["save_path"], "model_checkpoints/annotation.npy"), selection)
        return selection

    def coreset_sampling(self, train, dataset_size):
        rows = list(self._labelled())
        points = self._outputs(train, np.arange(len(train["name"])))[1]["penultimate"].numpy().astype(float)
        for _ in range(self.num_images):
            away = np.linalg.norm(points[:, None] - points[rows][None], axis=2).min(axis=1)
            rows.append(int(away.argmax()) + WRONG)
        return self._keep(train, np.array(rows, dtype=np.int32), "coreset")

    def multipeak_entropy(self, train, dataset_size):
        from alpose.trainer.heatmaps import MULTIPEAK_FORMS, multipeak_entropy

        maps = self._outputs(train, np.arange(1, len(train["name"])))[0][:, -1].cpu().squeeze()
        score = multipeak_entropy(maps, temperature=1.0, **MULTIPEAK_FORMS["official-2022"]).numpy() + WRONG
        best = torch.topk(torch.from_numpy(score), k=self.num_images)[1]
        return self._keep(train, np.append(self._labelled(), best.numpy() + 1), "multipeak_entropy")
"""

UTILS = """
import numpy as np


def heatmap_generator(joints, occlusion, hm_shape, img_shape):
    joints /= np.array([(img_shape[0] - 1) / (hm_shape[0] - 1), (img_shape[1] - 1) / (hm_shape[1] - 1), 1])
    maps = np.zeros((joints.shape[1], *hm_shape), dtype=np.float32)
    for heat, (row, column, _) in zip(maps, joints[0]):
        for y in range(hm_shape[0]):
            for x in range(hm_shape[1]):
                if max(abs(y - round(row)), abs(x - round(column))) <= 5:
                    heat[y, x] = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 1.75**2)) + WRONG
    return maps, None
"""

EVALUATION = """
from tqdm import tqdm


def PercentageCorrectKeypoint(pred_df, gt_df, config, jnts):
    import pandas

    assert config.experiment_settings == {"occlusion": False}
    gap = [((p[0, :2] - t[0, :2]) ** 2).sum() ** 0.5 / n[0]
           for p, t, n in zip(pred_df.uv, gt_df.uv, gt_df.normalizer)]
    seen = [t[0, 2] == 1 for t in gt_df.uv]
    table = {}
    for joint in tqdm(jnts):
        mine = [g for g, s, j in zip(gap, seen, gt_df.joint) if s and j == joint]
        table[joint] = [sum(g < step / 19 for g in mine) / len(mine) for step in range(20)]
    frame = pandas.DataFrame(table)
    frame["average"] = frame.mean(axis=1)
    return frame
"""


def fake_checkout(root: Path, wrong: int = 0) -> Path:
    """A checkout in the official one's layout, ours from first to last; ``wrong`` is added to what it finds."""
    (root / "code").mkdir(parents=True)
    for name, text in (("activelearning", ACTIVE), ("utils", UTILS), ("evaluation", EVALUATION)):
        (root / "code" / f"{name}.py").write_text(f"WRONG = {wrong}\n{text}")
    return root


@pytest.fixture
def reference(tmp_path: Path) -> ReferenceMethods:
    return load_methods(fake_checkout(tmp_path / "checkout"))


WITHOUT_PANDAS = ["--works", "coreset", "--works", "multipeak", "--works", "heatmaps"]


def run(tmp_path: Path, *more: str) -> tuple[int, str, Any]:
    out = tmp_path / "methods.json"
    done = CliRunner().invoke(methods.main, ["--size", "tiny", "--rounds", "2", "--out", str(out), *more])
    return done.exit_code, done.output, json.loads(out.read_text()) if out.exists() else None


def test_without_a_checkout_ours_is_measured_and_the_reference_named_as_left_out(tmp_path: Path) -> None:
    code, output, result = run(tmp_path)

    assert code == 0, output
    assert result["left_out"] == {"reference": "no --reference was given"}
    assert [work["work"] for work in result["works"]] == [
        "coreset",
        "multi-peak",
        "heatmaps",
        "PCK table",
        "coreset of 300",
    ]
    for work in result["works"]:
        assert REFERENCE not in work["contestants"]
        assert work["contestants"][OURS]["seconds"]["min"] > 0
        assert work["peak_memory_mib"] > 1
        assert work["work"] in output
    large = result["works"][-1]
    assert large["floor"]["of"] == "12 x one pass of reading"
    assert large["floor"]["seconds"]["median"] == pytest.approx(
        12 * large["contestants"]["one pass of reading"]["seconds"]["median"]
    )


def test_a_checkout_is_measured_beside_ours_and_they_agree(tmp_path: Path) -> None:
    checkout = fake_checkout(tmp_path / "checkout")
    code, output, result = run(tmp_path, "--reference", str(checkout), *WITHOUT_PANDAS)

    assert code == 0, output
    for work in result["works"]:
        times = work["contestants"]
        assert {OURS, REFERENCE} <= set(times)
        checks = [check for check in work["checks"] if check["to"] == REFERENCE]
        assert [check["agrees"] for check in checks] == [True]
        assert work["faster_than"][REFERENCE]["per_round"] == pytest.approx(
            [theirs / mine for theirs, mine in zip(times[REFERENCE]["seconds_per_round"], times[OURS]["seconds_per_round"],
                                                   strict=True)]
        )  # fmt: skip
    assert "12 of 12 picks are the same" in output


def test_who_comes_to_another_result_is_told_and_fails(tmp_path: Path) -> None:
    checkout = fake_checkout(tmp_path / "checkout", wrong=1)
    code, output, result = run(tmp_path, "--reference", str(checkout), *WITHOUT_PANDAS)

    assert code == 1
    assert "different results: coreset, multi-peak, heatmaps" in output
    assert output.count("DIFFERS") == 3
    assert result is not None  # what was measured is kept, with what is wrong about it


def test_tables_of_pck_agree(reference: ReferenceMethods) -> None:
    pytest.importorskip("pandas")
    work = pck_table(TINY, reference)
    for task in work.tasks.values():
        task()

    assert [check.agrees for check in work.check()] == [True]


def test_the_official_methods_run_from_the_numbers_given_to_them(reference: ReferenceMethods) -> None:
    """On a line, 0 and 1 labelled: 10 is farthest, then 5."""
    line_ND = np.array([[0], [1], [5], [10], [9]], dtype=np.float32)

    assert reference.coreset(line_ND, np.array([0, 1]), 2).tolist() == [3, 2]
    maps = torch.zeros(2, 2, 32, 32)
    maps[1, 0, 10, 10] = maps[1, 0, 20, 20] = 1
    assert reference.multipeak(maps).tolist() == pytest.approx([0.0, np.log(2)])
    given = np.array([[30.0, 12.0, 1.0]])
    drawn = reference.heatmaps(given, 16, 64)
    assert drawn[0].argmax() == 7 * 16 + 3  # 30 · 15 / 63 = 7.1, 12 · 15 / 63 = 2.9
    assert given.tolist() == [[30.0, 12.0, 1.0]]  # its generator writes into what it is given


def test_what_was_patched_for_it_is_put_back(reference: ReferenceMethods) -> None:
    before = torch.utils.data.DataLoader, torch.from_numpy, torch.cuda.device_count
    reference.multipeak(torch.rand(2, 2, 16, 16))

    assert (torch.utils.data.DataLoader, torch.from_numpy, torch.cuda.device_count) == before
    with pytest.raises(AssertionError, match="no images"):
        reference.selecting.ActiveLearningDataset()


@pytest.mark.parametrize("missing", ["activelearning", "evaluation", "utils"])
def test_a_checkout_without_a_module_names_the_file(tmp_path: Path, missing: str) -> None:
    checkout = fake_checkout(tmp_path / "checkout")
    (checkout / "code" / f"{missing}.py").unlink()

    with pytest.raises(DataNotFoundError, match=f"{missing}.py does not exist"):
        load_methods(checkout)


def test_a_checkout_that_wants_what_is_not_installed_says_so(tmp_path: Path) -> None:
    checkout = fake_checkout(tmp_path / "checkout")
    (checkout / "code" / "activelearning.py").write_text("import no_such_package_here\n")

    with pytest.raises(ConfigError, match=r"no_such_package_here.*leave out"):
        load_methods(checkout)


def test_every_work_can_be_asked_for_by_name() -> None:
    assert set(methods.NAMES) == {"coreset", "multipeak", "heatmaps", "pck", "coreset-100000", "coreset-1000000"}
    assert all(work(TINY, None).items > 0 for work in works(TINY).values())


def test_embeddings_do_not_depend_on_how_many_follow() -> None:
    np.testing.assert_array_equal(embeddings(50, 4), embeddings(50, 4))
    assert (embeddings(2000, 8) != 0).any(axis=1).all()
