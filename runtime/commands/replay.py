"""``alpose-monitor replay``: what another policy would have kept, from the score log of a queue.

The same triggers run over what was seen. Two things are known only roughly. Novel compares with the distance that was logged, which was to what the policy *of the
time* had kept, and passes frames where none was logged. And a frame counts as a failure with its calibrated failure
probability, so recall and precision are expectations, as good as the calibration is in the field.

Shapes: N frames.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from .. import scorelog
from ..bundle.manifest import CalibrationFacts
from ..command_line import print_json, rate
from ..errors import DataError
from ..triggers import Decision, Observation, Policy, Setting, Trigger, parse
from ..triggers.rates import PAUSE_S
from .queue import reading
from .run import budget_policy

if TYPE_CHECKING:
    from ..queue import Queue, ScoreChunk


SAME_BOOT_S = 60.0
"""Wall clock less monotonic clock is one number while a device runs; further apart, it was restarted or set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a policy would have kept of the frames in a score log."""

    trigger: str
    frames: int
    hours: float
    """Of running: pauses longer than 10 s are left out."""
    flagged: int
    """Kept because of what they showed, without those that an episode replaced later."""
    control: int
    """In the control stream, flagged or not."""
    kept: int
    """Flagged or in the control stream."""
    replaced: int
    """Flagged at first, and replaced by a better frame of the same episode."""
    kept_then: int
    """By the policy of the time, frames included that an episode replaced later."""
    kept_both: int
    expected_failures: float
    """Σ failure probability of all frames; nan for a bundle without calibration, and so the next."""
    expected_caught: float
    """Of the frames that would be kept."""
    by_reason: Mapping[str, int]
    """Kept frames by what fired for them; several may have."""
    unknown_distance: int
    """Frames without a logged distance that Novel would have asked for."""

    @property
    def per_hour(self) -> float:
        """Kept frames per hour of running; nan for none."""
        return self.kept / self.hours if self.hours else math.nan

    @property
    def recall(self) -> float:
        """Expected share of failing frames that are kept."""
        return self.expected_caught / self.expected_failures if self.expected_failures else math.nan

    @property
    def precision(self) -> float:
        """Expected share of kept frames that are failures."""
        return self.expected_caught / self.kept if self.kept else math.nan

    def __str__(self) -> str:
        return table([self])


def replay(
    chunks: Iterable[scorelog.Chunk | bytes],
    trigger: Trigger,
    calibration: CalibrationFacts | None,
    *,
    seed: int = 0,
) -> Replay:
    """Run a policy over a score log.

    Args:
        chunks: of one bundle, in any order, of any number of streams.
        trigger: the policy.
        calibration: of the bundle. Without it expected failures are unknown.
        seed: of the draws.

    Raises:
        DataError: a damaged chunk, or chunks of several bundles, whose scores do not compare.
        ConfigError: the policy needs a calibration that is not there.
    """
    decoded = [chunk if isinstance(chunk, scorelog.Chunk) else scorelog.decode(chunk) for chunk in chunks]
    bundles = sorted({chunk.bundle for chunk in decoded})
    if len(bundles) > 1:
        raise DataError(
            f"this score log has frames of {len(bundles)} bundles, whose scores do not compare: "
            f"{', '.join(bundle[:12] for bundle in bundles)}; replay one of them"
        )
    policy = Policy(trigger, Setting(calibration, np.random.default_rng(seed)))
    kept: dict[int, _Kept] = {}
    frames = kept_then = replaced = unknown_distance = 0
    hours = failures = 0.0
    for boot in _boots(decoded):
        rows = list(_rows(boot))
        hours += float(np.minimum(np.diff([seen.time_s for seen, _ in rows]), PAUSE_S).sum()) / 3600.0
        probability_N = np.array([seen.failure_probability for seen, _ in rows], dtype=np.float32)
        failures += float(np.nansum(probability_N, dtype=np.float64))
        for seen, was_kept in rows:
            kept_then += was_kept
            unknown_distance += math.isnan(seen.distance)
            decision = policy.decide(seen)
            if decision.keep:
                policy.on_stored(True)
                _replace(kept, decision)
                replaced += len(decision.supersedes) + len(decision.demotes)
                kept[frames] = _Kept(
                    flagged=decision.flagged,
                    control=decision.control_draw is not None,
                    failure_probability=seen.failure_probability,
                    then=was_kept,
                    reasons=frozenset(reason.trigger for reason in decision.reasons),
                )
            frames += 1
    by_reason = Counter(name for one in kept.values() for name in one.reasons)
    caught = float(np.nansum([one.failure_probability for one in kept.values()], dtype=np.float64))
    asks_distance = any(found.measures_distance for found in trigger.walk())
    return Replay(
        trigger=str(trigger),
        frames=frames,
        hours=hours,
        flagged=sum(one.flagged for one in kept.values()),
        control=sum(one.control for one in kept.values()),
        kept=len(kept),
        replaced=replaced,
        kept_then=kept_then,
        kept_both=sum(one.then for one in kept.values()),
        expected_failures=failures if calibration else math.nan,
        expected_caught=caught if calibration else math.nan,
        by_reason=dict(by_reason.most_common()),
        unknown_distance=unknown_distance if asks_distance else 0,
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A frame that the policy keeps."""

    flagged: bool
    control: bool
    failure_probability: float
    then: bool
    """The policy of the time kept it too."""
    reasons: frozenset[str]


