"""The t-SNE map of a pool: where the people that each method selected lie among all, and among the labelled.

EGL++ paper, Fig. 2. The embeddings are those that ``egl++`` is set to, under the base model of the first seed. The map
is computed once and kept in ``RUN/map.npz``; it is made again when another method has selected.

Shapes: N everybody, M pool, P people on the map, L labelled ones among them, D embedding, E = 2 principal axes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from alpose.runtime.errors import DataError, DataNotFoundError

from ..cycles.results import load_npz, save_npz
from ..theory.theory_run import rest_of
from .figures import Floats
from .run_folder import RunInfo, StageFiles, lookup

log = logging.getLogger("alpose")

MAP = "map.npz"
MOST = 2000
"""People of the pool on the map, or a few more where many methods chose many."""
PER_METHOD = 300
"""People shown of what one method selected: the first ones."""
FEWEST_OTHERS = 500
"""People drawn at random from the pool, however many were selected."""
MOST_LABELLED = 400
PERPLEXITY = 30.0
SEED = 0
FEWEST = 12
"""Fewer points have no neighbourhoods."""
SIDE, EDGE = 1000, 24
"""Longer side of the drawing and its border, in its own units; whole ones keep it small."""
ARM = 8
"""Half the width of a cross, in units of the drawing."""
VERSION = 1
"""Of the constants above and of the computation; a kept map of another version is made again."""


@dataclass(frozen=True, slots=True)
class MethodMap:
    """One method's drawing over the shared one."""

    method: str
    selected: Markup
    """Path data of strokes without length."""
    shown: int
    of: int


@dataclass(frozen=True, slots=True)
class Map:
    """What the page draws."""

    others: Markup
    labelled: Markup
    by_method: tuple[MethodMap, ...]
    embedding: str
    pool: int
    pool_shown: int
    labelled_shown: int
    width: int
    height: int


def map_of(run: Path, info: RunInfo, files: StageFiles) -> Map | str:
    """The map of the first seed at the first stage; or why there is none, in a sentence."""
    chosen = {m: files.scores[m, info.first_seed] for m in info.methods if (m, info.first_seed) in files.scores}
    if not chosen:
        return f"no scores of seed {info.first_seed}, stage {info.first_stage} are there."
    if info.first_stage != 1:
        return f"the first stage here is {info.first_stage}; embeddings are kept of stage 1."
    path = run / f"seed-{info.first_seed}" / "base" / "scored.npz"
    name = str((lookup(info.config, "egl") or {}).get("embedding", "coarsest"))
    try:
        arrays = load_npz(path)
    except (DataError, DataNotFoundError):
        return f"{path.relative_to(run)} is {'damaged' if path.exists() else 'not there'}."
    field = "coarsest_ND" if name == "coarsest" and "coarsest_ND" in arrays else "embedding_ND"
    if field not in arrays or "true_loss_N" not in arrays:
        return f"{path.relative_to(run)} holds no embeddings."
    first = next(iter(chosen.values()))
    chosen = {method: scores for method, scores in chosen.items() if scores.ids == first.ids}
    picks = {method: scores.selected_M[:PER_METHOD] for method, scores in chosen.items()}
    sources = fingerprint(arrays[field], first.true_loss_N, picks)
    kept = read_kept(run / MAP, sources)
    if kept is None:
        found = compute(arrays[field], arrays["true_loss_N"], first.true_loss_N, picks)
        if isinstance(found, str):
            return found
        kept = found
        save_npz(run / MAP, kept | {"made_of": np.array(sources)})
    return drawn(kept, {m: (picks[m], len(scores.selected_M)) for m, scores in chosen.items()},
                 "averaged features of the coarsest scale" if field == "coarsest_ND"
                 else "averaged features before the heatmaps", len(first.ids))  # fmt: skip


def fingerprint(embedding_ND: Floats, pool_loss_M: Floats, picks: dict[str, npt.NDArray[np.int64]]) -> str:
    """Of everything that a map depends on."""
    parts = [np.ascontiguousarray(embedding_ND).tobytes(), np.ascontiguousarray(pool_loss_M).tobytes()]
    parts += [part for method, rows_M in sorted(picks.items()) for part in (method.encode(), rows_M.tobytes())]
    settings = (VERSION, MOST, PER_METHOD, FEWEST_OTHERS, MOST_LABELLED, PERPLEXITY, SEED)
    return hashlib.sha256(b"\0".join([repr(settings).encode(), *parts])).hexdigest()


def read_kept(path: Path, sources: str) -> dict[str, npt.NDArray[Any]] | None:
    """A map that was kept, if it is of these people and settings."""
    try:
        arrays = load_npz(path, needs=("made_of", "xy_P2", "row_P", "other_P"))
    except (DataError, DataNotFoundError):
        return None
    return arrays if str(arrays["made_of"]) == sources else None


