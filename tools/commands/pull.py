"""``alpose-harvest pull``, ``status`` and ``unseal``: frames on their way from devices into an inbox."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared import INBOX, JSON

if TYPE_CHECKING:
    from ..inbox import Inbox
    from ..pull.pull import Planned, Pulled
    from ..pull.sources import Source

NOT_WHOLE = 3
"""Exit status of a pull that did not bring everything."""
REFUSED_SHOWN = 10
COUNTS = ("records", "flagged", "control", "fetched", "acknowledged", "deleted", "chosen", "annotated", "bundles")

KEY = click.option(
    "--key", envvar="ALPOSE_FLEET_KEY", show_envvar=True, metavar="PRIVATE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the fleet's private key, which opens sealed pictures; without it they stay sealed.",
)  # fmt: skip


@click.command(no_args_is_help=True)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--into", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="The inbox.")
@click.option(
    "--images",
    default="all",
    show_default=True,
    metavar="all|none|BATCH",
    help="Pictures to fetch: of all frames, of none, or of those that a batch of select has chosen.",
)
@click.option("--acknowledge", is_flag=True, help="Tell the device what is here whole: it gives that up first.")
@click.option(
    "--delete", is_flag=True, help="Have the device erase what is here whole. Does not ask; acknowledges too."
)
@click.option(
    "--dry-run", is_flag=True, help="Read manifests only, and say what would be done. Writes nothing anywhere."
)
@KEY
@JSON
@click.pass_context
def pull(
    context: click.Context, sources: tuple[str, ...], folder: Path, images: str, acknowledge: bool, delete: bool,
    dry_run: bool, key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Bring what devices kept into an inbox.

    A SOURCE is a queue, a folder of queues, a pattern in quotes, or a URL of anything that fsspec opens: sftp, s3, http.
    All manifests come first, then the pictures, each compared with its hash. The monitor may go on writing meanwhile;
    whatever interrupts this, the same command goes on, and done twice it changes nothing.

    \b
    alpose-harvest pull flagged.db --into inbox/
    alpose-harvest pull sftp://car-17/var/lib/alpose/flagged.db --into inbox/ --images none
    alpose-harvest pull "queues/*.db" s3://fleet/queues --into inbox/ --images week-1 --delete

    Exit status: 0 every source was read to its end; 1 an error; 2 wrong usage; 3 some source is not there, could not
    be reached or ended early, or a sealed picture does not open with the key: what came is kept, and the same command goes on.
    """
    from alpose.runtime.bundle.keys import opener
    from alpose.runtime.errors import DataNotFoundError

    from ..inbox import DATABASE, Inbox
    from ..pull.pull import plan
    from ..pull.pull import pull as bring
    from ..screen import Progress, problem

    if key is not None:
        opener(key)  # a wrong key is reported before an hour of pulling
    found, unreachable = _found(sources)
    exists = (folder / DATABASE).exists()
    if not exists and images not in ("all", "none"):
        raise DataNotFoundError(f"{folder} has no batch {images!r}: pull --images none, and select first")
    dry_run = dry_run or not found  # where no device answers, no inbox is begun
    done: list[Pulled | Planned] = []
    result: dict[str, Any] = {"sources": []}
    with ExitStack() as opened:
        inbox = opened.enter_context(Inbox(folder, create=True)) if exists or not dry_run else None
        wanted = _wanted(inbox, images)
        for source in found:
            if dry_run or inbox is None:
                done.append(plan(inbox, source, images=wanted, acknowledge=acknowledge, delete=delete))
            else:
                with Progress(source.url) as progress:
                    done.append(bring(inbox, source, images=wanted, acknowledge=acknowledge, delete=delete,
                                      report=progress.step))  # fmt: skip
            _print_source(done[-1], as_json)
            result["sources"].append(done[-1].to_json())
        stuck = _unseal(inbox, key, result) if inbox is not None and not dry_run else 0
    for line in unreachable:
        problem(line)
    result["unreachable"] = unreachable
    if as_json:
        click.echo(json.dumps(result, indent=2))
    if unreachable or stuck or any(one.problem for one in done):
        context.exit(NOT_WHOLE)


