"""Optimisation on groups: any optax transformation, sparse nonlinear least squares, certified pose graphs."""

from lie.optimizers import certificate, pose_graph, robust
from lie.optimizers.elements import project, value_and_grad
from lie.optimizers.factor_graph import Factor
from lie.optimizers.least_squares import Solution, levenberg_marquardt, trust_region
from lie.optimizers.transformations import apply_updates, riemannian, scale_by_vector_norm_adam, vector_norm_adam

__all__ = [
    "Factor",
    "Solution",
    "apply_updates",
    "certificate",
    "levenberg_marquardt",
    "pose_graph",
    "project",
    "riemannian",
    "robust",
    "scale_by_vector_norm_adam",
    "trust_region",
    "value_and_grad",
    "vector_norm_adam",
]
