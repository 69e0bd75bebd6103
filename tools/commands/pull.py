"""``alpose-harvest pull``."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .unseal import KEY

if TYPE_CHECKING:
    from ..inbox import Inbox
    from ..plan import Planned
    from ..pull import Pulled
    from ..sources import Source

NOT_WHOLE = 3
"""Exit status."""


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def pull(
    context: click.Context, sources: tuple[str, ...], folder: Path, images: str, acknowledge: bool, delete: bool,
    dry_run: bool, key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Bring what devices kept into an inbox.

    A SOURCE is a queue, a folder of queues, a pattern in quotes, or a URL of anything that fsspec opens: sftp, s3, http.
    All manifests come first, then the pictures, each held against its hash. The monitor may go on writing meanwhile;
    whatever interrupts this, the same command goes on, and done twice it changes nothing.

    \b
    alpose-harvest pull flagged.db --into inbox/
    alpose-harvest pull sftp://car-17/var/lib/alpose/flagged.db --into inbox/ --images none
    alpose-harvest pull "queues/*.db" s3://fleet/queues --into inbox/ --images week-1 --delete

    Exit status: 0 every source was read to its end; 1 an error; 2 wrong usage; 3 some source ended early or could not be
    reached, or a sealed picture does not open with the key: what came is kept, and the same command goes on.
    """
    from alpose.runtime.bundle.keys import opener
    from alpose.runtime.errors import DataNotFoundError

    from ..inbox import DATABASE, Inbox
    from ..plan import plan
    from ..pull import pull as bring
    from .screen import Progress, problem

    if key is not None:
        opener(key)  # a wrong key is said before an hour of pulling
    found, unreachable = _found(sources)
    exists = (folder / DATABASE).exists()
    if not exists and images not in ("all", "none"):
        raise DataNotFoundError(f"{folder} has no batch {images!r}: pull --images none, and select first")
    done: list[Pulled | Planned] = []
    result: dict[str, Any] = {"sources": []}
    with ExitStack() as opened:
        inbox = opened.enter_context(Inbox(folder, create=True)) if exists or not dry_run else None
        wanted = _wanted(inbox, images)
        for source in found:
            if dry_run:
                done.append(plan(inbox, source, images=wanted, acknowledge=acknowledge, delete=delete))
            elif inbox is not None:
                with Progress(source.url) as progress:
                    done.append(bring(inbox, source, images=wanted, acknowledge=acknowledge, delete=delete,
                                      report=progress.step))  # fmt: skip
            _say(done[-1], as_json)
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
    """Queues, and what could not be reached: a car in a tunnel does not hold up the fleet. None at all is an error."""
    from alpose.runtime.errors import DataError, DataNotFoundError

    from ..sources import find

    found: dict[str, Source] = {}
    unreachable = []
    for source in sources:
        try:
            found.update((one.url, one) for one in find((source,)))
        except (DataError, DataNotFoundError) as error:
            if len(sources) == 1:
                raise
            unreachable.append(str(error))
    if not found:
        raise DataNotFoundError("; ".join(unreachable))
    return list(found.values()), unreachable


def _wanted(inbox: Inbox | None, images: str) -> Collection[str] | None:
    if images == "all":
        return None
    if images == "none" or inbox is None:
        return ()
    return {choice.id for choice in inbox.batch(images).choices}


def _say(one: Pulled | Planned, as_json: bool) -> None:
    """The line of a source, and what somebody should look at. Why a pull ended early has been logged by itself."""
    from ..plan import Planned
    from .screen import problem

    for line in [one.problem] if isinstance(one, Planned) and one.problem else getattr(one, "notes", []):
        problem(line if one.url in line else f"{one.url}: {line}")
    if not as_json:
        click.echo(said(one))


def _unseal(inbox: Inbox, key: Path | None, result: dict[str, Any]) -> int:
    """Open what is sealed, or count it. Returns how many frames did not open."""
    from ..unseal import unseal
    from .screen import Progress, problem

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


def said(one: Pulled | Planned) -> str:
    """One line for a source."""
    from alpose.runtime.command_line import size

    from ..plan import Planned
    from .screen import plain

    counts = [f"{one.new:,} new", f"{one.known:,} known", f"{one.refused:,} refused"]
    if isinstance(one, Planned):
        counts += [f"would fetch {one.would_fetch:,} ({size(one.would_fetch_bytes)})"]
        counts += [f"acknowledge {one.would_acknowledge:,}", f"delete {one.would_delete:,}"]
    else:
        counts += [f"{one.fetched:,} fetched", f"{one.acknowledged:,} acknowledged", f"{one.deleted:,} deleted"]
        waiting = one.asked_to_delete - one.deleted
        counts += [f"{waiting:,} asked to delete"] if waiting > 0 else []
        counts += [f"{count:,} {what}" for count, what in ((one.damaged, "damaged"), (one.gone, "gone")) if count]
    moved = f"{size(one.moved_bytes)} moved " if one.moved_bytes else ""
    early = "; ENDED EARLY" if one.problem else ""
    return f"{plain(one.url)}: {', '.join(counts)}; {moved}{one.how or 'not read'}{early}"
