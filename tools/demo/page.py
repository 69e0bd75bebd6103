"""The demo's page: what the loop brought, with links to every page that it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from alpose.trainer.measures.statistics import mean_sd, paired_t_test
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
MODELS: Mapping[str, str] = {
    "first": "first model",
    "without": "trained on without new labels",
    "random": "on frames picked at random",
    "harvest": "on the harvest",
}
"""The models that are compared, in the order of their training data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model on the third device, whose frames nobody has labelled. PCK is the mean over frames."""

    before: float
    """PCK on frames as they were before the change."""
    turned: float
    """PCK on frames of the turned camera."""
    failures: int
    """Frames on which it fails, of all ``frames``."""
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The frames that one way of choosing gave to the annotators."""

    frames: int
    turned: int
    """Of them from the turned camera."""
    failures: int
    """Of them frames on which the first model fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one turn of the loop brought."""

    seed: int
    frames: int
    """That the two devices saw."""
    turned: int
    """Of them from the turned camera."""
    failures: int
    """Of them frames on which the first model fails."""
    labelled: Mapping[str, Labelled]
    """By the model that was trained on them: ``random`` and ``harvest``."""
    true_pck: float
    """Of the first model over everything that the devices saw."""
    field: Mapping[str, Any]
    """The field report's estimates, from the labels alone."""
    measured: Mapping[str, Measured]
    """By :data:`MODELS`."""


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of every seed."""

    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: every seed, and what they say together."""
        return {"outcomes": [asdict(one) for one in self.outcomes], "harvest_over_random": self.gain()}

    def gain(self) -> dict[str, Any]:
        """PCK on frames of the turned camera, trained on the harvest over trained on a random pick."""
        harvest, chance = ([one.measured[name].turned for one in self.outcomes] for name in ("harvest", "random"))
        difference = [a - b for a, b in zip(harvest, chance, strict=True)]
        return {"by_seed": difference, "mean": mean_sd(difference).mean, "sd": mean_sd(difference).sd,
                "p_paired_t_two_sided": paired_t_test(harvest, chance).p}  # fmt: skip

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """What the row is about, then its number for every model: the mean over the seeds and, of several, its spread."""

        def row(title: str, number: Callable[[Outcome, str], float | None], digits: int) -> tuple[str, ...]:
            return (
                title,
                *(fmt.spread(mean_sd([number(one, name) for one in self.outcomes]), digits) for name in MODELS),
            )

        fresh = next(iter(self.outcomes[0].measured.values())).frames
        several = len(self.outcomes) > 1

        def of_labelled(count: Callable[[Labelled], int]) -> Callable[[Outcome, str], float | None]:
            return lambda one, name: float(count(one.labelled[name])) if name in one.labelled else None

        return (
            row("PCK, frames like before the change", lambda one, name: one.measured[name].before, 3),
            row("PCK, frames of the turned camera", lambda one, name: one.measured[name].turned, 3),
            row(f"failing frames of {fresh}", lambda one, name: float(one.measured[name].failures), int(several)),
            row("newly labelled frames", of_labelled(lambda of: of.frames), 0),
            row("… of the turned camera", of_labelled(lambda of: of.turned), int(several)),
            row("… on which the first model fails", of_labelled(lambda of: of.failures), int(several)),
        )

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'on a device that nobody labelled':<36}" + "".join(f" {name:>16}" for name in MODELS)]
        lines += [f"{name:<36}" + "".join(f" {value:>16}" for value in values) for name, *values in self.rows()]
        lines.append(
            f"first: the first model; without: {MODELS['without']}; random, harvest: trained on with new labels"
        )
        for one in self.outcomes:
            pck = one.field["pck"]
            if pck is not None:
                lines.append(f"field report{self._of_seed(one)}: PCK {pck['value']:.3f} ({pck['low']:.3f} to "
                             f"{pck['high']:.3f}), in truth {one.true_pck:.3f}")  # fmt: skip
        return "\n".join(lines)

    def _of_seed(self, one: Outcome) -> str:
        return f" of seed {one.seed}" if len(self.outcomes) > 1 else ""

    def finding(self) -> str:
        """The first seed in words."""
        first = self.outcomes[0]
        harvest, chance = first.labelled["harvest"], first.labelled["random"]
        pck = {name: fmt.number(measured.turned) for name, measured in first.measured.items()}
        return (
            f"Two devices watched {fmt.count(first.frames)} frames; {fmt.count(first.turned)} of them, from the middle on, "
            f"were from a camera that was mounted on its side. {harvest.frames} frames were fetched and labelled, "
            f"{harvest.turned} of them from that camera; as many frames picked at random held {chance.turned}. On that "
            f"camera's frames the first model has a PCK of {pck['first']}. Trained on with the harvest it has "
            f"{pck['harvest']}, with the random frames {pck['random']}, and without any new label {pck['without']}."
        )


def render(result: Result, steps: Sequence[tuple[str, float]], seconds: float) -> str:
    """The page."""
    page = Page(
        title="alpose: the loop on rendered people",
        kicker="demo",
        heading="The loop on rendered people",
        subheading=f"train, export, watch, harvest, annotate, train again: {fmt.seconds(seconds)} on this machine",
        findings=(result.finding(),),
    )
    models = tuple(Column(text[0].upper() + text[1:]) for text in MODELS.values())
    commands = tuple(
        Row(Markup("<code>{}</code>").format(command), cells(fmt.seconds(took))) for command, took in steps
    )
    return page.render(
        "alpose.tools.demo:page.html.j2",
        styles=["alpose.tools.demo:page.css"],
        result=result,
        first=result.outcomes[0],
        results=Table("", models, tuple(Row(name, cells(*values)) for name, *values in result.rows())),
        links=LINKS,
        commands=Table("Command", (Column("Took"),), commands, style="words"),
    )
