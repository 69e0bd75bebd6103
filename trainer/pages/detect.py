"""``RUN/detect.html``: failure detectors beside each other.

The result in words comes from the numbers alone, and the interval over people decides the words: *better* where it lies
above zero, *worse* where it lies below, and otherwise that the two cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import write_atomically

from ..detect.comparing import Estimate
from ..detect.results import Comparison, DetectResults, Question
from ..detect.stored import DetectorInfo
from ..measures.statistics import mean_sd
from . import detect_tables as tables
from . import formatting as fmt
from .detect_figures import PALETTE, calibration, curves, forest, joint_reliability
from .detect_tables import between, level, mean_auroc
from .kit import Page, pretty
from .run_folder import UNKNOWN, lookup, named

PAGE = "detect.html"

Outcome = Literal["better", "worse", "even", "unknown"]
ALPHA = 0.05
"""Level of the Holm-adjusted tests."""


def write_report(run: Path) -> Path:
    """Write ``RUN/detect.html`` from ``detect.json`` and the stored scores: one file that needs no network.

    Without the stored scores, which are large, it has everything but the curves, and says so.
    """
    return write_atomically(run / PAGE, render(run, DetectResults.load(run)).encode())


def render(run: Path, results: DetectResults) -> str:
    """The page. The same files give the same bytes."""
    problems: list[str] = []
    parts = [part(run, results, place, problems) for place in range(len(results.sets))]
    parts.sort(key=lambda part: part["info"].role != "test")  # what is reported stands before what was chosen on
    config = results.catalogue.config
    dataset, preset, profile = (named(config.get(name)) for name in ("dataset", "preset", "profile"))
    page = Page(
        title=f"alpose detectors: {dataset}, {preset}, {profile}",
        kicker="failure detectors beside each other",
        heading=dataset,
        subheading=f"{preset} preset · {profile} profile",
        findings=finding(results),
        warnings=tuple(problems),
        facts=facts(results),
        palette=PALETTE,
    )
    return page.render(
        "alpose.trainer.pages:detect.html.j2",
        styles=["detect.css"],
        config=pretty(config),
        environment=pretty(results.catalogue.environment),
        level=level(results),
        headline=tables.headline_table(results),
        parts=parts,
        costs=tables.cost_table(results),
        tried=tables.tried_table(results),
        ablations=tables.ablation_table(results),
        sets=tables.set_table(results),
        measures=(
            ("AUROC", tables.auroc_words(results)),
            *((measure.title, measure.meaning) for measure in tables.MEASURES),
        ),
    )


def part(run: Path, results: DetectResults, place: int, problems: list[str]) -> dict[str, Any]:
    """Tables and figures of one set; what cannot be drawn is added to the problems."""
    found = results.sets[place]
    roc, risk = None, None
    try:
        roc, risk = curves(run, results, place)
    except (DataError, DataNotFoundError, KeyError) as error:
        problems.append(f"No curves of {found.name}: {error}")
    return {
        "place": place,  # names the part's anchor
        "info": next(info for info in results.catalogue.sets if info.name == found.name),
        "result": found,
        "table": tables.detector_table(results, found),
        "forest": forest(results, found.name),
        "roc": roc,
        "risk": risk,
        "calibration": calibration(results, place),
        "joints": tables.joint_table(results, found.name),
        "by_joint": tables.joint_by_joint(results, found.name),
        "reliability": joint_reliability(results, place),
    }


def facts(results: DetectResults) -> tuple[tuple[str, str], ...]:
    """What was run, as names and values."""
    catalogue = results.catalogue
    environment = catalogue.environment
    machine = environment.get("gpu") or environment.get("processor") or environment.get("device") or UNKNOWN
    looks = ", ".join(f"{name} {fmt.plural(count, 'time')}" for name, count in catalogue.looks.items())
    commit = lookup(environment, "commit", "revision")
    return (
        ("Seeds", f"{len(catalogue.seeds)}, a base model each"),
        ("Detectors", fmt.count(len(catalogue.detectors))),
        ("Sets", ", ".join(f"{info.name} ({info.role})" for info in catalogue.sets)),
        ("Looked at", looks or UNKNOWN),
        ("Resamples", fmt.count(results.resamples)),
        ("Computed on", str(machine)),
        *((("Commit", str(commit)),) if commit else ()),
    )


def outcome(estimate: Estimate) -> Outcome:
    """What the interval over people says of a difference."""
    low, high = estimate.people.low, estimate.people.high
    if estimate.mean is None or low is None or high is None:
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "even"


def finding(results: DetectResults) -> tuple[str, ...]:
    """Sentences: the shipped detector against the best free score, the ceiling, the oracle, its slim form, its cost."""
    shipped = next(iter(results.catalogue.of_kind("shipped")), None)
    if shipped is None:
        return (nothing_ships(results),)
    parts = (against_free(results, shipped), tested(results), way(results, shipped), ceiling(results),
             slim(results), joints(results, shipped), cost(shipped))  # fmt: skip
    return tuple(filter(None, parts))


def nothing_ships(results: DetectResults) -> str:
    """Which candidate is ahead on the sets that choices are made on; the test sets have no say in that."""
    choice = [info.name for info in results.catalogue.sets if info.role == "choice"]
    means = {
        d.name: mean_sd([mean_auroc(results, d.name, name) for name in choice])
        for d in results.catalogue.of_kind("candidate", "paper", "free", "slim")
    }
    known = {name: s.mean for name, s in means.items() if s.mean is not None and s.count == len(choice)}
    if not known:
        return "No detector is marked as the one that ships, so there is no headline question yet."
    best = max(known, key=known.__getitem__)
    return (
        "No detector is marked as the one that ships yet. On the sets that choices are made on "
        f"({', '.join(choice)}) {best} is ahead, with a mean AUROC of {fmt.number(known[best])}."
    )


def tests_of(results: DetectResults) -> list[str]:
    """Names of the sets that are reported and were not chosen on."""
    return [info.name for info in results.catalogue.sets if info.role == "test"]


def asked(results: DetectResults, question: Question) -> list[Comparison]:
    """A question's comparisons on the test sets."""
    return [c for c in results.comparisons if c.question == question and c.set in tests_of(results)]


