"""The tables of the detector page, as data: which cell says what, which is best, and the notes underneath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..report import form
from ..report.table import Better, Cell, Head, Line, Table
from ..statistics import Summary, mean_sd
from .comparing import Estimate
from .finding import between, level, mean_auroc, share, signed
from .measures import BINS, BUDGETS, CATCH, CHOSEN
from .results import Comparison, DetectResults, SetResult
from .stored import KINDS, REFERENCES, ROLES, DetectorInfo, Kind


@dataclass(frozen=True, slots=True)
class Column:
    """One measure of the set tables."""

    title: str
    better: Better
    meaning: str
    values: Callable[[DetectResults, str, str], list[float | None]]
    """Of one detector on one set, a value per seed."""
    form: Callable[[Summary], str] = form.spread


def field(name: str) -> Callable[[DetectResults, str, str], list[float | None]]:
    """The values of one field of the measures."""
    return lambda results, detector, on: results.over_seeds(detector, on, name)


def budget(place: int) -> Callable[[DetectResults, str, str], list[float | None]]:
    """The precisions at one of the budgets."""
    return lambda results, detector, on: [
        row.measures.precision[place] for row in results.rows if (row.detector, row.set) == (detector, on)
    ]


COLUMNS = (
    Column("AUPRC", "higher", "Average precision: the area under the precision-recall curve, in steps. Chance is the "
           "failure rate.", field("auprc")),
    Column("E-AURC", "lower", "Area under the risk-coverage curve beyond that of the best possible order: what the "
           "detector itself loses.", field("excess_aurc")),
    Column("AURC", "lower", "Area under the risk-coverage curve: failure rate of those who are kept, averaged over how "
           "many are kept.", field("aurc")),
    Column(f"FPR at {100 * CATCH:.0f} %", "lower", f"Share of the successes that are flagged where {100 * CATCH:.0f} % "
           "of the failures are caught.", field("fpr_at_catch"), form.percent_spread),
    *(Column(f"Precision {100 * part:.0f} %", "higher", f"Share of failures among the {100 * part:.0f} % with the "
             "highest scores.", budget(place), form.percent_spread) for place, part in enumerate(BUDGETS)),
    Column("Spearman", "higher", "Rank correlation of the score with the true loss.", field("spearman")),
    Column("Pearson", "higher", "Linear correlation of the score with the true loss; few large losses weigh heavily.",
           field("pearson")),
    Column("ECE", "lower", f"Expected calibration error over {BINS} bins of equal mass; only for scores that are "
           "probabilities of failure.", field("calibration_error")),
    Column("Chosen PCK", "lower", f"PCK of the {100 * CHOSEN:.0f} % with the highest scores: the papers' table, who "
           "choose 1,000 of LSPET's 10,000.", field("chosen_pck")),
    Column("Gap closed", "higher", "How far the chosen PCK lies on the way from everybody's (0 %, random choice) to "
           "that of the tenth with the lowest PCK (100 %).", field("gap_closed"), form.percent_spread),
    Column("Way to oracle", "higher", "How far the AUROC lies on the way from the best free score's (0 %) to that of "
           "the true loss itself (100 %).", field("way_to_oracle"), form.percent_spread),
)  # fmt: skip
AUROC = (
    "Probability that a failure (image PCK below 0.5) scores higher than a success, ties half. 0.5 is chance, 1 is "
    "perfect."
)


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one kind."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A table whose rows stand by kind."""

    heads: tuple[Head, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def of_set(results: DetectResults, found: SetResult) -> Grouped:
    """Every detector on one set: mean AUROC with its interval, everything else as mean ± sd over seeds."""
    ratings = {r.detector: r.auroc for r in results.ratings if r.set == found.name}
    here = [d for d in results.catalogue.detectors if d.name in ratings]
    rivals = [d.name for d in here if d.kind not in REFERENCES]
    best = best_of({name: ratings[name].mean for name in rivals}, "higher", form.number)
    columns = []
    for column in COLUMNS:
        of = {d.name: mean_sd(column.values(results, d.name, found.name)) for d in here}
        top = best_of({name: of[name].mean for name in rivals}, column.better, printed(column.form))
        columns.append({name: Cell(column.form(summary), best=name in top) for name, summary in of.items()})

    def line(d: DetectorInfo) -> Line:
        auroc = ratings[d.name]
        first = Cell(form.number(auroc.mean), unsigned(auroc), d.name in best)
        return Line(d.kind, d.name, (first, *(column[d.name] for column in columns)), reference=d.kind in REFERENCES)

    arrow = {"higher": "↑ higher", "lower": "↓ lower"}
    heads = (Head("AUROC", f"↑ {level(results)} interval", AUROC),
             *(Head(c.title, arrow[c.better], c.meaning) for c in COLUMNS))  # fmt: skip
    return Grouped(heads, by_kind(here, line), set_notes(results, found))


def by_kind(detectors: Sequence[DetectorInfo], line: Callable[[DetectorInfo], Line]) -> tuple[Group, ...]:
    """Lines in groups, the kinds in their order, the detectors as they are listed."""
    groups = (Group(heading, tuple(line(d) for d in detectors if d.kind == kind)) for kind, heading in KINDS.items())
    return tuple(group for group in groups if group.lines)


def set_notes(results: DetectResults, found: SetResult) -> tuple[str, ...]:
    """What the numbers of a set table are."""
    seeds = len(results.catalogue.seeds)
    spread = (
        f"Means ± sample standard deviation over {seeds} seeds, a base model each."
        if seeds > 1
        else "One seed, one base model: there is no standard deviation."
    )
    return (
        f"{spread} AUROC: {level(results)} interval of the mean over {form.count(results.resamples)} resamples of the "
        "people.",
        "Bold: the best mean of the column as printed, ceilings and oracles aside.",
        *((f"Best free score here: {found.best_free}, by its AUROC on this very set.",) if found.best_free else ()),
        *((f"Stored but not listed, and not looked at: {', '.join(found.unlisted)}.",) if found.unlisted else ()),
    )


def best_of(means: dict[str, float | None], better: Better, show: Callable[[float], str]) -> set[str]:
    """The names whose mean is best as printed; none where all are equal or one is alone."""
    known = {name: mean for name, mean in means.items() if mean is not None}
    if len(known) < 2:
        return set()
    top = show((min if better == "lower" else max)(known.values()))
    best = {name for name, mean in known.items() if show(mean) == top}
    return best if len(best) < len(known) else set()


def printed(form_of: Callable[[Summary], str]) -> Callable[[float], str]:
    """How a column prints a mean alone."""
    return lambda mean: form_of(Summary(mean, None, 1, None))


def unsigned(estimate: Estimate) -> str:
    """An interval of a value that is not a difference."""
    return f"{form.number(estimate.people.low)} to {form.number(estimate.people.high)}"


def headline_table(results: DetectResults) -> Table | None:
    """Every question that was asked beforehand, with both intervals and the test; None where none was."""
    asked = [c for c in results.comparisons if c.question in ("shipped-free", "shipped-ceiling", "slim-shipped")]
    if not asked:
        return None
    roles = {info.name: info.role for info in results.catalogue.sets}
    kinds: dict[str, Kind] = {d.name: d.kind for d in results.catalogue.detectors}
    lines = tuple(
        Line(
            kinds[c.detector], c.detector, comparison_cells(c), f"against {c.against}, {c.set}", roles[c.set] != "test"
        )
        for c in sorted(asked, key=lambda c: roles[c.set] != "test")
    )
    heads = (
        Head("AUROC difference", "mean over seeds"),
        Head("People", f"{level(results)} interval", "The same resample of the people for both detectors and all "
             "seeds: how far other people of this kind might move it, for these base models."),
        Head("People and seeds", f"{level(results)} interval", "The seeds are drawn again besides: how far other base "
             "models might move it too. A few seeds say little about that."),
        Head("p", "paired t-test", "One-tailed over the seeds: better, and for the slim form worse."),
        Head("Holm", "adjusted"),
        Head("Per seed"),
    )  # fmt: skip
    count = sum(c.difference.holm is not None for c in asked)
    reasons = {c.difference.reason for c in asked if c.difference.reason and roles[c.set] == "test"}
    notes = (
        *((f"Holm: adjusted for the {form.plural(count, 'test')} of this table.",) if count else ()),
        *(f"No test: {reason}." for reason in sorted(reasons)),
        "Sets that choices were made on are set apart and have no test: whoever won there was chosen for it.",
        "The best free score of a set is the one with the highest mean AUROC on that very set: chosen with hindsight, "
        "which favours it.",
    )
    return Table("Detector", heads, lines, notes)


def comparison_cells(c: Comparison) -> tuple[Cell, ...]:
    """Difference, both intervals, seeds, test."""
    found = c.difference
    seeds = found.estimate.seeds
    return (
        Cell(signed(found.estimate.mean)),
        Cell(between(found.estimate)),
        Cell(f"{signed(seeds.low)} to {signed(seeds.high)}"),
        Cell(form.NONE if found.p is None else form.p_value(found.p).removeprefix("= ")),
        Cell(form.NONE if found.holm is None else form.p_value(found.holm).removeprefix("= ")),
        Cell(", ".join(map(signed, found.per_seed))),
    )


def cost_table(results: DetectResults) -> Grouped:
    """Parameters and latency of every detector, beside what it reaches."""
    heads = (
        Head("Parameters", "beside the pose net's"),
        Head("Latency", "one person, ms"),
        Head("Share", "of the pose net's latency"),
        *(Head(f"AUROC {info.name}", "mean over seeds") for info in results.catalogue.sets),
    )

    def line(d: DetectorInfo) -> Line:
        aurocs = (Cell(form.number(mean_auroc(results, d.name, info.name))) for info in results.catalogue.sets)
        parameters = form.NONE if d.parameters is None else form.count(d.parameters)
        cells = (Cell(parameters), Cell(form.significant(d.latency_ms)), Cell(share(d.latency_share)), *aurocs)
        return Line(d.kind, d.name, cells, reference=d.kind in REFERENCES)

    return Grouped(heads, by_kind(results.catalogue.detectors, line), ("A dash is what was not measured.",))


def tried_table(results: DetectResults) -> Grouped:
    """Everything that was tried, in a sentence each, sets that choices were made on first."""
    sets = sorted(results.catalogue.sets, key=lambda info: info.role != "choice")
    heads = tuple(Head(f"AUROC {info.name}", info.role) for info in sets)

    def line(d: DetectorInfo) -> Line:
        cells = tuple(Cell(form.number(mean_auroc(results, d.name, info.name))) for info in sets)
        words = f"{d.what} (ablates {d.ablates})" if d.ablates else d.what
        return Line(d.kind, d.name, cells, words, d.kind in REFERENCES)

    return Grouped(heads, by_kind(results.catalogue.detectors, line), ())


def ablation_table(results: DetectResults) -> Table | None:
    """What each thing gives: a detector less itself without it; None without ablations."""
    found = [c for c in results.comparisons if c.question == "ablation"]
    if not found:
        return None
    sets = [info.name for info in sorted(results.catalogue.sets, key=lambda info: info.role != "choice")]
    by_pair: dict[tuple[str, str], dict[str, Comparison]] = {}
    for c in found:
        by_pair.setdefault((c.detector, c.against), {})[c.set] = c
    kinds: dict[str, Kind] = {d.name: d.kind for d in results.catalogue.detectors}

    def cell(c: Comparison | None) -> Cell:
        if c is None:
            return Cell(form.NONE)
        return Cell(signed(c.difference.estimate.mean), between(c.difference.estimate))

    lines = tuple(
        Line(kinds[full], full, tuple(cell(on.get(name)) for name in sets), f"less {less}")
        for (full, less), on in by_pair.items()
    )
    return Table("Detector", tuple(Head(name, "AUROC difference") for name in sets), lines,
                 (f"Positive: the first is better than the second. Below: {level(results)} interval over people.",))  # fmt: skip


def set_table(results: DetectResults) -> Table:
    """The sets: who is in them, how hard they are, and how often they were looked at."""
    infos = {info.name: info for info in results.catalogue.sets}
    heads = (Head("Role"), Head("Looked at"), Head("People"), Head("Left out", "PCK undefined"),
             Head("Failures", "mean over seeds"), Head("PCK", "of the base models"),
             Head("Oracle", "AUROC of the true loss"))  # fmt: skip

    def line(found: SetResult) -> Line:
        looks = results.catalogue.looks.get(found.name)
        rate = mean_sd([count / found.people for count in found.failures])
        cells = (Cell(infos[found.name].role), Cell(form.NONE if looks is None else form.plural(looks, "time")),
                 Cell(form.count(found.people)), Cell(form.count(found.left_out)), Cell(form.percent_spread(rate)),
                 Cell(form.spread(mean_sd(found.pck))), Cell(form.spread(mean_sd(found.oracle_auroc))))  # fmt: skip
        return Line(None, found.name, cells, infos[found.name].what)

    notes = tuple(f"{role}: {words}." for role, words in ROLES.items())
    return Table("Set", heads, tuple(line(found) for found in results.sets), notes)
