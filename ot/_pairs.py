"""Two weighted clouds and the cost between them: one transport problem, which can give any part of its cost matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from lie import record
from ot import costs

_KEPT_ENTRIES = 2**24


@record.register("x", "y", "a", "b", "cost", "epsilon", "epsilon_low", "rho_a", "rho_b")
@dataclass(frozen=True)
class Pairs:
    """Points (n, *event), (m, *event), weights a (n,), b (m,), scalars ε, ρ_a, ρ_b; a batch of problems until mapped.

    ρ None is a marginal that must be met. The points of a `costs.Precomputed` are None (all) or indices.
    """

    x: Any
    y: Any
    a: Float[Array, "*batch n"]
    b: Float[Array, "*batch m"]
    cost: costs.Cost
    epsilon: Float[Array, "*batch"]
    epsilon_low: Float[Array, "*batch"]  # what a Python number loses in the type of the points: 3e-8 of ε moves 1e-6
    rho_a: Float[Array, "*batch"] | None
    rho_b: Float[Array, "*batch"] | None
    rows: NamedSharding | None = None
    """How x lies on several devices, static."""

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

    def over_batch(self, function: Callable, axes: int) -> Callable:
        """`function(pairs, ...)` over `axes` leading axes of all arguments.

        All problems share the arrays of a cost, unless it is a matrix: then they share the points, which are indices.
        """
        shared = ("x", "y") if isinstance(self.cost, costs.Precomputed) else ("cost",)
        mapped = jax.tree_util.tree_map_with_path(lambda path, _: None if path[0].name in shared else 0, self)

        def once_more(inner: Callable) -> Callable:
            return lambda pairs, *rest: jax.vmap(inner, (mapped, *(0 for _ in rest)))(pairs, *rest)

        for _ in range(axes):
            function = once_more(function)
        return function

    def at(self, epsilon: Float[Array, ""]) -> "Pairs":
        """The same problem with another ε."""
        return replace(self, epsilon=epsilon, epsilon_low=jnp.zeros_like(epsilon))

    def every(self, stride: int) -> "Pairs":
        """The problem of every stride-th point, whose weights are those of the strides; of a grid, along each axis."""
        if isinstance(self.cost, costs.Grid):
            (x, a), (y, b) = (_thinned_grid(*side, stride) for side in self._sides_of_grid())
            return replace(self, x=x, y=y, a=a, b=b)
        a, b = gathered(self.a, stride), gathered(self.b, stride)
        x, y = thinned(self.x, len(self.a), stride), thinned(self.y, len(self.b), stride)
        return replace(self, x=x, y=y, a=a, b=b, rows=None)

    def _sides_of_grid(self) -> list[tuple[tuple[Array, ...], Array]]:
        matrices = self.cost.matrices  # pyright: ignore[reportAttributeAccessIssue] of a costs.Grid
        whole = [tuple(map(jnp.arange, shape)) for shape in zip(*(C.shape for C in matrices), strict=True)]
        axes = [own if points is None else points for own, points in zip(whole, (self.x, self.y), strict=True)]
        return list(zip(axes, (self.a, self.b), strict=True))

    def against(self, other: "Pairs") -> "Pairs":
        """The rows of this problem against the columns of another one with the same cost."""
        return replace(self, y=other.y, b=other.b)

    def wide(self, carried: Array | None = None) -> "Pairs":
        """The problem in float64. `carried` ties it to a value that a loop carries, where there is one.

        XLA would else compute the costs once, before the loop: in float64 they take twice the memory of the kernel and
        the time of fresh pages, 40 for 24 ms at n = 2048.
        """
        if carried is not None:
            x, y, cost, _ = jax.lax.optimization_barrier((self.x, self.y, self.cost, carried))
            self = replace(self, x=x, y=y, cost=cost)
        return self.cast(jnp.float64)

    def cast(self, dtype: Any) -> "Pairs":
        """The problem in another floating-point type."""
        wider = astype(self, dtype)
        return wider.at(wider.epsilon + wider.epsilon_low)

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


def _thinned_grid(axes: tuple[Array, ...], weights: Array, stride: int) -> tuple[tuple[Array, ...], Array]:
    """The middles of blocks of about `stride` points of a grid, as indices on its axes, and the blocks' weights."""
    step = math.ceil(stride ** (1 / len(axes)))
    shape = [len(axis) for axis in axes]
    counts = [math.ceil(size / step) for size in shape]
    padded = jnp.pad(weights.reshape(shape), [(0, -size % step) for size in shape])
    blocks = padded.reshape([part for count in counts for part in (count, step)])
    total = jnp.sum(blocks, axis=tuple(range(1, 2 * len(axes), 2)))
    middles = [jnp.minimum(jnp.arange(0, size, step) + step // 2, size - 1) for size in shape]
    return tuple(axis[at] for axis, at in zip(axes, middles, strict=True)), total.ravel()


def astype(tree: Any, dtype: Any) -> Any:
    """Every floating-point leaf in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
