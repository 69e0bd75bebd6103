"""``alpose-harvest unseal``."""

from __future__ import annotations

import json
from pathlib import Path

import click

KEY = click.option(
    "--key",
    envvar="ALPOSE_FLEET_KEY",
    show_envvar=True,
    metavar="PRIVATE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the fleet's private key, which opens sealed pictures; without it they stay sealed.",
)


@click.command()
@click.argument("inbox", type=click.Path(path_type=Path, file_okay=False))
@KEY
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def unseal(context: click.Context, inbox: Path, key: Path | None, as_json: bool) -> None:
    """Open the sealed pictures of INBOX with the fleet's private key.

    The sealed boxes stay beside the opened pictures, as proof of what was sent.

    Exit status: 0 all are open; 1 some do not open with this key, or an error; 2 wrong usage.
    """
    from ..inbox import Inbox
    from ..unseal import unseal as open_all
    from .screen import Progress, problem

    if key is None:
        raise click.UsageError("--key PRIVATE or ALPOSE_FLEET_KEY is needed: alpose-monitor queue keygen made the pair")
    with Inbox(inbox) as opened, Progress(str(inbox)) as progress:
        done = open_all(opened, key, lambda number, of: progress.step("opened", number, of))
    for line in done.problems:
        problem(line)
    if as_json:
        click.echo(json.dumps({"opened": done.opened, "problems": list(done.problems)}, indent=2))
    else:
        click.echo(f"{done.opened:,} frames opened, {len(done.problems):,} stay sealed")
    if done.problems:
        context.exit(1)
