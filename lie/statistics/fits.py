"""Maximum likelihood and maximum a posteriori fits of the densities, and the conjugate updates where they exist.

Samples are (n, *element); use `jax.vmap` for a batch of fits. Weights (n,) count samples and are not normalised:
against a prior their sum matters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import check, densities, elementwise, euclidean, record, smooth, so3
from lie import group as groups
from lie.densities import fisher_normalizer
from lie.statistics import means
from lie.statistics import samples as layout


class Fit(NamedTuple):
    """A density, and how sure the optimum is: `error` is Newton's decrement √(gᵀ H⁻¹ g) per sample.

    g and H are the gradient and negative Hessian of the mean log likelihood (plus log prior/n) in the tangent of the
    parameters: the distance to the optimum in units of one sample's standard error. `converged`: error <= tolerance.
    """

    density: Any
    error: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


@record.register("shape", "rate")
@dataclass(frozen=True)
class InverseGamma:
    """The law of a variance with density ∝ x^(−shape−1) exp(−rate/x), shape > 0, rate > 0."""

    shape: Float[ArrayLike, ""]
    rate: Float[ArrayLike, ""]

    def log_prob(self, x: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """log density at x > 0 (Lebesgue)."""
        x = check.array("x", x)
        shape, rate = jnp.asarray(self.shape, x.dtype), jnp.asarray(self.rate, x.dtype)
        return shape * jnp.log(rate) - jax.lax.lgamma(shape) - (shape + 1) * jnp.log(x) - rate / x


@record.register("matrix", "freedom")
@dataclass(frozen=True)
class InverseWishart:
    """The law of a d x d covariance with density ∝ |S|^(−(freedom+d+1)/2) exp(−tr(matrix S⁻¹)/2), freedom > d − 1."""

    matrix: Float[Array, "d d"]
    freedom: Float[ArrayLike, ""]

    @property
    def mode(self) -> Float[Array, "d d"]:
        """matrix/(freedom + d + 1)."""
        return self.matrix / (jnp.asarray(self.freedom, self.matrix.dtype) + self.matrix.shape[-1] + 1)

    @property
    def mean(self) -> Float[Array, "d d"]:
        """matrix/(freedom − d − 1), for freedom > d + 1."""
        return self.matrix / (jnp.asarray(self.freedom, self.matrix.dtype) - self.matrix.shape[-1] - 1)

    def updated(self, tangents: Float[ArrayLike, "n d"], weights: ArrayLike | None = None) -> "InverseWishart":
        """The posterior given Gaussian tangents v_i of mean 0: matrix + Σ w v vᵀ, freedom + Σ w. Exact (conjugate).

        With v_i = log(m⁻¹ x_i) it is the posterior of a ConcentratedGaussian's covariance at a known mean m: the volume
        factor of its density does not contain the covariance.
        """
        tangents = check.array("tangents", tangents, None)
        counts = _counts(weights, tangents.shape[0], tangents.dtype)
        matrix = self.matrix + layout.covariance(counts, tangents)
        return InverseWishart(matrix, jnp.asarray(self.freedom, tangents.dtype) + jnp.sum(counts))


def location_posterior(
    samples: Float[ArrayLike, "n 3 3"],
    concentration: Float[ArrayLike, ""],
    prior: Any = None,
    weights: ArrayLike | None = None,
) -> Any:
    """The posterior of a rotation R seen through x_i ~ exp(κ tr(Rᵀ x_i))/c: MatrixFisher(F + κ Σ w x_i), exactly.

    κ = `concentration`; the prior MatrixFisher(F) is conjugate to itself, None is the uniform law. Source: Downs 1972.
    """
    samples = check.array("samples", samples, 3, 3)
    check.rotation("samples", samples)
    counts = _counts(weights, samples.shape[0], samples.dtype)
    parameter = jnp.asarray(concentration, samples.dtype) * layout.weighted_sum(counts, samples)
    return densities.MatrixFisher(parameter if prior is None else prior.parameter + parameter)


def fit_isotropic_gaussian(
    samples: Float[ArrayLike, "n 3 3"],
    weights: ArrayLike | None = None,
    *,
    location: Any = None,
    variance: InverseGamma | None = None,
    tolerance: float | None = None,
    max_steps: int = 50,
) -> Fit:
    """The IGSO(3) that maximises Σ w log f(x_i; m, s) + log priors, jointly in mean and scale.

    `location` is a prior density on the mean (anything with `log_prob`), `variance` an InverseGamma on s²; None are
    flat, so that the fit is the maximum likelihood's. Starts from the projected mean and the moment equation
    tr(mᵀ X̄)/3 = exp(−s²), both consistent, and takes Newton steps in (R exp(u), log s). Identical samples have no
    optimum without a `variance`. Converged at error <= sqrt(eps) by default.
    """
    samples = check.array("samples", samples, 3, 3)
    counts = _counts(weights, samples.shape[0], samples.dtype)
    total = jnp.sum(counts)
    centre = means.projected_mean(samples, counts)
    offset = samples - centre  # 1 − tr(mᵀ x)/3 = |x − m|²_F/6 without cancellation
    spread = jnp.sum(counts * jnp.sum(offset * offset, axis=(-2, -1))) / (6 * total)
    scale = jnp.sqrt(-jnp.log1p(-jnp.minimum(spread, 0.999)))  # a mean that is lost in noise: start at scale 2.6
    floor = 4 * float(jnp.finfo(samples.dtype).eps)
    scale = jnp.where(scale > floor, scale, floor)

    def objective(parameters):
        mean, log_scale = parameters
        law = densities.IsotropicGaussian(mean, jnp.exp(log_scale[..., 0]))
        value = jnp.sum(counts * law.log_prob(samples))
        if location is not None:
            value = value + location.log_prob(mean)
        if variance is not None:
            value = value + variance.log_prob(jnp.exp(2 * log_scale[..., 0]))
        return value / total

    product = groups.product(so3, euclidean.Space(1))
    (mean, log_scale), *ending = _maximise(product, objective, (centre, jnp.log(scale)[None]), tolerance, max_steps)
    return Fit(densities.IsotropicGaussian(mean, jnp.exp(log_scale[..., 0])), *ending)


def fit_matrix_fisher(
    samples: Float[ArrayLike, "n 3 3"],
    weights: ArrayLike | None = None,
    *,
    prior_mean: Float[ArrayLike, "3 3"] | None = None,
    prior_count: ArrayLike = 0.0,
    tolerance: float | None = None,
    max_steps: int = 100,
) -> Fit:
    """The matrix Fisher law whose mean matrix E[R] is the sample's: maximum likelihood, or the conjugate prior's mode.

    The likelihood sees X̄ = Σ w x_i/Σ w alone, and the conjugate prior exp(ν (tr(Fᵀ X₀) − log c(F))) counts as
    ν = `prior_count` further samples of mean matrix X₀ = `prior_mean`: the fit solves ∂ log c/∂F = the mean of both.
    With the projected mean R₀ and R₀ᵀ X̄ = V diag(1 − e) Vᵀ, F = R₀ V diag(s) Vᵀ where E[Q_ii | s] = 1 − e_i, found by
    Newton steps 1/(1 + √2 decrement), which converge from s = 0 as log c is like a sum of −½ log(s_i + s_j). No digits
    are lost for concentrated samples. Samples that are all equal have no fit: not converged.
    Source: Khatri, Mardia 1977, J. R. Stat. Soc. B 39:95.
    """
    samples = check.array("samples", samples, 3, 3)
    check.rotation("samples", samples)
    counts = _counts(weights, samples.shape[0], samples.dtype)
    moment, total = layout.weighted_sum(counts, samples), jnp.sum(counts)
    strength = jnp.zeros((), samples.dtype) if prior_mean is None else jnp.asarray(prior_count, samples.dtype)
    centre = so3.identity((), samples.dtype) if prior_mean is None else check.array("prior_mean", prior_mean, 3, 3)
    mean = so3.project(moment + strength * centre)
    # (x − R₀)ᵀ (x − R₀)/2 = I − sym(R₀ᵀ x) for rotations: what concentrated samples leave of their digits is all here.
    offset = samples - mean
    lost = layout.weighted_sum(counts, elementwise.matmul(jnp.swapaxes(offset, -1, -2), offset)) / 2
    lost = (lost + strength * elementwise.matmul(mean.T, mean - centre)) / (total + strength)  # I − R₀ᵀ X̄
    deviation, axes = jnp.linalg.eigh((lost + lost.T) / 2)
    limit = float(jnp.finfo(samples.dtype).eps) ** 0.5 if tolerance is None else tolerance

    def body(carry):
        s, _, steps = carry
        gradient = deviation - fisher_normalizer.expected_deviation(s)
        step = -elementwise.matvec(jnp.linalg.inv(fisher_normalizer.diagonal_covariance(s)), gradient)
        decrement = smooth.sqrt(jnp.maximum(-elementwise.dot(step, gradient), 0))
        moved = s + step / jnp.where(decrement < 0.2, 1, 1 + math.sqrt(2) * decrement)
        ordered = -jnp.sort(-jnp.abs(moved))  # a reflection into s1 >= s2 >= |s3|: no farther from the solution in it
        flipped = jnp.prod(jnp.sign(moved)) < 0
        moved = ordered * jnp.where(flipped, np.array([1, 1, -1], s.dtype), np.ones(3, s.dtype))
        return jnp.where(decrement > limit, moved, s), decrement, steps + 1

    def unfinished(carry):
        return (carry[1] > limit) & (carry[2] < max_steps)

    first = (jnp.zeros(3, samples.dtype), jnp.asarray(jnp.inf, samples.dtype), jnp.zeros((), jnp.int32))
    s, error, steps = jax.lax.while_loop(unfinished, body, first)
    parameter = elementwise.matmul(elementwise.matmul(mean, axes * s), axes.T)
    return Fit(densities.MatrixFisher(parameter), error, steps, error <= limit)


def fit_concentrated_gaussian(
    group: groups.Group,
    samples: groups.Element,
    weights: ArrayLike | None = None,
    *,
    covariance: InverseWishart | None = None,
    tolerance: float | None = None,
    max_steps: int = 50,
) -> Fit:
    """The ConcentratedGaussian of greatest likelihood, times an InverseWishart prior of its covariance if given.

    At a given mean m the covariance is in closed form, Σ w v vᵀ/n (or the posterior's mode), v = log(m⁻¹ x); Newton
    maximises the profile over m, volume factor included, from the Fréchet mean. Needs more samples than dimensions, or
    the prior; a sample beyond the cut locus is taken by its shortest logarithm.
    """
    tangent = layout.tangent_of(group, samples)
    counts = _counts(weights, tangent.shape[0], tangent.dtype)
    total = jnp.sum(counts)

    def best_covariance(mean):
        tangents = layout.tangents(group, mean, samples)
        if covariance is None:
            return layout.covariance(counts, tangents) / total
        return covariance.updated(tangents, counts).mode

    def objective(mean):
        S = best_covariance(mean)
        value = jnp.sum(counts * densities.ConcentratedGaussian(group, mean, S).log_prob(samples))
        if covariance is not None:
            size = tangent.shape[-1]
            freedom = jnp.asarray(covariance.freedom, S.dtype)
            trace = jnp.sum(covariance.matrix * jnp.linalg.inv(S))
            value = value - (freedom + size + 1) / 2 * jnp.linalg.slogdet(S)[1] - trace / 2
        return value / total

    start = means.frechet_mean(group, samples, counts)
    mean, error, steps, converged = _maximise(group, objective, start.mean, tolerance, max_steps)
    return Fit(densities.ConcentratedGaussian(group, mean, best_covariance(mean)), error, steps, converged)


def _counts(weights: ArrayLike | None, count: int, dtype: Any) -> Array:
    if weights is None:
        return jnp.ones(count, dtype)
    weights = check.array("weights", weights)
    if weights.shape != (count,):
        raise ValueError(f"weights: expected shape ({count},), got {weights.shape}")
    check.require("weights", weights >= 0, "weights >= 0")
    return weights.astype(dtype)


def _maximise(
    group: groups.Group, objective: Callable, start: groups.Element, tolerance: float | None, max_steps: int
) -> tuple[groups.Element, Array, Array, Array]:
    """Newton's ascent on a group, with |eigenvalues| of the Hessian so that every step climbs, halved until it does."""
    tangent = jax.eval_shape(group.local, start, start)
    origin = jnp.zeros(tangent.shape, tangent.dtype)
    eps = float(jnp.finfo(tangent.dtype).eps)
    limit = eps**0.5 if tolerance is None else tolerance

    def newton(x):
        def gradient(u):
            value, slope = jax.value_and_grad(lambda u: objective(group.retract(x, u)))(u)
            return slope, (slope, value)

        hessian, (slope, value) = jax.jacfwd(gradient, has_aux=True)(origin)
        sizes, axes = jnp.linalg.eigh((hessian + hessian.T) / 2)
        sizes = jnp.abs(sizes)
        usable = sizes > 8 * eps * jnp.max(sizes)
        step = elementwise.matvec(axes, jnp.where(usable, smooth.divide(elementwise.matvec(axes.T, slope), sizes), 0))
        return value, step, smooth.sqrt(jnp.maximum(jnp.sum(step * slope), 0))

    def climb(x, value, step):
        length = smooth.norm(step)
        step = step / jnp.maximum(length, 1)  # at most a radian: beyond, the quadratic model means nothing
        slack = 16 * eps * (1 + jnp.abs(value))  # the objective's rounding hides the last steps, which need no test

        def worse(carry):
            factor, halvings = carry
            return (objective(group.retract(x, factor * step)) < value - slack) & (halvings < 30)

        factor, _ = jax.lax.while_loop(worse, lambda c: (c[0] / 2, c[1] + 1), (jnp.ones_like(value), 0))
        return factor * step

    def body(carry):
        x, _, steps = carry
        value, step, decrement = newton(x)
        step = jnp.where(decrement > limit, climb(x, value, step), 0)  # a step of 0 changes no digit
        return group.retract(x, step), decrement, steps + 1

    def unfinished(carry):
        return (carry[1] > limit) & (carry[2] < max_steps)

    start = group.retract(start, origin)  # the dtype and shape that the loop keeps
    first = (start, jnp.asarray(jnp.inf, tangent.dtype), jnp.zeros((), jnp.int32))
    x, decrement, steps = jax.lax.while_loop(unfinished, body, first)
    return x, decrement, steps, decrement <= limit
