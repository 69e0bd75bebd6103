"""The tables of the detector page, as data: which cell says what, which is best, and the notes underneath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..detect.comparing import Estimate
from ..detect.measures import BUDGETS, CATCH, CHOSEN
from ..detect.results import Comparison, DetectResults, JointRow, SetResult
from ..detect.stored import DAMAGED, KINDS, REFERENCES, ROLES, DetectorInfo, Kind
from ..measures.joint_measures import PersonMeasures
from ..measures.statistics import BINS, Summary, is_defined, mean_sd
from . import formatting as fmt
from .cycles_tables import ARROWS, Better, Form, best_of, shown_alone
from .kit import Cell, Column, Row, Table, cells


@dataclass(frozen=True, slots=True)
class Measure:
    """One column of the set tables."""

    title: str
    better: Better
    meaning: str
    values: Callable[[DetectResults, str, str], list[float | None]]
    """Of one detector on one set, a value per seed."""
    form: Form = fmt.spread


def field(name: str) -> Callable[[DetectResults, str, str], list[float | None]]:
    """The values of one field of the measures."""
    return lambda results, detector, on: results.over_seeds(detector, on, name)


def budget(place: int) -> Callable[[DetectResults, str, str], list[float | None]]:
    """The precisions at one of the budgets."""
    return lambda results, detector, on: [
        row.measures.precision[place] for row in results.rows if (row.detector, row.set) == (detector, on)
    ]


MEASURES = (
    Measure("AUPRC", "higher", "Average precision: the area under the precision-recall curve, in steps. Chance is the "
            "failure rate.", field("auprc")),
    Measure("E-AURC", "lower", "Area under the risk-coverage curve beyond that of the best possible order: what the "
            "detector itself loses.", field("excess_aurc")),
    Measure("AURC", "lower", "Area under the risk-coverage curve: failure rate of those who are kept, averaged over how "
            "many are kept.", field("aurc")),
    Measure("AUGRC", "lower", "Area under the generalized risk-coverage curve: share of all people who are kept and fail, "
            "averaged over how many are kept. Every failure weighs the same, unlike in AURC.", field("augrc")),
    Measure(f"FPR at {100 * CATCH:.0f} %", "lower", f"Share of the successes that are flagged where {100 * CATCH:.0f} % "
            "of the failures are caught.", field("fpr_at_catch"), fmt.percent_spread),
    *(Measure(f"Precision {100 * part:.0f} %", "higher", f"Share of failures among the {100 * part:.0f} % with the "
              "highest scores.", budget(place), fmt.percent_spread) for place, part in enumerate(BUDGETS)),
    Measure("Spearman", "higher", "Rank correlation of the score with the true loss.", field("spearman")),
    Measure("Pearson", "higher", "Linear correlation of the score with the true loss; few large losses weigh heavily.",
            field("pearson")),
    Measure("ECE", "lower", f"Expected calibration error over {BINS} bins of equal mass; only for scores that are "
            "probabilities of failure.", field("calibration_error")),
    Measure("Chosen PCK", "lower", f"PCK of the {100 * CHOSEN:.0f} % with the highest scores: the papers' table, who "
            "choose 1,000 of LSPET's 10,000.", field("chosen_pck")),
    Measure("Gap closed", "higher", "How far the chosen PCK lies on the way from everybody's (0 %, random choice) to "
            "that of the tenth with the lowest PCK (100 %).", field("gap_closed"), fmt.percent_spread),
    Measure("Way to oracle", "higher", "How far the AUROC lies on the way from the best free score's (0 %) to that of "
            "the true loss itself (100 %).", field("way_to_oracle"), fmt.percent_spread),
)  # fmt: skip


JOINT_MEASURES: tuple[tuple[str, Better, Callable[[PersonMeasures], float | None]], ...] = (
    ("AUROC of a wrong joint", "higher", lambda found: found.together.auroc),
    ("AUPRC", "higher", lambda found: found.together.auprc),
    ("ECE", "lower", lambda found: found.together.ece),
    ("Correlation with PCK", "higher", lambda found: found.correlation_pck),
    ("Correlation with OKS", "higher", lambda found: found.correlation_oks),
    ("AP by OKS", "higher", lambda found: found.ap),
)  # fmt: skip


def joint_rows(results: DetectResults, detector: str, name: str) -> list[JointRow]:
    """A detector's measures of joints on one set, a row per seed; empty where they were not stored."""
    return [row for row in results.joints if (row.detector, row.set) == (detector, name)]


