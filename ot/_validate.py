"""What `sinkhorn.solve` and its relatives were handed, as one problem with one batch shape and one type.

Shapes and types are always checked, values where the arrays are concrete; each error names the argument.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from lie import check
from ot import _inputs, _pairs, costs

FINE = 1e-4
"""Below this tolerance float32 kernels are followed by float64 ones: Newton's system loses its slow modes before."""


def problem(
    x: Any, y: Any, a: ArrayLike | None, b: ArrayLike | None, cost: Any, epsilon: ArrayLike, mass_penalty: Any
) -> tuple[_pairs.Pairs, tuple[int, ...]]:
    """The problem with every array but those of the cost broadcast to one batch shape, and that shape.

    float16 and bfloat16 become float32. Raises TypeError and ValueError, naming the argument, for clouds that are
    empty, not finite, of other types or dimensions, negative or empty weights, totals that differ without
    `mass_penalty`, and an ε that is not positive.
    """
    cost = costs.wrap(cost)
    x, y, cost = (jax.tree.map(_at_least_single, part) for part in (x, y, cost))
    a, b = (None if w is None else _at_least_single(jnp.asarray(w)) for w in (a, b))
    if isinstance(cost, costs.Precomputed):
        sizes, batch, dtype = _given_matrix(cost, x, y)
    elif isinstance(cost, costs.Grid):
        sizes, batch, dtype = _given_grid(cost, x, y)
    else:
        sizes, batches, dtypes = zip(*(_cloud(name, p, cost) for name, p in (("x", x), ("y", y))), strict=True)
        if dtypes[0] != dtypes[1]:
            raise TypeError(f"x and y: expected one dtype, got {dtypes[0]} and {dtypes[1]}")
        dtype, batch = dtypes[0], _common_batch(x=batches[0], y=batches[1])
    a, b = (None if w is None else weights(name, w, n, dtype) for name, w, n in zip("ab", (a, b), sizes, strict=True))
    lost = _lost("epsilon", epsilon, dtype)
    epsilon = _inputs.number("epsilon", epsilon, dtype)
    rho = _penalties(mass_penalty, dtype)
    _require_equal_totals(a, b, rho)
    named = {"a": (a, 1), "b": (b, 1), "epsilon": (epsilon, 0), "rho_a": (rho[0], 0), "rho_b": (rho[1], 0)}
    shapes = {name: np.shape(v)[: np.ndim(v) - events] for name, (v, events) in named.items() if v is not None}
    batch = _common_batch(clouds=batch, **shapes)
    spread = lambda value, events: (
        value
        if value.shape[: value.ndim - events] == batch
        else jnp.broadcast_to(value, (*batch, *value.shape[value.ndim - events :]))
    )
    if isinstance(cost, costs.Precomputed):
        cost = replace(cost, C=spread(cost.C, 2))
    elif not isinstance(cost, costs.Grid):
        x, y = (
            jax.tree.map(lambda e, leaf: spread(jnp.asarray(leaf), e + 1), cost.event_dimensions, p) for p in (x, y)
        )
    low = np.asarray(lost, dtype)
    made: Any = _made((a, b, epsilon, low, *rho), (*sizes, 0, 0, 0, 0), batch, jnp.dtype(dtype))
    numbers = dict(zip(("epsilon", "epsilon_low", "rho_a", "rho_b"), made[2:], strict=True))
    return _pairs.Pairs(x, y, *made[:2], cost=cost, **numbers), batch


@partial(jax.jit, static_argnames=("sizes", "batch", "dtype"))
def _made(values: tuple, sizes: tuple[int, ...], batch: tuple[int, ...], dtype: Any) -> list:
    """Weights and numbers for every problem of the batch; weights that are None are uniform.

    One small program: each of these operations by itself costs 50 to 100 us, together half a solve of 512 points.
    """

    def one(value: Any, size: int) -> Any:
        if value is None:
            return jnp.full((*batch, size), 1 / size, dtype) if size else None
        # a copy: within another trace, what goes through unchanged would come out as NumPy's
        return jnp.array(jnp.broadcast_to(value, (*batch, size) if size else batch), copy=True)

    return [one(value, size) for value, size in zip(values, sizes, strict=True)]


def _at_least_single(x: Any) -> Any:
    half = isinstance(x, np.ndarray | jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return jnp.asarray(x, jnp.float32) if half else x


def _lost(name: str, value: ArrayLike, dtype: Any) -> Any:
    """What `dtype` cannot hold of a number that is not an array of JAX's."""
    if isinstance(value, jax.Array):
        return 0.0
    try:
        wide = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from error
    return wide - wide.astype(dtype).astype(np.float64)


def effort(tolerance: ArrayLike, max_steps: ArrayLike, dtype: Any) -> tuple[ArrayLike, ArrayLike, bool]:
    """The tolerance, the budget, and whether the tolerance may ask for float64 kernels. Raises for what is neither."""
    level = _inputs.number("tolerance", tolerance, dtype)
    fine = not _inputs.concrete(level) or float(level) < FINE
    budget = np.asarray(max_steps) if isinstance(max_steps, int) else jnp.asarray(max_steps)
    if not jnp.issubdtype(budget.dtype, jnp.integer) or budget.ndim:
        raise TypeError(f"max_steps: expected a whole number, got {max_steps!r}")
    if _inputs.concrete(budget) and int(budget) < 2:
        raise ValueError(f"max_steps: expected at least 2 products, one iteration, got {max_steps}")
    return level, budget.astype(np.int32), fine


def weights(name: str, a: ArrayLike, size: int, dtype: Any) -> Array:
    """Weights (*batch, size). Raises unless they are finite, >= 0 and not all 0."""
    a = check.array(name, a, size)
    if a.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype} as the points have, got {a.dtype}")
    if _inputs.concrete(a):
        held = np.asarray(a, np.float64)
        if not (np.isfinite(held) & (held >= 0)).all():
            raise ValueError(f"{name}: expected finite weights >= 0, got some from {held.min()} to {held.max()}")
        if not (held.sum(axis=-1) > 0).all():
            raise ValueError(f"{name}: expected weights with a positive total, got only zeros")
    return a


