"""The ``alpose-train`` command. What needs torch is imported inside the commands: --help answers at once."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from alpose import __version__
from alpose.runtime.command_line import HELP
from alpose.runtime.errors import AlposeError, ConfigError
from alpose.runtime.io import to_json

from .cli_options import (
    EXISTING_FOLDER,
    FOLDER,
    NET,
    PRESET,
    RECIPE,
    OneLineErrors,
    Place,
    default_out,
    failure_options,
    names_in,
    place_options,
    run_options,
)
from .data.commands import data
from .foreign.commands import pose
from .foreign.options import net_options
from .gain.commands import harvest_gain
from .measures.failures import RUN_FAILURES
from .methods.catalog import DETECTORS, METHODS, resolve

log = logging.getLogger("alpose")

DEFAULT_METHODS = ",".join(name for name, method in METHODS.items() if method.default)
MORE_METHODS = tuple(name for name, method in METHODS.items() if not method.default)
"""Those that are not run unless asked for."""


@click.group(cls=OneLineErrors, context_settings=HELP)
@click.version_option(__version__, prog_name="alpose-train")
@click.option("-v", "--verbose", is_flag=True, help="Also log every epoch.")
def main(verbose: bool) -> None:
    """Train pose nets with loss heads, and run the active-learning benchmark."""
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        plain = sys.stderr.isatty()
        handler.setFormatter(logging.Formatter("%(message)s" if plain else "%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


main.add_command(data)
main.add_command(pose)
main.add_command(harvest_gain)


@main.command()
@run_options("runs/DATASET")
@click.option("--net", type=NET, help="Another pose net than the preset's hourglass; tiny: for tests.")
@click.option(
    "--methods", default=DEFAULT_METHODS, show_default=True, help=f"Comma-separated; also {', '.join(MORE_METHODS)}."
)  # fmt: skip
@click.option(
    "--stages",
    type=click.IntRange(1),
    metavar="STAGES",
    help="Rounds of select, label, retrain. [default: the preset's]",
)
@click.option(
    "--budget", type=click.IntRange(1), metavar="PEOPLE", help="People labelled per stage. [default: the preset's]"
)
@click.option("--initial", type=click.IntRange(2), metavar="PEOPLE",
              help="People labelled at the start; lsp fixes its 1,000. [default: the preset's]")  # fmt: skip
@click.option("--profile", default="standard", show_default=True, type=click.Choice(["standard", "official-2021"]),
              help="How PCK is computed; written into every result. docs/cycles.md says what official-2021 leaves out.")  # fmt: skip
@click.option("--start", default="warm", show_default=True, type=click.Choice(["warm", "cold"]),
              help="Retrain from the selecting model, or from fresh weights.")  # fmt: skip
@click.option("--heads", "how", type=click.Choice(["frozen", "joint"]),
              help="Train loss heads after or beside the pose net; epck always after.")  # fmt: skip
@click.option("--pairing", type=click.Choice(["disjoint", "all"]),
              help="Which pairs of a batch the heads of Learning Loss and LearningLoss++ compare.")  # fmt: skip
@click.option("--egl", default="", metavar="NAME=VALUE,…",
              help="Of egl++ and egl++-lle: embedding=coarsest|penultimate, labels=truth|predicted, neighbours=30, "
              "perplexity=20, rank=8|exact.")  # fmt: skip
@click.option("--scores", default="", metavar="NAME=VALUE,…",
              help="temperature=1 of entropy and multipeak, border=kept|dropped of multipeak, peaks=5 per joint of "
              "vl4pose, members=5 of ensemble and ensemble-nets.")  # fmt: skip
@click.option("--select-only", is_flag=True,
              help="Stop after the selection of stage 1: failure detection without retraining.")  # fmt: skip
@click.option("--executor", default="local", show_default=True, type=click.Choice(["local", "ray"]),
              help="ray: each method of each seed is a task of the cluster that RAY_ADDRESS names, or of this machine.")  # fmt: skip
@click.option("--compile/--no-compile", "compile_", default=None,
              help="torch.compile the pose net for training. [default: the recipe's, which is not to]")  # fmt: skip
@partial(failure_options, names=RUN_FAILURES)
@place_options
def cycles(
    dataset: str, folder: Path | None, preset_name: Any, recipe: Path | None, seeds: int | None, bases: Path | None, net: Any, methods: str,
    stages: int | None, budget: int | None, initial: int | None, profile: Any, start: Any, how: Any, pairing: Any,
    egl: str, scores: str, select_only: bool, executor: Any, compile_: bool | None, failure: Any, failure_limit: float | None,
    place: Place,
) -> None:  # fmt: skip
    """Run the papers' active-learning benchmark: every method from the same base models, stage by stage.

    Writes OUT/results.json and OUT/report.html. Interrupt it whenever you like: the same command goes on.

    \b
    alpose-train cycles --dataset synthetic --preset demo --out runs/demo
    alpose-train cycles --dataset lsp --data-root DATA --preset laptop --select-only --out runs/lsp
    torchrun --nproc-per-node 8 -m alpose.trainer cycles --dataset lsp --preset paper --out runs/paper
    """
    from .cycles.benchmark import run_benchmark
    from .cycles.run import RunConfig
    from .measures.metrics import Failure
    from .methods.options import EglConfig, ScoreOptions
    from .pages.cycles import write_report
    from .presets import preset, with_net, with_recipe

    if initial and dataset == "lsp":
        raise ConfigError(
            f"--initial {initial}: lsp begins with the first 1,000 of LSP, as in the papers: leave it out"
        )
    own = with_recipe(with_net(preset(preset_name), net), recipe).recipe
    own = replace(own, heads=replace(own.heads, **{k: v for k, v in (("how", how), ("pairing", pairing)) if v}))
    if compile_ is not None:
        own = replace(own, pose=replace(own.pose, compile=compile_), retrain=replace(own.retrain, compile=compile_))
    config = RunConfig.from_preset(
        preset_name, dataset, recipe=own, profile=profile, start=start, select_only=select_only,
        methods=names_in(methods), egl=EglConfig.parse(egl), scores=ScoreOptions.parse(scores),
        failure=Failure(failure, failure_limit), seeds=seeds, stages=stages, budget=budget, initial=initial,
    )  # fmt: skip
    folder = folder or default_out(dataset)
    machine = place.machine()
    run_benchmark(config, folder, machine, data_root=place.data_root, cache=place.cache, bases=bases, executor=executor)
    if machine.leads:
        click.echo(f"results: {folder / 'results.json'}")
        _write_theory(folder)
        click.echo(f"report:  {write_report(folder)}")


def _write_theory(run: Path) -> None:
    """Write the page of the losses' theory, which the report links, or say why there is none."""
    from .pages.theory import write_theory
    from .theory.theory_run import study

    try:
        click.echo(f"theory:  {write_theory(run, study(run))}")
    except AlposeError as error:
        log.info("no theory page: %s", error)


