"""Active learning for linear regression on a table: the case in which expected gradient length has a closed form.

``egl-linear`` is Eq. 6 of the EGL++ paper (with Eq. 3-4 of its supplement), ``model-change`` the older criterion that it
derives and squares: Cai, Zhang and Zhou (ICDM 2013), the paper's Eq. 2. Both ask an ensemble of models that were fitted
to bootstrap samples.

Both grow with |x|, and so depend on the units of the columns: scale these first.

Shapes: N labelled rows, M rows of the pool, D columns (the intercept counts), K members of the ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError

from .selection import refuse_constant, top

Criterion = Literal["egl-linear", "model-change"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

Doubles = npt.NDArray[np.float64]

DRAWS = 20
"""Bootstrap samples that are drawn, per member, before a table is given up whose samples cannot be fitted."""

AT_ONCE = 2**22
"""Numbers of a temporary array: 32 MiB."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A model of all labelled rows, and the models of K bootstrap samples of them, by least squares."""

    whole_D: Doubles
    """f_z."""
    member_KD: Doubles
    noise_K: Doubles
    """Unbiased estimate of each sample's noise variance: residual sum of squares over N - D."""
    root_KDD: Doubles
    """Inverse R of the QR factors of each sample X_k: (X_kᵀX_k)⁻¹ = root rootᵀ."""
    intercept: bool
    redrawn: int
    """Samples that were left and drawn again, because their columns were linearly dependent."""


def fit_ensemble(
    x_ND: npt.ArrayLike, y_N: npt.ArrayLike, members: int, rng: np.random.Generator, *, intercept: bool = True
) -> Ensemble:
    """Fit the whole and the bootstrap samples, each of N rows drawn with replacement.

    There must be two more labelled rows than columns, of which the column of ones for the intercept is one.

    Raises:
        ConfigError: too few rows, or no member.
        DataError: numbers that are not finite, shapes that do not fit, columns that are linearly dependent.
    """
    x_ND, y_N = _table(x_ND, intercept), np.asarray(y_N, dtype=np.float64)
    rows, columns = x_ND.shape
    if y_N.shape != (rows,):
        raise DataError(f"there are {rows} labelled rows, and targets of shape {y_N.shape}")
    if not np.isfinite(y_N).all():
        raise DataError(f"{int((~np.isfinite(y_N)).sum())} of {rows} targets are not finite")
    if members < 1:
        raise ConfigError(f"an ensemble has at least 1 member, got {members}")
    if rows < columns + 2:
        raise ConfigError(f"{columns} columns{' with the intercept' * intercept} want at least {columns + 2} labelled "
                          f"rows, there are {rows}")  # fmt: skip
    whole = _fit(x_ND, y_N)
    if whole is None:
        raise DataError(f"the {columns} columns of the labelled rows are linearly dependent: leave one out")
    fitted: list[tuple[Doubles, Doubles, Doubles]] = []
    drawn = 0
    while len(fitted) < members:
        if drawn == DRAWS * members:
            raise DataError(f"of {drawn} bootstrap samples of {rows} rows only {len(fitted)} have {columns} independent "
                            "columns: label more rows, or leave rare columns out")  # fmt: skip
        sample_N = rng.integers(rows, size=rows)
        drawn += 1
        one = _fit(x_ND[sample_N], y_N[sample_N])
        if one is not None:
            fitted.append(one)
    theta_KD, noise_K, root_KDD = (np.stack(parts) for parts in zip(*fitted, strict=True))
    return Ensemble(whole[0], theta_KD, noise_K, root_KDD, intercept, drawn - members)


def expected_gradient_length(ensemble: Ensemble, x_MD: npt.ArrayLike) -> Doubles:
    """Expected squared gradient of each row's loss (M,), over what the ensemble holds for its target (EGL++ paper, Eq. 6).

    ``|x|²/K Σ_k (s_k²(x) + (µ_k(x) - f_z(x))²)``, where member k predicts ``N(µ_k(x), s_k²(x))`` with
    ``s_k²(x) = σ_k² (1 + xᵀ(X_kᵀX_k)⁻¹x)`` (supplement, Eq. 3). The loss is ``(f_z(x) - y)²/2``.
    """
    x_MD = _table(x_MD, ensemble.intercept, len(ensemble.whole_D))
    score_M = np.empty(len(x_MD))
    for rows in _blocks(len(x_MD), ensemble.root_KDD.shape[0] * x_MD.shape[1]):
        block_BD = x_MD[rows]
        leverage_KB = (np.einsum("bd,kde->kbe", block_BD, ensemble.root_KDD, optimize=True) ** 2).sum(axis=2)
        variance_KB = ensemble.noise_K[:, None] * (1 + leverage_KB)
        score_M[rows] = (variance_KB + _disagreement(ensemble, block_BD) ** 2).mean(axis=0) * (block_BD**2).sum(axis=1)
    return score_M


