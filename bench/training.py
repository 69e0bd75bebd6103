"""Images per second of training and of pool scoring, side by side with the official code.

``python -m bench.training --preset paper --reference CHECKOUT``; docs/benchmarks.md says what is timed.

Shapes: R rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click
import torch

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_json
from alpose.trainer.device import DeviceContext, device_context, has_bf16, keep_freed_memory
from alpose.trainer.presets import Recipe, preset

from .parts.contestants import (
    FREED_MEMORY,
    KEPT_MEMORY,
    NOT_TIMED,
    WORK_SAYS,
    WORKS,
    Contestant,
    Material,
    Work,
    make_material,
    memory,
    official,
    ours,
    tiny_recipe,
)
from .parts.measure import (
    CLOCKS,
    RESULTS,
    Bench,
    Clock,
    clock_option,
    interleave,
    load_average,
    machine_facts,
    paired,
    rates,
    refuse_clock,
    spread,
    synchroniser,
    table,
)
from .parts.reference import Reference, load

Size = Literal["tiny", "laptop", "paper"]

Key = tuple[Work, str]
"""What is timed: a work and a contestant."""

PAIRS = (
    ("ours bf16", "ours fp32"), ("ours fp32", "reference"), ("ours bf16", "reference"), ("ours fp32", KEPT_MEMORY),
    ("ours fp32", FREED_MEMORY),
)  # fmt: skip
RATIOS: tuple[tuple[Key, Key], ...] = (
    *(((work, of), (work, to)) for work in WORKS for of, to in PAIRS),
    *((("pool scoring", of), ("forward", "reference")) for of in ("ours fp32", "ours bf16")),
)
"""First over second: above 1 the first is faster. The last ones set the whole of our scoring against the reference's
forward pass alone, as its own scoring cannot be called apart from its data loader."""


def recipe_for(size: Size) -> Recipe:
    """The recipe of a preset, or the toy."""
    return tiny_recipe() if size == "tiny" else preset(size).recipe


def line_up(
    recipe: Recipe, material: Material, used: DeviceContext, reference: Reference | None
) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and why somebody does not."""
    keeps_memory = used.device.type == "cpu" and keep_freed_memory()
    fp32 = DeviceContext(used.device, torch.float32)
    contestants = [ours("ours fp32", recipe, material, fp32)]
    if keeps_memory:
        contestants.append(ours(FREED_MEMORY, recipe, material, fp32, around=lambda: memory(False)))
    left_out = {}
    if has_bf16(used.device):
        contestants.append(ours("ours bf16", recipe, material, DeviceContext(used.device, torch.bfloat16)))
    else:
        left_out["ours bf16"] = f"{used.device} has no native bfloat16 arithmetic; the trainer would not use it either"
    if reference is None:
        left_out["reference"] = "no --reference was given"
    else:
        try:
            contestants.append(official(reference, recipe, material))
            if keeps_memory:
                contestants.append(official(reference, recipe, material, keeps_memory=True))
        except ConfigError as error:
            left_out["reference"] = str(error)
    return contestants, left_out


def measure(
    contestants: Sequence[Contestant], material: Material, device: torch.device, *, rounds: int, warmup: int, calls: int,
    clock: Clock = CLOCKS["wall"],
) -> dict[str, Any]:  # fmt: skip
    """Time everybody, and put the numbers in plain JSON values."""
    # By work first: what is compared within a round then runs back to back.
    tasks = {(work, one.name): one.tasks[work] for work in WORKS for one in contestants if work in one.tasks}
    seconds = interleave(tasks, rounds=rounds, warmup=warmup, calls=calls, sync=synchroniser(device), clock=clock)
    rate = {key: rates(seconds_R, material.items(key[0])) for key, seconds_R in seconds.items()}
    return {
        "measurements": [
            {"work": work, "contestant": name, "images_per_call": material.items(work),
             "seconds_per_round": seconds[work, name], "images_per_s_per_round": rate[work, name],
             "images_per_s": asdict(spread(rate[work, name]))}
            for work, name in tasks
        ],
        "ratios": [*_ratios(rate)],
    }  # fmt: skip


def _ratios(rate: Mapping[Key, Sequence[float]]) -> Iterator[dict[str, Any]]:
    for of, to in RATIOS:
        if of in rate and to in rate:
            per_round = paired(rate[of], rate[to])
            yield {"work": of[0], "of": of[1], "to_work": to[0], "to": to[1], "per_round": per_round,
                   "ratio": asdict(spread(per_round))}  # fmt: skip


