"""The benches run end to end in a toy size and say what they measured; nothing here asserts a speed."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from alpose.runtime.errors import ConfigError, DataNotFoundError
from alpose.runtime.skeleton import LSP
from alpose.trainer.checkpoint import TargetConfig, new_head, new_model, save
from alpose.trainer.cli import DEFAULT_METHODS
from alpose.trainer.data.crops import CropConfig
from alpose.trainer.device import DeviceContext, has_bf16, keep_freed_memory
from alpose.trainer.models.hourglass import HourglassConfig
from alpose.trainer.presets import NetSize, preset
from bench import gpu, training
from bench.parts.contestants import FREED_MEMORY, make_material, official, our_facts, ours
from bench.parts.measure import interleave, paired, rates, spread, synchroniser, table
from bench.parts.reference import Reference, load, redirected

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
WORKS = ("training step", "forward", "pool scoring")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def check_rates(measurement: dict[str, Any], rounds: int) -> None:
    """Rates follow from seconds, and the median lies in its spread."""
    rate_R, of = measurement["images_per_s_per_round"], measurement["images_per_s"]
    assert len(rate_R) == len(measurement["seconds_per_round"]) == rounds
    for rate, seconds in zip(rate_R, measurement["seconds_per_round"], strict=True):
        assert rate == pytest.approx(measurement["images_per_call"] / seconds)
        assert rate > 0
    check_spread(of, rate_R)


def check_spread(of: dict[str, Any], values_R: list[float]) -> None:
    low, high = of["quartiles"]
    assert of["min"] == min(values_R) <= low <= of["median"] <= high <= of["max"] == max(values_R)
    assert of["median"] == pytest.approx(statistics.median(values_R))


# --- Taking turns


class Turns:
    """A fake clock, and tasks that move it and note who was called."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.called = 100.0, ""
        self.tasks = {name: self._task(name, seconds) for name in seconds}
        self.seconds = seconds

    def _task(self, name: str, seconds: dict[str, float]) -> Callable[[], None]:
        def task() -> None:
            self.called += name
            self.now += seconds[name]

        return task

    def clock(self) -> float:
        return self.now


def test_every_round_calls_everyone_once_there_and_back() -> None:
    turns = Turns(a=1.0, b=2.0, c=3.0)
    seconds = interleave(turns.tasks, rounds=4, warmup=0, clock=turns.clock)
    assert turns.called == "abccbaabccba"
    assert seconds == {"a": (1.0,) * 4, "b": (2.0,) * 4, "c": (3.0,) * 4}


def test_warm_up_rounds_run_and_do_not_count() -> None:
    turns = Turns(a=50.0, b=60.0)

    def warm(name: str, after: float) -> Callable[[], None]:
        def task() -> None:
            turns.tasks[name]()
            turns.seconds[name] = after

        return task

    seconds = interleave({"a": warm("a", 1.0), "b": warm("b", 2.0)}, rounds=2, warmup=1, clock=turns.clock)
    assert sorted(turns.called) == list("aaabbb")
    assert seconds == {"a": (1.0, 1.0), "b": (2.0, 2.0)}


def test_calls_in_a_row_are_averaged() -> None:
    turns = Turns(a=1.0, b=2.0)
    assert interleave(turns.tasks, rounds=1, warmup=0, calls=3, clock=turns.clock) == {"a": (1.0,), "b": (2.0,)}
    assert turns.called == "aaabbb"


def test_the_device_is_waited_for_before_the_clock_is_read() -> None:
    """Work that a call only queued belongs to the one who queued it."""
    now, queued = 0.0, 0.0

    def task() -> None:
        nonlocal queued
        queued += 5.0

    def sync() -> None:
        nonlocal now, queued
        now, queued = now + queued, 0.0

    assert interleave({"a": task}, rounds=2, warmup=0, sync=sync, clock=lambda: now) == {"a": (5.0, 5.0)}