def compute(
    embedding_ND: Floats, everyone_N: Floats, pool_loss_M: Floats, picks: dict[str, npt.NDArray[np.int64]]
) -> dict[str, npt.NDArray[Any]] | str:
    """Choose who is on the map and lay them out; or say why not.

    ``row_P`` is the row of the pool, -1 for labelled people; ``other_P`` marks who stands for the pool, drawn from all
    of it, selected people among them.
    """
    rest_N = rest_of(everyone_N, pool_loss_M)
    if rest_N is None:
        return "base/scored.npz is not of the people in this pool."
    pool_ND, labelled_ND = embedding_ND[~rest_N], embedding_ND[rest_N]
    generator = np.random.default_rng(SEED)
    picked_P = np.unique(np.concatenate(list(picks.values())))
    room = max(FEWEST_OTHERS, MOST - len(picked_P))
    other_M = np.zeros(len(pool_ND), dtype=np.bool_)
    other_M[generator.permutation(len(pool_ND))[:room]] = True
    rows_P = np.union1d(picked_P, np.flatnonzero(other_M))
    known_L = np.sort(generator.permutation(len(labelled_ND))[:MOST_LABELLED])
    points_PD = np.concatenate([pool_ND[rows_P], labelled_ND[known_L]]).astype(np.float64)
    if len(points_PD) < FEWEST:
        return f"{len(points_PD)} people are too few for a map."
    if not np.isfinite(points_PD).all() or not np.ptp(points_PD, axis=0).any():
        return "all embeddings are the same, or some are not finite: the base model has collapsed."
    return {
        "xy_P2": layout(points_PD),
        "row_P": np.concatenate([rows_P, np.full(len(known_L), -1)]),
        "other_P": np.concatenate([other_M[rows_P], np.zeros(len(known_L), dtype=np.bool_)]),
    }


def layout(points_PD: Floats) -> npt.NDArray[np.float32]:
    """Places (P, 2) by t-SNE (scikit-learn, Barnes-Hut), from the two leading principal components."""
    from sklearn.manifold import TSNE

    log.info("report: t-SNE map of %d people, kept for the next report", len(points_PD))
    # Features come in any unit; the layout starts from a spread of 1e-4, whatever it is.
    centred_PD = points_PD - points_PD.mean(axis=0)
    centred_PD /= centred_PD.std()
    axes_DE = np.linalg.svd(centred_PD, full_matrices=False)[2][:2].T
    start_P2 = centred_PD @ axes_DE
    start_P2 = start_P2 if start_P2.shape[1] == 2 else np.c_[start_P2, np.zeros(len(start_P2))]
    perplexity = min(PERPLEXITY, (len(points_PD) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=1e-4 * start_P2 / start_P2[:, 0].std(), random_state=SEED, n_jobs=1)
    return np.asarray(tsne.fit_transform(centred_PD), dtype=np.float32)


def drawn(
    kept: dict[str, npt.NDArray[Any]], picks: dict[str, tuple[npt.NDArray[np.int64], int]], embedding: str, pool: int
) -> Map:
    """As path data, in whole units of the drawing."""
    xy_P2 = kept["xy_P2"].astype(np.float64)
    low_2, high_2 = xy_P2.min(axis=0), xy_P2.max(axis=0)
    xy_P2 = EDGE + (xy_P2 - low_2) * (SIDE - 2 * EDGE) / (high_2 - low_2).max()
    row_P = kept["row_P"]
    by_method = tuple(
        MethodMap(method, dots(xy_P2[np.isin(row_P, rows_M)]), len(rows_M), selected)
        for method, (rows_M, selected) in picks.items()
    )
    return Map(
        dots(xy_P2[kept["other_P"]]), crosses(xy_P2[row_P < 0]), by_method, embedding, pool,
        int(kept["other_P"].sum()), int((row_P < 0).sum()), int(xy_P2[:, 0].max()) + EDGE, int(xy_P2[:, 1].max()) + EDGE,
    )  # fmt: skip


def dots(xy_P2: Floats) -> Markup:
    """Strokes without length, whose round ends are the dots; in an order that says nothing."""
    return Markup("".join(f"M{x:.0f} {y:.0f}h0" for x, y in xy_P2))


def crosses(xy_P2: Floats) -> Markup:
    """Small plus signs, to be told from dots in any colour."""
    return Markup("".join(f"M{x - ARM:.0f} {y:.0f}h{2 * ARM}m-{ARM}-{ARM}v{2 * ARM}" for x, y in xy_P2))
