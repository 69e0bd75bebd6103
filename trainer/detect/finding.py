"""The result of a detector run in plain words, from its numbers alone.

What an interval says decides the words: *better* where it lies above zero, *worse* where it lies below, and otherwise
that the two cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..report import form
from ..statistics import is_defined, mean_sd
from .comparing import Estimate
from .results import Comparison, DetectResults, Question
from .stored import DetectorInfo, SetInfo

Verdict = Literal["better", "worse", "even", "unknown"]
ALPHA = 0.05
"""Level of the Holm-adjusted tests."""


def verdict(estimate: Estimate) -> Verdict:
    """What the interval over people says of a difference."""
    low, high = estimate.people.low, estimate.people.high
    if estimate.mean is None or low is None or high is None:
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "even"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    text = form.number(value, digits)
    return f"+{text}" if is_defined(value) and round(value, digits) > 0 else text


def between(estimate: Estimate) -> str:
    """``−0.012 to +0.034``."""
    return f"{signed(estimate.people.low)} to {signed(estimate.people.high)}"


def shipped_of(results: DetectResults) -> DetectorInfo | None:
    """The detector that ships; None where no row is marked as it."""
    return next(iter(results.catalogue.of_kind("shipped")), None)


def tests_of(results: DetectResults) -> tuple[SetInfo, ...]:
    """The sets that are reported and were not chosen on."""
    return tuple(info for info in results.catalogue.sets if info.role == "test")


def mean_auroc(results: DetectResults, detector: str, name: str) -> float | None:
    """Mean over seeds on one set; None where it was not scored."""
    found = (r.auroc.mean for r in results.ratings if (r.detector, r.set) == (detector, name))
    return next(found, None)


def finding(results: DetectResults) -> tuple[str, ...]:
    """Sentences: the shipped detector against the best free score, the ceiling, the oracle, its slim form, its cost."""
    shipped = shipped_of(results)
    if shipped is None:
        return (nothing_ships(results),)
    parts = (against_free(results, shipped), tested(results), way(results, shipped), ceiling(results),
             slim(results), cost(shipped))  # fmt: skip
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
        return "No detector is marked as the one that ships, so the headline question is not asked yet."
    best = max(known, key=known.__getitem__)
    return (
        "No detector is marked as the one that ships yet. On the sets that choices are made on "
        f"({', '.join(choice)}) {best} is ahead, with a mean AUROC of {form.number(known[best])}."
    )


def asked(results: DetectResults, question: Question) -> list[Comparison]:
    """A question's comparisons on the test sets."""
    tests = {info.name for info in tests_of(results)}
    return [c for c in results.comparisons if c.question == question and c.set in tests]


def against_free(results: DetectResults, shipped: DetectorInfo) -> str:
    """Better than every free score, set by set, with the interval."""
    found = asked(results, "shipped-free")
    if not found:
        return (f"{shipped.name} ships. It cannot be compared with free scores: no test set has them together with both "
                "failures and successes.")  # fmt: skip
    words: dict[Verdict, str] = {"better": "beats the best free score on", "even": "cannot be told from the best free score on",
             "worse": "is worse than the best free score on", "unknown": "cannot be compared on"}  # fmt: skip
    return f"{shipped.name} {clauses(words, found, lambda c: one_set(results, c))}."


def one_set(results: DetectResults, comparison: Comparison) -> str:
    """``lspet (AUROC 0.917 against 0.851 of entropy: +0.066, 95 % interval …)``."""
    ours, theirs = (mean_auroc(results, name, comparison.set) for name in (comparison.detector, comparison.against))
    estimate = comparison.difference.estimate
    return (
        f"{comparison.set} (AUROC {form.number(ours)} against {form.number(theirs)} of {comparison.against}: "
        f"{signed(estimate.mean)}, {level(results)} interval {between(estimate)})"
    )


