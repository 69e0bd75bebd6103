"""The ``alpose-export`` command."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from alpose import __version__
from alpose.runtime.bundle.manifest import Precision
from alpose.runtime.command_line import HELP
from alpose.trainer.cli_options import OneLineErrors, default_cache, failure_options

log = logging.getLogger("alpose")


class _CheckpointOrCommand(OneLineErrors):
    """``alpose-export CHECKPOINT …`` means ``alpose-export bundle CHECKPOINT …``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["bundle", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_CheckpointOrCommand, context_settings=HELP)
@click.version_option(__version__, prog_name="alpose-export")
def main() -> None:
    """Turn a trained model into one verified bundle for devices.

    \b
    alpose-export CHECKPOINT -o NAME.alpose     write the bundle (short for: alpose-export bundle CHECKPOINT ...)
    alpose-export verify NAME.alpose            check every file, and the golden frames on every engine here
    alpose-export engine NAME.alpose            build a TensorRT engine on this device
    """
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
_PUBLIC_KEY = click.option("--public-key", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                           help="Refuse a bundle that this key did not sign.")  # fmt: skip


@main.command("bundle")
@click.argument("checkpoint", metavar="CHECKPOINT|MODEL|NET.onnx", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="NAME.alpose")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(get_args(Precision)))
@click.option("--head", help="Which loss head. [default: epck, else the best that the checkpoint has]")
@click.option(
    "--calibration",
    metavar="lsp|lspet|mpii|synthetic|synthetic-hard|FOLDER",
    help="Labelled people that trained nothing. [default: the test part of the model's own dataset]",
)
@click.option("--split", help="The part of a COCO folder that calibrates, such as val2017. [default: val, else all]")
@click.option("--map-joints", metavar="NET:LABEL,...",
              help="Of a foreign net: which joints of net and labels belong together. [default: as fitted]")  # fmt: skip
@click.option("--uncalibrated", is_flag=True,
              help="Of a foreign net: without labelled people. Its failure probability then only ranks.")  # fmt: skip
@click.option("--like", help="Of a net's file: the family that it is of, where that is not recognised.")
@click.option("--flip-pairs", metavar="LEFT:RIGHT,...",
              help="Joints that change places in a mirror, by name or number from 1. [default: as trained]")  # fmt: skip
@click.option(
    "--data-root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="ALPOSE_DATA",
    help="Where the datasets are. [env: ALPOSE_DATA]",
)
@partial(failure_options, default=None)
@click.option(
    "--also", multiple=True, metavar="DATA", help="Other labelled people: the card shows what the thresholds do there."
)
@click.option(
    "--previous",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="An older bundle: the card shows its calibration on the same people, before and after.",
)
@click.option(
    "--sign", "sign_key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Private key to sign with."
)
@click.option("--replace", is_flag=True, help="Replace a bundle that is there.")
@click.option(
    "--cache", type=click.Path(path_type=Path, file_okay=False), envvar="ALPOSE_CACHE", help="Where crops are cached."
)
def bundle(
    checkpoint: Path, out: Path, precision: Any, head: Any, calibration: str | None, split: str | None, map_joints: str | None,
    uncalibrated: bool, like: str | None, flip_pairs: str | None, data_root: Path | None,
    failure: Any, failure_limit: float | None, also: tuple[str, ...], previous: Path | None, sign_key: Path | None,
    replace: bool, cache: Path | None,
) -> None:  # fmt: skip
    """Write a bundle: graph, manifest, calibration, golden frames and card.

    From a checkpoint of alpose; from a MODEL that alpose-train fit --pose made for somebody's net; or, with --uncalibrated,
    from that net's own file.
    """
    from alpose.trainer.foreign.model import is_foreign
    from alpose.trainer.measures.metrics import fitted_failure

    from .foreign import export_foreign, export_uncalibrated
    from .write import ExportConfig, export_checkpoint

    foreign = is_foreign(checkpoint) if checkpoint.is_dir() else checkpoint.suffix == ".onnx"
    refuse_others(foreign, checkpoint, uncalibrated, {"--map-joints": map_joints, "--like": like}, {
        "--head": head, "--flip-pairs": flip_pairs})  # fmt: skip
    config = ExportConfig(precision=precision, failure=fitted_failure(checkpoint, failure, failure_limit))
    if uncalibrated:
        made = export_uncalibrated(checkpoint, out, like=like, config=config, sign_key=sign_key, replace=replace)
        click.echo(str(made))
        return
    if foreign:
        made = export_foreign(
            checkpoint, out, config=config, calibration=calibration, split=split, map_joints=map_joints,
            data_root=data_root, also=also, previous=previous, sign_key=sign_key, replace=replace,
            cache=cache or default_cache(),
        )  # fmt: skip
        click.echo(str(made))
        return
    made = export_checkpoint(
        checkpoint, out, config=config, head=head,
        calibration=calibration, split=split, flip_pairs=flip_pairs, data_root=data_root, also=also, previous=previous, sign_key=sign_key, replace=replace,
        cache=cache or default_cache(),
    )  # fmt: skip
    click.echo(str(made))


def refuse_others(foreign: bool, path: Path, uncalibrated: bool, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Options that do nothing for this kind of model are an error, not ignored."""
    given = [name for name, value in (ours if foreign else theirs).items() if value is not None]
    if given or (uncalibrated and not foreign):
        given = given or ["--uncalibrated"]
        kind = "a foreign net" if foreign else "a checkpoint of alpose"
        raise click.UsageError(f"{path} is {kind}, of which {', '.join(given)} says nothing: leave it out")
    if foreign and path.is_file() and not uncalibrated:
        raise click.UsageError(
            f"{path} is a net without a detector of its failures. With labelled people: alpose-train fit --pose {path} --data "
            "DATA --out MODEL, then alpose-export MODEL. Without: --uncalibrated, whose failure probability only ranks"
        )


@main.command()
@_BUNDLE
@_PUBLIC_KEY
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify(bundle: Path, public_key: Path | None, as_json: bool) -> None:
    """Check hashes, schema and golden frames on every engine of this machine; the exit status says it."""
    from .verify import verify as verify_bundle

    report = verify_bundle(bundle, public_key)
    click.echo(report.to_json() if as_json else str(report))
    sys.exit(0 if report.passed else 1)


@main.command()
@_BUNDLE
@_PUBLIC_KEY
@click.option(
    "--max-batch",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="FRAMES",
    help="Frames per call; 1 builds a static engine.",
)
@click.option(
    "--workspace",
    default=1024,
    show_default=True,
    type=click.IntRange(16),
    metavar="MIB",
    help="Memory for building, in MiB.",
)
def engine(bundle: Path, public_key: Path | None, max_batch: int, workspace: int) -> None:
    """Build a TensorRT engine on this device, into BUNDLE/engines; kept only if the golden frames pass."""
    from .tensorrt import build_engine

    built = build_engine(
        bundle, public_key=public_key, max_batch=max_batch, workspace_bytes=workspace << 20 if workspace else None,
        say=click.echo,
    )  # fmt: skip
    click.echo(f"engine: {built}")


@main.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def keygen(path: Path) -> None:
    """Make a signing key: PATH (keep it secret) and PATH.pub (give it to devices)."""
    from alpose.runtime.bundle.keys import generate_key

    click.echo(f"public key: {generate_key(path)}")
