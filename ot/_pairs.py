"""Two weighted clouds and the cost between them: one transport problem, which can give any part of its cost matrix."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lie import record
from ot import costs

_KEPT_ENTRIES = 2**24


@record.register("x", "y", "a", "b", "cost", "epsilon", "rho_a", "rho_b")
@dataclass(frozen=True)
class Pairs:
    """One problem without batch axes: points (n, *event), (m, *event), weights a (n,), b (m,), scalars ε, ρ_a, ρ_b.

    ρ None is a marginal that must be met. The points of a `costs.Precomputed` are None (all) or indices.
    """

    x: Any
    y: Any
    a: Float[Array, "n"]
    b: Float[Array, "m"]
    cost: costs.Cost
    epsilon: Float[Array, ""]
    rho_a: Float[Array, ""] | None
    rho_b: Float[Array, ""] | None

    def matrix(self) -> Float[Array, "n m"]:
        """The whole cost matrix, in the type of the points."""
        return self.cost(self.x, self.y)

    def softness(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """κ = ε/ρ of both marginals: 0 for one that must be met."""
        hard = jnp.zeros_like(self.epsilon)
        return tuple(hard if rho is None else self.epsilon / rho for rho in (self.rho_a, self.rho_b))  # pyright: ignore

    def gain(self, f: Float[Array, "n"], g: Float[Array, "m"]) -> Float[Array, ""]:
        """Σ a φ(f) + Σ b φ(g), φ(f) = f, or the conjugate ρ (1 − e^(−f/ρ)) of a soft marginal's penalty."""
        of_rows = f if self.rho_a is None else -self.rho_a * jnp.expm1(-f / self.rho_a)
        of_columns = g if self.rho_b is None else -self.rho_b * jnp.expm1(-g / self.rho_b)
        return jnp.sum(self.a * of_rows) + jnp.sum(self.b * of_columns)

    def at(self, epsilon: Float[Array, ""]) -> "Pairs":
        """The same problem with another ε."""
        return replace(self, epsilon=epsilon)

    def every(self, stride: int) -> "Pairs":
        """The problem of every stride-th point, whose weights are those of the strides."""
        a, b = gathered(self.a, stride), gathered(self.b, stride)
        return replace(self, x=thinned(self.x, len(self.a), stride), y=thinned(self.y, len(self.b), stride), a=a, b=b)

    def against(self, other: "Pairs") -> "Pairs":
        """The rows of this problem against the columns of another one with the same cost."""
        return replace(self, y=other.y, b=other.b)

    def wide(self, carried: Array | None = None) -> "Pairs":
        """The problem in float64. `carried` ties it to a value that a loop carries, where there is one.

        XLA would else compute the costs once, before the loop: in float64 they take twice the memory of the kernel and
        the time of fresh pages, 40 for 24 ms at n = 2048.
        """
        points = self.x, self.y, self.cost
        if carried is not None:
            *points, _ = jax.lax.optimization_barrier((*points, carried))
        x, y, cost = astype(tuple(points), jnp.float64)
        rest = {name: astype(getattr(self, name), jnp.float64) for name in ("a", "b", "epsilon", "rho_a", "rho_b")}
        return replace(self, x=x, y=y, cost=cost, **rest)

    def kept(self) -> "Pairs":
        """With the matrix in place of a cost that is dear to compute, unless it is large."""
        if not self.cost.expensive or len(self.a) * len(self.b) > _KEPT_ENTRIES:
            return self
        return replace(self, x=None, y=None, cost=costs.Precomputed(self.wide().matrix()))


def thinned(points: Any, count: int, stride: int) -> Any:
    """Every stride-th of the points; indices where the points are None."""
    if points is None:
        return jnp.arange(0, count, stride)
    return jax.tree.map(lambda leaf: leaf[::stride], points)


def gathered(weights: Float[Array, "n"], stride: int) -> Float[Array, "..."]:
    """The total weight of each run of `stride` entries."""
    count = math.ceil(len(weights) / stride)
    padded = jnp.pad(weights, (0, count * stride - len(weights)))
    return jnp.sum(padded.reshape(count, stride), axis=1)


def astype(tree: Any, dtype: Any) -> Any:
    """Every floating-point leaf in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
