"""``alpose-monitor replay``: what another policy would have kept, from the score log of a queue."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError
from .queue import reading
from .values import rate

if TYPE_CHECKING:
    from ..bundle.manifest import CalibrationFacts
    from ..queue import Queue, ScoreChunk
    from ..replay import Replay
    from ..triggers import Trigger


@click.command()
@click.argument("queue", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--trigger", "triggers", multiple=True, metavar="POLICY",
              help='A policy: "Episodes(Budget(50)) | Control(rate=0.001)"; repeat it to compare several.')  # fmt: skip
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=rate,
    metavar="N/hour",
    help="The policy of run --budget; may be repeated.",
)
@click.option("--bundle", "sha256", metavar="SHA256", help="Which model's scores: any unique beginning of its sha256.")
@click.option("--device", help="Only what this device saw.")
@click.option("--camera", help="Only what this camera saw.")
@click.option("--seed", default=0, show_default=True, help="Of random draws.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def replay(
    queue: Path, triggers: tuple[str, ...], budgets: tuple[float, ...], sha256: str | None, device: str | None,
    camera: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Say what other policies would have kept of all that a monitor saw, beside what was kept.

    A queue logs the scores of every frame, kept or not: 16 bytes each. The same deciders run over them once more.

    \b
    alpose-monitor replay flagged.db --trigger "Threshold(0.5)" --trigger "Catch(0.9)"
    alpose-monitor replay flagged.db --budget 20/hour --budget 100/hour

    Exit status: 0 well done, 1 an error, 2 wrong usage.
    """
    from ..replay import replay as again
    from ..replay import table
    from ..triggers import parse
    from .run import budget_policy

    policies = [parse(text) for text in triggers] + [budget_policy(per_hour) for per_hour in budgets]
    if not policies:
        raise click.UsageError("give --trigger or --budget: what would have been kept by which policy?")
    with reading(queue) as opened:
        chunks, calibration = _scores(opened, sha256, device, camera)
    found = [(policy, again((chunk.data for chunk in chunks), policy, calibration, seed=seed)) for policy in policies]
    if as_json:
        value = {"queue": str(queue), "bundle": chunks[0].bundle, "policies": [_json(*each) for each in found]}
        click.echo(json.dumps(value, indent=1))
        return
    click.echo(table([result for _, result in found]))
    first = found[0][1]
    click.echo(f"kept at the time: {first.kept_then}, frames included that a better one of their episode replaced")


def _scores(
    opened: Queue, sha256: str | None, device: str | None, camera: str | None
) -> tuple[list[ScoreChunk], CalibrationFacts | None]:
    """The chunks of one bundle with its calibration; :class:`DataError` where it is not clear which bundle."""
    from ..bundle.manifest import CalibrationFacts

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