def auroc_words(results: DetectResults) -> str:
    """What AUROC is, with the run's definition of a failure."""
    return (
        f"Probability that a failure ({results.catalogue.failure.label}) scores higher than a success, ties half. "
        "0.5 is chance, 1 is perfect."
    )


def level(results: DetectResults) -> str:
    """``95 %``, unbroken."""
    return f"{100 * results.level:g}\N{NO-BREAK SPACE}%"


def mean_auroc(results: DetectResults, detector: str, name: str) -> float | None:
    """Mean over seeds on one set; None where it was not scored."""
    found = (r.auroc.mean for r in results.ratings if (r.detector, r.set) == (detector, name))
    return next(found, None)


def between(estimate: Estimate) -> str:
    """The interval of a difference over people: ``−0.012 to +0.034``."""
    return f"{fmt.signed(estimate.people.low)} to {fmt.signed(estimate.people.high)}"


def share(value: float | None) -> str:
    """A fraction in percent, a digit more below ten."""
    return fmt.tied(fmt.percent(value, 1 if is_defined(value) and value < 0.1 else 0))


def kinds_of(results: DetectResults) -> dict[str, Kind]:
    """The kind of each detector."""
    return {detector.name: detector.kind for detector in results.catalogue.detectors}


def choice_first(results: DetectResults) -> list[str]:
    """Names of the sets, those that choices were made on first."""
    return [info.name for info in sorted(results.catalogue.sets, key=lambda info: info.role != "choice")]


def grouped(
    columns: tuple[Column, ...],
    detectors: Sequence[DetectorInfo],
    row: Callable[[DetectorInfo], tuple[Sequence[Cell], str]],
    notes: tuple[str, ...] = (),
) -> Table:
    """A table with detectors by kind, the kinds in their order; a row is its cells and its small words."""
    rows: list[Row] = []
    for kind, heading in KINDS.items():
        here = [detector for detector in detectors if detector.kind == kind]
        rows += [Row(heading)] if here else []
        for d in here:
            found, small = row(d)
            rows.append(Row(d.name, tuple(found), small, d.kind, d.kind in REFERENCES))
    return Table("Detector", columns, tuple(rows), notes)


def detector_table(results: DetectResults, found: SetResult) -> Table:
    """Every detector on one set: mean AUROC with its interval, everything else as mean ± sd over seeds."""
    ratings = {r.detector: r.auroc for r in results.ratings if r.set == found.name}
    here = [d for d in results.catalogue.detectors if d.name in ratings]
    rivals = [d.name for d in here if d.kind not in REFERENCES]
    best = best_of({name: ratings[name].mean for name in rivals}, "higher", fmt.number)
    columns: list[dict[str, Cell]] = [{
        d.name: Cell(fmt.number(ratings[d.name].mean),
                     f"{fmt.number(ratings[d.name].people.low)} to {fmt.number(ratings[d.name].people.high)}",
                     d.name in best)
        for d in here
    }]  # fmt: skip
    for m in MEASURES:
        of: dict[str, Summary] = {d.name: mean_sd(m.values(results, d.name, found.name)) for d in here}
        top = best_of({name: of[name].mean for name in rivals}, m.better, shown_alone(m.form))
        columns.append({name: Cell(m.form(summary), best=name in top) for name, summary in of.items()})
    titles = (Column("AUROC", f"↑ {level(results)} interval", auroc_words(results)),
              *(Column(m.title, ARROWS[m.better], m.meaning) for m in MEASURES))  # fmt: skip
    return grouped(titles, here, lambda d: ([column[d.name] for column in columns], ""), set_notes(results, found))


def joint_table(results: DetectResults, name: str) -> Table | None:
    """Every detector that knows joints, on one set: how it finds wrong ones; None where none was stored."""
    here = [d for d in results.catalogue.detectors if joint_rows(results, d.name, name)]
    if not here:
        return None
    rivals = [d.name for d in here if d.kind not in REFERENCES]
    columns: list[dict[str, Cell]] = []
    for _, better, of in JOINT_MEASURES:
        spreads = {d.name: mean_sd([of(row.measures) for row in joint_rows(results, d.name, name)]) for d in here}
        top = best_of({rival: spreads[rival].mean for rival in rivals}, better, shown_alone(fmt.spread))
        columns.append({detector: Cell(fmt.spread(found), best=detector in top) for detector, found in spreads.items()})
    first = joint_rows(results, here[0].name, name)[0].measures.together
    note = (f"Under the first base model {fmt.count(first.wrong)} of {fmt.plural(first.measured, 'labelled joint')} were "
            "wrong. Probabilities come from a map for each joint that was fitted to damaged views of people who validated.")  # fmt: skip
    apart = [f"AUROC of {c.detector} less that of the peaks: {fmt.signed(c.difference.estimate.mean)} "
             f"({between(c.difference.estimate)}), {level(results)} interval over people, each with all joints."
             for c in results.comparisons if c.question == "joint-peak" and c.set == name]  # fmt: skip
    titles = tuple(Column(title, ARROWS[better]) for title, better, _ in JOINT_MEASURES)
    return grouped(titles, here, lambda d: ([column[d.name] for column in columns], ""), (note, *apart))


