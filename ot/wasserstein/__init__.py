"""Wasserstein distances between samples: exact, on the line and the circle, sliced, and between Gaussians.

Values are W_p^p, no root is taken. What solves an optimisation problem returns a record, to be differentiated at
`.value`; closed forms return the value.
"""

from ot.wasserstein.exact import Exact, exact
from ot.wasserstein.gaussian import gaussian
from ot.wasserstein.line import circle, one_dimensional
from ot.wasserstein.linear_program import LinearProgram, linear_program
from ot.wasserstein.sliced import sliced

__all__ = ["Exact", "LinearProgram", "circle", "exact", "gaussian", "linear_program", "one_dimensional", "sliced"]
