"""Functions of an edge's length: bases, cutoffs that end smoothly, and the perceptron that makes weights of them.

All take r >= 0 of any shape. Bases add a last axis; none of them ends at the cutoff by itself, except where said:
multiply by a cutoff function. Value, first and second derivative are finite for every r >= 0.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from equivariant import egnn
from lie import check, smooth

SILU_GAIN = 1.6765324703310909
"""1/√E[silu(z)²] for z ~ N(0, 1), by quadrature: silu times this keeps unit second moments."""


def bessel(r: Float[Array, "*batch"], size: int, cutoff: float) -> Float[Array, "*batch size"]:
    """√(2/c) sin(n π r/c)/r for n = 1..size, c = cutoff: orthonormal for ∫_0^c · r² dr, zero at the cutoff.

    Even in r and entire, so smooth in the vector of length r too; √(2/c) n π/c at 0. By sin nθ = sin θ U_{n−1}(cos θ),
    one sine and one cosine for all n; defined past the cutoff, too. Absolute error <= 4 n eps of the largest value,
    √(2/c) n π/c. NequIP's radial basis has 2/c for √(2/c). Source: Gasteiger et al. 2020, DimeNet, eq. 7.
    """
    r, size = check.array("r", r), _size("size", size)
    theta_squared = (r * (math.pi / cutoff)) ** 2
    twice_cosine, sine = 2 * smooth.cos(theta_squared), smooth.sinc(theta_squared)
    chebyshev = [jnp.ones_like(r), twice_cosine]
    while len(chebyshev) < size:
        chebyshev.append(twice_cosine * chebyshev[-1] - chebyshev[-2])
    scale = math.sqrt(2 / cutoff) * math.pi / cutoff
    return jnp.stack(chebyshev[:size], axis=-1) * (scale * sine)[..., None]


def gaussian(r: Float[Array, "*batch"], size: int, cutoff: float) -> Float[Array, "*batch size"]:
    """exp(−(r − μ_k)²/(2 σ²)) with `size` >= 2 centres μ_k evenly from 0 to the cutoff, σ their spacing.

    Not even in r: a function of the vector has a kink where r = 0. Relative error <= 8 eps where it exceeds 1e-3.
    """
    r, size = check.array("r", r), _size("size", size, least=2)
    k = np.arange(size).astype(r.dtype)
    distance = r[..., None] * ((size - 1) / cutoff) - k
    return jnp.exp(-distance * distance / 2)


def bernstein(r: Float[Array, "*batch"], size: int, rate: float = 0.5) -> Float[Array, "*batch size"]:
    """C(n, k) x^k (1 − x)^(n − k), k = 0..n, of x = exp(−rate r), n = size − 1: they sum to 1 for every r.

    Resolution is finest at small r and, unlike the other bases', needs no cutoff. `rate` in 1/length. Not even in r.
    Relative error <= 2 size eps. Source: Unke et al. 2021, SpookyNet, eq. 12.
    """
    r, size = check.array("r", r), _size("size", size)
    x, y = jnp.exp(-rate * r), -jnp.expm1(-rate * r)
    n = size - 1
    # Whole powers, one product each: finite slopes where x = 1, y = 0.
    powers = [(jnp.ones_like(r), jnp.ones_like(r))]
    for _ in range(n):
        powers.append((powers[-1][0] * x, powers[-1][1] * y))
    return jnp.stack([math.comb(n, k) * powers[k][0] * powers[n - k][1] for k in range(size)], axis=-1)


def polynomial_cutoff(r: Float[Array, "*batch"], cutoff: float, power: int = 6) -> Float[Array, "*batch"]:
    """1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2), x = r/cutoff; 0 from the cutoff on.

    At r = 0 it is 1 to order p; at the cutoff value, first and second derivative are 0. Evaluated as (1 − x)³ Σ_{k<p}
    C(k + 2, 2) x^k, positive terms only: relative error <= (p + 6) eps up to the cutoff itself, where the sum above
    loses all digits. Source: Gasteiger et al. 2020, DimeNet, eq. 8; p = 6 in NequIP, 5 in MACE.
    """
    r, power = check.array("r", r), _size("power", power)
    x = jnp.minimum(r / cutoff, 1)
    rest = 1 - x
    series = tuple(float(math.comb(k + 2, 2)) for k in range(power))
    return rest * rest * rest * smooth.polynomial(series, x)


def bump_cutoff(r: Float[Array, "*batch"], cutoff: float) -> Float[Array, "*batch"]:
    """exp(−x²/(1 − x²)), x = r/cutoff; 0 from the cutoff on. All derivatives are continuous there; even in r.

    Relative error <= 4 eps/(1 − x)² (what rounding x costs).
    """
    r = check.array("r", r)
    x = r / cutoff
    inside = x < 1
    x = jnp.where(inside, x, 0)
    return jnp.where(inside, jnp.exp(-x * x / ((1 - x) * (1 + x))), 0)


def perceptron(weights: tuple[Float[Array, "_ _"], ...], x: Float[Array, "*batch _"]) -> Float[Array, "*batch _"]:
    """x W_1/√fan-in, silu · 1.6765, ..., W_n/√fan-in: no biases, the last layer linear.

    With entries of W and x from N(0, 1) every layer has unit second moment. Source: the radial network of NequIP.
    """
    x = check.array("x", x)
    if not weights:
        raise ValueError("weights: expected at least one matrix, got none")
    for k, weight in enumerate(weights):
        if x.shape[-1] != weight.shape[0]:
            raise ValueError(f"weights[{k}]: expected shape ({x.shape[-1]}, any), got {weight.shape}")
        if k:
            x = egnn.silu(x) * SILU_GAIN
        x = x @ (weight.astype(x.dtype) / math.sqrt(max(1, weight.shape[0])))
    return x


class Perceptron(nnx.Module):
    """`perceptron` with weights from N(0, 1); `sizes` lists inputs, hidden layers and outputs."""

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected at least inputs and outputs, got {sizes}")
        shapes = itertools.pairwise(sizes)
        self.kernels = nnx.List([nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32)) for shape in shapes])

    def weights(self) -> tuple[Array, ...]:
        """The matrices, as `perceptron` takes them."""
        return tuple(kernel[...] for kernel in self.kernels)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return perceptron(self.weights(), x)


def _size(name: str, value: int, least: int = 1) -> int:
    if check.degree(name, value) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)
