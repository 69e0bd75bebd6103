"""The page of ``alpose-train detect --pose``: what tells the failures of somebody else's net, and what a head is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from alpose.runtime.io import write_atomically

from ..foreign.detect import SHIPPED, DetectorRow, ForeignDetect, SetResult
from ..foreign.measuring import OWN
from ..methods.catalog import Look
from . import formatting as fmt
from .figures import Curve, lines
from .kit import Cell, Column, Page, Palette, Row, Table, pretty

PAGE = "detect-pose.html"
PALETTE = Palette({
    OWN: Look("#6b6b6b", "#9a9a9a", (4, 2), "o", "its scores, averaged over all its joints"),
    SHIPPED: Look("#00569c", "#5aa4f5", (), "o", "chosen on held-out people"),
})  # fmt: skip


def write_page(found: ForeignDetect, folder: Path) -> Path:
    """Write the page: one file that needs no network."""
    return write_atomically(folder / PAGE, render(found).encode())


def render(found: ForeignDetect) -> str:
    """The page as HTML."""
    page = Page(
        title=f"alpose: failures of {found.file}",
        kicker="what tells the failures of a pose net",
        heading=found.file,
        subheading=f"{found.net}, labels of {found.dataset}",
        findings=tuple(found.findings()),
        facts=(
            ("training people", fmt.count(found.trained_on)),
            ("damaged views of each", str(found.views)),
            ("seeds", str(found.seeds)),
            ("labelled joints", str(len(found.joints))),
            ("failure", found.failure),
            *_cost(found),
        ),
        palette=PALETTE,
    )
    return page.render(
        "alpose.trainer.pages:detect_pose.html.j2",
        parts=[_part(each, place) for place, each in enumerate(found.sets)],
        how=_how(found),
        environment=pretty(found.environment),
    )


def _cost(found: ForeignDetect) -> tuple[tuple[str, str], ...]:
    if found.cost is None:
        return ()
    return (
        ("time of the net", f"{fmt.number(found.cost.pose_ms, 2)} ms"),
        (
            "time to read it",
            f"{fmt.number(found.cost.extra_ms, 2)} ms ({fmt.percent(found.cost.share, 1)}) in one graph",
        ),
    )


def _how(found: ForeignDetect) -> str:
    return (
        f"{found.trained_on} people, {found.views} damaged views of each; for each of {found.seeds} seeds another part of the "
        "pictures chooses what ships and the rest trains the heads. The test sets decide nothing. AUROC is the probability that "
        "a failure scores worse than a success; numbers are means over seeds, intervals are 95 % bootstrap intervals over "
        "pictures. Only joints with labels count, but the net's own score is that of all its joints. "
        f"Crops: {found.crop}. SHA-256 of the net: {found.sha256}."
    )


def _part(each: SetResult, place: int) -> dict[str, Any]:
    shown = [each.row(OWN), each.row(SHIPPED)]
    drawable = all(row.risk for row in shown)
    return {
        "name": each.name,
        "lead": f"{each.people} people, PCK {fmt.number(each.pck)}{_beside(each)}; {each.failures} fail.",
        "table": _table(each),
        "risk": _risk(shown, place) if drawable else None,
        "who": [OWN, SHIPPED],
    }


def _beside(each: SetResult) -> str:
    return "".join(f", {name.upper()} {fmt.number(value)}" for name, value in each.beside.items())


def _risk(rows: list[DetectorRow], place: int) -> Markup:
    """Failure rate over the share of images that are trusted."""
    covered_K = np.linspace(0, 1, len(rows[0].risk) + 1)[1:]
    curves = [Curve(row.name, covered_K, np.asarray(row.risk)) for row in rows]
    return lines(f"risk{place}", curves, PALETTE, "share of images that are trusted", "failure rate among them")


def _table(each: SetResult) -> Table:
    best = max((row.auroc or 0.0 for row in each.rows), default=0.0)

    def row(one: DetectorRow) -> Row:
        ends = "" if one.low is None else f"{fmt.number(one.low)} to {fmt.number(one.high)}"
        over = one.over_own
        apart = "" if one.name == OWN or over.low is None else f"{fmt.signed(over.low)} to {fmt.signed(over.high)}"
        return Row(
            one.name,
            (
                Cell(fmt.number(one.auroc), small=ends, best=one.auroc == best),
                Cell("" if one.name == OWN else fmt.signed(over.value), small=apart, best=over.is_better),
                Cell(fmt.number(one.auprc)),
                Cell(fmt.number(one.aurc)),
                Cell(fmt.number(one.augrc)),
                Cell(fmt.number(one.joint_auroc)),
                Cell(fmt.number(one.joint_ece)),
                Cell(fmt.number(one.oks)),
                Cell(fmt.number(one.ap)),
            ),
            mark=one.name if one.name in PALETTE.looks else None,
        )

    learned = [one for one in each.rows if one.learned]
    free = [one for one in each.rows if not one.learned and one.name not in (OWN, SHIPPED)]
    rows = [row(one) for one in each.rows if one.name in (OWN, SHIPPED)]
    rows += [Row("Heads"), *map(row, learned)] if learned else []
    rows += [Row("Scores that cost nothing"), *map(row, free)]
    columns = (
        Column("AUROC", small="of failure"),
        Column("Over the own score"),
        Column("AUPRC", hover="average precision"),
        Column("AURC", hover="area under the risk-coverage curve; lower is better"),
        Column(
            "AUGRC",
            hover="area under the generalized risk-coverage curve, in which every failure weighs the same; lower is better",
        ),
        Column("Joints", small="AUROC of a wrong one"),
        Column(
            "ECE", small="of joints", hover="expected calibration error of the joints' confidences before calibration"
        ),
        Column(
            "OKS",
            hover="rank correlation of the detector's certainty with object keypoint similarity, undamaged people",
        ),
        Column("AP", hover="COCO's average precision of the poses, ranked by the detector"),
    )
    return Table("Detector", columns, tuple(rows), notes=("Bold differences: the interval lies above zero.",))
