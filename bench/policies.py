"""What policies keep of a simulated day: the tables of ``docs/triggers.md``.

    python -m bench.policies

The stream is the one that the tests of :class:`~alpose.runtime.triggers.Budget` watch (``scores`` in
``tests/runtime/triggers/test_budget.py``), at ten frames a second. A burst is large where it raises the odds of a failure more than
sevenfold; it counts as covered where one of the frames that are left at the end of the day was taken while it lasted. All rows count
in this one way, on the same days.

Shapes: N frames, K bursts, F frames kept.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from alpose.runtime.io import write_json
from alpose.runtime.triggers import Observation, Policy, Setting, parse

STREAM = Path(__file__).parent.parent / "tests" / "runtime" / "triggers" / "test_budget.py"
HOURS, FPS, SEVENFOLD = 24.0, 10.0, math.log(7)
POLICIES = ("Control(per_hour=20)", "Threshold(0.5)", "Budget(20)", "Budget(20) & Cooldown(10)", "Episodes(Budget(20))")
DRIFTS = ("none", "abrupt up", "abrupt down", "gradual up", "gradual down", "day and night")
UNDER_DRIFT = ("Budget(20)", "Episodes(Budget(20)) | Control(per_hour=2)")
EMPTY_D = np.empty(0, dtype=np.float32)


def stream() -> ModuleType:
    """The tests' module: there is one simulated day, not two."""
    spec = importlib.util.spec_from_file_location("test_budget", STREAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept(policy: str, score_N: npt.NDArray[np.float64], seed: int) -> tuple[set[int], set[int]]:
    """The frames that are left at the end of the day: flagged, and of the control stream."""
    decider = Policy(parse(policy), Setting(None, np.random.default_rng([seed, 1])))
    flagged: set[int] = set()
    control: set[int] = set()
    for number, score in enumerate(score_N.tolist()):
        decision = decider.decide(
            Observation(time_s=number / FPS, failure_probability=score, predicted_loss=0.0, embedding_D=EMPTY_D)
        )
        if decision.keep:
            decider.on_stored(True)
            flagged.difference_update(decision.supersedes, decision.demotes)
            if decision.flagged:
                flagged.add(number)
            if decision.control_draw is not None:
                control.add(number)
    return flagged, control


def covered(frames_F: npt.NDArray[np.int64], bursts_K3: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Large bursts with a frame of these in them, and all large bursts."""
    large_K3 = bursts_K3[bursts_K3[:, 2] > SEVENFOLD]
    first_K, last_K = (large_K3[:, 0] * FPS).astype(int), ((large_K3[:, 0] + large_K3[:, 1]) * FPS).astype(int)
    found_K = np.searchsorted(frames_F, last_K, "right") > np.searchsorted(frames_F, first_K)
    return int(found_K.sum()), len(large_K3)


@click.command()
@click.option("--days", default=3, show_default=True, help="Simulated days of the first table.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "policies.json")
def main(days: int, out: Path) -> None:
    """Simulate, print, and write what each policy kept."""
    day, rows, drifts = stream(), list[dict[str, Any]](), list[dict[str, Any]]()
    for policy in POLICIES:
        frames, means, hit, large = 0, [], 0, 0
        for seed in range(days):
            _, score_N = day.scores(HOURS, fps=FPS, seed=seed)
            frames_F = np.array(sorted(set().union(*kept(policy, score_N, seed))), dtype=np.int64)
            ours, all_of_them = covered(frames_F, day.bursts(HOURS, FPS, seed))
            frames, hit, large = frames + len(frames_F), hit + ours, large + all_of_them
            means.append(float(score_N[frames_F].mean()))
        rows.append({"policy": policy, "frames_a_day": frames / days, "mean_probability": float(np.mean(means)),
                     "large_bursts": large, "covered": hit})  # fmt: skip
        print(f"{policy}: {frames / days:.0f} frames a day, mean failure probability {np.mean(means):.2f}, "
              f"{hit} of {large} large bursts", flush=True)  # fmt: skip
    for drift in DRIFTS:
        _, score_N = day.scores(HOURS, fps=FPS, drift=drift)
        per_hour = {policy: len(kept(policy, score_N, 0)[0]) / HOURS for policy in UNDER_DRIFT}
        drifts.append({"drift": drift, "flagged_per_hour": per_hour})
        print(
            f"{drift}: " + ", ".join(f"{policy} {value:.1f} an hour" for policy, value in per_hour.items()), flush=True
        )
    print(
        f"written: {write_json(out, {'hours': HOURS, 'fps': FPS, 'days': days, 'policies': rows, 'under_drift': drifts})}"
    )


if __name__ == "__main__":
    main()
