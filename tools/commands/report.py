"""``alpose-harvest report``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page. [default: DATASET/field/report.html]"
)
@click.option(
    "--level",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0.5, 0.9999),
    help="Confidence of every interval.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON in place of a table.")
def report(dataset: Path, out: Path | None, level: float, as_json: bool) -> None:
    """What the labelled frames of DATASET say about all frames of the fleet.

    PCK in the field, recall and precision of the monitor, for the fleet, each device and each bundle: unbiased, with
    intervals, from the probability with which each frame was kept. Says what to change in the trigger.
    """
    from alpose.runtime.io import write_atomically

    from ..field.labelled import bundle_names, read_labelled, read_tallies
    from ..field.page import render, text
    from ..field.report import field_report

    found = field_report(read_labelled(dataset), read_tallies(dataset), level=level)
    page = render(found, dataset=dataset.resolve().name, bundles=bundle_names(dataset))
    path = write_atomically(out or dataset / "field" / "report.html", page.encode())
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        click.echo(text(found))
        click.echo(f"\npage: {path}")