@main.command()
@click.argument("run", type=EXISTING_FOLDER)
@click.option("--level", default=0.05, show_default=True, type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
              metavar="SHARE", help="Significance level of the tests, a probability, after Holm's correction; the papers' is 0.1, without it.")  # fmt: skip
def report(run: Path, level: float) -> None:
    """Write RUN/report.html and RUN/theory.html again, also of a run that has not ended."""
    from .pages.cycles import write_report

    _write_theory(run)
    click.echo(f"report:  {write_report(run, level=level)}")


@main.command()
@run_options("runs/detect-DATASET")
@click.option("--detectors", help="Comma-separated. [default: all]")
@click.option("--pose", type=click.Path(path_type=Path), metavar="ONNX",
              help="A pose net of somebody else's: what is a head worth on it?")  # fmt: skip
@click.option("--heads", help="With --pose: epck,facts,facts+features,ll,ll++,ll++conv. [default: all]")
@click.option("--map-joints", metavar="NET:LABEL,…", help="With --pose: joints that belong together although their names "
              "differ; NET:- keeps one out.")  # fmt: skip
@click.option("--views", default=8, show_default=True, type=click.IntRange(0, 64), metavar="VIEWS",
              help="With --pose: damaged views of every person.")  # fmt: skip
@click.option("--max-extra-time", "max_extra", default=0.05, show_default=True, type=click.FloatRange(0), metavar="SHARE",
              help="With --pose: share of the net's own time that a head may take; slower ones do not ship.")  # fmt: skip
