"""Samplers: pure functions that choose k rows from arrays. No model, file or dataset enters.

Shapes: N unlabelled people, L labelled people, D embedding, M = k selected rows, in the order they were picked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataError

from .coreset import greedy_k_centre

Method = Literal[
    "random", "coreset", "entropy", "multipeak", "multipeak-2021", "multipeak-2022", "epck", "epck-slim", "ll", "ll-gap",
    "ll++", "ll++conv", "egl++", "egl++-lle", "aleatoric", "aleatoric-official", "vl4pose", "vl4pose-official", "ensemble", "ensemble-nets",
    "oracle-loss", "oracle-pck",
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

CHECKED = 16_384
"""Rows that are looked through for NaN at once."""
LARGEST = 1e15
"""Squares of larger numbers, summed, come near the end of float32."""


FEWEST_LABELLED: Mapping[Method, int] = {"coreset": 1}
"""People who must be labelled before a method can select; for one that is not named, none."""


def check_known(methods: Sequence[str]) -> None:
    """Refuse names that are no methods, with those that may have been meant."""
    if not methods:
        raise ConfigError(f"--methods names none; known: {', '.join(METHODS)}")
    unknown = [_about(name) for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"--methods: {'; '.join(unknown)}. Known: {', '.join(METHODS)}")


def _about(name: str) -> str:
    if name == "mc-dropout":
        return "there is no mc-dropout: it asks a net again with other units dropped, and no net here has dropout"
    near = [known for known in METHODS if name.lower() in known] or get_close_matches(name.lower(), METHODS, n=2)
    return f"{name!r} is no method" + (f" (did you mean {' or '.join(near[:2])}?)" if near and name else "")


def check_labelled(methods: Sequence[Method], labelled: int) -> None:
    """Refuse methods that need more labelled people than there are at the start."""
    for method in methods:
        if labelled < FEWEST_LABELLED.get(method, 0):
            raise ConfigError(
                f"{method} needs at least {FEWEST_LABELLED[method]} labelled people, there are {labelled} at the start: "
                "raise --initial, or leave it out of --methods"
            )


def at_random(count: int, k: int, rng: np.random.Generator) -> Rows:
    """k of ``count`` rows, uniform without replacement."""
    _check_budget(k, count)
    return rng.permutation(count)[:k].astype(np.int64)


def top(score_N: Floats, k: int) -> Rows:
    """The k highest scores, highest first; equal scores in the order of their rows.

    -inf marks rows that may not be chosen; NaN is an error.
    """
    if np.isnan(score_N).any():
        rows = np.flatnonzero(np.isnan(score_N))
        raise DataError(f"{len(rows)} of {len(score_N)} scores are NaN (first at row {rows[0]}); nothing was selected")
    _check_budget(k, int((score_N > -np.inf).sum()))
    return np.argsort(-score_N, kind="stable")[:k].astype(np.int64)


def refuse_constant(score_N: Floats, k: int, method: str) -> None:
    """Refuse scores that prefer nobody: the order of the rows would choose, and a pool is often sorted.

    Scores of -inf are not looked at; where everybody who may be chosen is chosen, nothing has to be preferred.
    """
    open_M = score_N[score_N > -np.inf]
    if k < len(open_M) and (open_M == open_M[0]).all():
        raise DataError(
            f"{method}: all {len(open_M)} scores are {open_M[0]:g}, so that it cannot choose {k} of them; nothing was "
            "selected: the model or its head has collapsed (trained too short, or diverged), or the maps are empty. What "
            f"was done before is kept; leave {method} out of --methods to go on without it"
        )


def k_centre(embeddings_ND: Floats | Tensor, labelled_LD: Floats | Tensor, k: int) -> tuple[Rows, Floats]:
    """Greedy k-centre (coreset, Sener and Savarese 2018): again and again the point farthest from all centres.

    The labelled set is the first set of centres. Euclidean, and a 2-approximation of the best cover. Exact: the picks
    are those of a float64 loop over the whole distance matrix, of equally far rows the lowest, on any number of threads
    and on any device. That matrix never exists, and no second copy of the embeddings either; a distance is computed
    where bounds leave its order open, and only there (:mod:`alpose.trainer.coreset`).

    Args:
        embeddings_ND: the pool. Tensors are worked on where they are, arrays on the CPU; float32 is what is compared.
        labelled_LD: of those labelled already; at least one.
        k: how many.

    Returns:
        The rows picked, and every row's distance to the labelled set (N,), before any pick, rounded as float32 products
        round it: to a thousandth of the pool's spread.
    """
    _check_budget(k, len(embeddings_ND))
    points_ND, start_LD = _as_float32(embeddings_ND), _as_float32(labelled_LD)
    if not len(start_LD):
        raise DataError("coreset needs at least one labelled embedding to start from")
    if points_ND.ndim != 2 or start_LD.shape != (len(start_LD), points_ND.shape[1]):
        raise DataError(
            f"coreset compares vectors of one length: embeddings are {tuple(points_ND.shape)}, labelled ones "
            f"{tuple(start_LD.shape)}"
        )
    _refuse_not_finite(points_ND, "the pool")
    _refuse_not_finite(start_LD, "the labelled set")
    return greedy_k_centre(points_ND, start_LD.to(points_ND.device), k)


def _as_float32(embeddings: Floats | Tensor) -> Tensor:
    """Without a copy where it is float32 already."""
    return torch.as_tensor(embeddings).detach().to(torch.float32)


def _refuse_not_finite(points_ND: Tensor, what: str) -> None:
    """NaN is farther than everything or nearer than everything, as the order of comparison has it: never computed on.

    A square that overflows float32 is refused with it.
    """
    bad: list[int] = []
    for number, block_MD in enumerate(points_ND.split(CHECKED)):
        if not block_MD.abs().amax() < LARGEST:  # NaN is not less than anything
            rows_M = (~(block_MD.abs() < LARGEST).all(dim=1)).nonzero()[:, 0]
            bad += (number * CHECKED + rows_M).tolist()
    if bad:
        named = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        raise DataError(
            f"coreset: {len(bad)} of {len(points_ND)} embeddings of {what} are not finite, or over {LARGEST:g} (rows "
            f"{named}); nothing was selected: the model's weights or its input are damaged"
        )


def _check_budget(k: int, available: int) -> None:
    if k < 1 or k > available:
        raise ConfigError(f"cannot select {k} from a pool of {available}: lower --budget or --stages")