def expected_model_change(ensemble: Ensemble, x_MD: npt.ArrayLike) -> Doubles:
    """Mean length of the gradient of each row (M,) if a member told its target: ``1/K Σ_k |(f_z(x) - f_k(x)) x|``.

    Cai, Zhang and Zhou 2013 (EGL++ paper, Eq. 2).
    """
    x_MD = _table(x_MD, ensemble.intercept, len(ensemble.whole_D))
    score_M = np.empty(len(x_MD))
    for rows in _blocks(len(x_MD), len(ensemble.member_KD)):
        block_BD = x_MD[rows]
        score_M[rows] = np.abs(_disagreement(ensemble, block_BD)).mean(axis=0) * np.linalg.norm(block_BD, axis=1)
    return score_M


def select(
    criterion: Criterion, x_ND: npt.ArrayLike, y_N: npt.ArrayLike, pool_MD: npt.ArrayLike, k: int,
    rng: np.random.Generator, *, members: int = 10, intercept: bool = True,
) -> tuple[npt.NDArray[np.int64], Doubles]:  # fmt: skip
    """Choose ``k`` rows of a pool to label next: their numbers, best first, and everybody's score (M,).

    An ensemble of so many members is fitted to bootstrap samples of the labelled rows, which ``rng`` decides.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"unknown criterion {criterion!r}; known: {', '.join(CRITERIA)}")
    ensemble = fit_ensemble(x_ND, y_N, members, rng, intercept=intercept)
    score = expected_gradient_length if criterion == "egl-linear" else expected_model_change
    score_M = score(ensemble, pool_MD)
    with np.errstate(over="ignore"):
        single_M = score_M.astype(np.float32)
    if not np.isfinite(single_M).all():
        raise DataError(f"{criterion}: scores reach {score_M.max():g}: scale the columns")
    refuse_constant(single_M, k, criterion)
    return top(single_M, k), score_M


def _disagreement(ensemble: Ensemble, x_BD: Doubles) -> Doubles:
    """µ_k(x) - f_z(x) of every member (K, B)."""
    difference_KB: Doubles = (ensemble.member_KD - ensemble.whole_D) @ x_BD.T
    return difference_KB


def _fit(x_ND: Doubles, y_N: Doubles) -> tuple[Doubles, Doubles, Doubles] | None:
    """Least squares by QR: coefficients, noise variance, inverse R. None where columns depend on each other."""
    q_ND, r_DD = np.linalg.qr(x_ND)
    diagonal_D = np.abs(np.diagonal(r_DD))
    # A column that the others explain has next to nothing left on the diagonal, whatever its unit.
    if (diagonal_D <= 1e-10 * np.linalg.norm(x_ND, axis=0)).any():
        return None
    root_DD = np.linalg.inv(r_DD)
    theta_D = root_DD @ (q_ND.T @ y_N)
    rows, columns = x_ND.shape
    noise = ((y_N - x_ND @ theta_D) ** 2).sum() / (rows - columns)
    return theta_D, noise, root_DD


def _table(x_ND: npt.ArrayLike, intercept: bool, columns: int | None = None) -> Doubles:
    """Rows as float64, with the column of ones."""
    table_ND = np.asarray(x_ND, dtype=np.float64)
    if table_ND.ndim != 2:
        raise DataError(f"a table has rows and columns, got shape {table_ND.shape}")
    if not np.isfinite(table_ND).all():
        row, column = np.argwhere(~np.isfinite(table_ND))[0]
        raise DataError(f"the table has {int((~np.isfinite(table_ND)).sum())} numbers that are not finite, first in row "
                        f"{row}, column {column}")  # fmt: skip
    if intercept:
        table_ND = np.hstack([table_ND, np.ones((len(table_ND), 1))])
    if columns is not None and table_ND.shape[1] != columns:
        raise DataError(f"the ensemble was fitted to {columns - intercept} columns, the pool has "
                        f"{table_ND.shape[1] - intercept}")  # fmt: skip
    return table_ND


def _blocks(rows: int, per_row: int) -> list[slice]:
    step = max(1, AT_ONCE // per_row)
    return [slice(start, start + step) for start in range(0, rows, step)]
