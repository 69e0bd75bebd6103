"""What the papers print, with this run's numbers under it, and what may be compared with what.

LL++: M. Shukla, S. Ahmed, "A Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPR Workshops
2021. EGL++: M. Shukla, "EGL++: Extending Expected Gradient Length to Active Learning for Human Pose Estimation", 2021.

Stages count from 1. The LSP half of LL++'s Table 3a heads its columns with the size after the stage (2000 ...), the
MPII half with the size before it (1000 ...); EGL++'s Table 1 has the size after the stage. All are stages 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..methods.catalog import RANDOM
from ..statistics import Summary, mean_sd
from . import formatting as fmt
from .cycles_tables import joined, method_rows
from .kit import Cell, Column, Row, Table, cells
from .run_folder import UNKNOWN, RunInfo, lookup

LL_PAPER = (
    "M. Shukla and S. Ahmed, “A Mathematical Analysis of Learning Loss for Active Learning in Regression”, "
    "CVPR Workshops 2021"
)
EGL_PAPER = (
    "M. Shukla, “EGL++: Extending Expected Gradient Length to Active Learning for Human Pose Estimation”, "
    "arXiv 2104.09493, 2021"
)


@dataclass(frozen=True, slots=True)
class Value:
    """One printed cell."""

    mean: float
    sd: float | None = None
    p: float | None = None
    """One-tailed paired t-test against EGL++, as printed: not corrected."""


@dataclass(frozen=True, slots=True)
class Published:
    """One printed table, or half of one."""

    title: str
    source: str
    metric: str
    field: Literal["selected_pck", "test_pck"]
    digits: int
    methods: dict[str, tuple[Value, ...]]
    """By the name that the method has here, a value per stage."""
    can: str
    """What may be compared."""
    cannot: tuple[str, ...]
    """What may not, and why."""


def values(*printed: tuple[float, ...]) -> tuple[Value, ...]:
    """Cells of mean, sd and perhaps p."""
    return tuple(Value(*numbers) for numbers in printed)


LL_HEAD = (
    "LL: the published code feeds its loss head one averaged map, where Yoo and Kweon have four scales. That head is "
    "ll-gap here; the row of this run is ll, the original's."
)
SELECTED_TITLE = "PCK of what was selected: Table 3a of the LearningLoss++ paper"
SELECTED_CAN = (
    "Comparable: the order of the methods at stage 1, where all of ours share one base model, and how far each lies "
    "below random selection as a share of random's value."
)
SELECTED_CANNOT = (
    "The digits: no code was published that computes this table, so its threshold, joints and mean are inferred. The "
    "published evaluation steps by 1/19 and has neither 0.2 nor 0.5; --profile official-2021 counts as it does.",
    "Stages 2 to 5: there each method selects with a model trained on its own choices, so the rows differ by what was "
    "learned as well as by who was found.",
    "LL against LL++: in the code of 2021 only the heads of LL++ learn a loss that is divided by the number of joints, "
    "so these rows differ by more than the objective. In the code of 2022 the step that trains a head on the frozen net "
    "moves that net's batch-norm statistics as well; whether it did so before is not known.",
    LL_HEAD,
)

LSP_SELECTED = Published(
    title=SELECTED_TITLE,
    source=f"{LL_PAPER}, Table 3a, LSP-LSPET",
    metric="PCK@0.2",
    field="selected_pck",
    digits=3,
    methods={
        "random": values((0.430, 0.017), (0.527, 0.012), (0.593, 0.007), (0.624, 0.009), (0.645, 0.007)),
        "coreset": values((0.288, 0.017), (0.438, 0.020), (0.447, 0.017), (0.493, 0.013), (0.556, 0.010)),
        "ll": values((0.305, 0.013), (0.253, 0.021), (0.358, 0.025), (0.520, 0.011), (0.617, 0.017)),
        "ll++": values((0.250, 0.011), (0.186, 0.022), (0.385, 0.011), (0.533, 0.020), (0.627, 0.012)),
        "ll++conv": values((0.209, 0.018), (0.214, 0.028), (0.400, 0.010), (0.545, 0.011), (0.635, 0.012)),
    },
    can=SELECTED_CAN,
    cannot=(
        *SELECTED_CANNOT,
        "The normaliser: the published code measures 40 % of LSPET by torso corners that are not labelled, four times "
        "too leniently in the median; the standard profile leaves people without a labelled torso out.",
        "“LL++ finds most failures” holds for the printed stages 1 and 2: LL is lowest at stage 3, coreset at 4 and 5.",
    ),
)

MPII_SELECTED = Published(
    title=SELECTED_TITLE,
    source=f"{LL_PAPER}, Table 3a, MPII",
    metric="PCKh@0.5",
    field="selected_pck",
    digits=3,
    methods={
        "random": values((0.663, 0.012), (0.739, 0.013), (0.766, 0.003), (0.792, 0.007), (0.797, 0.006)),
        "coreset": values((0.384, 0.014), (0.522, 0.009), (0.608, 0.012), (0.697, 0.009), (0.755, 0.029)),
        "ll": values((0.311, 0.036), (0.465, 0.024), (0.621, 0.017), (0.735, 0.012), (0.777, 0.010)),
        "ll++": values((0.291, 0.022), (0.439, 0.018), (0.610, 0.020), (0.705, 0.023), (0.762, 0.014)),
        "ll++conv": values((0.309, 0.029), (0.439, 0.011), (0.603, 0.016), (0.704, 0.022), (0.777, 0.008)),
    },
    can=SELECTED_CAN,
    cannot=(
        *SELECTED_CANNOT,
        "The normaliser: the published code takes the whole diagonal of the head box, the standard 0.6 of it: its 0.5 is "
        "a standard threshold of 0.83.",
        "The people: the published lists keep only single persons with all 16 joints, which leaves out about a third, "
        "the hard and truncated ones.",
        "The printed bold overstates: at stages 3 to 5 coreset is as good as LL++ or better (.608, .697, .755 against "
        ".610, .705, .762).",
    ),
)

ACCURACY_TITLE = "Test accuracy after retraining: Table 1 of the EGL++ paper"
ACCURACY_CAN = (
    "Comparable: whether a method ends above random selection after a stage, and by how much, where both ours and "
    "theirs select 1,000 of the same pool per stage."
)
ACCURACY_CANNOT = (
    "The digits: the published code chooses the epoch and steers the learning rate by the test split itself, ours by a "
    "tenth of the labelled people; and its thresholds are not those it names.",
    "The p-values: 40 one-tailed tests at a level of 0.1 against EGL++, not corrected, of which about 4 would be below "
    "it by chance alone. The values of single runs are not published, so no test can be repeated, corrected or "
    "extended by ours; the matrices above have ours.",
    "LL++ and LL++conv: Table 3b of the LearningLoss++ paper has test accuracies, of which the rows of random and "
    "coreset are these, rounded. Its rows of LL++ and LL++conv are not in any text at hand: there is nothing to compare.",
    LL_HEAD,
    "Multi-peak and EGL++: the published code has had two rules for peaks (multipeak-2021 and multipeak-2022 here), and "
    "its EGL++ departs from the paper; which of them made these rows is not known. Those of this run are ours, by default "
    "EGL++ as the paper has it.",
)

LSP_ACCURACY = Published(
    title=ACCURACY_TITLE,
    source=f"{EGL_PAPER}, Table 1, LSP-LSPET",
    metric="PCK@0.2",
    field="test_pck",
    digits=4,
    methods={
        "random": values(
            (0.8034, 0.0031, 0.285), (0.8181, 0.0024, 0.297), (0.8268, 0.0032, 0.138), (0.8335, 0.0036, 0.095),
            (0.8413, 0.0016, 0.029),
        ),
        "coreset": values(
            (0.7969, 0.0082, 0.043), (0.8141, 0.0045, 0.096), (0.8225, 0.0039, 0.021), (0.8311, 0.0038, 0.032),
            (0.8373, 0.0031, 0.006),
        ),
        "multipeak": values(
            (0.8036, 0.004, 0.225), (0.8148, 0.0053, 0.125), (0.8263, 0.0023, 0.119), (0.8329, 0.002, 0.036),
            (0.843, 0.0044, 0.063),
        ),
        "ll": values(
            (0.7958, 0.0039, 0.002), (0.8139, 0.0034, 0.071), (0.8231, 0.0042, 0.038), (0.8331, 0.0025, 0.029),
            (0.842, 0.0053, 0.098),
        ),
        "egl++": values((0.8049, 0.0045), (0.8191, 0.0027), (0.8303, 0.0043), (0.8391, 0.0051), (0.8468, 0.0036)),
    },
    can=ACCURACY_CAN,
    cannot=(
        *ACCURACY_CANNOT,
        "That a failure detector makes a better model: on LSP the printed LL is below random at stages 1 to 4.",
    ),
)  # fmt: skip

MPII_ACCURACY = Published(
    title=ACCURACY_TITLE,
    source=f"{EGL_PAPER}, Table 1, MPII",
    metric="PCKh@0.5",
    field="test_pck",
    digits=4,
    methods={
        "random": values(
            (0.7595, 0.055, 0.003), (0.7833, 0.0065, 0.012), (0.8031, 0.0091, 0.006), (0.8135, 0.0041, 0.001),
            (0.8223, 0.0074, 0.007),
        ),
        "coreset": values(
            (0.7661, 0.006, 0.0047), (0.7924, 0.007, 0.245), (0.8125, 0.0067, 0.072), (0.8223, 0.0114, 0.123),
            (0.8297, 0.0111, 0.064),
        ),
        "multipeak": values(
            (0.7674, 0.0061, 0.0054), (0.7956, 0.0046, 0.462), (0.8119, 0.0031, 0.063), (0.8261, 0.005, 0.093),
            (0.8311, 0.0071, 0.062),
        ),
        "ll": values(
            (0.7628, 0.0076, 0.0276), (0.7927, 0.0052, 0.185), (0.8135, 0.0035, 0.152), (0.8294, 0.0044, 0.319),
            (0.8379, 0.0046, 0.053),
        ),
        "egl++": values((0.7728, 0.0063), (0.7958, 0.0033), (0.8153, 0.0051), (0.8307, 0.0025), (0.84, 0.0038)),
    },
    can=ACCURACY_CAN,
    cannot=(
        *ACCURACY_CANNOT,
        "The sd of random at stage 1, 0.055: a misprint of 0.0055, as the LearningLoss++ paper's ± 0.006 for the same "
        "runs shows.",
        "The people: single persons with all 16 joints, by which a third of the usual test persons is left out.",
    ),
)  # fmt: skip

FIGURE_5 = {"ll": (0.37, Value(1.94, 0.34)), "ll++": (0.51, Value(2.05, 0.24))}
"""Correlation and mean true loss of two heads on LSPET, trained on the initial LSP; ± over the selected images."""
FIGURE_5_TITLE = "Score and true loss: Fig. 5 of the LearningLoss++ paper"
FIGURE_5_SOURCE = f"{LL_PAPER}, Fig. 5 and its slides, LSPET"
FIGURE_5_CAN = (
    "Comparable: which of the two heads correlates better with the true loss on LSPET, at stage 1, after training on "
    "the initial LSP."
)
FIGURE_5_CANNOT = (
    "The true losses: theirs have another unit (size and peak of the maps, and what is averaged); only the ratio of the "
    "two rows, 2.05 to 1.94, means something beside ours. Their ± is over the selected images, not over runs.",
    "The correlations digit by digit: the paper does not say which coefficient it is (ours is Pearson's), nor over how "
    "many runs, and joints of LSPET without a label enter the published true loss as maps that should be empty.",
    LL_HEAD,
)

BY_DATASET = {
    "lsp": (LSP_SELECTED, LSP_ACCURACY),
    "lsp-lspet": (LSP_SELECTED, LSP_ACCURACY),
    "mpii": (MPII_SELECTED, MPII_ACCURACY),
}
WITH_FIGURE_5 = ("lsp", "lsp-lspet")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One published table with ours in it, and what may be compared."""

    title: str
    table: Table
    can: str
    cannot: tuple[str, ...]


