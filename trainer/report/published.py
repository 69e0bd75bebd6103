"""Table 3a of the LearningLoss++ paper: mean and sd of 5 runs, stages 1 to 5, lower is better.

M. Shukla, S. Ahmed: A Mathematical Analysis of Learning Loss for Active Learning in Regression, CVPR
Workshops 2021.
The LSP half of the table heads its columns with the size after the stage (2000 ...), the MPII half with the
size before it (1000 ...); both are stages 1 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "M. Shukla and S. Ahmed, “A Mathematical Analysis of Learning Loss for Active Learning in Regression”, "
    "CVPR Workshops 2021, Table 3a"
)

Cells = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Published:
    """The printed numbers of one dataset."""

    metric: str
    methods: dict[str, Cells]
    """Mean and sd of the selected PCK per stage."""


LSP = Published(
    metric="PCK@0.2",
    methods={
        "random": ((0.430, 0.017), (0.527, 0.012), (0.593, 0.007), (0.624, 0.009), (0.645, 0.007)),
        "coreset": ((0.288, 0.017), (0.438, 0.020), (0.447, 0.017), (0.493, 0.013), (0.556, 0.010)),
        "ll": ((0.305, 0.013), (0.253, 0.021), (0.358, 0.025), (0.520, 0.011), (0.617, 0.017)),
        "ll++": ((0.250, 0.011), (0.186, 0.022), (0.385, 0.011), (0.533, 0.020), (0.627, 0.012)),
        "ll++conv": ((0.209, 0.018), (0.214, 0.028), (0.400, 0.010), (0.545, 0.011), (0.635, 0.012)),
    },
)

MPII = Published(
    metric="PCKh@0.5",
    methods={
        "random": ((0.663, 0.012), (0.739, 0.013), (0.766, 0.003), (0.792, 0.007), (0.797, 0.006)),
        "coreset": ((0.384, 0.014), (0.522, 0.009), (0.608, 0.012), (0.697, 0.009), (0.755, 0.029)),
        "ll": ((0.311, 0.036), (0.465, 0.024), (0.621, 0.017), (0.735, 0.012), (0.777, 0.010)),
        "ll++": ((0.291, 0.022), (0.439, 0.018), (0.610, 0.020), (0.705, 0.023), (0.762, 0.014)),
        "ll++conv": ((0.309, 0.029), (0.439, 0.011), (0.603, 0.016), (0.704, 0.022), (0.777, 0.008)),
    },
)

BY_DATASET = {"lsp": LSP, "lsp-lspet": LSP, "mpii": MPII}
