"""The page of ``alpose-train pose describe``: what a net was taken for, and its answers on pictures.

Shapes: J joints, H W the net's input, S the longer of both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alpose.runtime.io import write_atomically

from ..foreign.describe import Answers, Description, Sample, origin, verdict
from . import formatting as fmt
from .kit import Cell, Column, Page, Row, Table, cells
from .people import SIDE, Picture, picture

SHOWN = 12
"""People on the page, evenly spread."""


def write_page(found: Description, path: Path) -> Path:
    """Write the page: one file that needs no network."""
    return write_atomically(path, render(found).encode())


def render(found: Description) -> str:
    """The page as HTML."""
    spec, sample = found.recognised.spec, found.sample
    guesses = [part.name for part in found.recognised.guesses()]
    warnings = [f"Guessed: {', '.join(guesses)}. State what is wrong."] if guesses else []
    warnings += [f"{text}." for text in found.trial.warnings]
    findings: list[str] = []
    if sample is not None and sample.joints:
        said = verdict(sample)
        (warnings if said.startswith("Warning") else findings).append(said.removeprefix("Warning: "))
    page = Page(
        title=f"alpose: {found.file.name}",
        kicker="a pose net in an ONNX file",
        heading=found.file.name,
        subheading=spec.name,
        findings=tuple(findings),
        warnings=tuple(warnings),
        warnings_title="To be looked at",
        facts=(
            ("input", f"{spec.input.height_px} × {spec.input.width_px} px"),
            ("joints", str(len(spec.skeleton))),
            ("people", str(len(sample.crops)) if sample else "0"),
        ),
    )
    better = sample.better if sample else None
    return page.render(
        "alpose.trainer.pages:describe.html.j2",
        parts=_parts(found),
        conventions=_conventions(sample) if sample and sample.joints else None,
        people=_people(sample, sample.answers) if sample else (),
        labelled=bool(sample and sample.joints),
        better=_people(sample, better[1]) if sample and better else (),
        better_name=better[0].name if better else "",
    )


def _parts(found: Description) -> Table:
    rows = []
    for part in found.recognised.parts:
        lines = ["–" if part.value in ("", "none") else part.value]
        if part.name == "taps" and found.recognised.spec.taps:
            lines = [f"{name} ({_shape(found, name)})" for name in found.recognised.spec.taps]
        elif part.name == "hidden":
            lines = [f"{kind}: {name}" for kind, name in found.recognised.spec.hidden.items()]
        for place, line in enumerate(lines):
            known = cells(origin(part), part.why) if place == 0 else cells("", "")
            rows.append(Row(part.name if place == 0 else "", (Cell(line), *known)))
    columns = (Column("Value", style="words"), Column("How it is known", style="words"), Column("Why", style="words"))
    return Table("Part", columns, tuple(rows), style="words stack")


def _shape(found: Description, name: str) -> str:
    return " × ".join("N" if axis is None else str(axis) for axis in found.shapes.get(name, ()))


def _conventions(sample: Sample) -> Table:
    rows = []
    for one in sample.conventions:
        pck = "–" if one.pck is None else fmt.number(one.pck, 3)
        if one.options:
            more = (f"{one.more:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}", one.options if one.clearly_better else "")
        else:
            more = ("", "", "as described")
        rows.append(
            Row(one.name, (Cell(pck, best=one.clearly_better), *cells(*more[:2]), Cell(more[2], style="words")))
        )
    columns = (Column("PCK"), Column("Difference"), Column("99 % interval"), Column("To be stated", style="words"))
    return Table("Input", columns, tuple(rows))


def _people(sample: Sample, answers: Answers) -> tuple[Picture, ...]:
    """Some people as the net sees them; a crop that is not square stands in a square."""
    count = len(sample.crops)
    rows = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int))
    pictures = []
    for row, crop_HW3 in zip(rows, sample.crops.read_bare(rows), strict=True):
        height, width = crop_HW3.shape[:2]
        side = max(height, width)
        before = ((side - height) // 2, (side - width) // 2)
        square_SS3 = np.zeros((side, side, 3), np.uint8)
        square_SS3[before[0] : before[0] + height, before[1] : before[1] + width] = crop_HW3
        shift_2 = np.array(before[::-1], np.float32)
        caption = [f"score {fmt.number(float(answers.scores_NJ[row].mean()), 2)}"]
        if np.isfinite(answers.image_pck_N[row]):
            caption.append(f"PCK {fmt.number(float(answers.image_pck_N[row]), 2)}")
        pictures.append(
            picture(
                sample.crops.data.ids[row], square_SS3, SIDE, sample.crops.data.skeleton,
                sample.crops.joints_NJ2[row] + shift_2, sample.crops.labelled_NJ[row], answers.keypoints_NJ2[row] + shift_2,
                tuple(caption),
            )
        )  # fmt: skip
    return tuple(pictures)