def published_for(info: RunInfo) -> tuple[Published, ...]:
    """The papers' tables for this dataset."""
    return BY_DATASET.get(info.dataset.lower(), ())


def published_methods(info: RunInfo) -> tuple[str, ...]:
    """The methods that the papers have numbers of."""
    return tuple(dict.fromkeys(method for published in published_for(info) for method in published.methods))


def published_tables(info: RunInfo) -> tuple[Comparison, ...]:
    """Every published table for this dataset with this run's row under each of its rows; none for other datasets."""
    tables = tuple(comparison(info, published) for published in published_for(info))
    return (*tables, figure_5(info)) if info.dataset.lower() in WITH_FIGURE_5 else tables


def comparison(info: RunInfo, published: Published) -> Comparison:
    """A published table with ours in it."""
    stages = range(1, 1 + len(published.methods[RANDOM]))
    rows: list[Row] = []
    tested = False
    for method, printed in published.methods.items():
        theirs = [Cell(spread(value, published.digits), f"p {value.p:.4g}" if value.p is not None else "")
                  for value in printed]  # fmt: skip
        ours = [Cell(fmt.spread(mean_sd(info.over_seeds(method, stage, published.field)))) for stage in stages]
        rows += pair(method, theirs, ours)
        tested |= any(value.p is not None for value in printed)
    after = published.field == "test_pck"
    columns = tuple(Column(f"Stage {stage}", f"{fmt.count(1000 * (stage + after))} labelled") for stage in stages)
    notes = (
        f"Published: {published.source}; {published.metric}, mean ± sd of 5 runs. Labelled: in the paper.",
        *(("p: as printed, one-tailed paired t-test against EGL++ over 5 runs, not corrected; its level is 0.1.",)
          if tested else ()),
    )  # fmt: skip
    return Comparison(published.title, Table("Method", columns, tuple(rows), notes), published.can, published.cannot)


