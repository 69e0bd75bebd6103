"""The demo's page: what the loop brought, with links to every page that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alpose.trainer.report import form

LINKS = (
    ("benchmark/report.html", "Benchmark report", "which method finds the failures in a pool, from one base model"),
    (
        "first.alpose/card.html",
        "Card of the first bundle",
        "what the model can do, and how far its probabilities can be trusted",
    ),
    ("gallery.html", "Gallery of the inbox", "the frames that the devices sent, most valuable first"),
    ("dataset/field/report.html", "Field report", "accuracy in the field from the labelled frames, without bias"),
    (
        "second.alpose/card.html",
        "Card of the second bundle",
        "after training on the field; thresholds before and after",
    ),
)


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
        number = form.number
        return (
            ("PCK, frames like before the change", number(self.before["easy"]), number(self.after["easy"]), number(self.by_chance["easy"])),
            ("PCK, frames after the change", number(self.before["hard"]), number(self.after["hard"]), number(self.by_chance["hard"])),
            (f"failing frames of {self.fresh}", str(self.failures_before), str(self.failures_after), str(self.failures_by_chance)),
            (f"failures among the {self.picked} labelled", form.NONE, str(self.found), number(self.found_by_chance, 0)),
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
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (resources.files("alpose.tools.demo") / "page.html.j2").read_text(encoding="utf-8")
    )
    style = (resources.files("alpose.trainer.report") / "report.css").read_text(encoding="utf-8")
    page: str = template.render(
        css=Markup(style),  # our own file
        outcome=outcome,
        links=LINKS,
        steps=steps,
        seconds=seconds,
        form=form,
    )
    return page
