"""``alpose-harvest gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("inbox", type=click.Path(path_type=Path, file_okay=False))
@click.option("--batch", "name", help="Only what this batch of select has chosen.")
@click.option("--limit", default=2000, show_default=True, type=click.IntRange(1), help="Frames on the page.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page. [default: INBOX/gallery.html]")
@click.option(
    "--sort",
    default="value",
    show_default=True,
    type=click.Choice(["value", "time"]),
    help="Most valuable or newest first; beyond --limit the others are left out.",
)
def gallery(inbox: Path, name: str | None, limit: int, out: Path | None, sort: Any) -> None:
    """One offline HTML page with the frames of INBOX and the poses that the model saw.

    Filters by device, reason, bundle and state, a search by id, and a large view with the arrow keys. The page carries
    its thumbnails and shows whole pictures from INBOX where it finds them.
    """
    from alpose.runtime.command_line import size
    from alpose.runtime.io import write_atomically

    from ..gallery import gather, render
    from ..inbox import Inbox
    from ..tables import plural
    from .screen import Progress

    with Inbox(inbox) as opened, Progress(str(inbox)) as progress:
        batch = opened.batch(name) if name is not None else None
        found = gather(opened, batch=batch, limit=limit, sort=sort,
                       report=lambda done, of: progress.step("frames", done, of))  # fmt: skip
    path = out or inbox / "gallery.html"
    page = render(found, inbox=inbox, page=path).encode()
    write_atomically(path, page)
    counts = ", ".join(f"{count:,} {state}" for state, count in found.pictures.most_common() if state != "picture")
    left_out = f" of {found.of:,}" if found.of > len(found.cards) else ""
    click.echo(f"{plural(len(found.cards), 'frame')}{left_out}{f'; {counts}' if counts else ''}")
    click.echo(f"page: {path} ({size(len(page))})")