def _replace(kept: dict[int, _Kept], decision: Decision) -> None:
    """Drop what an episode replaces; what is in the control stream too stays there."""
    for one in decision.supersedes:
        del kept[one]
    for one in decision.demotes:
        kept[one] = replace(kept[one], flagged=False, reasons=frozenset({"control"}))


def table(replays: Sequence[Replay]) -> str:
    """Policies side by side, for people."""
    head = ("policy", "kept", "per hour", "flagged", "control", "also kept then", "recall", "precision")
    lines = [head, *(_cells(one) for one in replays)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines]  # fmt: skip
    if replays:
        one = replays[0]
        text.append(f"{one.frames} frames in {one.hours:.1f} hours; recall and precision are expected, by frame, from the "
                    "calibrated failure probability")  # fmt: skip
    text += [f"{one.trigger}: what fired: " + ", ".join(f"{name} {count}" for name, count in one.by_reason.items())
             for one in replays if one.by_reason]  # fmt: skip
    text += [f"{one.trigger}: {one.unknown_distance} of {one.frames} frames have no logged distance and passed Novel"
             for one in replays if one.unknown_distance]  # fmt: skip
    return "\n".join(text)


def _cells(one: Replay) -> tuple[str, ...]:
    then = f"{one.kept_both} of {one.kept_then}"
    return (one.trigger, f"{one.kept}", _number(one.per_hour, ".1f"), f"{one.flagged}", f"{one.control}", then,
            _number(one.recall, ".2%"), _number(one.precision, ".1%"))  # fmt: skip


def _number(value: float, form: str) -> str:
    return "unknown" if math.isnan(value) else format(value, form)


def _rows(chunks: list[scorelog.Chunk]) -> Iterator[tuple[Observation, bool]]:
    """What was seen in the streams of one boot, in order of time, and whether it was kept."""
    time_s_N = np.concatenate([chunk.start_monotonic_ns / 1e9 + chunk.seconds_N for chunk in chunks])
    order_N = np.argsort(time_s_N, kind="stable")
    names = [chunk.stream for chunk in chunks for _ in range(len(chunk))]
    kept_N = np.concatenate([chunk.flagged_N | chunk.control_N for chunk in chunks])
    columns = {
        name: np.concatenate([getattr(chunk, f"{name}_N") for chunk in chunks])[order_N].tolist()
        for name in ("failure_probability", "predicted_loss", "jump", "limbs", "distance")
    }
    nothing_D = np.empty(0, dtype=np.float32)
    for row, place in enumerate(order_N.tolist()):
        values = {name: column[row] for name, column in columns.items()}
        yield (
            Observation(time_s=float(time_s_N[place]), embedding_D=nothing_D, stream=names[place], **values),
            bool(kept_N[place]),
        )