@click.option("--people", default=1000, show_default=True, type=click.IntRange(1), metavar="PEOPLE",
              help="With --pose: so many train, and so many of each set are tested, at most.")  # fmt: skip
@click.option("--group-by", metavar="FIELD", help="With --pose: keep each group on one side of every split.")
@partial(failure_options, note=" mean-error with --pose alone.")
@net_options
@place_options
def detect(
    pose: Path | None, heads: str | None, map_joints: str | None, views: int, max_extra: float, people: int, group_by: str | None, stated: Any,
    dataset: str, folder: Path | None, preset_name: Any, recipe: Path | None, seeds: int | None, bases: Path | None, detectors: str | None,
    failure: Any, failure_limit: float | None, place: Place,
) -> None:  # fmt: skip
    """Compare detectors of failure on fixed base models: free scores, loss heads, candidates, ceilings.

    With --pose they are those of somebody else's net, which is not trained: its own score, what it hides, and heads on it.

    Writes OUT/detect.json and OUT/detect.html; with --pose OUT/detect-pose.json and OUT/detect-pose.html. Interrupt it whenever you like: the same command goes on.

    \b
    alpose-train detect --dataset synthetic --preset smoke --seeds 2
    alpose-train detect --dataset lsp --data-root DATA --preset laptop --seeds 3
    alpose-train detect --pose movenet-thunder.onnx --data my-coco/
    """
    from .measures.metrics import Failure

    if pose is not None:
        _refuse({"--recipe": recipe}, "a net of --pose is not trained")
        from .foreign.detect import RESULT, ForeignDetectConfig, detect_foreign
        from .foreign.heads import HEADS
        from .pages.detect_pose import write_page

        wanted: Any = names_in(heads) if heads else HEADS
        of_net = ForeignDetectConfig(
            pose=pose, data=dataset, stated=stated, map_joints=map_joints, views=views, heads=wanted, seeds=seeds or 3,
            people=people, failure=Failure(failure, failure_limit), group_by=group_by, max_extra=max_extra,
        )  # fmt: skip
        folder = folder or default_out(dataset, f"detect-{pose.stem}-")
        found = detect_foreign(of_net, folder, place.machine(), data_root=place.data_root, cache=place.cache)
        click.echo("\n".join(found.lines()))
        click.echo(f"results: {folder / RESULT}\nreport:  {write_page(found, folder)}")
        return
    only = {"--map-joints": map_joints, "--heads": heads, "--group-by": group_by}
    _refuse(_of_pose(stated) | only, "that is for a net of --pose")
    from .cycles.run import RunConfig
    from .detect.evaluation import evaluate
    from .detect.experiment import DetectConfig, run_detect
    from .epck import EpckTraining
    from .pages.detect import finding, write_report
    from .presets import preset, with_recipe

    base = RunConfig.from_preset(preset_name, dataset, recipe=with_recipe(preset(preset_name), recipe).recipe, methods=("random",), seeds=seeds, budget=1, select_only=True,
                                 failure=Failure(failure, failure_limit))  # fmt: skip
    folder = folder or default_out(dataset, "detect-")
    names = names_in(detectors) if detectors else tuple(DETECTORS)
    config = DetectConfig(base=base, epck=EpckTraining(), detectors=names)
    run_detect(config, folder, place.machine(), data_root=place.data_root, cache=place.cache, bases=bases)
    click.echo("\n".join(finding(evaluate(folder))))
    click.echo(f"results: {folder / 'detect.json'}")
    click.echo(f"report:  {write_report(folder)}")


@main.command()
@click.option("--pose", type=click.Path(path_type=Path), metavar="ONNX",
              help="A pose net of somebody else's, which stays as it is: only what tells its failures is learned.")  # fmt: skip
