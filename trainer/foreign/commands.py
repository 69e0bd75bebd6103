"""``alpose-train pose``: what a pose net of somebody else's takes and gives."""

from __future__ import annotations

import json
from pathlib import Path

import click

from alpose.runtime.errors import ConfigError

from ..cli_options import OneLineErrors, Place, place_options
from .options import net_options
from .recognition.stated import Stated


@click.group(cls=OneLineErrors)
def pose() -> None:
    """Look at a pose net that somebody else trained, as an ONNX file."""


@pose.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dataset", "--data", "dataset", metavar="lsp|lspet|mpii|FOLDER",
              help="Labelled people to try it on: a dataset by name, or a COCO keypoints folder.")  # fmt: skip
@click.option("--images", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder of pictures of one person each, without labels.")  # fmt: skip
@click.option("--people", default=100, show_default=True, type=click.IntRange(1), metavar="PEOPLE",
              help="How many people are tried.")  # fmt: skip
@click.option("--map-joints", metavar="NET:LABEL,…", help="Joints that belong together although their names differ; NET:- "
              "keeps one out.")  # fmt: skip
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), help="Where the page with the pictures is written. "
              "[default: FILE's name.html, where there are pictures]")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON in place of a table; its spec can be given back with --spec."
)
@net_options
@place_options
def describe(
    file: Path, dataset: str | None, images: Path | None, people: int, map_joints: str | None, page: Path | None,
    as_json: bool, stated: Stated, place: Place,
) -> None:  # fmt: skip
    """Tell what the pose net in FILE takes and gives, and look at its answers.

    Each part is stated by an option, read in the file, known of the net's family, or guessed. A wrong order of colours or
    normalisation does not stop a net, it makes it worse: with labels the other ways to feed it are measured too, and a page
    shows its keypoints on pictures.

    \b
    alpose-train pose describe movenet-thunder.onnx --dataset lsp
    alpose-train pose describe mine.onnx --like rtmpose --colour bgr --data my-keypoints/
    alpose-train pose describe mine.onnx --size 256x192 --images pictures/
    """
    from .recognition.recognise import examine

    if dataset and images:
        raise ConfigError("--dataset and --images: give one of them")
    recognised = examine(file, stated)
    from .describe import describe as look

    found = look(file, recognised, dataset=dataset, images=images, data_root=place.data_root, cache=place.cache, people=people,
                 map_joints=map_joints)  # fmt: skip
    written = None
    if found.sample is not None or page is not None:
        from ..pages.describe import write_page

        written = write_page(found, page or Path(f"{file.stem}.html"))
    if as_json:
        click.echo(json.dumps(found.to_json() | {"page": None if written is None else str(written)}, indent=1))
        return
    click.echo("\n".join(found.lines()))
    if written is not None:
        click.echo(f"page: {written}")
