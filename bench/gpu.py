"""One command for a machine with a GPU: throughput of the paper's network, then stage 1 on LSP → LSPET.

``python -m bench.gpu --data-root DATA --minutes 60``; docs/benchmarks.md says what is measured.

Shapes: R rounds.
"""

from __future__ import annotations

import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import click
import torch
from torch import nn

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_json
from alpose.trainer.checkpoint import exists
from alpose.trainer.cli import DEFAULT_METHODS
from alpose.trainer.cli_options import default_cache
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.results import Results
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.catalog import find
from alpose.trainer.device import DeviceContext, device_context
from alpose.trainer.measures.metrics import ProfileName
from alpose.trainer.presets import Preset, Recipe, preset

from .parts.bundle import measure_bundle
from .parts.bundle import show as show_bundle
from .parts.contestants import (
    NOT_TIMED,
    WORK_SAYS,
    WORKS,
    Contestant,
    Material,
    NetFacts,
    Work,
    make_material,
    ours,
    tiny_recipe,
)
from .parts.gpu_switches import measure_switches
from .parts.gpu_switches import show as show_switches
from .parts.measure import RESULTS, Bench, Task, interleave, machine_facts, rates, spread, synchroniser, table

Part = Literal["all", "throughput", "switches", "bundle", "stage1"]

PEAK_BF16_TFLOPS: tuple[tuple[str, float], ...] = (
    ("H200 NVL", 835), ("H200", 989), ("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989), ("A100", 312),
    ("A30", 165), ("A10", 125), ("L40S", 362), ("L4", 121),
)  # fmt: skip
"""Dense tensor-core peak by words of the card's name, the more special name first; from NVIDIA's data sheets."""

FLOPS_SAY = (
    "torch.utils.flop_counter.FlopCounterMode on the pose net alone: convolutions and matrix products, a multiply-add "
    "as two. A training step counts forward and backward; forward and pool scoring count the forward pass, so what "
    "scoring does besides (heads, decoding, entropies) takes time and counts nothing."
)

METRICS = ("pool_pck", "selected_pck", "auroc", "aurc", "spearman", "precision_at_budget", "gap_closed")


# --- Throughput


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute."""

    name: str
    dtype: torch.dtype
    tf32: bool
    compiled: bool


VARIANTS = (
    Variant("fp32", torch.float32, tf32=False, compiled=False),
    Variant("fp32, TF32 on", torch.float32, tf32=True, compiled=False),
    Variant("bf16", torch.bfloat16, tf32=True, compiled=False),
    Variant("bf16 compiled", torch.bfloat16, tf32=True, compiled=True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How long the throughput part takes."""

    batches: tuple[int, ...]
    rounds: int
    calls: int
    pool_batches: int
    """Batches in the pool that one call scores."""
    compiler: str
    """Of torch.compile."""


FULL = Effort(batches=(16, 32, 64, 128), rounds=5, calls=5, pool_batches=2, compiler="inductor")
TINY = Effort(batches=(2, 3), rounds=2, calls=1, pool_batches=2, compiler="eager")


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TF32 in convolutions and matrix products, on or off. PyTorch's own default is on for convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = on, on
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def peak_tflops(card: str | None) -> float | None:
    """The card's dense bf16 peak; None for a card that is not in the table, or a slice of one."""
    words = set(re.split(r"[\s\-/]+", card or ""))
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAK_BF16_TFLOPS if set(name.split()) <= words), None)


def throughput(recipe: Recipe, used: DeviceContext, effort: Effort) -> Iterator[dict[str, Any]]:
    """Images per second and TFLOP/s of every variant; the result so far, after every batch size."""
    card = torch.cuda.get_device_name(used.device) if used.device.type == "cuda" else None
    result: dict[str, Any] = {
        "works": WORK_SAYS, "not_timed": NOT_TIMED, "flops": FLOPS_SAY, "card": card,
        "peak_bf16_tflops": peak_tflops(card),
        "variants": [{**asdict(variant), "dtype": str(variant.dtype).removeprefix("torch.")} for variant in VARIANTS],
        "effort": asdict(effort), "measurements": [], "left_out": [],
    }  # fmt: skip
    for batch in effort.batches:
        with tempfile.TemporaryDirectory() as cache:
            material = make_material(recipe, batch, used.device, Path(cache), effort.pool_batches)
        timed, failed = _one_batch(recipe, material, used, effort)
        result["measurements"] += timed
        result["left_out"] += failed
        print(_show_batch(batch, timed, failed), flush=True)
        yield result