@click.option("--data", "data_", multiple=True, required=True, metavar="FOLDER|lsp|mpii|synthetic",
              help="A COCO keypoints folder, or a benchmark by name. Repeatable.")  # fmt: skip
@click.option("--from", "start", type=click.Path(path_type=Path, exists=True),
              help="A checkpoint to train on, or a model of --pose that gets a new head. [default: a new model]")  # fmt: skip
@click.option("--out", required=True, type=FOLDER, help="Folder of the new checkpoint.")
@click.option("--preset", "preset_name", type=PRESET, help="Recipe. [default: the checkpoint's, or laptop]")
@click.option("--net", type=NET, help="Another pose net than the preset's hourglass, for a new model; tiny: for tests.")
@click.option("--heads", help="Loss heads, comma-separated. [default: the checkpoint's, or epck; with --pose all of "
              "epck,facts,facts+features,ll,ll++,ll++conv]")  # fmt: skip
@click.option("--map-joints", metavar="NET:LABEL,…", help="With --pose: joints that belong together although their names "
              "differ; NET:- keeps one out.")  # fmt: skip
@click.option("--views", type=click.IntRange(0, 64), metavar="VIEWS",
              help="With --pose: damaged views of every person. [default: as the model of --from was made, or 8]")  # fmt: skip
@click.option("--max-extra-time", "max_extra", default=0.05, show_default=True, type=click.FloatRange(0), metavar="SHARE",
              help="With --pose: share of the net's own time that a head may take; slower ones do not ship.")  # fmt: skip
@RECIPE
@click.option(
    "--epochs",
    type=click.IntRange(1),
    metavar="EPOCHS",
    help="How long the pose net is trained. [default: the recipe's]",
)
@click.option("--compile", "compile_", is_flag=True, help="torch.compile the pose net for training.")
@click.option("--hold-out", default=0.25, show_default=True, type=click.FloatRange(0, 0.9, min_open=True, max_open=True),
              metavar="SHARE",
              help="Share of the images that trains nothing, of folders without a val part.")  # fmt: skip
@click.option("--group-by", metavar="FIELD", help="Keep each group on one side of every split: a field of the images, "
              "such as driver, camera or clip.")  # fmt: skip
@click.option("--flip-pairs", metavar="LEFT:RIGHT,...",
              help="Joints that change places in a mirror, by name or number from 1, where names do not tell.")  # fmt: skip
@click.option("--without-old-data", is_flag=True, help="Do not train again on the people that trained the checkpoint.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), metavar="NUMBER", help="Begins the random draws."
)
@click.option("--log", "logs", multiple=True, metavar="tensorboard|MODULE:CLASS",
              help="Also send every loss and measure there, while it trains. Repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print fit.json in place of a table.")