def joint_by_joint(results: DetectResults, name: str) -> Table | None:
    """Joint by joint, the detector that ships beside the height of the peaks, which is the net's own score."""
    shown = [d.name for d in results.catalogue.detectors
             if (d.kind == "shipped" or d.name == "peak") and joint_rows(results, d.name, name)]  # fmt: skip
    if not shown:
        return None
    per_joint = {detector: [row.measures.joints for row in joint_rows(results, detector, name)] for detector in shown}
    rows = []
    for place, joint in enumerate(results.catalogue.joints):
        seeds = [joints[place] for joints in per_joint[shown[0]]]
        rate = mean_sd([one.wrong / one.measured if one.measured else None for one in seeds])
        values = (
            fmt.number(mean_sd([getattr(joints[place], measure) for joints in per_joint[detector]]).mean)
            for measure in ("auroc", "auprc", "ece") for detector in shown
        )  # fmt: skip
        texts = (fmt.count(seeds[0].measured), fmt.percent(rate.mean), *values)
        rows.append(Row(joint.replace("_", " "), cells(*texts)))
    columns = (Column("Labelled"), Column("Wrong"),
               *(Column(title, detector) for title in ("AUROC", "AUPRC", "ECE") for detector in shown))  # fmt: skip
    return Table("Joint", columns, tuple(rows), ("Means over the seeds.",), style="narrow")


def set_notes(results: DetectResults, found: SetResult) -> tuple[str, ...]:
    """What the numbers of a set's table are."""
    seeds = len(results.catalogue.seeds)
    spread = (
        f"Means ± sample standard deviation over {seeds} seeds, a base model each."
        if seeds > 1
        else "One seed, one base model: there is no standard deviation."
    )
    return (
        f"{spread} AUROC: {level(results)} interval of the mean over {fmt.count(results.resamples)} resamples of the "
        "people.",
        "Bold: the best mean of the column as printed, ceilings and oracles aside.",
        *((f"Best free score here: {found.best_free}, by its AUROC on this very set.",) if found.best_free else ()),
        *((f"Stored but not listed, and not evaluated: {', '.join(found.unlisted)}.",) if found.unlisted else ()),
    )


def headline_table(results: DetectResults) -> Table | None:
    """Every question that was asked beforehand, with both intervals and the test; None where none was."""
    asked = [c for c in results.comparisons if c.question in ("shipped-free", "shipped-ceiling", "slim-shipped")]
    if not asked:
        return None
    roles = {info.name: info.role for info in results.catalogue.sets}
    kinds = kinds_of(results)
    rows = tuple(
        Row(c.detector, comparison_cells(c), f"against {c.against}, {c.set}", kinds[c.detector], roles[c.set] != "test")
        for c in sorted(asked, key=lambda c: roles[c.set] != "test")
    )
    columns = (
        Column("AUROC difference", "mean over seeds"),
        Column("People", f"{level(results)} interval", "The same resample of the people for both detectors and all "
               "seeds: how far other people of this kind might move it, for these base models."),
        Column("People and seeds", f"{level(results)} interval", "The seeds are drawn again as well: how far other base "
               "models might move it too. A few seeds say little about that."),
        Column("p", "paired t-test", "One-tailed over the seeds: better, and for the slim form worse."),
        Column("Holm", "adjusted"),
        Column("Per seed"),
    )  # fmt: skip
    count = sum(c.difference.holm is not None for c in asked)
    reasons = {c.difference.reason for c in asked if c.difference.reason and roles[c.set] == "test"}
    notes = (
        *((f"Holm: adjusted for the {fmt.plural(count, 'test')} of this table.",) if count else ()),
        *(f"No test: {reason}." for reason in sorted(reasons)),
        "Sets that choices were made on are set apart and have no test: whoever won there was chosen for it.",
        "The best free score of a set is the one with the highest mean AUROC on that very set: chosen with hindsight, "
        "which favours it.",
    )
    return Table("Detector", columns, rows, notes)


