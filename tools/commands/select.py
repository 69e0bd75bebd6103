"""``alpose-harvest select``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..choosing import Chosen

SHOWN = 10
"""Choices that are printed with their reasons; all of them stand in the batch's file."""


@click.command()
@click.argument("inbox", type=click.Path(path_type=Path, file_okay=False))
@click.option("--budget", required=True, type=int, help="Frames that annotators can do.")
@click.option(
    "--strategy",
    default="value",
    show_default=True,
    type=click.Choice(["value", "top", "coreset", "random"]),
    help="value: hard, unlike each other, fair to the devices; top: hardest; coreset: most unlike; random: by chance.",
)
@click.option("--control", type=int, help="How many of the budget go to the control stream. [default: a fifth]")
@click.option(
    "--min-distance",
    default=0.05,
    show_default=True,
    type=float,
    help="Distance under which two frames are near-duplicates, as a share of what two frames are usually apart.",
)
@click.option("--name", help="Of the batch. [default: date and time]")
@click.option("--seed", type=click.IntRange(0), help="Makes the draw of the control stream repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables.")
def select(
    inbox: Path, budget: int, strategy: Any, control: int | None, min_distance: float, name: str | None,
    seed: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose what to annotate next, out of everything in INBOX: one batch across all devices.

    Writes INBOX/batches/NAME.json, most wanted first, with the reason of every choice. A part of the budget goes to the
    control stream, whose frames are drawn by chance: alpose-harvest report rests on them.

    \b
    alpose-harvest select inbox/ --budget 500
    alpose-harvest select inbox/ --budget 500 --control 0 --strategy top --name hardest
    """
    from ..choosing import choose
    from ..inbox import Inbox

    with Inbox(inbox) as opened:
        chosen = choose(opened, budget, strategy=strategy, control=control, min_distance=min_distance, name=name,
                        seed=seed)  # fmt: skip
    if as_json:
        click.echo(json.dumps(_json(chosen), indent=2))
        return
    click.echo(_text(chosen, inbox))


def _json(chosen: Chosen) -> dict[str, Any]:
    names = ("device", "records", "open", "value", "control")
    return {
        "batch": chosen.batch.to_json(), "path": str(chosen.path), "triggers": dict(chosen.triggers),
        "devices": [dict(zip(names, row, strict=True)) for row in chosen.devices],
        "to_fetch": chosen.waiting, "sealed": chosen.sealed,
    }  # fmt: skip


def _text(chosen: Chosen, inbox: Path) -> str:
    from ..tables import plural, table

    batch = chosen.batch
    lines = [table(("device", "records", "open", "by value", "control stream"),
                   [(name, *(f"{number:,}" for number in rest)) for name, *rest in chosen.devices])]  # fmt: skip
    if chosen.triggers:
        kept = ", ".join(f"{name} {number:,}" for name, number in chosen.triggers)
        lines.append(f"\nkept on their devices for: {kept}")
    if batch.choices:
        lines.append("\n" + table(("most wanted", "why"), [(choice.id, choice.reason) for choice in batch.choices[:SHOWN]],
                                  right=False))  # fmt: skip
    if len(batch.choices) > SHOWN:
        lines.append(f"… and {len(batch.choices) - SHOWN:,} more, each with its reason, in {chosen.path}")
    lines.append("")
    lines += [f"left out: {number:,} {reason}" for reason, number in batch.counted.items() if reason != "not chosen"]
    if batch.counted.get("not chosen"):
        lines.append(f"not chosen, and open for the next batch: {batch.counted['not chosen']:,}")
    if len(batch.choices) < batch.budget:
        lines.append(f"the budget was {batch.budget:,}: there was no more to choose")
    lines.append(f"batch {batch.name}: {plural(len(batch.choices), 'frame')}, {chosen.path}")
    if chosen.waiting:
        lines.append(f"next, {plural(chosen.waiting, 'picture')} to fetch: "
                     f"alpose-harvest pull SOURCE --into {inbox} --images {batch.name}")  # fmt: skip
    if chosen.sealed:
        lines.append(f"next, {plural(chosen.sealed, 'picture')} to open: alpose-harvest unseal {inbox}")
    if batch.choices and not chosen.waiting and not chosen.sealed:
        lines.append(f"next: alpose-harvest export {inbox} --to coco|cvat|label-studio --batch {batch.name}")
    return "\n".join(lines)