def against_free(results: DetectResults, shipped: DetectorInfo) -> str:
    """Better than every free score, set by set, with the interval."""
    found = asked(results, "shipped-free")
    if not found:
        return (f"{shipped.name} ships. It cannot be compared with free scores: no test set has them together with both "
                "failures and successes.")  # fmt: skip
    words: dict[Outcome, str] = {
        "better": "beats the best free score on",
        "even": "cannot be told from the best free score on",
        "worse": "is worse than the best free score on",
        "unknown": "cannot be compared on",
    }
    return f"{shipped.name} {clauses(words, found, lambda c: one_set(results, c))}."


def one_set(results: DetectResults, comparison: Comparison) -> str:
    """``lspet (AUROC 0.917 against 0.851 of entropy: +0.066, 95 % interval …)``."""
    ours, theirs = (mean_auroc(results, name, comparison.set) for name in (comparison.detector, comparison.against))
    estimate = comparison.difference.estimate
    return (
        f"{comparison.set} (AUROC {fmt.number(ours)} against {fmt.number(theirs)} of {comparison.against}: "
        f"{fmt.signed(estimate.mean)}, {level(results)} interval {between(estimate)})"
    )


def tested(results: DetectResults) -> str:
    """What the t-tests over the seeds add."""
    found = asked(results, "shipped-free")
    seeds = fmt.plural(len(results.catalogue.seeds), "seed")
    said = [(p, f"{c.set} (Holm-adjusted p {fmt.p_value(p)})") for c in found if (p := c.difference.holm) is not None]
    sure = [words for p, words in said if p < ALPHA]
    rest = [words for p, words in said if p >= ALPHA]
    if not sure and not rest:
        reason = next((c.difference.reason for c in found if c.difference.reason), None)
        return f"No t-test over the {seeds}: {reason}." if reason else ""
    if not sure:
        return f"Over the {seeds} it has no lead that chance would not explain: {fmt.listed(rest)}."
    but = f", but not on {fmt.listed(rest)}" if rest else ""
    return f"Over the {seeds} its lead is more than chance would explain on {fmt.listed(sure)}{but}."


