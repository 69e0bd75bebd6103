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
from alpose.trainer.methods.neighbour_weights import by_affinity, conditional
from bench import methods
from bench.parts.methods import OURS, REFERENCE, TINY, Check, embeddings, pck_table, works
from bench.parts.methods_egl import _same_affinities, asked_perplexity, true_perplexity
from bench.parts.methods_pose import data_pipeline
from bench.parts.reference_methods import LOADING, NETWORK, ReferenceMethods, load_methods

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

ACTIVE += """
    def expected_gradient_length_sampling(self, train, dataset_size):
        options = self.conf.active_learning["egl"]
        known = self._labelled()
        loader = torch.utils.data.DataLoader
        with torch.no_grad():
            labelled = [self.pose_model(images) for images, _ in loader(EGLpp_Dataset(train))]
            pool = [self.pose_model(images) for images in loader(ActiveLearningDataset(train))]
            square = torch.cdist(pool[0][1]["penultimate"], labelled[0][1]["penultimate"]) ** 2
            low, high = torch.full((len(square), 1), 1e-6), torch.full((len(square), 1), 1e6)
            for _ in range(100):
                beta = (low * high).sqrt()
                q = torch.softmax(-square * beta, dim=1)
                flat = 2 ** -(q * q.clamp_min(1e-30).log()).sum(dim=1, keepdim=True) > options["perplexity"]
                low, high = torch.where(flat, beta, low), torch.where(flat, high, beta)
            vals, idx = torch.topk(q + WRONG, k=options["k"], dim=1)
        norms = torch.zeros_like(vals)
        for images in loader(ActiveLearningDataset(train)):
            for row, image in enumerate(images):
                maps = self.pose_model(torch.stack(options["k"] * [image]))[0]
                loss = ((maps - labelled[0][0][idx[row]]) ** 2).mean(dim=(1, 2, 3, 4))
                for near, one in enumerate(loss):
                    grads = torch.autograd.grad(one, list(self.pose_model.parameters()), retain_graph=True)
                    norms[row, near] = sum((grad**2).sum() for grad in grads)
        best = torch.topk((vals * norms).sum(dim=1).squeeze(), k=self.num_images)[1]
        return self._keep(train, np.append(known, best.numpy()), "egl")


class EGLpp_Dataset(ActiveLearningDataset):
    pass


class Keypoint_ParallelWrapper:
    def __init__(self, hm, param, j2i, i2j, links, vl4pose_config):
        assert i2j[links[0][0]] == "head" and j2i["head"] == links[0][0]
        self.hm, self.param, self.links, self.edge = hm, param, links, vl4pose_config["min_distance"]
        assert vl4pose_config["num_peaks"] == 1

    def __getitem__(self, i):
        from alpose.trainer.methods.gaussian_heads import find_peaks

        maps = torch.from_numpy(self.hm[i])[None]
        at = find_peaks(maps, 1, min_distance=self.edge, exclude_border=True)[0][0, :, 0].numpy()
        total = WRONG
        for (mean, s), (u, v) in zip(self.param[i], self.links):
            total -= 0.5 * (np.log(2 * np.pi) + s + (mean - np.linalg.norm(at[u] - at[v])) ** 2 * np.exp(-s))
        return total, {}
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


DATALOADER = """
import os
from types import SimpleNamespace

import numpy as np
import torch

from alpose.runtime.crop import cut, square_crop

albu = SimpleNamespace(HorizontalFlip=dict, ShiftScaleRotate=dict)
plt = None


class HumanPoseDataLoader:
    def __init__(self):
        raise AssertionError("there is no dataset")

    def augmentation(self, transform):
        return transform

    def __getitem__(self, i):
        of = {key: value[i] for key, value in self.model_input_dataset.items()}
        image = plt.imread(os.path.join(os.path.dirname(os.getcwd()), "data", of["dataset"], "images", of["name"]))
        crop = square_crop(of["bbox_coords"][0], margin=1.75, size_px=256)
        gt = of["gt"]
        gt[0, :, :2] = crop.to_crop(gt[0, :, :2])[:, ::-1]
        maps = torch.zeros(gt.shape[1], *self.hm_shape)
        return torch.from_numpy(cut(image, crop) / 256.0).float(), maps, gt
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