def _found(sources: tuple[str, ...]) -> tuple[list[Source], list[str]]:
    """Queues, and what could not be reached: unreachable devices are skipped and listed."""
    from alpose.runtime.errors import DataError, DataNotFoundError

    from ..pull.sources import find

    found: dict[str, Source] = {}
    unreachable = []
    for source in sources:
        try:
            found.update((one.url, one) for one in find((source,)))
        except (DataError, DataNotFoundError) as error:
            unreachable.append(str(error))
    return list(found.values()), unreachable


def _wanted(inbox: Inbox | None, images: str) -> Collection[str] | None:
    if images == "all":
        return None
    if images == "none" or inbox is None:
        return ()
    return {choice.id for choice in inbox.batch(images).choices}


def _print_source(one: Pulled | Planned, as_json: bool) -> None:
    """The line of a source, and its problems. Why a pull ended early has been logged by the pull itself."""
    from ..screen import problem, say

    for line in one.notes:
        problem(line if one.url in line else f"{one.url}: {line}")
    if not as_json:
        say(one.summary())


def _unseal(inbox: Inbox, key: Path | None, result: dict[str, Any]) -> int:
    """Open what is sealed, or count it. Returns how many frames did not open."""
    from ..screen import Progress, problem
    from ..unseal import unseal

    if key is None:
        sealed = len(inbox.sealed())
        if sealed:
            problem(f"{sealed:,} frames stay sealed: alpose-harvest unseal {inbox.folder} --key PRIVATE")
        result["sealed"] = sealed
        return 0
    with Progress("sealed frames") as progress:
        opened = unseal(inbox, key, lambda done, of: progress.step("opened", done, of))
    for line in opened.problems:
        problem(line)
    result.update(unsealed=opened.opened, sealed=len(opened.problems))
    return len(opened.problems)


@click.command()
@INBOX
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a table.")
def status(inbox: Path, as_json: bool) -> None:
    """How far the frames of each device have come, and which records were refused.

    fetched: their pictures are here; acknowledged: the device was told; deleted: it has them no more; chosen: in a batch;
    annotated: imported into a dataset.
    """
    from ..inbox import Inbox
    from ..screen import plain, plural, say, table, utc

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
    rows = [[plain(row["device"]), *(row[name] for name in COUNTS), utc(row["first_ns"])[:10], utc(row["last_ns"])[:10]]
            for row in devices]  # fmt: skip
    if len(devices) > 1:
        rows.append(["all", *(sum(row[name] for row in devices) for name in COUNTS[:-1]), "", "", ""])
    say(table(("device", *COUNTS, "from", "to"), rows))
    if sealed:
        say(f"\n{plural(len(sealed), 'frame')} under seal: alpose-harvest unseal {inbox} --key PRIVATE")
    if batches:
        say("\nbatches: " + ", ".join(f"{batch.name} ({len(batch.choices):,})" for batch in batches))
    if refused:
        say(f"\n{plural(len(refused), 'record')} refused:")
        for source, id_, problem in refused[:REFUSED_SHOWN]:
            say(f"  {id_[:32]} from {source}: {problem}")
        if len(refused) > REFUSED_SHOWN:
            say(f"  and {len(refused) - REFUSED_SHOWN:,} more: --json lists them all")


@click.command()
@INBOX
@KEY
@JSON
@click.pass_context
def unseal(context: click.Context, inbox: Path, key: Path | None, as_json: bool) -> None:
    """Open the sealed pictures of INBOX with the fleet's private key.

    The sealed boxes stay beside the opened pictures, as proof of what was sent.

    Exit status: 0 all are open; 1 some do not open with this key, or an error; 2 wrong usage.
    """
    from ..inbox import Inbox
    from ..screen import Progress, problem, say
    from ..unseal import unseal as open_all

    if key is None:
        raise click.UsageError("--key PRIVATE or ALPOSE_FLEET_KEY is needed: alpose-monitor queue keygen made the pair")
    with Inbox(inbox) as opened, Progress(str(inbox)) as progress:
        done = open_all(opened, key, lambda number, of: progress.step("opened", number, of))
    for line in done.problems:
        problem(line)
    if as_json:
        click.echo(json.dumps({"opened": done.opened, "problems": list(done.problems)}, indent=2))
    else:
        say(f"{done.opened:,} frames opened, {len(done.problems):,} stay sealed")
    if done.problems:
        context.exit(1)
