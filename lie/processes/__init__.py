"""Motion on any group that stays on it: differential equations, Brownian motion, diffusions and their time reversal.

A group is a module with the shared vocabulary (or a product of them); elements are its arrays. Tangent vectors are in
the body frame: an increment u takes X to X exp(u). A diffusion is dX = X ∘ (f dt + σ dW), generator L_f + ½ σ² Σ L_i²,
so that on SO(3) time t with σ = 1 is IGSO(3) of scale √t. All steps run in one `lax.scan`.
"""

from lie.processes.brownian_motion import brownian, brownian_path
from lie.processes.diffusions import sde
from lie.processes.integrators import METHODS, Path, ode
from lie.processes.reversal import Likelihood, divergence, log_prob, probability_flow, reverse, reverse_drift

__all__ = [
    "METHODS",
    "Likelihood",
    "Path",
    "brownian",
    "brownian_path",
    "divergence",
    "log_prob",
    "ode",
    "probability_flow",
    "reverse",
    "reverse_drift",
    "sde",
]