def figure_5(info: RunInfo) -> Comparison:
    """Correlation and loss of what was selected, of the two heads that the figure shows."""
    rows: list[Row] = []
    for method, (correlation, printed) in FIGURE_5.items():
        pearson, loss = (mean_sd(info.over_seeds(method, 1, field)) for field in ("pearson", "selected_true_loss"))
        theirs = cells(fmt.number(correlation, 2), spread(printed, 2))
        rows += pair(method, theirs, cells(fmt.spread(pearson, 2), fmt.spread(loss, fmt.digits_for(loss.mean))))
    columns = (Column("Correlation", "score and true loss"), Column("True loss", "of what was selected"))
    note = f"Published: {FIGURE_5_SOURCE}. Ours: Pearson's, at stage 1; ± over seeds."
    return Comparison(FIGURE_5_TITLE, Table("Method", columns, tuple(rows), (note,)), FIGURE_5_CAN, FIGURE_5_CANNOT)


def pair(method: str, theirs: Iterable[Cell], ours: Iterable[Cell]) -> list[Row]:
    """Two rows of one method: as printed, and as this run has it."""
    return [Row(method, tuple(theirs), "published", method, reference=True), Row("", tuple(ours), "this run")]


def spread(value: Value, digits: int) -> str:
    """A value as the paper prints it."""
    return fmt.spread(Summary(value.mean, value.sd, 5, None), digits)


