"""``alpose-harvest export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("inbox", type=click.Path(path_type=Path, file_okay=False))
@click.option("--to", required=True, type=click.Choice(["coco", "cvat", "label-studio"]), help="The annotation tool.")
@click.option("--batch", help="Of select. [default: the newest]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder. [default: BATCH-FORMAT]")
@click.option(
    "--image-url",
    default="/data/local-files/?d=images/",
    show_default=True,
    help="What stands before each file name in Label Studio's tasks: where its browser finds the images.",
)
@click.option("--link", is_flag=True, help="Hard-link the images in place of copying them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    inbox: Path, to: Any, batch: str | None, out: Path | None, image_url: str, link: bool, as_json: bool
) -> None:  # fmt: skip
    """Write a batch of INBOX for annotators: images in order of priority, with the model's poses to start from.

    What the model expects of itself, and why each frame was kept and chosen, stands where the annotator sees it.

    \b
    alpose-harvest export inbox/ --to cvat
    alpose-harvest export inbox/ --to label-studio --batch week-1 --out work/week-1
    """
    from alpose.runtime.errors import DataNotFoundError

    from ..export import export as write
    from ..inbox import Inbox
    from ..tasks import advice

    with Inbox(inbox) as opened:
        if batch is None and not opened.batches():
            raise DataNotFoundError(f"{inbox} has no batch: alpose-harvest select {inbox} --budget 500")
        chosen = opened.batches()[-1] if batch is None else opened.batch(batch)
        folder = out or Path(f"{chosen.name}-{to}")
        done = write(opened, chosen, to, folder, image_url=image_url, link=link)
    left_out = advice(done.missing, str(inbox), chosen.name)
    if as_json:
        click.echo(json.dumps({"batch": chosen.name, "to": to, "folders": [str(one) for one in done.folders],
                               "frames": done.frames, "missing": dict(done.missing)}, indent=2))  # fmt: skip
    for line in left_out:
        click.echo(line, err=True)
    if not done.frames:
        raise DataNotFoundError(f"no frame of batch {chosen.name} can be annotated yet: nothing was written")
    if not as_json:
        click.echo(_next(to, chosen.name, done.frames, done.folders, inbox))


def _next(to: str, name: str, frames: int, folders: tuple[Path, ...], inbox: Path) -> str:
    from ..tables import plural

    lines = [f"{plural(frames, 'frame')} of batch {name}, most wanted first: {', '.join(map(str, folders))}"]
    if len(folders) > 1:
        lines.append("one folder a skeleton: annotate and import each by itself")
    if to == "coco":
        lines.append(
            "next: correct the poses in any tool that reads and writes COCO keypoints and keeps file names, then"
        )
    else:
        lines.append(f"next: {folders[0] / 'README.txt'} says how to load and to export it; then")
    came = {"coco": "CORRECTED.json", "cvat": "EXPORTED.zip", "label-studio": "EXPORTED.json"}[to]
    lines.append(f"alpose-harvest import {came} --inbox {inbox} --into dataset/")
    return "\n".join(lines)
