"""Benchmark runs that never were: rows, scores and galleries whose numbers belong together.

Shapes: N people of the pool, M selected, G people in the gallery, J joints, S crop side.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.skeleton import LSP
from alpose.trainer.cycles.results import Gallery, Results, Row, Scores, stage_folder
from alpose.trainer.measures import metrics
from alpose.trainer.pages.run_folder import RunInfo, run_info

NOISE = {"random": None, "coreset": 3.0, "entropy": 0.9, "multipeak": 1.1, "ll": 1.2, "ll-gap": 1.5, "ll++": 0.8,
         "ll++conv": 0.7, "oracle-loss": 0.0, "oracle-pck": 0.0}  # fmt: skip
"""How far each fabricated score lies from the true loss; None has nothing to do with it."""


def write_run(
    run: Path,
    methods: Sequence[str] = tuple(NOISE),
    seeds: int = 1,
    stages: int = 1,
    N: int = 90,
    budget: int = 15,
    select_only: bool = False,
    **config: Any,
) -> Results:
    generator = np.random.default_rng(7)
    rows = []
    crops_GSS3 = generator.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    for seed in range(seeds):
        for stage in range(1, stages + 1):
            loss_N = generator.gamma(2.0, 0.5, N).astype(np.float32)
            easy_N = 1.3 - 0.45 * loss_N + 0.12 * stage + generator.normal(0, 0.12, N)
            pck_N = (np.round(np.clip(easy_N, 0, 1) * 14) / 14).astype(np.float32)
            pck_N[:2] = np.nan
            ceiling = float(np.nanmean(pck_N[np.argsort(np.nan_to_num(pck_N, nan=9))[:budget]]))
            ids = tuple(f"lspet/im{n:05d}" for n in range(N))
            for method in methods:
                noise = NOISE.get(method, 1.0)
                blur_N = generator.normal(0, 1, N)
                score_N = blur_N if noise is None else np.log(loss_N) + noise * blur_N
                if method == "oracle-pck":
                    score_N = -np.nan_to_num(pck_N, nan=9).astype(np.float64)
                scores = Scores(ids, score_N.astype(np.float32), loss_N, pck_N, np.argsort(-score_N)[:budget])
                folder = stage_folder(run, seed, method, stage)
                scores.save(folder / "scores.npz")
                if (seed, stage) == (0, 1):
                    fabricate_gallery(scores, crops_GSS3, generator).save(folder / "gallery.npz")
                rows.append(fabricate_row(method, seed, stage, scores, budget, ceiling, select_only))
    recipe = {"crop": {"size_px": 128}, "net": {"stacks": 2, "channels": 64}}
    epochs = {"pose": {"epochs": 80}, "retrain": {"epochs": 25}}
    plan = {"methods": list(methods), "seeds": seeds, "stages": stages, "budget": budget}
    names = {"dataset": "lsp", "preset": "laptop", "profile": "standard", "start": "warm"}
    settings = {**names, **plan, "select_only": select_only, "recipe": recipe | epochs, **config}
    results = Results(settings, {"python": "3.11", "torch": "2.x"}, tuple(rows))
    results.save(run)
    return results


def fabricate_row(
    method: str, seed: int, stage: int, scores: Scores, budget: int, ceiling: float, select_only: bool
) -> Row:
    pck_N, chosen_M = scores.image_pck_N, scores.selected_M
    pool_pck, selected_pck = float(np.nanmean(pck_N)), float(np.nanmean(pck_N[chosen_M]))
    known_N = np.isfinite(pck_N)
    score_P, failed_P = scores.score_N[known_N], pck_N[known_N] < 0.5
    spearman, pearson = metrics.correlation(scores.score_N, scores.true_loss_N)
    return Row(
        method=method,
        seed=seed,
        stage=stage,
        labelled=1000 + (stage - 1) * budget,
        pool=len(pck_N),
        selected=budget,
        base_test_pck=0.7 + 0.004 * seed,
        test_pck=None if select_only else 0.71 + 0.02 * stage + 0.003 * seed + 0.001 * len(method),
        pool_pck=pool_pck,
        selected_pck=selected_pck,
        selected_true_loss=float(scores.true_loss_N[chosen_M].mean()),
        auroc=metrics.auroc(score_P, failed_P),
        aurc=metrics.aurc(score_P, failed_P),
        spearman=spearman,
        pearson=pearson,
        precision_at_budget=float((pck_N[chosen_M] < 0.5).mean()),
        gap_closed=(pool_pck - selected_pck) / (pool_pck - ceiling),
        failures=int(failed_P.sum()),
        unscored=int((~known_N).sum()),
        train_seconds=None if select_only else 61.5,
        score_seconds=2.25,
    )


def fabricate_gallery(scores: Scores, crops_GSS3: np.ndarray, generator: np.random.Generator) -> Gallery:
    """As many of the selected as there are crops; the first person lacks a joint."""
    G, S, J = len(crops_GSS3), crops_GSS3.shape[1], len(LSP)
    first_G = scores.selected_M[:G]
    true_GJ2 = generator.uniform(0, S, (G, J, 2)).astype(np.float32)
    predicted_GJ2 = (true_GJ2 + generator.normal(0, S / 16, true_GJ2.shape)).astype(np.float32)
    labelled_GJ = np.ones((G, J), dtype=np.bool_)
    labelled_GJ[0, 3] = False
    return Gallery(tuple(scores.ids[n] for n in first_G), crops_GSS3, true_GJ2, labelled_GJ, predicted_GJ2,
                   scores.score_N[first_G], scores.true_loss_N[first_G], scores.image_pck_N[first_G], LSP)  # fmt: skip


def row(method: str, seed: int, stage: int = 1, **values: Any) -> Row:
    """Numbers that matter; the rest are all the same."""
    plain: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    counts = {"labelled": 20 * stage, "pool": 60, "selected": 20, "failures": 1, "unscored": 0, "score_seconds": 1.0}
    return Row(**{**plain, **counts, "method": method, "seed": seed, "stage": stage, "neighbours": {}, **values})


def facts(rows: Sequence[Row], **config: Any) -> RunInfo:
    """Of a run with these rows."""
    return run_info(Results({"dataset": "lsp", **config}, {}, tuple(rows)))


def scores(N: int, selected_M: Sequence[int], seed: int = 0) -> Scores:
    """A pool whose scores tie here and there."""
    generator = np.random.default_rng(seed)
    loss_N, pck_N = generator.gamma(2, 1, N).astype(np.float32), generator.uniform(0, 1, N).astype(np.float32)
    return Scores(tuple(f"p{n}" for n in range(N)), np.round(loss_N).astype(np.float32), loss_N, pck_N,
                  np.array(selected_M, dtype=np.int64))  # fmt: skip


def cells(page: str, label: str) -> dict[str, list[tuple[str, str, bool]]]:
    """Cells of a table by the title of their row, as (text of the large line, small line, is bold)."""
    table = page.split(f'aria-label="{label}"')[1].split("</table>")[0]
    found = {}
    for line in re.findall(r"<tr.*?</tr>", table, re.S)[1:]:
        title, *texts = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S)
        found[plain_text(re.sub(r"<small>.*?</small>", "", title))] = [
            (plain_text(re.sub(r"<small>.*?</small>", "", text)), "".join(re.findall(r"<small>(.*?)</small>", text)),
             "<strong>" in text) for text in texts]  # fmt: skip
    return found


def plain_text(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()