WITHOUT_PANDAS = ["--works", "coreset", "--works", "multipeak", "--works", "heatmaps", "--works", "affinities", "--works",
                  "vl4pose-1"]  # fmt: skip


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
        "EGL++ affinities",
        "VL4Pose, 1 peak",
        "VL4Pose, 5 peaks",
        "data pipeline",
        "coreset of 300",
        "EGL++ gradients",
    ]
    for work in result["works"]:
        assert REFERENCE not in work["contestants"]
        assert work["contestants"][OURS]["seconds"]["min"] > 0
        assert work["peak_memory_mib"] > 1
        assert work["work"] in output
    memory, *ranks = result["works"][-1]["checks"]
    assert memory["says"].startswith("peak memory of a process that does one image")
    assert [check["agrees"] for check in ranks] == [True, True]
    large = result["works"][-2]
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
    assert "different results: coreset, multi-peak, heatmaps, EGL++ affinities, VL4Pose, 1 peak" in output
    assert output.count("DIFFERS") == 5
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


def test_gradients_of_one_image_are_those_of_autograd_with_its_weights(reference: ReferenceMethods) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, images_BHW3: torch.Tensor) -> Any:
            return self.conv(images_BHW3.permute(0, 3, 1, 2)).unflatten(1, (2, 2)), {}

    generator = torch.Generator().manual_seed(0)
    net, image_HW3 = Net(), torch.rand(8, 8, 3, generator=generator)
    lent_KSJHW = torch.rand(6, 1, 2, 8, 8, generator=generator).expand(-1, 2, -1, -1, -1)
    weight_K, score = reference.gradients(net, image_HW3, lent_KSJHW, perplexity=2.0)

    assert weight_K.argsort(descending=True).tolist() == list(range(6))  # in the order they were given
    norms = []
    for lent_SJHW in lent_KSJHW:
        loss = ((net(image_HW3[None])[0][0] - lent_SJHW) ** 2).mean()
        norms.append(sum(float((g**2).sum()) for g in torch.autograd.grad(loss, list(net.parameters()))))
    assert score == pytest.approx(float((weight_K * torch.tensor(norms)).sum()), rel=1e-4)


def test_what_it_computes_when_asked_for_a_perplexity() -> None:
    assert true_perplexity(20.0) == pytest.approx(75.3, abs=0.05)
    assert true_perplexity(asked_perplexity(20.0)) == pytest.approx(20.0)


def test_affinities_that_collapsed_are_counted_and_others_that_differ_are_refused() -> None:
    labelled_LD = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    near = by_affinity(labelled_LD[:5] + 0.1, labelled_LD, perplexity=6.0, count=4)
    square_NL = torch.cdist((labelled_LD[:5] + 0.1).double(), labelled_LD.double()) ** 2
    q_NL = conditional(square_NL, 6.0)[0]

    def said(q_NL: torch.Tensor) -> Check:
        return _same_affinities(near, q_NL, *q_NL.topk(4, dim=1), 6.0)

    assert said(q_NL).agrees
    collapsed_NL = q_NL.clone()
    collapsed_NL[2] = 1 / 40
    assert said(collapsed_NL).agrees
    assert "1 rows are far from everybody" in said(collapsed_NL).says
    other_NL = q_NL.clone()
    other_NL[2] = conditional(square_NL, 9.0)[0][2]
    assert not said(other_NL).agrees


def test_a_checkout_without_network_and_dataset_says_so_and_measures_the_rest(tmp_path: Path) -> None:
    checkout = fake_checkout(tmp_path / "checkout")
    code, output, result = run(tmp_path, "--reference", str(checkout), "--works", "data")

    assert code == 0, output
    assert set(result["left_out"]) == {NETWORK, LOADING}
    assert result["works"][0]["left_out"] == ["its dataset: the checkout has no such file"]


def test_the_official_dataset_reads_files_in_its_joint_order_with_fresh_labels(tmp_path: Path) -> None:
    """Its readers write into the labels they are given."""
    checkout = fake_checkout(tmp_path / "checkout")
    (checkout / "code" / "dataloader.py").write_text(DATALOADER)
    reference = load_methods(checkout)
    work = data_pipeline(TINY, reference)
    for task in work.tasks.values():
        task()
    assert [check.agrees for check in work.check()] == [True]
    assert "plt" in vars(reference.loading)


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
    assert set(methods.NAMES) == {
        "coreset", "multipeak", "heatmaps", "pck", "affinities", "vl4pose-1", "vl4pose-5", "data", "coreset-100000",
        "coreset-1000000", "gradients",
    }  # fmt: skip
    assert all(work(TINY, None).items > 0 for work in works(TINY).values())


def test_embeddings_do_not_depend_on_how_many_follow() -> None:
    np.testing.assert_array_equal(embeddings(50, 4), embeddings(50, 4))
    assert (embeddings(2000, 8) != 0).any(axis=1).all()
