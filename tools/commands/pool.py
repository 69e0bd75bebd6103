"""``alpose-train select``: which pictures of a pool to label next."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpose.trainer.cli_options import Place, place_options
from alpose.trainer.methods.strategies import BY_FAILURE, DEFAULT

from .shared import CHOICES_SHOWN, JSON, FormatOption, known_format

if TYPE_CHECKING:
    from ..pool import Selected


@click.command("select")
@click.option("--model", required=True, type=click.Path(path_type=Path),
              help="Folder of a model: of alpose-train fit, of fit --pose, of a benchmark's base, or a bundle NAME.alpose.")  # fmt: skip
@click.option(
    "--pool",
    required=True,
    metavar="FOLDER|URL",
    help="Unlabelled pictures: a folder, or an address such as s3://bucket/folder.",
)
@click.option("--boxes", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="JSON",
              help="Where people are: COCO detections (image_id, bbox, score). [default: each picture is one person]")  # fmt: skip
@click.option(
    "--min-score",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0, 1),
    metavar="SCORE",
    help="Of a detection in --boxes.",
)
@click.option(
    "--budget", required=True, type=click.IntRange(1), metavar="PICTURES", help="Pictures that annotators can do."
)
@click.option("--by", default=DEFAULT, show_default=True, metavar="odds|value|top|METHOD",
              help="odds: by chance, in proportion to the odds of a failure; value: likely to fail and unlike each other; top: likeliest to "
              "fail; or a method: random, coreset, and what the model ranks by, such as epck or entropy. A wrong name lists those of the model.")  # fmt: skip
@click.option("--to", required=True, cls=FormatOption, callback=known_format, help="The annotation tool.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="A new folder.")
@click.option("--after", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="OUT",
              help="An earlier --out: its people are not chosen again, and what is chosen is unlike them. Repeatable.")  # fmt: skip
@click.option("--name", help="Of the batch. [default: date and time]")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), metavar="NUMBER", help="Of random and odds."
)
@click.option("--executor", default="local", show_default=True, type=click.Choice(["local", "ray"]),
              help="ray: shards of the pool are tasks of the cluster that RAY_ADDRESS names, or of this machine.")  # fmt: skip
@click.option(
    "--shard",
    type=click.IntRange(1),
    metavar="PICTURES",
    help="Pictures that are kept together: what a kill costs. [default: 256]",
)
@JSON
@partial(place_options, datasets=False)
def select(
    model: Path, pool: str, boxes: Path | None, min_score: float, budget: int, by: str, to: str, out: Path, after: tuple[Path, ...],
    name: str | None, seed: int, executor: Any, shard: int | None, as_json: bool, place: Place,
) -> None:  # fmt: skip
    """Choose which pictures of a pool to label next, and write the batch that annotators open.

    A model scores everybody in the pool; --by chooses. OUT/FORMAT is for the annotation tool, OUT/selection.json says why each picture was
    chosen and what was passed over, OUT/inbox brings the labels back (alpose-harvest import --inbox). Interrupt it whenever you like: the
    same command goes on, and another choice from the same pool scores nothing again.

    \b
    alpose-train select --model models/mine --pool images/ --budget 500 --to cvat --out batch-1/
    alpose-train select --model mine.alpose --pool s3://bucket/images --boxes detections.json \\
        --budget 500 --by coreset --to label-studio --out batch-2/ --after batch-1/ --executor ray
    """
    from ..pool import select_pool
    from ..screen import say

    done = select_pool(
        model, pool, out, budget=budget, by=by, to=to, boxes=boxes, least_score=min_score, after=after, seed=seed,
        cache=place.cache, machine=place.machine(), executor=executor, shard=shard, name=name,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=2))
    else:
        say(_text(done, to, budget))


def _text(done: Selected, to: str, budget: int) -> str:
    from alpose.trainer.pool.shards import NOBODY

    from ..formats import format_named
    from ..screen import listed, plural, table

    lines = [f"{done.model}: {plural(done.people, 'person') if done.people == 1 else f'{done.people:,} people'} on "
             f"{plural(done.listed, 'picture')}, {done.scored_now:,} scored now"]  # fmt: skip
    if not done.calibrated and done.by in BY_FAILURE:
        lines.append(
            "the model is not calibrated: its failure is one minus the mean confidence of the joints, which only ranks"
        )
    nobody = sum(why == NOBODY for why in done.left_out.values())
    if nobody:
        lines.append(f"{plural(nobody, 'picture')} passed over: {NOBODY}")
    lines += listed([f"passed over: {picture}: {why}" for picture, why in done.left_out.items() if why != NOBODY])
    lines += listed([f"in part: {picture}: {why}" for picture, why in done.notes.items()])
    lines.append("\n" + table(("most wanted", "why"), done.pictures[:CHOICES_SHOWN], right=False))
    if len(done.pictures) > CHOICES_SHOWN:
        lines.append(
            f"… and {len(done.pictures) - CHOICES_SHOWN:,} more, each with its reason, in {done.out / 'selection.json'}"
        )
    lines.append("")
    if len(done.pictures) < budget:
        lines.append(f"the budget was {budget:,}: there was no more to choose")
    if done.turned:
        lines.append(f"{plural(done.turned, 'picture')} written anew, upright as EXIF says or as JPEG")
    folders = ", ".join(map(str, done.written.folders))
    lines.append(
        f"batch {done.batch.name}: {plural(len(done.pictures), 'picture')}, {done.written.people:,} people: {folders}"
    )
    readme = done.written.folders[0] / "README.txt"
    lines.append(f"next: {readme} says how to load and to export it; then" if readme.exists()
                 else f"next: correct the poses in a tool that reads and writes {to} and keeps file names, then")  # fmt: skip
    lines.append(f"alpose-harvest import {format_named(to).returns} --inbox {done.out / 'inbox'} --into dataset/")
    return "\n".join(lines)