def level(results: DetectResults) -> str:
    """``95 %``, unbroken."""
    return f"{100 * results.level:g}\N{NO-BREAK SPACE}%"


def tested(results: DetectResults) -> str:
    """What the t-tests over the seeds add."""
    found = asked(results, "shipped-free")
    seeds = form.plural(len(results.catalogue.seeds), "seed")
    said = [(p, f"{c.set} (Holm-adjusted p {form.p_value(p)})") for c in found if (p := c.difference.holm) is not None]
    sure = [words for p, words in said if p < ALPHA]
    rest = [words for p, words in said if p >= ALPHA]
    if not sure and not rest:
        reason = next((c.difference.reason for c in found if c.difference.reason), None)
        return f"No t-test over the {seeds}: {reason}." if reason else ""
    if not sure:
        return f"Over the {seeds} it has no lead that chance would not explain: {listed(rest)}."
    but = f", but not on {listed(rest)}" if rest else ""
    return f"Over the {seeds} its lead is more than chance would explain on {listed(sure)}{but}."


def way(results: DetectResults, shipped: DetectorInfo) -> str:
    """How much of the way to the true loss is gone."""
    shares = []
    for info in tests_of(results):
        share = mean_sd(results.over_seeds(shipped.name, info.name, "way_to_oracle")).mean
        if share is not None:
            shares.append(f"{form.percent(share)} on {info.name}")
    return f"Of the way from the best free score to the true loss itself it goes {listed(shares)}." if shares else ""


def ceiling(results: DetectResults) -> str:
    """Whether it reaches a head that was trained on the domain's own labels."""
    found = asked(results, "shipped-ceiling")
    sentences = []
    for name in dict.fromkeys(c.against for c in found):
        words: dict[Verdict, str] = {
            "better": f"is better than the ceiling ({name}) on",
            "even": f"reaches the ceiling ({name}) on",
            "worse": f"falls short of the ceiling ({name}) on",
            "unknown": f"cannot be compared with the ceiling ({name}) on",
        }
        sentences.append(f"It {clauses(words, [c for c in found if c.against == name], on_set)}.")
    return " ".join(sentences)


def slim(results: DetectResults) -> str:
    """Whether the slim form loses anything."""
    words: dict[Verdict, str] = {"better": "is better than it on", "even": "cannot be told from it on", "worse": "is worse than it on",
             "unknown": "cannot be compared on"}  # fmt: skip
    found = asked(results, "slim-shipped")
    return " ".join(
        f"The slim form {name} {clauses(words, [c for c in found if c.detector == name], on_set)}."
        for name in dict.fromkeys(c.detector for c in found)
    )


def on_set(comparison: Comparison) -> str:
    """``lspet (−0.002, −0.006 to +0.001)``."""
    estimate = comparison.difference.estimate
    if estimate.mean is None:
        return comparison.set
    return f"{comparison.set} ({signed(estimate.mean)}, {between(estimate)})"


def clauses(words: dict[Verdict, str], found: list[Comparison], say: Callable[[Comparison], str]) -> str:
    """One clause per verdict, with the sets that it holds for."""
    parts = []
    for judged, phrase in words.items():
        sets = [say(c) for c in found if verdict(c.difference.estimate) == judged]
        if sets:
            parts.append(f"{phrase} {listed(sets)}")
    return ", and ".join(parts)


def cost(shipped: DetectorInfo) -> str:
    """What it costs, where that was measured."""
    if shipped.latency_share is None:
        return ""
    parameters = "" if shipped.parameters is None else f", with {form.count(shipped.parameters)} parameters"
    return f"It costs {share(shipped.latency_share)} of the pose net's own latency{parameters}."


def share(value: float | None) -> str:
    """A fraction in percent, a digit more below ten."""
    if not is_defined(value):
        return form.NONE
    return f"{form.number(100 * value, 1 if value < 0.1 else 0)}\N{NO-BREAK SPACE}%"


def listed(items: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
