"""``alpose-train data``: get datasets, check them, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from alpose.runtime.io import json_text

from ..cli_options import OneLineErrors
from .catalog import DatasetName, data_root_of
from .download import SOURCES, Fetchable


class _NameOrFolder(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A dataset by name, or the path of a folder or annotation file in COCO form."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.name = "dataset"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """What the help shows."""
        return f"[{'|'.join(self.names)}|FOLDER]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        if value in self.names or isinstance(value, Path):
            return value
        if Path(value).exists():
            return Path(value)
        self.fail(f"{value!r} is neither one of {', '.join(self.names)} nor a folder that exists", param, ctx)


_data_root = click.option(
    "--data-root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that holds the datasets, or the folder of the one that is wanted. Default: $ALPOSE_DATA.",
)
_split = click.option("--split", help="Which annotation files of a COCO folder, such as val2017. Default: all.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(cls=OneLineErrors)
def data() -> None:
    """Get datasets, check them, look at them."""


@data.command()
@click.option("--dataset", type=click.Choice(get_args(Fetchable)), required=True, help="lsp also gets lspet.")
@_data_root
@click.option("--mirror", help="Take the archives from below this address instead of the official ones.")
@click.option("--only", multiple=True, metavar="ARCHIVE", help="Take only this archive, such as val2017.zip.")
def fetch(dataset: Fetchable, data_root: Path | None, mirror: str | None, only: tuple[str, ...]) -> None:
    """Download a dataset, check it and unpack it into DATA/NAME."""
    from .download import fetch as fetch_dataset

    names: tuple[Fetchable, ...] = ("lsp", "lspet") if dataset == "lsp" and not only else (dataset,)
    root = data_root_of(data_root)
    for name in names:
        fetch_dataset(SOURCES[name], root, mirror=mirror, only=only, report=click.echo)
    if dataset != "hr-lspet":
        click.echo(f"Check it with: alpose-train data verify --dataset {dataset} --data-root {root}")


@data.command()
@click.option(
    "--dataset", type=_NameOrFolder(get_args(DatasetName)), required=True, help="lsp stands for LSP and LSPET."
)
@_data_root
@_split
@click.option(
    "--flip-pairs", metavar="LEFT:RIGHT,...", help="Joints that change places in a mirror, where names do not tell."
)
@_as_json
def verify(dataset: Any, data_root: Path | None, split: str | None, flip_pairs: str | None, as_json: bool) -> None:
    """Check counts, hashes, labels and every image; exit status 1 when something is wrong."""
    from .verify import verify as verify_dataset

    report = verify_dataset(dataset, data_root, split, flip_pairs)
    click.echo(json_text(report) if as_json else "\n".join(report.lines()))
    if not report.ok:
        raise click.exceptions.Exit(1)


@data.command()
@click.option("--dataset", type=_NameOrFolder((*get_args(DatasetName), "synthetic")), required=True)
@_data_root
@_split
@click.option("--draw", type=click.Path(dir_okay=False, path_type=Path), metavar="PNG", help="Write a sheet of crops.")
@_as_json
def info(dataset: Any, data_root: Path | None, split: str | None, draw: Path | None, as_json: bool) -> None:
    """Print what a dataset holds; with --draw also show it."""
    from .catalog import read_parts
    from .info import describe, save_sheets

    parts = read_parts(dataset, data_root, split)
    infos = [describe(part) for part in parts]
    if as_json:
        click.echo(json_text(infos))
    else:
        click.echo("\n\n".join("\n".join(info.lines()) for info in infos))
    if draw is not None:
        click.echo(f"drawn: {save_sheets(parts, draw)}", err=True)