def _cloud(name: str, points: Any, cost: costs.Cost) -> tuple[int, tuple[int, ...], Any]:
    """How many points, the batch shape and the type."""
    found: list[tuple[tuple[int, ...], Any]] = []

    def visit(events: int, leaf: Any) -> None:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name}: expected floating-point coordinates, got {leaf.dtype} with shape {leaf.shape}")
        if leaf.ndim < events + 1:
            raise ValueError(f"{name}: expected a cloud of shape (..., n{', d' * events}), got {leaf.shape}")
        if _inputs.concrete(leaf) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"{name}: expected finite points, got NaN or infinity in shape {leaf.shape}")
        found.append((leaf.shape[: leaf.ndim - events], leaf.dtype))

    try:
        jax.tree.map(visit, cost.event_dimensions, points)
    except ValueError as error:
        raise error if str(error).startswith(f"{name}: ") else ValueError(f"{name}: {error}") from error
    (shape, dtype), *others = found
    if any(other != (shape, dtype) for other in others):
        raise ValueError(f"{name}: expected one batch shape, number of points and dtype in all leaves, got {found}")
    if shape[-1] == 0:
        raise ValueError(f"{name}: expected at least one point, got an empty cloud of shape {shape}")
    return shape[-1], shape[:-1], dtype


def _given_matrix(cost: costs.Precomputed, x: Any, y: Any) -> tuple[list[int], tuple[int, ...], Any]:
    sizes = [size if points is None else len(points) for size, points in zip(cost.C.shape[-2:], (x, y), strict=True)]
    for name, size in zip("xy", sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: expected at least one point, got an empty cloud")
    if _inputs.concrete(cost.C) and not np.isfinite(np.asarray(cost.C)).all():
        raise ValueError("cost: expected a matrix C of finite numbers, got NaN or infinity")
    return sizes, cost.C.shape[:-2], cost.C.dtype


def _given_grid(cost: costs.Grid, x: Any, y: Any) -> tuple[list[int], tuple[int, ...], Any]:
    if x is not None or y is not None:
        raise ValueError("x and y: expected None with costs.Grid, whose weights are those of all points of the grids")
    if _inputs.concrete(cost.matrices) and not all(np.isfinite(np.asarray(C)).all() for C in cost.matrices):
        raise ValueError("cost: expected matrices of finite numbers, got NaN or infinity")
    sizes = [math.prod(shape) for shape in zip(*(C.shape for C in cost.matrices), strict=True)]
    return sizes, (), cost.matrices[0].dtype


def one_grid(cost: costs.Grid) -> None:
    """Raises ValueError unless the matrices are symmetric: then they are also those of each grid with itself."""
    symmetric = all(C.shape[0] == C.shape[1] for C in cost.matrices)
    if symmetric and _inputs.concrete(cost.matrices):
        symmetric = all((np.asarray(C) == np.asarray(C).T).all() for C in cost.matrices)
    if not symmetric:
        raise ValueError("cost: expected both images on one grid, all matrices symmetric; a grid lacks x against x")


def _penalties(mass_penalty: Any, dtype: Any) -> list[Array | np.ndarray | None]:
    """ρ of both sides: None for a marginal that must be met."""
    if mass_penalty is None:
        return [None, None]
    if not isinstance(mass_penalty, tuple) or len(mass_penalty) != 2:
        raise TypeError(f"mass_penalty: expected None or a pair (rho_a, rho_b), got {mass_penalty!r}")
    return [
        None if rho is None or (_inputs.concrete(rho) and np.ndim(rho) == 0 and math.isinf(float(rho)) and rho > 0)
        else _inputs.number("mass_penalty", rho, dtype)
        for rho in mass_penalty
    ]  # fmt: skip


def _require_equal_totals(a: Array | None, b: Array | None, rho: list[Array | np.ndarray | None]) -> None:
    given = [w for w in (a, b) if w is not None]
    if given and rho == [None, None] and _inputs.concrete(given):
        total_a, total_b = (np.ones(()) if w is None else np.asarray(w, np.float64).sum(axis=-1) for w in (a, b))
        size = max(w.shape[-1] for w in given)
        allowed = 4 * float(jnp.finfo(given[0].dtype).eps) * math.sqrt(size) * np.maximum(total_a, total_b)
        if not (np.abs(total_a - total_b) <= allowed).all():
            raise ValueError(
                f"a and b: expected equal totals, got {np.ravel(total_a)[0]:.6g} and {np.ravel(total_b)[0]:.6g}; "
                "normalise them, or allow the difference by mass_penalty=(rho_a, rho_b)"
            )


def _common_batch(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected leading axes that broadcast, got {found}") from error
