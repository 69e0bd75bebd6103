"""Seconds of selecting, drawing and evaluating, side by side with the official code's functions on the same inputs.

``python -m bench.methods --reference CHECKOUT``. Every work says whether its contestants came to the same; where they
cannot, the defect is named. One thread unless ``--threads`` says otherwise: the official functions are Python loops.

Shapes: R rounds.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import cv2
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from alpose.runtime.errors import AlposeError
from alpose.runtime.io import write_json
from alpose.trainer.device import device_context

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
    refuse_clock,
    spread,
    table,
)
from .parts.methods import OURS, TINY, Sizes, Work, works
from .parts.reference_methods import ReferenceMethods, load_methods

NAMES = tuple(works(Sizes()))


def measure(work: Work, *, rounds: int, warmup: int, clock: Clock = CLOCKS["wall"]) -> dict[str, Any]:
    """Time everybody at one work, and put the numbers in plain JSON values."""
    if work.rounds is not None:
        rounds, warmup = min(rounds, work.rounds), 0
    seconds = interleave(work.tasks, rounds=rounds, warmup=warmup, clock=clock)
    result: dict[str, Any] = {
        "work": work.name, "says": work.says, "unit": work.unit, "items_per_call": work.items,
        "contestants": {
            name: {"seconds_per_round": seconds_R, "seconds": asdict(spread(seconds_R)),
                   f"seconds_per_{work.unit}": spread(seconds_R).median / work.items}
            for name, seconds_R in seconds.items()
        },
        "faster_than": {
            name: _ratio(seconds[name], seconds[OURS]) for name in work.tasks if name != OURS
        },
        "checks": [asdict(check) for check in work.check()],
        "peak_memory_mib": _peak_memory_mib(),
    }  # fmt: skip
    if work.left_out:
        result["left_out"] = list(work.left_out)
    if work.floor:
        part, times = work.floor
        floor_R = tuple(times * value for value in seconds[part])
        result["floor"] = {"of": f"{times} x {part}", "seconds": asdict(spread(floor_R)),
                           "ours_to_floor": _ratio(seconds[OURS], floor_R)}  # fmt: skip
    return result


def _ratio(values_R: Sequence[float], base_R: Sequence[float]) -> dict[str, Any]:
    per_round = paired(values_R, base_R)
    return {"per_round": per_round, "ratio": asdict(spread(per_round))}


def _peak_memory_mib() -> float:
    """Of the process so far, inputs included; the works run from small to large."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    settings, rows = result["settings"], []
    for work in result["works"]:
        for name, of in work["contestants"].items():
            each = of[f"seconds_per_{work['unit']}"]
            ratio = work["faster_than"].get(name)
            rows.append((work["work"], name, *(f"{of['seconds'][key]:.4g}" for key in ("median", "min", "max")),
                         f"{each * 1e3:.3g} ms/{work['unit']}", f"{ratio['ratio']['median']:.3g}" if ratio else ""))  # fmt: skip
    head = ("work", "contestant", "seconds", "min", "max", "each", "of ours")
    parts = [f"{result['machine']['threads']} threads, {settings['rounds']} rounds\n", table(head, rows), ""]
    for work in result["works"]:
        parts.append(f"{work['work']}: {work['says']}; peak memory so far {work['peak_memory_mib']:.0f} MiB")
        parts += [f"  {'agrees' if check['agrees'] else 'DIFFERS'}: {check['of']} and {check['to']}: {check['says']}"
                  for check in work["checks"]]  # fmt: skip
        parts += [f"  left out: {reason}" for reason in work.get("left_out", ())]
        if "floor" in work:
            floor = work["floor"]
            parts.append(f"  {floor['of']}: {floor['seconds']['median']:.3g} s; ours is "
                         f"{floor['ours_to_floor']['ratio']['median']:.3g} of that")  # fmt: skip
    parts += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(parts)


@click.command(name="bench.methods", cls=Bench)
@click.option("--reference", "checkout", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A checkout of the official repository, to be measured beside ours.")  # fmt: skip
@click.option("--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="ALPOSE_DATA",
              help="Where LSP lies, for the data pipeline; without it made-up people. [env: ALPOSE_DATA]")  # fmt: skip
@click.option("--size", default="paper", show_default=True, type=click.Choice(["tiny", "paper"]),
              help="tiny tries the code path and measures nothing.")  # fmt: skip
@click.option("--works", "wanted", multiple=True, type=click.Choice(NAMES), help="Only these. [default: all]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(0), help="Rounds that do not count.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of torch and of BLAS.")
@clock_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="[default: bench/results/methods.json; tiny and --works write nothing]")  # fmt: skip
def main(
    checkout: Path | None, data_root: Path | None, size: str, wanted: tuple[str, ...], rounds: int, warmup: int,
    threads: int, clock_name: str, out: Path | None,
) -> None:  # fmt: skip
    """Selecting, drawing, loading and evaluating: ours and the official functions, taking turns."""
    used = device_context("cpu", "fp32")
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    refuse_clock(clock_name)
    reference = load_methods(checkout) if checkout else None
    before = load_average()
    sizes = replace(TINY if size == "tiny" else Sizes(), data_root=data_root)
    with threadpool_limits(threads):
        done = _measure_all(works(sizes), wanted, sizes, reference, rounds, warmup, CLOCKS[clock_name])
    result = {
        "bench": "methods",
        "machine": machine_facts(used),
        "load_average": {"before": before, "after": load_average()},
        "reference_commit": reference.commit if reference else None,
        "settings": {
            "size": size,
            **asdict(sizes),
            "data_root": None if data_root is None else "given",
            "rounds": rounds,
            "warmup": warmup,
            "threads": threads,
            "clock": clock_name,
        },
        "left_out": reference.lacks if reference else {"reference": "no --reference was given"},
        "works": done,
    }
    print(show(result))
    target = out or (None if size == "tiny" or wanted else RESULTS / "methods.json")
    if target:
        print(f"\nwritten: {write_json(target, result)}")
    wrong = [work["work"] for work in done if not all(check["agrees"] for check in work["checks"])]
    if wrong:
        raise AlposeError(f"contestants come to different results: {', '.join(wrong)}")


def _measure_all(
    makers: Mapping[str, Any], wanted: Sequence[str], sizes: Sizes, reference: ReferenceMethods | None, rounds: int,
    warmup: int, clock: Clock,
) -> list[dict[str, Any]]:  # fmt: skip
    """One work after the other: what one needs in memory is gone before the next begins."""
    chosen = [make for name, make in makers.items() if not wanted or name in wanted]
    return [measure(make(sizes, reference), rounds=rounds, warmup=warmup, clock=clock) for make in chosen]


if __name__ == "__main__":
    main()