def comparison_cells(c: Comparison) -> tuple[Cell, ...]:
    """Difference, both intervals, test, seeds."""
    found = c.difference
    seeds = found.estimate.seeds
    tests = (fmt.NONE if p is None else fmt.p_value(p).removeprefix("= ") for p in (found.p, found.holm))
    return cells(fmt.signed(found.estimate.mean), between(found.estimate),
                 f"{fmt.signed(seeds.low)} to {fmt.signed(seeds.high)}", *tests,
                 ", ".join(map(fmt.signed, found.per_seed)))  # fmt: skip


def cost_table(results: DetectResults) -> Table:
    """Parameters and latency of every detector, beside what it reaches."""
    names = [info.name for info in results.catalogue.sets]
    columns = (Column("Parameters", "beside the pose net's"), Column("Latency", "one person, ms"),
               Column("Share", "of the pose net's latency"),
               *(Column(f"AUROC {name}", "mean over seeds") for name in names))  # fmt: skip

    def row(d: DetectorInfo) -> tuple[Sequence[Cell], str]:
        parameters = fmt.NONE if d.parameters is None else fmt.count(d.parameters)
        aurocs = (fmt.number(mean_auroc(results, d.name, name)) for name in names)
        return cells(parameters, fmt.significant(d.latency_ms), share(d.latency_share), *aurocs), ""

    return grouped(columns, results.catalogue.detectors, row, ("A dash is what was not measured.",))


def tried_table(results: DetectResults) -> Table:
    """Everything that was tried, in a sentence each, sets that choices were made on first."""
    names = choice_first(results)
    roles = {info.name: info.role for info in results.catalogue.sets}

    def row(d: DetectorInfo) -> tuple[Sequence[Cell], str]:
        words = f"{d.what} (ablates {d.ablates})" if d.ablates else d.what
        return cells(*(fmt.number(mean_auroc(results, d.name, name)) for name in names)), words

    columns = tuple(Column(f"AUROC {name}", roles[name]) for name in names)
    return grouped(columns, results.catalogue.detectors, row)


def ablation_table(results: DetectResults) -> Table | None:
    """What each part gives: a detector less itself without it; None without ablations."""
    by_pair: dict[tuple[str, str], dict[str, Estimate]] = {}
    for c in results.comparisons:
        if c.question == "ablation":
            by_pair.setdefault((c.detector, c.against), {})[c.set] = c.difference.estimate
    if not by_pair:
        return None
    names, kinds = choice_first(results), kinds_of(results)
    if any(DAMAGED in on for on in by_pair.values()):
        names = [DAMAGED, *names]

    def cell(estimate: Estimate | None) -> Cell:
        return Cell(fmt.NONE) if estimate is None else Cell(fmt.signed(estimate.mean), between(estimate))

    rows = tuple(
        Row(full, tuple(cell(on.get(name)) for name in names), f"less {less}", kinds[full])
        for (full, less), on in by_pair.items()
    )
    columns = tuple(Column(name, "AUROC difference") for name in names)
    note = f"Positive: the first is better than the second. Below: {level(results)} interval over people."
    of_damaged = (f"{DAMAGED}: people who validated each base model, in damaged views; choices are made there.",)
    return Table("Detector", columns, rows, (note, *(of_damaged if DAMAGED in names else ())))


def set_table(results: DetectResults) -> Table:
    """The sets: who is in them, how hard they are, and how often they were evaluated."""
    infos = {info.name: info for info in results.catalogue.sets}
    columns = (Column("Role"), Column("Looked at"), Column("People"), Column("Left out", "PCK undefined"),
               Column("Failures", "mean over seeds"), Column("PCK", "of the base models"),
               Column("Oracle", "AUROC of the true loss"))  # fmt: skip

    def row(found: SetResult) -> Row:
        looks = results.catalogue.looks.get(found.name)
        rate = mean_sd([count / found.people for count in found.failures])
        texts = (infos[found.name].role, fmt.NONE if looks is None else fmt.plural(looks, "time"),
                 fmt.count(found.people), fmt.count(found.left_out), fmt.percent_spread(rate),
                 fmt.spread(mean_sd(found.pck)), fmt.spread(mean_sd(found.oracle_auroc)))  # fmt: skip
        return Row(found.name, cells(*texts), infos[found.name].what)

    notes = tuple(f"{role}: {words}." for role, words in ROLES.items())
    return Table("Set", columns, tuple(row(found) for found in results.sets), notes)
