"""The mathematics of Learning Loss: how often a pair of images says nothing, and how hard each objective pulls then.

The LL++ paper takes the true losses of a converged model as Gamma(k, θ) and asks two things of a random pair: how
likely are two losses within δ of each other (its Eq. 5, Table 1), and what gradient does a pair δ apart get (its Eq. 6,
Table 2)? The closed forms, which the paper leaves to a supplement, are derived here for integer k; the same
quantities for any k, which a fit to real losses has, are integrated numerically to about twelve digits.

Losses are in the unit of θ. Everything depends on z = δ / θ alone.

Shapes: N losses, P pairs, Q nodes of a quadrature, T steps, D features of a head's last layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from alpose.runtime.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]

PAPER_SHAPE = 4
PAPER_SCALE = 0.066
"""As printed under Fig. 3 and both tables. The tables themselves were made with about :data:`TABLE_SCALE`."""
TABLE_SCALE = 0.0666
"""Reproduces every digit of both tables; 0.066 is this number cut off."""

TABLE_1 = {0.02: 0.094, 0.04: 0.185, 0.06: 0.274, 0.08: 0.358, 0.1: 0.437, 0.125: 0.527, 0.15: 0.607}
"""As printed: δ, and the probability of two losses within it."""
TABLE_2 = {0.0: 0.5, 0.1: 0.39, 0.2: 0.3, 0.3: 0.25, 0.4: 0.21, 0.5: 0.18}
"""As printed: δ, and φ in the expected gradient (q_i - φ)(θ_i - θ_j)."""

NODES = 2001
"""Of the quadrature; its error falls exponentially with their number, see :func:`_over_log`."""
TAIL = 40.0
"""e^-40 is nothing beside 1 in float64."""


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma(k, θ) with density x^(k-1) e^(-x/θ) / (Γ(k) θ^k)."""

    shape: float
    """k; above 0."""
    scale: float
    """θ, in the unit of the losses; above 0."""

    def __post_init__(self) -> None:
        for name in ("shape", "scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"a gamma distribution has a {name} above 0, got {value}")

    @property
    def mean(self) -> float:
        """kθ."""
        return self.shape * self.scale

    def density(self, loss_N: Floats) -> Floats:
        """At losses above 0."""
        x_N = loss_N / self.scale
        log_N = (self.shape - 1) * np.log(x_N) - x_N - special.gammaln(self.shape) - math.log(self.scale)
        return np.asarray(np.exp(log_N))

    def below(self, loss_N: Floats) -> Floats:
        """Probability of a loss up to this one."""
        return np.asarray(special.gammainc(self.shape, loss_N / self.scale))

    def quantile(self, share_N: Floats) -> Floats:
        """The loss that this share of all losses lies below."""
        return np.asarray(special.gammaincinv(self.shape, share_N) * self.scale)


def fit_gamma(loss_N: Floats) -> Gamma:
    """Maximum-likelihood gamma of positive losses, as for the LL++ paper's Fig. 3.

    θ = mean / k, and log k - ψ(k) = log(mean) - mean(log); 1/(2k) < log k - ψ(k) < 1/k brackets the only root.
    """
    if len(loss_N) < 2:
        raise DataError(f"a gamma fit needs at least 2 losses, got {len(loss_N)}")
    if not (np.isfinite(loss_N).all() and (loss_N > 0).all()):
        raise DataError("a gamma fit needs finite losses above 0: leave the others out, and count them")
    mean = float(loss_N.mean())
    spread = math.log(mean) - float(np.log(loss_N).mean())
    if spread <= 1e-12:
        raise DataError(f"all {len(loss_N)} losses are {mean:.4g}: there is no distribution to fit")
    shape = optimize.brentq(lambda k: math.log(k) - special.psi(k) - spread, 0.5 / spread, 1 / spread)
    return Gamma(float(shape), mean / float(shape))


def ks_distance(loss_N: Floats, law: Gamma) -> float:
    """Kolmogorov and Smirnov's distance: the largest gap between the losses' distribution and the law's."""
    count = len(loss_N)
    below_N = law.below(np.sort(loss_N))
    steps = np.arange(count + 1) / count
    return float(max((steps[1:] - below_N).max(), (below_N - steps[:-1]).max()))


def ks_of_true_gammas(count: int, law: Gamma, *, level: float = 0.95, draws: int = 200, seed: int = 0) -> float:
    """The KS distance that samples of a *true* gamma stay below in ``level`` of all draws.

    Each draw is fitted before it is measured, as the losses are. The textbook's critical values are for a law that
    was known beforehand, and would call bad fits good (Lilliefors 1967).
    """
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(draws):
        loss_N = law.scale * np.maximum(rng.standard_gamma(law.shape, count), np.finfo(np.float64).tiny)
        distances.append(ks_distance(loss_N, fit_gamma(loss_N)))
    return float(np.quantile(distances, level))


def near_probability_closed(near: float, shape: int, scale: float) -> float:
    """P(|X - Y| ≤ δ) for X, Y iid Gamma(k, θ) with integer k (LL++ paper, Eq. 5; its Table 1).

    With z = δ / θ and n = k - 1,

    P = 1 - 2 e^(-z) / n!² · Σ_j C(n, j) (n + j)! / 2^(k + j) · (n - j)! Σ_{r ≤ n - j} z^r / r!,

    which for k = 4 is 1 - e^(-z) (1 + 11z/16 + 3z²/16 + z³/48). Derived from f(d) = ∫ g(y + d) g(y) dy: expand
    (y + d)^n, integrate term by term, then once more from δ to infinity. A sum of positive terms: it loses no digits.
    """
    _check(near, shape)
    n, z = shape - 1, near / scale
    total = sum(
        math.comb(n, j) * math.factorial(n + j) / 2 ** (shape + j) * math.factorial(n - j)
        * sum(z**r / math.factorial(r) for r in range(n - j + 1))
        for j in range(shape)
    )  # fmt: skip
    return 1 - 2 * math.exp(-z) * total / math.factorial(n) ** 2


def near_probability(near: float, law: Gamma) -> float:
    """P(|X - Y| ≤ δ) for any k: LL++ paper, Eq. 5, as 2 ∫ g(x) (G(x + δ) - G(x)) dx, integrated numerically."""
    _check(near, law.shape)
    z, k = near / law.scale, law.shape
    log_x_Q, step = _over_log(math.log(k), 1 / math.sqrt(k), k)
    x_Q = np.exp(log_x_Q)
    weight_Q = np.exp(k * log_x_Q - x_Q - special.gammaln(k)) * step
    gain_Q = special.gammainc(k, x_Q + z) - special.gammainc(k, x_Q)
    return min(1.0, 2 * float(weight_Q @ gain_Q))


def expected_share_closed(gap: float, shape: int, scale: float) -> float:
    """φ(δ) = E[l_i / (l_i + l_j) | l_j - l_i = δ] for iid Gamma(k, θ) with integer k (LL++ paper, Eq. 6; Table 2).

    With z = δ / θ and u = (2 l_i + δ) / θ,

    φ = ∫_z^∞ ((u - z)/2)^k ((u + z)/2)^(k-1) e^(-u) du/u  /  ∫_z^∞ ((u² - z²)/4)^(k-1) e^(-u) du.

    Both are polynomials in u against e^(-u): the term in u^(m-1) gives Γ(m, z), and that in 1/u gives E₁(z). The terms
    alternate in sign: at z in the hundreds digits are lost, and :func:`expected_share` is the one to use.
    """
    _check(gap, shape)
    z = gap / scale
    if z == 0:
        return 0.5
    lower = np.polynomial.Polynomial([-z / 2, 0.5])
    upper = np.polynomial.Polynomial([z / 2, 0.5])
    numerator = np.asarray((lower**shape * upper ** (shape - 1)).coef, dtype=np.float64)
    denominator = np.asarray((lower ** (shape - 1) * upper ** (shape - 1)).coef, dtype=np.float64)
    order = np.arange(1, 2 * shape)
    above = np.asarray(special.gammaincc(order, z) * special.gamma(order))  # Γ(m, z)
    return float((numerator[0] * special.exp1(z) + numerator[1:] @ above) / (denominator @ above))


def expected_share(gap: float, law: Gamma) -> float:
    """φ(δ) for any k; the expected gradient of LearningLoss++ is (q_i - φ(δ)) (θ_i - θ_j) (LL++ paper, Eq. 6).

    Integrated numerically over v = 2 l_i / θ, whose density given δ is proportional to v^(k-1) (v + 2z)^(k-1) e^(-v).
    """
    _check(gap, law.shape)
    z, k = gap / law.scale, law.shape
    b = 2 * z - 2 * k + 1
    mode = max((-b + math.sqrt(b * b + 8 * z * k)) / 2, k)  # of the density over log v
    bend = mode - (k - 1) * 2 * z * mode / (mode + 2 * z) ** 2
    log_v_Q, _ = _over_log(math.log(mode), 1 / math.sqrt(max(bend, mode / 4)), k)
    v_Q = np.exp(log_v_Q)
    log_weight_Q = k * log_v_Q + (k - 1) * np.log(v_Q + 2 * z) - v_Q
    weight_Q = np.exp(log_weight_Q - log_weight_Q.max())
    return float(weight_Q @ (v_Q / (2 * v_Q + 2 * z)) / weight_Q.sum())


def margin_pull(
    true_i_P: Floats, true_j_P: Floats, predicted_i_P: Floats, predicted_j_P: Floats, margin: float
) -> Floats:
    """What Learning Loss multiplies θ_i - θ_j by in its gradient (LL++ paper, Eq. 2a): 0, 1 or -1.

    0 where the predictions are in the right order with the margin between them, and at a tie of the true losses.
    """
    sign_P = np.sign(true_i_P - true_j_P)
    return np.where(margin - sign_P * (predicted_i_P - predicted_j_P) > 0, -sign_P, 0.0)


def kl_pull(true_i_P: Floats, true_j_P: Floats, predicted_i_P: Floats, predicted_j_P: Floats) -> Floats:
    """What LearningLoss++ multiplies θ_i - θ_j by in its gradient (LL++ paper, Eq. 4a): q_i - p_i, in (-1, 1)."""
    share_P = true_i_P / (true_i_P + true_j_P)
    return np.asarray(special.expit(predicted_i_P - predicted_j_P) - share_P)


def alignment(
    feature_i_D: Floats, feature_j_D: Floats, weight_D: Floats, true_i: float, true_j: float, *,
    margin: float | None = 1.0, rate: float = 1.0, steps: int = 12,
) -> Floats:  # fmt: skip
    """Weights of a head's last layer (T + 1, D) under gradient descent on one pair (LL++ paper, Fig. 2).

    Learning Loss with a margin, LearningLoss++ with ``margin=None``. Either moves along θ_i - θ_j alone; the one stops
    dead at the margin, the other settles where the predicted losses differ by log(l_i / l_j).
    """
    across_D, path = feature_i_D - feature_j_D, [np.asarray(weight_D, dtype=np.float64)]
    true_i_1, true_j_1 = np.array([true_i]), np.array([true_j])
    for _ in range(steps):
        predicted = np.atleast_1d(feature_i_D @ path[-1]), np.atleast_1d(feature_j_D @ path[-1])
        pull = (kl_pull(true_i_1, true_j_1, *predicted) if margin is None
                else margin_pull(true_i_1, true_j_1, *predicted, margin))  # fmt: skip
        path.append(path[-1] - rate * pull[0] * across_D)
    return np.stack(path)


def _over_log(peak: float, width: float, shape: float) -> tuple[Floats, float]:
    """Evenly spaced logarithms that cover a density with this peak and width over log x, and their spacing.

    Below the peak such a density falls like x^k, above it like e^(-x). The trapezoidal rule is exponentially accurate
    for analytic functions that vanish at both ends (Trefethen and Weideman 2014).
    """
    low = peak - 12 * width - TAIL / shape
    high = peak + 12 * width + math.log1p(TAIL / math.exp(peak))
    log_Q, step = np.linspace(low, high, NODES, retstep=True)
    return log_Q, float(step)


def _check(gap: float, shape: float) -> None:
    if not (math.isfinite(gap) and gap >= 0):
        raise ConfigError(f"a difference of two losses is at least 0, got {gap}")
    if shape <= 0:
        raise ConfigError(f"a gamma distribution has a shape above 0, got {shape}")