def conditions_table(info: RunInfo) -> Table | None:
    """What the paper did and what this run did: why the two rows may not be compared digit by digit."""
    published = published_for(info)
    if not published:
        return None
    stacks, channels = lookup(info.config, "stacks"), lookup(info.config, "channels")
    side = lookup(info.config, "size_px", "input_size", "resolution")
    labelled = sorted({row.labelled for row in info.at_stage(1)})
    chosen = sorted({row.selected for row in info.rows.values()})
    width = lookup(info.config, "width") if lookup(info.config, "modules") else None
    net = f"HRNet-W{width}" if width else f"{stacks or '?'} stacks {fmt.TIMES} {channels or '?'} channels"
    conditions = (
        ("Network", f"stacked hourglass, 2 stacks {fmt.TIMES} 256 channels",
         net if stacks or channels or width else UNKNOWN, (stacks, channels) == (2, 256)),
        ("Input", f"256 {fmt.TIMES} 256 px", pixels(side), side in (256, (256, 256), [256, 256])),
        ("Metric", f"{published[0].metric}; the exact threshold of the code of 2021 is not known",
         f"profile {info.profile}", info.profile == "official-2021"),
        ("Training", "80 epochs per stage (code of 2021)", *epochs(info)),
        ("Labelled at the start", fmt.count(1000), joined(labelled), labelled == [1000]),
        ("Selected per stage", fmt.count(1000), joined(chosen), chosen == [1000]),
        ("Start of each stage", "warm (code of 2021, EGL++ paper)", info.start, info.start == "warm"),
        ("Runs", "5", fmt.plural(len(info.seeds), "seed"), len(info.seeds) == 5),
    )  # fmt: skip
    rows = tuple(Row(title, (*cells(theirs, ours), likeness(ours, same))) for title, theirs, ours, same in conditions)
    return Table("Condition", (Column("Published"), Column("This run"), Column("")), rows, style="words")


