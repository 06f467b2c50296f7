"""IGSO(3): the heat kernel of SO(3) around a mean rotation, the law of Brownian motion at time scale²."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import charts, check, elementwise, record, smooth, so3
from lie.densities import angle_law, heat_kernel


@record.register("mean", "scale")
@dataclass(frozen=True)
class IsotropicGaussian:
    """Density f(ω) = Σ_l (2l+1) exp(−l(l+1) scale²/2) sin((l+½)ω)/sin(ω/2), ω the angle of meanᵀR, against Haar.

    mean (*batch, 3, 3), scale (*batch) > 0 in radians per axis for small scales; made for 1e-3..10. Leach et al. write
    exp(−l(l+1) e²): scale = √2 e. The Frechet mean and the mode are `mean`. Errors at the arguments as given, float32
    and float64: log density 15 eps max(1, |log f|), score 4 eps max(1, ω/scale²), its derivatives alike.
    Raises TypeError for integers or mixed dtypes, ValueError for shapes and, under HAAR_CHECK=1, for scale <= 0.
    """

    mean: Float[Array, "... 3 3"]
    scale: Float[Array, "..."]

    def __init__(self, mean: ArrayLike, scale: ArrayLike):
        mean = check.array("mean", mean, 3, 3)
        check.rotation("mean", mean)
        scale = check.array("scale", _cast(scale, mean.dtype))
        check.same_dtype(mean=mean, scale=scale)
        check.require("scale", scale > 0, "values > 0")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "scale", scale)

    @property
    def mode(self) -> Float[Array, "... 3 3"]:
        """The mean, where the density is largest."""
        return self.mean

    def log_prob(self, R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "..."]:
        """log f at R; smooth in R, mean and scale everywhere, at R = mean and at angle π as well."""
        w, v, t = self._half_angle(R)
        return heat_kernel.log_density(elementwise.dot(v, v), w * w, t).astype(self.mean.dtype)

    def score(self, R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "... 3"]:
        """∂ log f(R exp(u))/∂u at u = 0: the slope ∂ log f/∂ω times the axis of meanᵀR, in the body frame."""
        w, v, t = self._half_angle(R)
        y, z = elementwise.dot(v, v), w * w
        ones = jnp.ones_like(y)
        slope = jax.jvp(lambda y, z: heat_kernel.log_density(y, z, t), (y, z), (ones, -ones))[1]  # by y = sin²(ω/2)
        return ((slope * w)[..., None] * v).astype(self.mean.dtype)

    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """mean exp(ω axis), (*shape, *batch, 3, 3): ω by the inverse of its distribution function, the axis uniform.

        Reparameterised in mean and scale: ∂ω/∂scale = −scale ∂ log f/∂ω, exactly.
        """
        key_angle, key_axis = jax.random.split(key)
        mean, scale = _wide(self.mean), _wide(self.scale)
        full = (*shape, *jnp.broadcast_shapes(mean.shape[:-2], scale.shape))
        u = jax.random.uniform(key_angle, full, mean.dtype)
        axis = jax.random.normal(key_axis, (*full, 3), mean.dtype)
        omega = angle_law.quantile(u, jnp.broadcast_to(scale * scale, full))
        tangent = (omega / smooth.norm(axis))[..., None] * axis
        return so3.retract(mean, tangent).astype(self.mean.dtype)

    def entropy(self) -> Float[Array, "..."]:
        """−E log f <= 0, with respect to Haar; 0 is the uniform law. Absolute error <= 20 eps max(1, |entropy|)."""
        scale = _wide(self.scale)
        return angle_law.entropy(scale * scale).astype(self.scale.dtype)

    def angle_cdf(self, omega: Float[ArrayLike, "*batch"]) -> Float[Array, "..."]:
        """Probability of an angle to the mean of at most ω, 0..π. Error <= 4 eps, and relative for small ω."""
        omega = _angle("omega", omega, self.scale.dtype)
        return angle_law.cdf(*self._with_time(omega)).astype(self.scale.dtype)

    def angle_quantile(self, u: Float[ArrayLike, "*batch"]) -> Float[Array, "..."]:
        """The angle to the mean that is not exceeded with probability u in 0..1: the inverse of `angle_cdf`."""
        u = _angle("u", u, self.scale.dtype)
        check.require("u", (u >= 0) & (u <= 1), "probabilities in 0..1")
        return angle_law.quantile(*self._with_time(u)).astype(self.scale.dtype)

    def _with_time(self, x: Array) -> tuple[Array, Array]:
        x, scale = _wide(x), _wide(self.scale)
        x, t = jnp.broadcast_arrays(x, scale * scale)
        return x, t

    def _half_angle(self, R: Float[ArrayLike, "*batch 3 3"]) -> tuple[Array, Array, Array]:
        """cos(ω/2), sin(ω/2) axis and scale² of meanᵀR."""
        R = check.array("R", R, 3, 3)
        check.rotation("R", R)
        check.same_dtype(R=R, mean=self.mean)
        mean, scale = _wide(self.mean), _wide(self.scale)
        # meanᵀR − I without cancellation: R − mean is exact where they are close.
        difference = elementwise.matmul(elementwise.transpose(mean), _wide(R) - mean)
        q = charts.quaternion_from_matrix(np.eye(3, dtype=difference.dtype) + difference)
        return q[..., 0], q[..., 1:], scale * scale


def _cast(x: ArrayLike, dtype: jnp.dtype) -> ArrayLike:
    """A Python number in the dtype of the density; arrays as they are."""
    return jnp.asarray(x, dtype) if isinstance(x, float) else x


def _angle(name: str, x: ArrayLike, dtype: jnp.dtype) -> Array:
    x = check.array(name, _cast(x, dtype))
    if x.dtype != dtype:
        raise TypeError(f"{name}: expected the dtype of the density, {dtype}, got {x.dtype}")
    return x


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
