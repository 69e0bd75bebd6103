"""What is measured of the methods: each work with its inputs, who does it, and whether they come to the same.

A further work is one more function from :class:`Sizes` and the official code to a :class:`Work`, named in ``WORKS``.

Shapes: N people, L labelled, D embedding, J joints, H heatmap, T thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alpose.trainer.data.synthetic import read_people
from alpose.trainer.heatmaps import MULTIPEAK_FORMS, draw, multipeak_entropy
from alpose.trainer.measures.metrics import judge, normaliser, profile_for
from alpose.trainer.methods.coreset import k_centre

from .measure import Task
from .methods_egl import affinities, gradients
from .methods_pose import data_pipeline, vl4pose
from .methods_work import OURS, REFERENCE, TINY, Check, Floats, Sizes, Work, embeddings, maps_of
from .reference_methods import ReferenceMethods

__all__ = ["OURS", "REFERENCE", "TINY", "Check", "Sizes", "Work", "embeddings", "works"]

STREAM, PASS = "one mat-vec per pick", "one pass of reading"

# --- Coreset


def coreset(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """The size of the papers' LSPET pool."""
    points_ND = embeddings(sizes.coreset, sizes.width)
    start, k = sizes.labelled, sizes.picks
    picked: dict[str, npt.NDArray[np.int64]] = {}

    def ours() -> None:
        picked[OURS] = k_centre(points_ND[start:], points_ND[:start], k)[0]

    def stream() -> None:
        picked[STREAM] = _one_product_per_pick(points_ND[start:], points_ND[:start], k)

    def official() -> None:
        assert reference is not None
        picked[REFERENCE] = reference.coreset(points_ND, np.arange(start), k) - start

    def check() -> list[Check]:
        return [_same_picks(points_ND[start:], picked, name) for name in picked if name != OURS]

    tasks: dict[str, Task] = {OURS: ours, STREAM: stream}
    if reference:
        tasks[REFERENCE] = official
    says = f"{k} of {sizes.coreset} x {sizes.width}, {start} of them labelled, from embeddings to picks"
    return Work("coreset", says, k, "pick", tasks, check)


def coreset_at(count: int) -> Callable[[Sizes, ReferenceMethods | None], Work]:
    """Large pools, beside what reading the embeddings once per pick would cost at least."""

    def make(sizes: Sizes, _reference: ReferenceMethods | None) -> Work:
        points_ND = embeddings(count, sizes.width)
        start_LD, points = embeddings(sizes.labelled, sizes.width, seed=1), torch.from_numpy(points_ND)
        picks: list[npt.NDArray[np.int64]] = []

        def ours() -> None:
            picks.append(k_centre(points_ND, start_LD, sizes.picks)[0])

        def check() -> list[Check]:
            same = all(np.array_equal(found_M, picks[0]) for found_M in picks)
            fine = bool(same and len(np.unique(picks[0])) == sizes.picks)
            return [Check(OURS, OURS, fine, f"{len(picks)} runs picked the same {sizes.picks} distinct rows")]

        says = f"{sizes.picks} of {count} x {sizes.width} after {sizes.labelled} labelled ones"
        return Work(f"coreset of {count:,}", says, sizes.picks, "pick", {OURS: ours, PASS: points.amax}, check,
                    floor=(PASS, sizes.picks))  # fmt: skip

    return make


def _one_product_per_pick(points_ND: Floats, labelled_LD: Floats, k: int) -> npt.NDArray[np.int64]:
    """The plain way: every distance of every pick, with norms kept."""
    centre_D = points_ND.mean(axis=0)
    points_ND = points_ND - centre_D
    square_N = np.einsum("nd,nd->n", points_ND, points_ND)
    nearest_N = np.full(len(points_ND), np.inf, dtype=np.float32)
    picks: list[int] = []

    def add(new_D: Floats) -> None:
        np.minimum(nearest_N, square_N - 2 * (points_ND @ new_D) + new_D @ new_D, out=nearest_N)
        nearest_N[picks] = -np.inf

    for new_D in labelled_LD - centre_D:
        add(new_D)
    while len(picks) < k:
        picks.append(int(nearest_N.argmax()))
        add(points_ND[picks[-1]])
    return np.array(picks)