@pytest.mark.parametrize(("rounds", "warmup", "calls"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_no_rounds_or_calls_is_refused(rounds: int, warmup: int, calls: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        interleave({"a": lambda: None}, rounds=rounds, warmup=warmup, calls=calls)


def test_spread_rates_and_ratios_of_rounds() -> None:
    of = spread((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (of.median, of.min, of.max, of.quartiles) == (3.0, 1.0, 5.0, (2.0, 4.0))
    assert spread((2.0,)).quartiles == (2.0, 2.0)
    assert rates((0.5, 2.0), 8) == (16.0, 4.0)
    assert paired((6.0, 2.0), (3.0, 4.0)) == (2.0, 0.5)
    with pytest.raises(ConfigError):
        spread(())
    with pytest.raises(ValueError, match="shorter"):
        paired((1.0, 2.0), (1.0,))


def test_a_cpu_needs_no_synchronisation() -> None:
    synchroniser(CPU)()


def test_table_aligns_its_columns() -> None:
    assert table(("a", "n"), [("long", "1"), ("x", "22")]).splitlines() == [
        "a      n",
        "----  --",
        "long   1",
        "x     22",
    ]


# --- bench.training


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command wrote."""
    out = tmp_path_factory.mktemp("training") / "deep" / "training.json"
    command = [sys.executable, "-m", "bench.training", "--preset", "tiny", "--rounds", "3", "--batch", "4",
               "--threads", "1", "--out", str(out)]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "images/s" in run.stdout
    assert str(out) in run.stdout
    return read(out)


def test_training_says_where_and_what_it_measured(result: Any) -> None:
    assert {"processor", "cores", "threads", "python", "packages", "commit"} <= result["machine"].keys()
    assert result["machine"]["threads"] == 1
    settings = result["settings"]
    assert (settings["preset"], settings["batch"], settings["rounds"], settings["joints"]) == ("tiny", 4, 3, 14)
    assert result["works"].keys() == set(WORKS)
    assert "augmentation" in result["not_timed"]


def test_training_lists_every_contestant_or_why_not(result: Any) -> None:
    names = set(result["contestants"]) | set(result["left_out"])
    assert names - {FREED_MEMORY} == {"ours fp32", "ours bf16", "reference"}
    assert (FREED_MEMORY in names) == keep_freed_memory()
    assert result["left_out"]["reference"] == "no --reference was given"
    assert ("ours bf16" in result["contestants"]) == has_bf16(CPU)
    for facts in result["contestants"].values():
        assert facts["dead"] == 0
        assert facts["heatmaps"] == [4, 1, 14, 16, 16]
        assert 2 < facts["gflop_training"] / facts["gflop_forward"] < 3
    measured = {(m["work"], m["contestant"]) for m in result["measurements"]}
    assert measured == {(work, name) for work in WORKS for name in result["contestants"]}


def test_training_numbers_agree_with_each_other(result: Any) -> None:
    rate = {}
    for measurement in result["measurements"]:
        assert measurement["images_per_call"] == 4
        check_rates(measurement, rounds=3)
        rate[measurement["work"], measurement["contestant"]] = measurement["images_per_s_per_round"]
    for ratio in result["ratios"]:
        of, to = rate[ratio["work"], ratio["of"]], rate[ratio["to_work"], ratio["to"]]
        assert ratio["per_round"] == pytest.approx([a / b for a, b in zip(of, to, strict=True)])
        check_spread(ratio["ratio"], ratio["per_round"])
    assert len(result["ratios"]) == 3 * (has_bf16(CPU) + keep_freed_memory())  # each work, of bf16 and of freed memory


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path: Path) -> None:
    run = CliRunner().invoke(training.main, ["--preset", "tiny", "--reference", str(tmp_path)])
    assert run.exit_code == 1
    assert run.stderr.startswith("bench.training: ")
    assert "wants a checkout of https://github.com/" in run.stderr


def test_one_image_is_no_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        make_material(training.recipe_for("tiny"), 1, CPU, tmp_path)


def test_all_contestants_see_the_same_images(tmp_path: Path) -> None:
    """Our view of the batch is the memory that the official network is given, in the order it wants."""
    material = make_material(training.recipe_for("tiny"), 2, CPU, tmp_path, pool_batches=3)
    assert material.images_BSS3.shape == (2, 64, 64, 3)
    assert material.images_BSS3.is_contiguous()
    assert 0 <= material.images_BSS3.min() < material.images_BSS3.max() <= 1
    assert material.images_BSS3.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    assert (material.items("training step"), material.items("pool scoring")) == (2, 6)


# --- The official code


def fake_checkout(root: Path) -> Path:
    """A checkout in the official one's layout, ours from first to last: it tells what it was given."""
    (root / "code/models/stacked_hourglass").mkdir(parents=True)
    (root / "code/models/stacked_hourglass/StackedHourglass.py").write_text(
        "import torch\n"
        "from .parts import Part\n"
        "class PoseNet(torch.nn.Module):\n"
        "    def __init__(self, arch, auxnet, features):\n"
        "        super().__init__()\n"
        "        self.part = Part(arch['num_hm']).cuda(torch.device('cuda:0'))\n"
        "        self.stacks = arch['nstack']\n"
        "    def forward(self, images):\n"
        "        x = self.part(images.permute(0, 3, 1, 2).cuda(0).to('cuda:0'))\n"
        "        return torch.stack([x] * self.stacks, 1), {}\n"
    )
    (root / "code/models/stacked_hourglass/parts.py").write_text(
        "import torch\n"
        "class Part(torch.nn.Conv2d):\n"
        "    def __init__(self, joints):\n"
        "        super().__init__(3, joints, 4, stride=4)\n"
    )
    (root / "code/utils.py").write_text(
        "import umap\n"
        "from adjustText import adjust_text\n"
        "from matplotlib import pyplot as plt\n"
        "from matplotlib.patches import Circle\n"
        "plt.style.use('ggplot')\n"
        "def heatmap_loss(predicted, target):\n"
        "    return ((predicted - target[:, None]) ** 2).mean(dim=(2, 3, 4))\n"
    )
    return root


def test_a_checkout_leaves_no_modules_behind(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    mine = sys.modules.get("matplotlib")
    reference = load(fake_checkout(tmp_path))
    tops = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not tops & {"models", "utils", "umap", "adjustText"}
    assert sys.modules.get("matplotlib") is mine
    assert sys.path == path
    assert reference.commit is None
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_module_of_the_same_name_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = type(sys)("utils")
    monkeypatch.setitem(sys.modules, "utils", mine)
    load(fake_checkout(tmp_path))
    assert sys.modules["utils"] is mine


def test_a_checkout_without_the_network_names_the_file(tmp_path: Path) -> None:
    (fake_checkout(tmp_path) / "code/utils.py").unlink()
    with pytest.raises(DataNotFoundError, match=r"utils\.py does not exist"):
        load(tmp_path)


def test_requests_for_a_gpu_are_redirected_inside_alone(tmp_path: Path) -> None:
    reference = load(fake_checkout(tmp_path))
    to, cuda = torch.Tensor.to, torch.nn.Module.cuda
    with redirected(CPU):
        net = reference.pose_net({"nstack": 2, "num_hm": 5}, False, "conv")
        heatmaps, _ = net(torch.rand(3, 64, 64, 3))
        assert torch.ones(1).to("cuda:1", torch.float64).dtype == torch.float64
    assert heatmaps.shape == (3, 2, 5, 16, 16)
    assert torch.Tensor.to is to
    assert torch.nn.Module.cuda is cuda


def test_another_network_is_no_contestant(tmp_path: Path) -> None:
    recipe = training.recipe_for("tiny")
    material = make_material(recipe, 2, CPU, tmp_path / "cache")
    reference = load(fake_checkout(tmp_path / "checkout"))
    contestants, left_out = training.line_up(recipe, material, DeviceContext(CPU, torch.float32), reference)
    assert "reference" not in [one.name for one in contestants]
    assert "another one at this size" in left_out["reference"]


@pytest.fixture(scope="module")
def reference() -> Reference:
    path = os.environ.get("ALPOSE_REFERENCE")
    if not path:
        pytest.skip("ALPOSE_REFERENCE is not set: it names a checkout of the official repository")
    return load(Path(path))


def test_the_official_network_is_ours_but_for_dead_parameters(reference: Reference, tmp_path: Path) -> None:
    recipe = preset("paper").recipe
    recipe = replace(recipe, net=NetSize(stacks=1))
    material = make_material(recipe, 2, CPU, tmp_path)
    one, mine = official(reference, recipe, material), our_facts(recipe, material)
    assert one.facts.same_network(mine)
    assert one.facts.heatmaps == mine.heatmaps == (2, 1, 14, 64, 64)
    assert one.facts.parameters - one.facts.dead == mine.parameters
    assert one.facts.dead > 0.2 * one.facts.parameters
    assert mine.dead == 0
    measured = training.measure(
        [ours("ours fp32", recipe, material, DeviceContext(CPU, torch.float32)), one], material, CPU,
        rounds=1, warmup=0, calls=1,
    )  # fmt: skip
    timed = {(m["work"], m["contestant"]) for m in measured["measurements"]}
    assert timed == {(work, "ours fp32") for work in WORKS} | {(work, "reference") for work in WORKS[:2]}
    of = [(r["work"], r["to_work"]) for r in measured["ratios"]]
    assert of == [("training step",) * 2, ("forward",) * 2, ("pool scoring", "forward")]


def test_the_official_network_takes_no_other_resolution(reference: Reference, tmp_path: Path) -> None:
    recipe = preset("laptop").recipe
    with pytest.raises(ConfigError, match="only --preset paper"):
        official(reference, recipe, make_material(recipe, 2, CPU, tmp_path))


# --- bench.gpu


@pytest.fixture(scope="module")
def gpu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command left, in a toy size on the CPU; stage 1 with a first seed and then, resumed, two."""
    folder = tmp_path_factory.mktemp("gpu")
    common = ["--device", "cpu", "--tiny", "--out", str(folder / "out"), "--runs", str(folder / "runs"),
              "--cache", str(folder / "cache")]  # fmt: skip
    for more in (["--seeds", "1"], ["--part", "stage1", "--seeds", "2"]):
        run = CliRunner().invoke(gpu.main, [*common, *more], catch_exceptions=False)
        assert run.exit_code == 0, run.output
    assert "stage 1" in run.stdout
    return folder


def test_gpu_measures_every_variant_at_every_batch_size(gpu_folder: Path) -> None:
    value = read(gpu_folder / "out/gpu-tiny-throughput.json")
    assert value["left_out"] == []
    assert (value["tiny"], value["card"], value["peak_bf16_tflops"]) == (True, None, None)
    measured = [(m["batch"], m["work"], m["variant"]) for m in value["measurements"]]
    names = [variant["name"] for variant in value["variants"]]
    assert names == ["fp32", "fp32, TF32 on", "bf16", "bf16 compiled"]
    assert measured == [(batch, work, name) for batch in gpu.TINY.batches for work in WORKS for name in names]


def test_gpu_measures_every_preparation_on_and_off(gpu_folder: Path) -> None:
    value = read(gpu_folder / "out/gpu-tiny-switches.json")

    assert value["left_out"] == []
    assert [row["switch"] for row in value["switches"]] == [
        "CUDA graphs", "weights rounded once", "noise on the device", "reading ahead", "sending without waiting",
        "inverse in closed form",
    ]  # fmt: skip
    for row in value["switches"]:
        off_R, on_R = row["seconds_per_round"]["off"], row["seconds_per_round"]["on"]
        assert row["faster_per_round"] == pytest.approx([off / on for off, on in zip(off_R, on_R, strict=True)])


def test_gpu_numbers_agree_with_each_other(gpu_folder: Path) -> None:
    value = read(gpu_folder / "out/gpu-tiny-throughput.json")
    for m in value["measurements"]:
        assert m["images_per_call"] == m["batch"] * (gpu.TINY.pool_batches if m["work"] == "pool scoring" else 1)
        check_rates(m, rounds=gpu.TINY.rounds)
        assert m["tflops"] == pytest.approx(m["images_per_s"]["median"] * m["gflop_per_image"] / 1000)
        assert m["share_of_bf16_peak"] is None
    gflop = {m["work"]: m["gflop_per_image"] for m in value["measurements"]}
    assert 2 < gflop["training step"] / gflop["forward"] < 3
    assert gflop["forward"] == gflop["pool scoring"]


def test_gpu_stage_one_has_every_method_and_goes_on_where_it_was(gpu_folder: Path) -> None:
    value = read(gpu_folder / "out/gpu-tiny-stage1-standard.json")
    methods = DEFAULT_METHODS.split(",")
    rows = value["rows"]
    assert sorted((row["seed"], row["method"]) for row in rows) == sorted((s, m) for s in range(2) for m in methods)
    assert value["summary"].keys() == set(methods)
    for method, metrics in value["summary"].items():
        known = [row["selected_pck"] for row in rows if row["method"] == method]
        assert metrics["selected_pck"] == {
            "mean": pytest.approx(statistics.mean(known)), "sd": pytest.approx(statistics.stdev(known)), "seeds": 2,
        }  # fmt: skip
    assert [base["seed"] for base in value["bases"]] == [0, 1]
    assert len(value["seconds_per_seed_now"]) == 2
    assert read(gpu_folder / "runs/gpu-tiny-stage1-standard/results.json")["rows"] == rows


@pytest.mark.parametrize("arguments", [[], ["--tiny"], ["--device", "cuda:0"], ["--device", "cpu"]])
def test_without_a_gpu_it_says_so_and_exits_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = CliRunner().invoke(gpu.main, [*arguments, "--out", str(tmp_path)])
    assert run.exit_code == 2
    assert len(run.stderr.splitlines()) == 1
    assert "GPU" in run.stderr
    assert "--device cpu --tiny" in run.stderr
    assert not list(tmp_path.iterdir())


def test_what_cannot_run_is_named_and_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, *_: object) -> object:
            raise torch.OutOfMemoryError("no room\nwith details")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: Broken())
    machine, effort = DeviceContext(CPU, torch.float32), replace(gpu.TINY, batches=(2,), rounds=1)
    (value,) = gpu.throughput(training.recipe_for("tiny"), machine, effort)
    assert {(one["variant"], one["reason"]) for one in value["left_out"]} == {
        ("bf16 compiled", "OutOfMemoryError: no room")
    }
    assert {m["variant"] for m in value["measurements"]} == {"fp32", "fp32, TF32 on", "bf16"}


def test_batches_must_be_numbers() -> None:
    run = CliRunner().invoke(gpu.main, ["--device", "cpu", "--tiny", "--batches", "16,x"])
    assert run.exit_code == 1
    assert "--batches takes numbers" in run.stderr


def test_tf32_is_set_inside_alone() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for on in (True, False):
        with gpu.tf32(on):
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (on, on)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None), (None, None),
    ],
)  # fmt: skip
def test_peak_of_a_card(card: str | None, peak: float | None) -> None:
    assert gpu.peak_tflops(card) == peak


class Seeds:
    """A fake clock, and seeds that take the given times and guess the given times."""

    def __init__(self, takes: list[float], guess: float = 0.0) -> None:
        self.now, self.takes, self.guess, self.ran = 0.0, takes, guess, list[int]()

    def one(self, seed: int) -> float:
        self.ran.append(seed)
        self.now += self.takes[seed]
        return self.guess

    def run(self, deadline: float) -> list[float]:
        return gpu.seeds_within(self.one, seeds=len(self.takes), deadline=deadline, clock=lambda: self.now)


def test_seeds_start_while_the_last_ones_time_is_left() -> None:
    assert Seeds([10, 10, 10, 10]).run(deadline=30) == [10, 10, 10]
    assert Seeds([10, 10, 10, 10]).run(deadline=29.9) == [10, 10]
    assert Seeds([10, 10]).run(deadline=100) == [10, 10]


def test_the_first_seed_always_starts() -> None:
    assert Seeds([10, 10]).run(deadline=-5) == [10]


def test_a_seed_that_was_there_does_not_make_the_next_one_look_short() -> None:
    seeds = Seeds([0.1, 10], guess=10)
    assert seeds.run(deadline=5) == pytest.approx([0.1])
    assert seeds.ran == [0]


def test_gpu_runs_a_models_graph_in_every_way_and_says_what_could_not(tmp_path: Path) -> None:
    model = new_model(
        HourglassConfig(joints=len(LSP), stacks=1, channels=8), LSP, CropConfig(size_px=64), TargetConfig(), 0
    )
    save(model.with_heads({"ll++": new_head(model, "ll++", 0)}), tmp_path / "model")
    folder = tmp_path / "out"
    run = CliRunner().invoke(gpu.main, ["--device", "cpu", "--tiny", "--part", "bundle", "--bundle",
                                        str(tmp_path / "model"), "--out", str(folder)])  # fmt: skip
    assert run.exit_code == 0, run.output
    result = json.loads((folder / "gpu-tiny-bundle.json").read_text())
    ran, left_out = set(result["parity"]), {one["engine"] for one in result["left_out"]}
    assert ran | left_out == {f"onnxruntime cpu {p}" for p in ("fp32", "fp16")} | {
        f"torch {p}" for p in ("fp32", "fp16")
    }
    assert {"onnxruntime cpu fp32", "torch fp32"} <= ran
    assert result["parity"]["onnxruntime cpu fp32"]["score_max"] < 1e-3
    assert {(one["batch"], one["engine"]) for one in result["measurements"]} == {
        (b, e) for b in (1, 8, 32) for e in ran
    }


def test_the_bundle_part_alone_needs_a_model() -> None:
    run = CliRunner().invoke(gpu.main, ["--device", "cpu", "--tiny", "--part", "bundle"])
    assert run.exit_code == 1
    assert "--bundle CHECKPOINT" in run.output