def likeness(ours: str, same: bool) -> Cell:
    """Whether a condition is the paper's; what differs is in bold."""
    if UNKNOWN in ours:
        return Cell("unknown")
    return Cell("same") if same else Cell("differs", best=True)


def neighbour_table(info: RunInfo) -> Table | None:
    """Selected PCK at the thresholds that the published code evaluates; None for profiles without them."""
    thresholds = sorted({threshold for row in info.rows.values() for threshold in row.neighbours})
    if not thresholds:
        return None
    at = [(stage, threshold) for stage in info.stages for threshold in thresholds]

    def cell(method: str, stage: int, threshold: str) -> Cell:
        rows = [info.rows[key] for seed in info.seeds if (key := (method, seed, stage)) in info.rows]
        return Cell(fmt.spread(mean_sd([row.neighbours.get(threshold, {}).get("selected_pck") for row in rows])))

    columns = tuple(Column(f"Stage {stage}", f"at {threshold}") for stage, threshold in at)
    note = (
        "PCK of what was selected. The code of 2021 evaluates thresholds in steps of 1/19, never the named one: "
        "which of the two neighbours the printed numbers used is not known."
    )
    rows = method_rows(info, ({method: cell(method, *one) for method in info.methods} for one in at))
    return Table("Method", columns, rows, (note,))


def pixels(side: Any) -> str:
    """An input size in pixels."""
    if isinstance(side, list | tuple):
        return f" {fmt.TIMES} ".join(map(str, side)) + " px"
    return UNKNOWN if side is None else f"{side} {fmt.TIMES} {side} px"


def epochs(info: RunInfo) -> tuple[str, bool]:
    """The preset with the epochs of the base model and of each stage, and whether they are the paper's."""
    base = lookup(info.config, "epochs")
    retrain = lookup(info.config, "retrain") if info.start == "warm" else None
    stage = lookup(retrain, "epochs") if isinstance(retrain, dict) else base
    if base is None:
        return f"preset {info.preset}, epochs {UNKNOWN}", False
    again = "" if info.select_only else f", {stage} per stage"
    return f"preset {info.preset}: {base} epochs{again}", base == 80 and (info.select_only or stage == 80)
