"""``alpose-train harvest-gain``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from ..cli_options import Place, default_out, failure_options, names_in, place_options, run_options
from ..measures.failures import RUN_FAILURES
from ..methods.strategies import STRATEGIES


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted(int(name) for name in names_in(text)))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a comma-separated list of whole numbers") from None


@click.command("harvest-gain")
@run_options("runs/harvest-gain-DATASET")
@click.option(
    "--strategies", default=",".join(STRATEGIES), show_default=True, help="Comma-separated; random must be among them."
)
@click.option("--budgets", default="", callback=_numbers, metavar="LABELS,…",
              help="Labels per batch. [default: a quarter of the preset's budget, half of it, and all]")  # fmt: skip
@click.option("--chance-budgets", default="", callback=_numbers, metavar="LABELS,…",
              help="Further budgets of random alone, to say how many labels it needs.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), metavar="EPOCHS", help="Of training on. [default: the preset's]")
@click.option("--share", default=0.05, show_default=True, type=click.FloatRange(0, 0.33), metavar="SHARE",
              help="With synthetic: share of the stream that comes after the change.")  # fmt: skip
@click.option("--people", type=click.IntRange(2), metavar="PEOPLE", help="Of each test, at most. [default: all]")
@click.option("--development", is_flag=True,
              help="For choices: a quarter of the half that can be labelled tests, and nothing that is reported is looked at.")  # fmt: skip
@click.option(
    "--first-seed", default=0, show_default=True, type=click.IntRange(0), metavar="SEED", help="Of the base models."
)
@partial(failure_options, names=RUN_FAILURES)
@place_options
def harvest_gain(
    dataset: str, folder: Path | None, preset_name: Any, recipe: Path | None, seeds: int | None, bases: Path | None, strategies: str,
    budgets: tuple[int, ...], chance_budgets: tuple[int, ...], epochs: int | None, share: float, people: int | None, development: bool, first_seed: int, failure: Any,
    failure_limit: float | None, place: Place,
) -> None:  # fmt: skip
    """Measure what labels are worth, by the strategy that chose them.

    Every strategy of alpose-harvest select chooses batches out of a field; the base model is trained on with each, as by
    alpose-train fit --from, and tested on the field and on its old domain. The field of lsp is half of LSPET, and the other
    half tests; that of synthetic is a stream in which a camera was turned.

    Writes OUT/harvest-gain.json and OUT/harvest-gain.html. Interrupt it whenever you like: the same command goes on.

    \b
    alpose-train harvest-gain --dataset synthetic --preset smoke --budgets 8,16
    alpose-train harvest-gain --dataset lsp --data-root DATA --preset laptop --seeds 3 --bases runs/lsp
    """
    from ..cycles.run import RunConfig
    from ..measures.metrics import Failure
    from ..pages.harvest_gain import findings, write_page
    from ..presets import preset, with_recipe
    from .experiment import GainConfig, run_gain
    from .results import RESULT

    chosen = with_recipe(preset(preset_name), recipe)
    budgets = budgets or (chosen.budget // 4, chosen.budget // 2, chosen.budget)
    base = RunConfig.from_preset(preset_name, dataset, recipe=chosen.recipe, methods=("random",), seeds=seeds, budget=1, select_only=True,
                                 failure=Failure(failure, failure_limit))  # fmt: skip
    folder = folder or default_out(dataset, "harvest-gain-")
    config = GainConfig(base=base, strategies=names_in(strategies), budgets=budgets, chance_budgets=chance_budgets, epochs=epochs, share=share,
                        people=people, development=development, first_seed=first_seed)  # fmt: skip
    results = run_gain(config, folder, place.machine(), data_root=place.data_root, cache=place.cache, bases=bases)
    click.echo("\n".join(findings(results)))
    click.echo(f"results: {folder / RESULT}\nreport:  {write_page(results, folder)}")