def describe(contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What is in and out of the timing, and the networks' sizes."""
    return {
        "works": WORK_SAYS,
        "not_timed": NOT_TIMED,
        "contestants": {one.name: {"says": one.says, **asdict(one.facts)} for one in contestants},
    }


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    settings, parts = result["settings"], []
    parts.append(
        f"{settings['preset']}: {settings['stacks']} stacks of {settings['channels']}, {settings['size_px']} px, "
        f"batch {settings['batch']}, {result['machine']['threads']} threads, {settings['rounds']} rounds; images/s\n"
    )
    head = ("work", "contestant", "median", "min", "max", "quartiles")
    parts.append(table(head, [
        (m["work"], m["contestant"], *_numbers(m["images_per_s"])) for m in result["measurements"]
    ]))  # fmt: skip
    if result["ratios"]:
        parts.append("\n" + table(("ratio, paired by round", "of / to", *head[2:]), [
            (_ratio_name(r), f"{r['of']} / {r['to']}", *_numbers(r["ratio"])) for r in result["ratios"]
        ]))  # fmt: skip
    parts.append("\n" + table(("network", "parameters", "of them dead", "GFLOP forward", "GFLOP training"), [
        (name, f"{c['parameters']:,}", f"{c['dead']:,}", f"{c['gflop_forward']:.3g}", f"{c['gflop_training']:.3g}")
        for name, c in result["contestants"].items()
    ]))  # fmt: skip
    parts += [f"\nleft out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(parts)


def _ratio_name(ratio: Mapping[str, Any]) -> str:
    same = ratio["work"] == ratio["to_work"]
    return ratio["work"] if same else f"{ratio['work']} / {ratio['to_work']}"


def _numbers(values: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = values["quartiles"]
    return (*(f"{values[name]:.3g}" for name in ("median", "min", "max")), f"{low:.3g} to {high:.3g}")


@click.command(name="bench.training", cls=Bench)
@click.option("--reference", "checkout", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A checkout of the official repository, to be measured beside ours.")  # fmt: skip
@click.option("--preset", "size", default="paper", show_default=True, type=click.Choice(["tiny", "laptop", "paper"]),
              help="Size of the network; tiny tries the code path and measures nothing.")  # fmt: skip
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(0), help="Rounds that do not count.")
@click.option("--calls", default=1, show_default=True, type=click.IntRange(1), help="Calls behind one number.")
@click.option("--batch", type=click.IntRange(2), help="[default: the preset's]")
@click.option("--threads", type=click.IntRange(1), help="Of torch. [default: torch's, see OMP_NUM_THREADS]")
@clock_option
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="[default: bench/results/training.json; tiny writes nothing]")  # fmt: skip
def main(
    checkout: Path | None, size: Size, rounds: int, warmup: int, calls: int, batch: int | None, threads: int | None,
    clock_name: str, device: str, out: Path | None,
) -> None:  # fmt: skip
    """Images per second of a training step, a forward pass and pool scoring, contestants taking turns."""
    if threads:
        torch.set_num_threads(threads)
    refuse_clock(clock_name)
    used = device_context(device, "fp32")
    recipe = recipe_for(size)
    reference = load(checkout) if checkout else None
    before = load_average()
    with tempfile.TemporaryDirectory() as cache:
        material = make_material(recipe, batch or recipe.pose.batch, used.device, Path(cache))
    contestants, left_out = line_up(recipe, material, used, reference)
    measured = measure(contestants, material, used.device, rounds=rounds, warmup=warmup, calls=calls,
                       clock=CLOCKS[clock_name])  # fmt: skip
    result = {
        "bench": "training",
        "machine": machine_facts(used),
        "load_average": {"before": before, "after": load_average()},
        "reference_commit": reference.commit if reference else None,
        "settings": {
            "preset": size, **asdict(recipe.net), "size_px": recipe.crop.size_px,
            "joints": len(material.crops.data.skeleton), "batch": material.batch, "rounds": rounds, "warmup": warmup,
            "calls": calls, "clock": clock_name,
        },
        **describe(contestants),
        "left_out": left_out,
        **measured,
    }  # fmt: skip
    print(show(result))
    target = out or (None if size == "tiny" else RESULTS / "training.json")
    if target:
        print(f"\nwritten: {write_json(target, result)}")


if __name__ == "__main__":
    main()
