"""``alpose-harvest status``."""

from __future__ import annotations

import json
from pathlib import Path

import click

REFUSED_SHOWN = 10
COUNTS = ("records", "flagged", "control", "fetched", "acknowledged", "deleted", "chosen", "annotated", "bundles")


@click.command()
@click.argument("inbox", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a table.")
def status(inbox: Path, as_json: bool) -> None:
    """How far the frames of each device have come, and which records were refused.

    fetched: their pictures are here; acknowledged: the device was told; deleted: it has them no more; chosen: in a batch;
    annotated: imported into a dataset.
    """
    from ..inbox import Inbox
    from ..tables import plural, table, utc
    from .screen import plain

    with Inbox(inbox) as opened:
        devices, refused, sealed, batches = opened.status(), opened.refused(), opened.sealed(), opened.batches()
    if as_json:
        value = {
            "devices": devices,
            "refused": [{"source": source, "id": id_, "problem": problem} for source, id_, problem in refused],
            "sealed": len(sealed),
            "batches": [{"name": batch.name, "created": batch.created, "frames": len(batch.choices)} for batch in batches],
        }  # fmt: skip
        click.echo(json.dumps(value, indent=2))
        return
    rows = [
        [plain(row["device"]), *(f"{row[name]:,}" for name in COUNTS), utc(row["first_ns"])[:10], utc(row["last_ns"])[:10]]
        for row in devices
    ]  # fmt: skip
    if len(devices) > 1:
        total = [f"{sum(row[name] for row in devices):,}" for name in COUNTS[:-1]]
        rows.append(["all", *total, "", "", ""])
    click.echo(table(("device", *COUNTS, "from", "to"), rows))
    if sealed:
        click.echo(f"\n{plural(len(sealed), 'frame')} under seal: alpose-harvest unseal {inbox} --key PRIVATE")
    if batches:
        click.echo("\nbatches: " + ", ".join(f"{batch.name} ({len(batch.choices):,})" for batch in batches))
    if refused:
        click.echo(f"\n{plural(len(refused), 'record')} refused:")
        for source, id_, problem in refused[:REFUSED_SHOWN]:
            click.echo(plain(f"  {id_[:32]} from {source}: {problem}"))
        if len(refused) > REFUSED_SHOWN:
            click.echo(f"  and {len(refused) - REFUSED_SHOWN:,} more: --json lists them all")