def _same_picks(points_ND: Floats, picked: dict[str, npt.NDArray[np.int64]], to: str) -> Check:
    mine_M, theirs_M = picked[OURS], picked[to]
    same = int((mine_M == theirs_M).sum())
    said = f"{same} of {len(mine_M)} picks are the same, in the same place"
    if same == len(mine_M):
        return Check(OURS, to, True, said)
    shared = len(np.intersect1d(mine_M, theirs_M))
    return Check(OURS, to, shared >= 0.9 * len(mine_M), f"{said}, {shared} at all; its float32 cannot order near ties")


# --- Heatmaps


def multipeak(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """Both forms; the checkout's is the one of 2022."""
    maps = maps_of(sizes)
    found: dict[str, Any] = {}

    def of_form(name: str, form: Any) -> Task:
        def task() -> None:
            found[name] = multipeak_entropy(maps, temperature=1.0, **MULTIPEAK_FORMS[form]).numpy()

        return task

    def official() -> None:
        assert reference is not None
        found[REFERENCE] = reference.multipeak(maps)

    def check() -> list[Check]:
        if REFERENCE not in found:
            return []
        off = float(np.abs(found[REFERENCE] - found[OURS]).max())
        return [
            Check(OURS, REFERENCE, off < 1e-4, f"scores differ by {off:.1e} nats at most, of {found[OURS].max():.3g}")
        ]

    tasks = {OURS: of_form(OURS, "official-2022"), "ours, whole map": of_form("ours, whole map", "whole-map"),
             "ours, form of 2021": of_form("ours, form of 2021", "official-2021")}  # fmt: skip
    says = f"{sizes.joints} maps of {sizes.cells} x {sizes.cells} per image to one score; as in its last release"
    return Work("multi-peak", says, sizes.images, "image", tasks | ({REFERENCE: official} if reference else {}), check)


def heatmaps(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """Targets of a batch."""
    image = 4 * sizes.cells
    rng = np.random.default_rng(0)
    joints_BJ3 = np.ones((sizes.images, sizes.joints, 3))
    joints_BJ3[..., :2] = rng.uniform(0, image - 1, size=(sizes.images, sizes.joints, 2))
    # Its scale maps corner to corner (defect: half a cell off at the edge); ours gets the same cells. It has rows first.
    cells_BJ2 = torch.from_numpy(joints_BJ3[..., 1::-1] * ((sizes.cells - 1) / (image - 1))).float()
    drawn: dict[str, Floats] = {}

    def ours() -> None:
        drawn[OURS] = draw(cells_BJ2, sizes.cells, sigma=1.75, peak=1.0).numpy()

    def official() -> None:
        assert reference is not None
        drawn[REFERENCE] = np.stack([reference.heatmaps(joints_J3, sizes.cells, image) for joints_J3 in joints_BJ3])

    def check() -> list[Check]:
        if REFERENCE not in drawn:
            return []
        gap, window = np.abs(drawn[OURS] - drawn[REFERENCE]), drawn[REFERENCE] > 0
        inside, outside = float(gap[window].max()), float(gap[~window].max())
        # 5 cells from the nearest whole cell, so 4.5 from the centre along one axis and a whole one on: 5.0 or more.
        fine = bool(inside < 1e-5 and outside <= np.exp(-(5.0**2) / (2 * 1.75**2)))
        return [Check(OURS, REFERENCE, fine, f"inside its windows they differ by {inside:.1e} of the peak; it cuts bells "
                      f"off outside 11 x 11 cells, where ours reach {outside:.1e}")]  # fmt: skip

    tasks: dict[str, Task] = {OURS: ours}
    if reference:
        tasks[REFERENCE] = official
    says = f"{sizes.joints} targets of {sizes.cells} x {sizes.cells} per image, the bells' positions given"
    return Work("heatmaps", says, sizes.images, "image", tasks, check)


# --- PCK


THRESHOLDS = np.linspace(0, 1, num=20)


def pck_table(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """From positions to PCK by joint and threshold, and the mean of the joints."""
    rng, people = np.random.default_rng(0), read_people(count=sizes.judged, domain="easy")
    names, truth_NJ2 = list(people.skeleton.joints), people.joints_NJ2
    visible_NJ = rng.random(truth_NJ2.shape[:2]) < 0.8
    visible_NJ[0] = True  # its table divides by the visible ones of each joint
    data = replace(people, labelled_NJ=np.ones_like(visible_NJ), visible_NJ=visible_NJ)
    predicted_NJ2 = (truth_NJ2 + rng.normal(scale=25, size=truth_NJ2.shape)).astype(np.float32)
    profile = profile_for("official-2021", data.skeleton)
    found: dict[str, Any] = {}

    def ours() -> None:
        distance_NJ = np.linalg.norm(predicted_NJ2 - truth_NJ2, axis=2)
        peak_NJ = np.ones_like(distance_NJ)
        table = []
        for threshold in THRESHOLDS:
            judged = judge(data, distance_NJ, peak_NJ, profile, float(threshold))
            right_NJ = judged.right_NJ & judged.counts_NJ
            table.append(right_NJ.sum(axis=0) / judged.counts_NJ.sum(axis=0))
        found[OURS] = np.array(table)

    def frames() -> tuple[Any, Any]:
        import pandas  # type: ignore[import-untyped,unused-ignore]

        length_N = normaliser(data, profile)
        rows = [(i, j) for i in range(sizes.judged) for j in range(len(names))]

        def frame(values: Any) -> Any:
            return pandas.DataFrame([
                {"name": str(i), "dataset": "lsp", "normalizer": length_N[i : i + 1], "joint": names[j], "uv": values(i, j)}
                for i, j in rows
            ])  # fmt: skip

        def marked(place_2: Floats, flag: float) -> Floats:
            return np.array([[*place_2, flag]], dtype=np.float32)

        return (frame(lambda i, j: marked(predicted_NJ2[i, j], 1)),
                frame(lambda i, j: marked(truth_NJ2[i, j], float(visible_NJ[i, j]))))  # fmt: skip

    tasks: dict[str, Task] = {OURS: ours}
    if reference:
        predicted, truth = frames()

        def official() -> None:
            found[REFERENCE] = reference.pck_table(predicted, truth, names)

        tasks[REFERENCE] = official

    def check() -> list[Check]:
        if REFERENCE not in found:
            return []
        off = float(np.abs(found[REFERENCE][names].to_numpy() - found[OURS]).max())
        off = max(off, float(np.abs(found[REFERENCE]["average"].to_numpy() - found[OURS].mean(axis=1)).max()))
        # A distance within float32 of a threshold may fall on either side: one joint of one person.
        return [
            Check(OURS, REFERENCE, bool(off <= 2 / visible_NJ.sum(axis=0).min()), f"shares differ by {off:.1e} at most")
        ]

    says = f"{sizes.judged} people x {len(names)} joints at {len(THRESHOLDS)} thresholds; its data frames are there already"
    return Work("PCK table", says, sizes.judged, "person", tasks, check)


def works(sizes: Sizes) -> dict[str, Callable[[Sizes, ReferenceMethods | None], Work]]:
    """Every work, by the name that ``--works`` takes."""
    large: Sequence[int] = sizes.large
    return {
        "coreset": coreset,
        "multipeak": multipeak,
        "heatmaps": heatmaps,
        "pck": pck_table,
        "affinities": affinities,
        "vl4pose-1": vl4pose(1),
        "vl4pose-5": vl4pose(5),
        "data": data_pipeline,
        **{f"coreset-{count}": coreset_at(count) for count in large},
        "gradients": gradients,
    }