def way(results: DetectResults, shipped: DetectorInfo) -> str:
    """How far it goes from the best free score to the true loss."""
    means = {name: mean_sd(results.over_seeds(shipped.name, name, "way_to_oracle")).mean for name in tests_of(results)}
    shares = [f"{fmt.percent(mean)} on {name}" for name, mean in means.items() if mean is not None]
    return (
        f"Of the way from the best free score to the true loss itself it goes {fmt.listed(shares)}." if shares else ""
    )


def ceiling(results: DetectResults) -> str:
    """Whether it reaches a head that was trained on the domain's own labels."""
    found = asked(results, "shipped-ceiling")
    sentences = []
    for name in dict.fromkeys(c.against for c in found):
        words: dict[Outcome, str] = {
            "better": f"is better than the ceiling ({name}) on",
            "even": f"reaches the ceiling ({name}) on",
            "worse": f"falls short of the ceiling ({name}) on",
            "unknown": f"cannot be compared with the ceiling ({name}) on",
        }
        sentences.append(f"It {clauses(words, [c for c in found if c.against == name], on_set)}.")
    return " ".join(sentences)


def slim(results: DetectResults) -> str:
    """Whether the slim form loses anything."""
    words: dict[Outcome, str] = {
        "better": "is better than it on",
        "even": "cannot be told from it on",
        "worse": "is worse than it on",
        "unknown": "cannot be compared on",
    }
    found = asked(results, "slim-shipped")
    return " ".join(
        f"The slim form {name} {clauses(words, [c for c in found if c.detector == name], on_set)}."
        for name in dict.fromkeys(c.detector for c in found)
    )


def joints(results: DetectResults, shipped: DetectorInfo) -> str:
    """How well it finds wrong joints, beside the height of the peaks; empty where that was not stored."""
    said = []
    for name in tests_of(results):
        ours, peak = (
            [mean_sd([getattr(row.measures.together, measure) for row in tables.joint_rows(results, detector, name)]).mean
             for measure in ("auroc", "auprc", "ece")]
            for detector in (shipped.name, "peak")
        )  # fmt: skip
        if ours[0] is not None:
            beside = [f" ({fmt.number(value)})" if value is not None else "" for value in peak]
            said.append(f"{name} AUROC {fmt.number(ours[0])}{beside[0]}, AUPRC {fmt.number(ours[1])}{beside[1]}, "
                        f"calibration error {fmt.number(ours[2])}{beside[2]}")  # fmt: skip
    if not said:
        return ""
    return f"Of wrong joints it says, and the height of the peaks in brackets: {'; '.join(said)}."


def on_set(comparison: Comparison) -> str:
    """``lspet (−0.002, −0.006 to +0.001)``."""
    estimate = comparison.difference.estimate
    if estimate.mean is None:
        return comparison.set
    return f"{comparison.set} ({fmt.signed(estimate.mean)}, {between(estimate)})"


def clauses(words: dict[Outcome, str], found: list[Comparison], say: Callable[[Comparison], str]) -> str:
    """One clause per outcome, with the sets that it holds for."""
    parts = []
    for judged, phrase in words.items():
        sets = [say(c) for c in found if outcome(c.difference.estimate) == judged]
        if sets:
            parts.append(f"{phrase} {fmt.listed(sets)}")
    return ", and ".join(parts)


def cost(shipped: DetectorInfo) -> str:
    """What it costs, where that was measured."""
    if shipped.latency_share is None:
        return ""
    parameters = "" if shipped.parameters is None else f", with {fmt.count(shipped.parameters)} parameters"
    return f"It costs {tables.share(shipped.latency_share)} of the pose net's own latency{parameters}."