Key = tuple[Work, Variant]


def _one_batch(
    recipe: Recipe, material: Material, used: DeviceContext, effort: Effort
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measurements, and what could not be measured."""
    torch.compiler.reset()  # else a new batch size would be compiled for sizes of every kind, which run slower
    contestants = {variant: _contestant(variant, recipe, material, used, effort) for variant in VARIANTS}
    tasks: dict[Key, Task] = {}
    memory: dict[Key, float | None] = {}
    left_out = []
    for work in WORKS:
        for variant, one in contestants.items():
            try:
                memory[work, variant] = _try(one.tasks[work], used.device)
            except RuntimeError as error:  # out of memory, no compiler: the others still count
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                left_out.append({"batch": material.batch, "work": work, "variant": variant.name, "reason": reason})
            else:
                tasks[work, variant] = one.tasks[work]
    seconds = interleave(tasks, rounds=effort.rounds, calls=effort.calls, sync=synchroniser(used.device))
    return [
        _row(key, seconds_R, material, contestants[key[1]].facts, used.device, memory[key])
        for key, seconds_R in seconds.items()
    ], left_out


def _row(
    key: Key, seconds_R: Sequence[float], material: Material, facts: NetFacts, device: torch.device,
    memory_gb: float | None,
) -> dict[str, Any]:  # fmt: skip
    work, variant = key
    rate_R = rates(seconds_R, material.items(work))
    gflop = facts.gflop_training if work == "training step" else facts.gflop_forward
    tflops = spread(rate_R).median * gflop / 1e3
    peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "batch": material.batch, "work": work, "variant": variant.name, "images_per_call": material.items(work),
        "seconds_per_round": seconds_R, "images_per_s_per_round": rate_R, "images_per_s": asdict(spread(rate_R)),
        "gflop_per_image": gflop, "tflops": tflops, "share_of_bf16_peak": tflops / peak if peak else None,
        "peak_memory_gb": memory_gb,
    }  # fmt: skip


def _contestant(
    variant: Variant, recipe: Recipe, material: Material, used: DeviceContext, effort: Effort
) -> Contestant:
    def compiled(net: nn.Module) -> Any:
        return torch.compile(net, backend=effort.compiler, dynamic=False)

    def around() -> AbstractContextManager[None]:
        return tf32(variant.tf32)

    of_variant = DeviceContext(used.device, variant.dtype)
    return ours(variant.name, recipe, material, of_variant, around=around,
                compile_=compiled if variant.compiled else None)  # fmt: skip


def _try(task: Callable[[], object], device: torch.device) -> float | None:
    """Call once, which also compiles and picks convolution algorithms; the peak memory in GB of a second call."""
    task()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    task()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 1e9


def _show_batch(batch: int, timed: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    rows = [
        (m["work"], m["variant"], f"{m['images_per_s']['median']:.4g}", f"{m['images_per_s']['min']:.4g}",
         f"{m['images_per_s']['max']:.4g}", f"{m['tflops']:.3g}", share(m["share_of_bf16_peak"]),
         "-" if m["peak_memory_gb"] is None else f"{m['peak_memory_gb']:.1f}")
        for m in timed
    ]  # fmt: skip
    head = ("work", "variant", "images/s", "min", "max", "TFLOP/s", "of bf16 peak", "GB")
    return "\n".join([f"\nbatch {batch}", table(head, rows),
                      *(f"left out: {f['variant']}, {f['work']}: {f['reason']}" for f in failed)])  # fmt: skip


# --- Stage 1


def seeds_within(
    one: Callable[[int], float], *, seeds: int, deadline: float, clock: Callable[[], float] = time.monotonic
) -> list[float]:
    """Run seeds 0, 1, … while the next one fits before the deadline; the first always runs.

    Args:
        one: runs a seed, and returns its guess of the seconds that a seed takes from nothing.
        seeds: how many at most.
        deadline: of ``clock``.
        clock: seconds.

    Returns:
        Seconds of each seed that ran. A seed that an earlier run had finished takes none, so the next one is expected
        to take the longer of its time and its guess.
    """
    took: list[float] = []
    expected = -math.inf
    for seed in range(seeds):
        started = clock()
        if deadline - started < expected:
            break
        guess = one(seed)
        took.append(clock() - started)
        expected = max(took[-1], guess)
    return took


def stage_config(chosen: Preset, *, tiny: bool, profile: ProfileName, seeds: int) -> RunConfig:
    """Failure detection of the default methods, as ``alpose-train cycles --select-only`` would be asked for it."""
    return RunConfig.from_preset(
        "smoke" if tiny else "paper", "synthetic" if tiny else "lsp", recipe=chosen.recipe, budget=chosen.budget,
        initial=chosen.initial, sizes=chosen.sizes, methods=tuple(DEFAULT_METHODS.split(",")), seeds=seeds,
        profile=profile, select_only=True,
    )  # fmt: skip


def stage_one(
    chosen: Preset, used: DeviceContext, *, tiny: bool, profile: ProfileName, seeds: int, deadline: float,
    folder: Path, out: Path, data_root: Path | None, cache: Path, bases: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run seeds while time allows. The result is written after each; each training saves its state in ``folder``."""
    started = time.monotonic()
    seconds: list[float] = []
    result: dict[str, Any] = {}

    def one(seed: int) -> float:
        nonlocal result
        began = time.monotonic()
        config = stage_config(chosen, tiny=tiny, profile=profile, seeds=seed + 1)
        theirs = bases if bases and exists(bases / f"seed-{seed}" / "base") else None
        results = run_benchmark(config, folder, used, data_root=data_root, cache=cache, bases=theirs)
        seconds.append(time.monotonic() - began)
        result = {"bench": "gpu stage 1", "tiny": tiny, "machine": results.environment, "run_folder": str(folder),
                  "seconds_per_seed_now": seconds, "summary": summary(results), "config": results.config,
                  "bases": list(results.bases), "rows": [asdict(row) for row in results.rows]}  # fmt: skip
        print(f"seed {seed}: {seconds[-1]:.0f} s; written: {write_json(out, result)}", flush=True)
        return max(base["train_seconds"] for base in results.bases)

    took = seeds_within(one, seeds=seeds, deadline=deadline)
    print(_show_summary(result["summary"]))
    if len(took) < seeds:
        print(f"stopped after {len(took)} of {seeds} seeds and {time.monotonic() - started:.0f} s: the next one does "
              "not fit into --minutes. The same command goes on from here.")  # fmt: skip
    return result


def summary(results: Results) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Mean and standard deviation over seeds of every method and metric."""
    methods = dict.fromkeys(row.method for row in results.rows)
    return {
        method: {
            metric: _over_seeds([getattr(row, metric) for row in results.rows if row.method == method])
            for metric in METRICS
        }
        for method in methods
    }


def _over_seeds(values: Sequence[float | None]) -> dict[str, float | int | None]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "seeds": len(known),
    }


def _show_summary(of: Mapping[str, Mapping[str, Mapping[str, float | int | None]]]) -> str:
    def cell(value: Mapping[str, float | int | None]) -> str:
        mean, sd = value["mean"], value["sd"]
        return "-" if mean is None else f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}")

    return "\n" + table(("stage 1", *METRICS), [
        (method, *(cell(metrics[metric]) for metric in METRICS)) for method, metrics in of.items()
    ])  # fmt: skip


# --- Command


@click.command(name="bench.gpu", cls=Bench)
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(0),
              help="No seed of stage 1 starts that would probably end later.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), help="Of stage 1, at most. [default: the preset's]")
@click.option("--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="ALPOSE_DATA",
              help="Where LSP and LSPET are. [env: ALPOSE_DATA]")  # fmt: skip
@click.option("--profile", default="standard", show_default=True, type=click.Choice(["standard", "official-2021"]),
              help="How PCK is computed.")  # fmt: skip
@click.option("--bases", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A run folder, such as the other profile's, to take base models over from.")  # fmt: skip
@click.option("--part", default="all", show_default=True, type=click.Choice(get_args(Part)))
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), metavar="CHECKPOINT",
              help="Also run this model's exported graph: ONNX Runtime and PyTorch, fp32 and fp16.")  # fmt: skip
@click.option("--batches", metavar="N,N,...", help="Of the throughput part. [default: 16,32,64,128]")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the results. [default: bench/results]")  # fmt: skip
@click.option("--runs", default=Path("runs"), show_default=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the trainings, which are continued there.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), envvar="ALPOSE_CACHE",
              help="Where crops are cached. [env: ALPOSE_CACHE; default: ~/.cache/alpose]")  # fmt: skip
@click.option("--device", help="[default: the GPU]")
@click.option("--tiny", is_flag=True, help="A toy size on synthetic people that tries the code path, also on a CPU.")
@click.pass_context
def main(
    ctx: click.Context, minutes: float, seeds: int | None, data_root: Path | None, profile: ProfileName,
    bases: Path | None, part: Part, bundle: Path | None, batches: str | None, out: Path, runs: Path, cache: Path | None,
    device: str | None, tiny: bool,
) -> None:  # fmt: skip
    """Throughput and TFLOP/s of the paper preset, then failure detection on LSP → LSPET."""
    started = time.monotonic()
    wanted = torch.device(device or "cuda")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        _refuse(ctx, f"this torch ({torch.__version__}) sees no GPU")
    if wanted.type != "cuda" and not tiny:
        _refuse(ctx, f"--device {wanted} is not a GPU, and the paper's size would take a day there")
    used = device_context(device, "auto")
    chosen = replace(preset("smoke"), recipe=tiny_recipe()) if tiny else preset("paper")
    if part in ("all", "stage1") and not tiny:  # before minutes are spent on the rest
        find("lsp", data_root)
        find("lspet", data_root)
    prefix = "gpu-tiny" if tiny else "gpu"
    if part in ("all", "throughput"):
        effort = TINY if tiny else FULL
        effort = replace(effort, batches=_numbers(batches)) if batches else effort
        settings = {**asdict(chosen.recipe.net), "size_px": chosen.recipe.crop.size_px}
        for measured in throughput(chosen.recipe, used, effort):
            result = {"bench": "gpu throughput", "tiny": tiny, "machine": machine_facts(used), "settings": settings,
                      **measured}  # fmt: skip
            print(f"written: {write_json(out / f'{prefix}-throughput.json', result)}", flush=True)
    if part in ("all", "switches"):
        effort = TINY if tiny else FULL
        with tempfile.TemporaryDirectory() as folder:
            material = make_material(chosen.recipe, effort.batches[0], used.device, Path(folder), effort.pool_batches)
        switched = measure_switches(chosen.recipe, material, used, rounds=effort.rounds, calls=effort.calls,
                                    compiler=effort.compiler)  # fmt: skip
        print(show_switches(switched), flush=True)
        value = {"bench": "gpu switches", "tiny": tiny, "machine": machine_facts(used), **switched}
        print(f"written: {write_json(out / f'{prefix}-switches.json', value)}", flush=True)
    if bundle is not None and part in ("all", "bundle"):
        measured_bundle = measure_bundle(bundle, used, rounds=2 if tiny else 20, calls=1 if tiny else 5)
        print(show_bundle(measured_bundle), flush=True)
        value = {"bench": "gpu bundle", "tiny": tiny, "machine": machine_facts(used), **measured_bundle}
        print(f"written: {write_json(out / f'{prefix}-bundle.json', value)}", flush=True)
    elif part == "bundle":
        raise ConfigError("--part bundle needs --bundle CHECKPOINT: the model whose graph is run")
    if part in ("all", "stage1"):
        name = f"{prefix}-stage1-{profile}"
        stage_one(chosen, used, tiny=tiny, profile=profile, seeds=seeds or chosen.seeds,
                  deadline=started + minutes * 60, folder=runs / name, out=out / f"{name}.json", data_root=data_root,
                  cache=cache or default_cache(), bases=bases)  # fmt: skip


def _numbers(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise ConfigError(f"--batches takes numbers with commas between, got {value!r}") from error


def _refuse(ctx: click.Context, why: str) -> None:
    click.echo(
        f"bench.gpu: {why}; run this on a machine with a GPU, or try the code path with --device cpu --tiny", err=True
    )
    ctx.exit(2)


if __name__ == "__main__":
    main()
