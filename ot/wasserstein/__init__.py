"""Wasserstein distances between samples: exact, debiased, on the line and the circle, sliced, Gaussian.

Values are W_p^p, no root is taken. What solves an optimisation problem returns a record, to be differentiated at
`.value`; closed forms return the value.
"""

from ot.wasserstein.divergence import Divergence, sinkhorn_divergence
from ot.wasserstein.exact import Exact, exact
from ot.wasserstein.gaussian import gaussian
from ot.wasserstein.line import circle, one_dimensional
from ot.wasserstein.linear_program import LinearProgram, linear_program
from ot.wasserstein.sliced import sliced

__all__ = [
    "Divergence",
    "Exact",
    "LinearProgram",
    "circle",
    "exact",
    "gaussian",
    "linear_program",
    "one_dimensional",
    "sinkhorn_divergence",
    "sliced",
]