def _boots(chunks: list[scorelog.Chunk]) -> list[list[scorelog.Chunk]]:
    """Chunks whose monotonic times compare, together; in the order in which they began."""
    boots: list[list[scorelog.Chunk]] = []
    for chunk in sorted(
        (chunk for chunk in chunks if len(chunk)), key=lambda one: one.start_ns - one.start_monotonic_ns
    ):
        apart_ns = chunk.start_ns - chunk.start_monotonic_ns
        if boots:
            last = boots[-1][-1]
            if apart_ns - (last.start_ns - last.start_monotonic_ns) <= SAME_BOOT_S * 1e9:
                boots[-1].append(chunk)
                continue
        boots.append([chunk])
    return sorted(boots, key=lambda boot: min(chunk.start_ns for chunk in boot))


# --- the command


@click.command("replay")
@click.argument("queue", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--trigger", "triggers", multiple=True, metavar="POLICY",
              help='A policy: "Episodes(Budget(50)) | Control(rate=0.001)"; repeat it to compare several.')  # fmt: skip
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=rate,
    metavar="N/hour",
    help="The policy of run --budget: 100/hour, 2000/day, a number alone is frames an hour; may be repeated.",
)
@click.option("--bundle", "sha256", metavar="SHA256", help="Which model's scores: any unique beginning of its sha256.")
@click.option("--device", help="Only what this device saw.")
@click.option("--camera", help="Only what this camera saw.")
@click.option("--seed", default=0, show_default=True, metavar="NUMBER", help="Begins the random draws.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def replay_command(
    queue: Path, triggers: tuple[str, ...], budgets: tuple[float, ...], sha256: str | None, device: str | None,
    camera: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Say what other policies would have kept of all that a monitor saw, beside what was kept.

    A queue logs the scores of every frame, kept or not: 16 bytes each. The same triggers run over them once more.

    \b
    alpose-monitor replay flagged.db --trigger "Threshold(0.5)" --trigger "Catch(0.9)"
    alpose-monitor replay flagged.db --budget 20/hour --budget 100/hour

    Exit status: 0 success, 1 an error, 2 wrong usage.
    """
    policies = [parse(text) for text in triggers] + [budget_policy(per_hour) for per_hour in budgets]
    if not policies:
        raise click.UsageError("give --trigger or --budget: what would have been kept by which policy?")
    with reading(queue) as opened:
        chunks, calibration = _scores(opened, sha256, device, camera)
    found = [(policy, replay((chunk.data for chunk in chunks), policy, calibration, seed=seed)) for policy in policies]
    if as_json:
        value = {"queue": str(queue), "bundle": chunks[0].bundle, "policies": [_json(*each) for each in found]}
        print_json(value)
        return
    click.echo(table([result for _, result in found]))
    first = found[0][1]
    click.echo(f"kept at the time: {first.kept_then}, frames included that a better one of their episode replaced")


def _scores(
    opened: Queue, sha256: str | None, device: str | None, camera: str | None
) -> tuple[list[ScoreChunk], CalibrationFacts | None]:
    """The chunks of one bundle with its calibration; :class:`DataError` where it is not clear which bundle."""
    chunks = [
        chunk for chunk in opened.scores()
        if (sha256 is None or chunk.bundle.startswith(sha256.lower()))
        and (device is None or chunk.device == device) and (camera is None or chunk.camera == camera)
    ]  # fmt: skip
    if not chunks:
        raise DataError(f"{opened.path} has no score log" + (" of that" if sha256 or device or camera else "")
                        + ": a monitor writes one to its queue once a minute and at its end")  # fmt: skip
    bundles = {chunk.bundle: sum(other.frames for other in chunks if other.bundle == chunk.bundle) for chunk in chunks}
    if len(bundles) > 1:
        known = ", ".join(f"{bundle[:12]} ({frames} frames)" for bundle, frames in bundles.items())
        raise DataError(
            f"{opened.path} has scores of {len(bundles)} models, which do not compare: {known}. Choose one with --bundle"
        )
    facts = next((bundle.facts for bundle in opened.bundles() if bundle.sha256 in bundles), {})
    calibration = facts.get("calibration")
    return chunks, None if calibration is None else CalibrationFacts.from_json(calibration)


def _json(policy: Trigger, result: Replay) -> dict[str, Any]:
    values = asdict(result) | {"trigger": str(policy), "per_hour": result.per_hour, "recall": result.recall,
                               "precision": result.precision}  # fmt: skip
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()}  # fmt: skip