@partial(failure_options, default=None)
@net_options
@place_options
def fit(
    pose: Path | None, map_joints: str | None, views: int, max_extra: float, stated: Any, data_: tuple[str, ...], start: Path | None, out: Path, preset_name: Any, net: Any, heads: str | None,
    recipe: Path | None, epochs: int | None, compile_: bool, hold_out: float, group_by: str | None, flip_pairs: str | None,
    without_old_data: bool, seed: int, logs: tuple[str, ...], as_json: bool, failure: Any, failure_limit: float | None, place: Place,
) -> None:  # fmt: skip
    """Train a model and its loss heads on your own data; with --from, train a model on; with --pose, watch your own net.

    Writes OUT/model.safetensors with OUT/model.json beside it, OUT/fit.json with PCK and failure detection on the
    people that were held out, before and after, OUT/measures.csv with the same, and OUT/losses.csv with the loss of every epoch, while
    it trains. Interrupt it whenever you like: the same command goes on.

    \b
    alpose-train fit --data my-keypoints/ --out models/first
    alpose-train fit --data dataset/ --from models/first --out models/second
    alpose-train fit --pose movenet-thunder.onnx --data my-coco/ --out models/thunder
    alpose-export models/second --calibration dataset/ --previous first.alpose -o second.alpose
    """
    from .measures.metrics import fitted_failure

    if pose is not None or (start is not None and _is_foreign(start)):
        unused = {
            "--preset": preset_name,
            "--net": net,
            "--recipe": recipe,
            "--epochs": epochs,
            "--compile": compile_,
            "--log": logs,
        }
        _refuse(unused, "a net of --pose is not trained")
        from .foreign.fitting import ForeignFitConfig, fit_foreign
        from .foreign.heads import HEADS

        wanted: Any = names_in(heads) if heads else HEADS
        of_net = ForeignFitConfig(
            data=data_, pose=pose, stated=stated, start=start, map_joints=map_joints, views=views,
            failure=fitted_failure(start, failure, failure_limit), hold_out=hold_out, group_by=group_by, flip_pairs=flip_pairs,
            old_data=not without_old_data, seed=seed, heads=wanted, max_extra=max_extra,
        )  # fmt: skip
        found = fit_foreign(of_net, out, place.machine(), data_root=place.data_root, cache=place.cache)
        click.echo(json.dumps(to_json(found), indent=2) if as_json else f"{found.table()}\nmodel: {out}")
        return
    _refuse(
        _of_pose(stated) | {"--map-joints": map_joints, "--views": views is not None}, "that is for a net of --pose"
    )
    from .fitting import FitConfig
    from .fitting import fit as run_fit
    from .training_log import opener

    config = FitConfig(
        data=data_, start=start, preset=preset_name, heads=names_in(heads) if heads else None,
        recipe=recipe, epochs=epochs, compile=compile_, hold_out=hold_out, group_by=group_by, flip_pairs=flip_pairs,
        old_data=not without_old_data, seed=seed, net=net, failure=fitted_failure(start, failure, failure_limit),
    )  # fmt: skip
    machine = place.machine()
    result = run_fit(config, out, machine, data_root=place.data_root, cache=place.cache,
                     logs=[opener(name) for name in logs])  # fmt: skip
    if machine.leads:
        click.echo(json.dumps(result.to_json(), indent=2) if as_json else f"{result.table()}\ncheckpoint: {out}")


def _of_pose(stated: Any) -> dict[str, Any]:
    """The options that describe a net of somebody else's, by whether they were given."""
    return {f"--{name}": True for name in stated.given()}


def _refuse(options: dict[str, Any], why: str) -> None:
    """Refuse options that were given and would not be heard."""
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(f"{', '.join(given)}: {why}, leave out")


def _is_foreign(path: Path) -> bool:
    from .foreign.model import is_foreign

    return path.is_dir() and is_foreign(path)


@main.command()
@click.argument("run", required=False, type=EXISTING_FOLDER)
@click.option(
    "--seed", type=click.IntRange(0), metavar="NUMBER", help="Which base model of the run. [default: the first]"
)
@click.option("--near", default=0.1, show_default=True, type=click.FloatRange(0, 1, min_open=True),
              metavar="SHARE", help="Two losses are near-equal that differ by at most this share of the mean loss.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a table.")
def theory(run: Path | None, seed: int | None, near: float, as_json: bool) -> None:
    """Tables 1 and 2 of the LearningLoss++ paper; with RUN, the same of its own losses, fitted and measured.

    With RUN it also writes RUN/theory.html: is the loss gamma distributed, how often is a pair near-equal, how many of
    this run's Learning-Loss updates are noise.

    \b
    alpose-train theory
    alpose-train theory runs/lsp
    alpose-train theory runs/lsp --near 0.2 --json
    """
    from .theory.theory_run import paper_lines, paper_tables, study, study_lines

    if run is None:
        tables = paper_tables()
        click.echo(json.dumps(tables, indent=1) if as_json else "\n".join(paper_lines(tables)))
        return
    from .pages.theory import write_theory

    found = study(run, seed=seed, near=near)
    page = write_theory(run, found)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(study_lines(found)))
    if not as_json:
        click.echo(f"page: {page}")


# What it writes is an inbox and a batch, which are the harvest's: the code stands there, and its name here, as in a catalog.
main.add_command(resolve("alpose.tools.commands.pool:select"))
