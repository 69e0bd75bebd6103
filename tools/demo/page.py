"""The demo's page: what the loop brought, with links to every page that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from alpose.trainer.pages import formatting as fmt
from alpose.trainer.pages.kit import Column, Page, Row, Table, cells

LINKS = (
    ("benchmark/report.html", "Benchmark report", "which method finds the failures in a pool, from one base model"),
    ("first.alpose/card.html", "Card of the first bundle",
     "what the model can do, and how far its probabilities can be trusted"),
    ("gallery.html", "Gallery of the inbox", "the frames that the devices sent, most valuable first"),
    ("dataset/field/report.html", "Field report", "accuracy in the field from the labelled frames, without bias"),
    ("second.alpose/card.html", "Card of the second bundle",
     "after training on the field; thresholds before and after"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the loop brought. PCK is the mean over frames; ``hard`` frames are those after the change."""

    frames: int
    failures: int
    picked: int
    found: int
    """Failures among the picked frames."""
    found_by_chance: float
    """Failures among as many frames picked at random, on average."""
    true_pck: float
    field: Mapping[str, Any]
    before: Mapping[str, float]
    after: Mapping[str, float]
    by_chance: Mapping[str, float]
    failures_before: int
    failures_after: int
    failures_by_chance: int
    fresh: int
    """Frames of the device on which the three were measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def rows(self) -> tuple[tuple[str, str, str, str], ...]:
        """Name, first model, the one trained on the harvest, the one trained on a random pick."""
        number = fmt.number
        return (
            ("PCK, frames like before the change", number(self.before["easy"]), number(self.after["easy"]), number(self.by_chance["easy"])),
            ("PCK, frames after the change", number(self.before["hard"]), number(self.after["hard"]), number(self.by_chance["hard"])),
            (f"failing frames of {self.fresh}", str(self.failures_before), str(self.failures_after), str(self.failures_by_chance)),
            (f"failures among the {self.picked} labelled", fmt.NONE, str(self.found), number(self.found_by_chance, 0)),
        )  # fmt: skip

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'on a device that nobody labelled':<40} {'before':>8} {'harvest':>8} {'random':>8}"]
        lines += [f"{name:<40} {first:>8} {second:>8} {chance:>8}" for name, first, second, chance in self.rows()]
        pck = self.field["pck"]
        if pck is not None:
            lines.append(f"field report: PCK {pck['value']:.3f} ({pck['low']:.3f} to {pck['high']:.3f}), in truth "
                         f"{self.true_pck:.3f}")  # fmt: skip
        return "\n".join(lines)


def render(outcome: Outcome, steps: Sequence[tuple[str, float]], seconds: float) -> str:
    """The page."""
    page = Page(
        title="alpose: the loop on rendered people",
        kicker="demo",
        heading="The loop on rendered people",
        subheading=f"train, export, watch, harvest, annotate, train again: {fmt.seconds(seconds)} on this machine",
        findings=(
            f"Two devices watched {fmt.count(outcome.frames)} frames, and in the middle people became harder to see. "
            f"{outcome.picked} frames were fetched and labelled; the model fails on {outcome.found} of them, where as "
            f"many frames picked at random would have held {fmt.number(outcome.found_by_chance, 0)} failures. Trained "
            f"on them, PCK on frames after the change goes from {fmt.number(outcome.before['hard'])} to "
            f"{fmt.number(outcome.after['hard'])}; on the random frames, to {fmt.number(outcome.by_chance['hard'])}.",
        ),
    )
    before_after = tuple(Column(text) for text in ("First model", "Trained on the harvest", "Trained on a random pick"))
    commands = tuple(
        Row(Markup("<code>{}</code>").format(command), cells(fmt.seconds(took))) for command, took in steps
    )
    return page.render(
        "alpose.tools.demo:page.html.j2",
        styles=["alpose.tools.demo:page.css"],
        outcome=outcome,
        results=Table("", before_after, tuple(Row(name, cells(*values)) for name, *values in outcome.rows())),
        links=LINKS,
        commands=Table("Command", (Column("Took"),), commands, style="words"),
    )
