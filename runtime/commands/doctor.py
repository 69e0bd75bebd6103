"""``alpose-monitor doctor``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click

from ..command_line import LiveLine, bar, paint
from ..engines.catalog import engine_names, require_known

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--queue", type=click.Path(path_type=Path, dir_okay=False),
              help="Where the queue is or will be: its disk is tried, and its records are checked.")  # fmt: skip
@click.option("--soak", "soak_s", default=60.0, show_default=True, type=click.FloatRange(0, 86400), metavar="SECONDS",
              help="How long to run a whole monitor at full load; it needs a BUNDLE. 0: not at all.")  # fmt: skip
@click.option("--engine", default="auto", show_default=True, help=f"What the soak runs on: {engine_names()}.")
@click.option(
    "--threads", type=click.IntRange(1), metavar="THREADS", help="Threads of the soak's engine.  [default: 2]"
)
@click.option("--public-key", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="BUNDLE must be signed by it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(
    bundle: Path | None, queue: Path | None, soak_s: float, engine: str, threads: int | None, public_key: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Find out what does not work on this machine, or will not work later, and print the line that fixes it.

    Looks at packages and their libraries, driver, disk, clock, processor and memory; with BUNDLE also starts every engine
    and asks it the golden frames, and runs a monitor at full load for a minute. Nothing is left behind.

    Exit status: 0 nothing FAILED (there may be warnings), 1 something FAILED, 2 wrong usage.
    """
    from ..doctor import Finding, Report, blocks, examine, summary

    require_known(engine)
    log = logging.getLogger("alpose")
    if log.level == logging.INFO:  # what goes well is in the findings
        log.setLevel(logging.WARNING)
    findings: list[Finding] = []
    with LiveLine(wanted=not as_json) as live:

        def progress(share: float) -> None:
            live.show(f"soak {bar(share, 30, live.unicode)} {share * soak_s:.0f} of {soak_s:.0f} s")

        live.show("looking at packages and libraries …")
        for finding in examine(bundle, queue=queue, soak_s=soak_s, public_key=public_key, engine=engine,
                               threads=threads, progress=progress):  # fmt: skip
            findings.append(finding)
            if live.active:
                live.show(f"{len(findings)} checked: {finding.name} …")
    report = Report(tuple(findings))
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        colour = sys.stdout.isatty() and live.colour
        for block in blocks(findings, mark=lambda word, state: paint(word, COLOURS[state], colour)):
            click.echo(block, color=colour)
        click.echo(f"\n{summary(report)}")
    sys.exit(0 if report.passed else 1)
