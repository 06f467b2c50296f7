"""A Gaussian in the tangent space of a mean, carried to the group by exp: g = mean exp(ξ), ξ ~ N(0, Σ)."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, record, se2, se3, smooth, so2, so3
from lie.densities import cholesky

# log|det J| = power log(sin(θ/2)/(θ/2)) for the Jacobian J of exp, and Haar's total mass in the coordinates ξ at 0.
_VOLUMES = {
    so2: (0, 2 * math.pi),
    se2: (2, 2 * math.pi),
    so3: (2, 8 * math.pi**2),
    se3: (4, 8 * math.pi**2),
}
_WINDINGS = 3
_DIFFUSE_SCALE = 2.0  # of so2: above it the Fourier series, below it the sum over windings


@record.register("mean", "covariance")
@dataclass(frozen=True)
class ConcentratedGaussian:
    """The law of mean exp(ξ), ξ ~ N(0, Σ) in the body frame, on group = so2, se2, so3 or se3.

    mean is an element (array or Pose) with leading axes that broadcast against those of covariance
    (*batch, dimension, dimension). The density is against Haar measure: normalised on so2 and so3; on se2 and se3 the
    normalised one of rotations times Lebesgue measure of translations. With ξ = log(mean⁻¹ g),
      log p = log N(ξ; 0, Σ) − log|det J(ξ)| + log 2π (so2, se2) or log 8π² (so3, se3),
    |det J| = 1, (sin(θ/2)/(θ/2))² on se2 and so3, its square on se3: the volume is exact; the flat Gaussian would leave
    it out, an error of θ²/12 (θ²/6 on se3). On so2 all windings of ξ round the circle are summed: exact for any Σ.
    Elsewhere log takes the shortest ξ only: the mass P(|ω| > π) of longer ones is missing, for Σ = σ² I of rotations
    3e-8 at σ = 0.5 and 2e-2 at σ = 1 on so3: take IsotropicGaussian there.
    Raises TypeError for integers, mixed dtypes or another group, ValueError for shapes and, under HAAR_CHECK=1, for a
    covariance that is not symmetric and positive definite.
    """

    group: Any
    mean: Any
    covariance: Float[Array, "... d d"]

    def __init__(self, group: Any, mean: Any, covariance: ArrayLike):
        if group not in _VOLUMES:
            raise TypeError(f"group: expected one of the modules so2, se2, so3, se3, got {group!r}")
        n = group.dimension
        covariance = check.array("covariance", covariance, n, n)
        mean = jax.tree.map(jnp.asarray, mean)
        group.log(mean)  # its checks of shape, dtype and, if asked for, orthonormality
        check.same_dtype(mean=jax.tree.leaves(mean)[0], covariance=covariance)
        if check.values_are_checked() and not isinstance(covariance, Tracer):
            wide = np.asarray(covariance, np.float64)
            symmetric = np.abs(wide - np.swapaxes(wide, -1, -2)).max(axis=(-2, -1)) <= 1e-3 * np.abs(wide).max((-2, -1))
            positive = np.linalg.eigvalsh(wide).min(axis=-1) > 0
            check.require("covariance", jnp.asarray(symmetric & positive), "symmetric positive definite matrices")
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def mode(self) -> Any:
        """The mean, where the density is largest as long as all variances of rotation are below 6 (3 on se3)."""
        return self.mean

    def log_prob(self, g: Any) -> Float[Array, "..."]:
        """log density at group elements g that broadcast against the mean."""
        g = jax.tree.map(_wide, g)
        mean, L = self._parts()
        xi = self.group.local(mean, g)
        if self.group is so2:
            return _wrapped(xi[..., 0], L[..., 0, 0]).astype(self.covariance.dtype)
        power, volume = _VOLUMES[self.group]
        white = cholesky.solve(L, xi)
        gaussian = -elementwise.dot(white, white) / 2 - cholesky.half_log_determinant(L)
        constant = math.log(volume) - self.group.dimension / 2 * math.log(2 * math.pi)
        return (gaussian + constant - power * _log_sinc(self._rotation(xi))).astype(self.covariance.dtype)

    def score(self, g: Any) -> Float[Array, "... d"]:
        """∂ log p(g exp(u))/∂u at u = 0, in the body frame of g."""
        g = jax.tree.map(_wide, g)
        wide = jax.tree.map(_wide, self)
        batch = jnp.broadcast_shapes(_batch(g), _batch(self.mean), self.covariance.shape[:-2])
        zero = jnp.zeros((*batch, self.group.dimension), wide.covariance.dtype)
        value, pull = jax.vjp(lambda u: wide.log_prob(self.group.retract(g, u)), zero)
        return pull(jnp.ones_like(value))[0].astype(self.covariance.dtype)

    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKeyArray) -> Any:
        """mean exp(L z), L Lᵀ = Σ, z standard normal, (*shape, *batch) elements; reparameterised in mean and Σ."""
        mean, L = self._parts()
        full = (*shape, *jnp.broadcast_shapes(_batch(mean), L.shape[:-2]))
        z = jax.random.normal(key, (*full, self.group.dimension), L.dtype)
        g = self.group.retract(mean, elementwise.matvec(L, z))
        return jax.tree.map(lambda x: x.astype(self.covariance.dtype), g)

    def entropy(self) -> Float[Array, "..."]:
        """−E log p. so2: exact, by quadrature. Else ½ log det(2πe Σ) + E log|det J| − log volume, with the mean over
        the Gaussian by Gauss and Hermite; longer windings left out as in log_prob (float64: 1e-10 for σ <= 0.3)."""
        L = cholesky.factor(_wide(self.covariance))
        if self.group is so2:
            return _wrapped_entropy(L[..., 0, 0]).astype(self.covariance.dtype)
        power, volume = _VOLUMES[self.group]
        count = 1 if self.group is se2 else 3
        nodes, weights = np.polynomial.hermite_e.hermegauss(10)
        grid = np.stack(np.meshgrid(*[nodes] * count, indexing="ij"), axis=-1).reshape(-1, count).astype(L.dtype)
        weight = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * count)), axis=0).reshape(-1).astype(L.dtype)
        rotation = self.covariance.shape[-1] - count
        Sigma = _wide(self.covariance)[..., rotation:, rotation:]
        omega = elementwise.matvec(cholesky.factor(Sigma)[..., None, :, :], jnp.asarray(grid))
        mean_log = jnp.sum(weight * _log_sinc(omega), axis=-1)
        flat = self.group.dimension / 2 * (1 + math.log(2 * math.pi)) + cholesky.half_log_determinant(L)
        return (flat + power * mean_log - math.log(volume)).astype(self.covariance.dtype)

    def _parts(self) -> tuple[Any, Array]:
        return jax.tree.map(_wide, self.mean), cholesky.factor(_wide(self.covariance))

    def _rotation(self, xi: Array) -> Array:
        return xi[..., {se2: 2, so3: 0, se3: 3}[self.group] :]


def _log_sinc(omega: Array) -> Array:
    """log |sin(θ/2)/(θ/2)|."""
    ratio = smooth.sinc(elementwise.dot(omega, omega) / 4)
    return 0.5 * smooth.log(ratio * ratio)


def _wrapped(theta: Array, scale: Array) -> Array:
    """log of 2π times the wrapped normal density on the circle: windings, or for a large scale the Fourier series."""
    diffuse = scale > _DIFFUSE_SCALE
    narrow, broad = jnp.where(diffuse, 1, scale), jnp.where(diffuse, scale, _DIFFUSE_SCALE)
    turns = 2 * math.pi * np.arange(-_WINDINGS, _WINDINGS + 1).astype(theta.dtype)
    exponents = -(((theta[..., None] + turns) / narrow[..., None]) ** 2) / 2
    windings = smooth.logsumexp(exponents) - jnp.log(narrow) + 0.5 * math.log(2 * math.pi)
    modes = [2 * jnp.exp(-n * n / 2 * broad * broad) * jnp.cos(n * theta) for n in range(1, 5)]
    return jnp.where(diffuse, jnp.log1p(sum(modes)), windings)


def _wrapped_entropy(scale: Array) -> Array:
    nodes, weights = (x.astype(scale.dtype) for x in np.polynomial.legendre.leggauss(48))
    end = jnp.minimum(math.pi, 9.5 * scale)[..., None]
    log_density = _wrapped(end * nodes, scale[..., None])
    return -jnp.sum(end * weights * jnp.exp(log_density) * log_density, axis=-1) / (2 * math.pi)


def _batch(g: Any) -> tuple[int, ...]:
    """The leading axes of a matrix or of the rotation of a Pose, its first leaf."""
    return jax.tree.leaves(g)[0].shape[:-2]


def _wide(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
