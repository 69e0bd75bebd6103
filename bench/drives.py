"""How many frames does a budget keep on short drives, whatever the bundle's calibration?

``python -m bench.drives`` simulates a car: each drive begins a new policy, which goes on from the state that the last one
left, as a Monitor's does from its queue. Scores stay alike for two seconds, as they do in a video, and are Beta(1, 12)
distributed; the calibration set is like that, harder, easier, or there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from alpose.runtime.bundle.manifest import HISTOGRAM_BINS, CalibrationFacts
from alpose.runtime.io import write_json
from alpose.runtime.triggers import Observation, Policy, Setting, State, parse

PER_HOUR = 20
TRIGGER = f"Episodes(Budget(per_hour={PER_HOUR})) | Control(per_hour=2)"
FIELD = (1.0, 12.0)
CALIBRATIONS: dict[str, tuple[float, float] | None] = {
    "none": None, "harder": (1.0, 3.0), "like the field": FIELD, "easier": (1.0, 40.0)
}  # fmt: skip
ALIKE_S = 2.0
EMPTY_D = np.empty(0, dtype=np.float32)


def calibration(name: str) -> CalibrationFacts | None:
    """The calibration of a bundle whose set has scores of this distribution."""
    shape = CALIBRATIONS[name]
    if shape is None:
        return None
    counts, _ = np.histogram(np.random.default_rng(9).beta(*shape, 1000), HISTOGRAM_BINS, (0, 1))
    return CalibrationFacts((), tuple(map(int, counts)), {})


def scores(minutes: float, fps: float, rng: np.random.Generator) -> list[float]:
    """The failure probabilities of a drive."""
    count, alike = int(minutes * 60 * fps), int(ALIKE_S * fps)
    slow = np.repeat(rng.beta(*FIELD, size=count // alike + 1), alike)[:count]
    values: list[float] = (slow * rng.uniform(0.97, 1.0, size=count)).tolist()
    return values


def drives(name: str, minutes: float, count: int, *, fps: float = 5.0, seed: int = 0) -> Iterator[tuple[int, int]]:
    """For each drive, the flagged frames that are left, and those of the control stream."""
    rng = np.random.default_rng(seed)
    setting, state = calibration(name), State()
    for drive in range(count):
        policy = Policy(parse(TRIGGER), Setting(setting, np.random.default_rng([seed, drive])))
        policy.restore(state, same_bundle=True)
        flagged = control = 0
        for number, score in enumerate(scores(minutes, fps, rng)):
            decision = policy.decide(
                Observation(time_s=number / fps, failure_probability=score, predicted_loss=0.0, embedding_D=EMPTY_D)
            )
            if decision.keep:
                policy.on_stored(True)
                flagged += decision.flagged - len(decision.supersedes) - len(decision.demotes)
                control += decision.control_draw is not None
        state = policy.state()
        yield flagged, control


def measure(name: str, minutes: float, count: int, seeds: int, fps: float) -> dict[str, Any]:
    """Frames an hour over all drives, for each seed."""
    hours = count * minutes / 60
    runs = [list(drives(name, minutes, count, fps=fps, seed=seed)) for seed in range(seeds)]
    kept = [sum(flagged for flagged, _ in run) / hours for run in runs]
    return {
        "calibration": name,
        "minutes": minutes,
        "drives": count,
        "seeds": seeds,
        "per_hour": {"min": min(kept), "mean": float(np.mean(kept)), "max": max(kept)},
        "first_drive_per_hour": float(np.mean([run[0][0] for run in runs])) * 60 / minutes,
        "control_per_hour": float(np.mean([sum(control for _, control in run) for run in runs])) / hours,
        "drives_that_kept_nothing": sum(flagged == 0 for run in runs for flagged, _ in run),
    }


@click.command()
@click.option("--seeds", default=20, show_default=True)
@click.option("--fps", default=5.0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "drives.json")
def main(seeds: int, fps: float, out: Path) -> None:
    """Simulate ten drives of 10, 20 and 60 minutes, and write how many frames were kept."""
    results = []
    for minutes in (10, 20, 60):
        for name in CALIBRATIONS:
            found = measure(name, minutes, 10, seeds if minutes < 60 else max(seeds // 5, 1), fps)
            results.append(found)
            kept = found["per_hour"]
            print(f"10 drives of {minutes} min, calibration {name}: {kept['min']:.1f} to {kept['max']:.1f} frames an hour, "
                  f"mean {kept['mean']:.1f}; control {found['control_per_hour']:.1f}", flush=True)  # fmt: skip
    print(f"written: {write_json(out, {'trigger': TRIGGER, 'asked_per_hour': PER_HOUR, 'fps': fps, 'runs': results})}")


if __name__ == "__main__":
    main()
