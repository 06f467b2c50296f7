"""Couplings as index pairs: minibatch pairs for flow matching, and point sets matched up to a rigid motion."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray
from scipy import optimize, spatial

from lie import check, so3
from ot import _inputs, costs, sinkhorn

Points = Any

_EXACT_UP_TO = 1024  # points: an assignment of 1024 takes 0.2-0.4 s on one core, one of 4096 takes 7-24 s
_DEFAULT_EPSILON = 0.02  # of the mean cost


class Pairs(NamedTuple):
    """Pairs (x[i], y[j]) of a coupling, and how its solver ended: an assignment has error 0 and steps 0."""

    i: Int[Array, "*batch size"]
    j: Int[Array, "*batch size"]
    error: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


class Alignment(NamedTuple):
    """y[permutation[i]] ≈ rotation x[i] + translation, with mean squared distance `value`.

    `steps` counts the rounds of the start that won; `converged`: its last round changed no pair.
    """

    permutation: Int[Array, "*batch n"]
    rotation: Float[Array, "*batch 3 3"]
    translation: Float[Array, "*batch 3"]
    value: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def pair(
    x: Points,
    y: Points,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    cost: Any = None,
    epsilon: ArrayLike | None = None,
    size: int | None = None,
    key: PRNGKeyArray,
) -> Pairs:
    """`size` pairs (default n) of an optimal coupling of x (*batch, n, *event) and y (*batch, m, *event).

    Without epsilon, outside jit, for equally many points (<= 1024) of uniform weight: the optimal assignment (SciPy, on
    the host), each point once if size is None, else `size` of its pairs, without repetition while that is possible.
    Otherwise an entropic plan (`sinkhorn.solve`), from which pairs are drawn independently; epsilon is in the unit of
    the cost, by default 0.02 of its mean. `cost` as in `sinkhorn.solve`, default squared Euclidean.
    Sources: Tong et al. 2024, TMLR; Pooladian et al. 2023, ICML (minibatch couplings for flow matching).
    """
    cost = costs.SquaredEuclidean() if cost is None else costs.wrap(cost)
    if size is not None and size < 1:
        raise ValueError(f"size: expected an integer >= 1, got {size}")
    C = _inputs.cost("x and y", cost(_inputs.points("x", x), _inputs.points("y", y)))
    traced = not _inputs.concrete(C, key)
    if epsilon is None and a is None and b is None and C.shape[-1] == C.shape[-2] <= _EXACT_UP_TO and not traced:
        return _assigned(C, size, key)
    if epsilon is None:
        epsilon = _DEFAULT_EPSILON * jax.lax.stop_gradient(jnp.mean(C, axis=(-2, -1)))
    plan = sinkhorn.solve(x, y, a, b, cost=cost, epsilon=epsilon)
    i, j = plan.sample_pairs(C.shape[-2] if size is None else size, key=key)
    return Pairs(i, j, plan.error, plan.steps, plan.converged)


def _assigned(C: Array, size: int | None, key: Array) -> Pairs:
    *batch, n, _ = C.shape
    matrices = np.asarray(C, np.float64).reshape(-1, n, n)
    partner = np.stack([optimize.linear_sum_assignment(matrix)[1] for matrix in matrices]).reshape((*batch, n))
    i = np.broadcast_to(np.arange(n), partner.shape)
    if size is not None:
        choices = [jax.random.choice(k, n, (size,), replace=size > n) for k in jax.random.split(key, len(matrices))]
        i = np.stack(choices).reshape((*batch, size))
    j = np.take_along_axis(partner, i, axis=-1)
    shape = tuple(batch)
    return Pairs(
        jnp.asarray(i, jnp.int32),
        jnp.asarray(j, jnp.int32),
        jnp.zeros(shape, C.dtype),
        jnp.zeros(shape, jnp.int32),
        jnp.ones(shape, bool),
    )


def align(
    x: Float[ArrayLike, "*#batch n 3"],
    y: Float[ArrayLike, "*#batch n 3"],
    *,
    types: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
    reflections: bool = False,
    starts: int = 32,
    max_steps: int = 100,
) -> Alignment:
    """The permutation σ and rigid motion (R, t) that minimise the mean of |R x_i + t − y_σ(i)|².

    Assignment (given the motion) and Kabsch's closed form (given the pairs) alternate from `starts` rotations: the four
    that align principal axes, the identity, and a spiral that covers SO(3) evenly. Each round lowers the value; the
    best start wins, for more than a few points a local optimum that other starts may beat. With `types`, integers
    (*batch, n) for x and for y (a pair, or one array for both), only points of one type are matched. `reflections` also
    tries improper R (determinant −1). Runs on the host (SciPy's assignment), in float64.
    Raises TypeError under jit, ValueError for clouds that differ in shape or in the number of points of a type.
    Sources: Kabsch 1976, Acta Cryst. A32:922; Besl, McKay 1992 (the alternation); Alexa 2022, CVPR (the spiral).
    """
    if not _inputs.concrete(x, y, types):
        raise TypeError("align: its assignments run on the host, so it cannot be called under jit, vmap or grad")
    x, y = check.array("x", x, None, 3), check.array("y", y, None, 3)
    check.same_dtype(x=x, y=y)
    if x.shape[-2] != y.shape[-2] or x.shape[-2] == 0:
        raise ValueError(f"y: expected as many points as x, at least one; got x {x.shape}, y {y.shape}")
    _inputs.points("x", x)
    _inputs.points("y", y)
    if starts < 1 or max_steps < 1:
        raise ValueError(f"starts and max_steps: expected integers >= 1, got {starts} and {max_steps}")
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    forbidden = _forbidden(types, x.shape[-2])
    batch = np.broadcast_shapes(batch, forbidden.shape[:-2])
    problems = [
        np.broadcast_to(np.asarray(part, dtype), (*batch, *part.shape[-2:])).reshape(-1, *part.shape[-2:])
        for part, dtype in ((x, np.float64), (y, np.float64), (forbidden, bool))
    ]
    found = [
        _align_one(p, q, not_these, reflections, starts, max_steps) for p, q, not_these in zip(*problems, strict=True)
    ]
    kinds = (jnp.int32, x.dtype, x.dtype, x.dtype, jnp.int32, jnp.bool_)
    return Alignment._make(
        jnp.asarray(np.stack(parts).reshape((*batch, *np.shape(parts[0]))).astype(kind))
        for parts, kind in zip(zip(*found, strict=True), kinds, strict=True)
    )


def _align_one(
    x: np.ndarray, y: np.ndarray, forbidden: np.ndarray, reflections: bool, starts: int, max_steps: int
) -> tuple:
    centre_x, centre_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - centre_x, y - centre_y
    R = _first_rotations(x, y, starts)
    signs = np.ones((len(R), 1, 1))
    if reflections:
        R, signs = np.concatenate([R, -R]), np.concatenate([signs, -signs])
    pairs = np.full((len(R), len(x)), -1)
    steps, moving = np.zeros(len(R), int), np.ones(len(R), bool)
    for _ in range(max_steps):
        (active,) = np.nonzero(moving)
        if active.size == 0:
            break
        gains = np.where(forbidden, -np.inf, (x @ np.swapaxes(R[active], -1, -2)) @ y.T)
        new = np.stack([optimize.linear_sum_assignment(gain, maximize=True)[1] for gain in gains])
        moving[active] = np.any(new != pairs[active], axis=-1)
        pairs[active], steps[active] = new, steps[active] + 1
        moments = np.einsum("sni,nj->sij", y[pairs], x)  # Σ y_σ(i) x_iᵀ, whose closest rotation is Kabsch's
        with jax.enable_x64(True):  # all starts, the finished ones too: one shape, compiled once
            R = signs * np.asarray(_project(signs * moments))
    values = np.mean(np.sum((x @ np.swapaxes(R, -1, -2) - y[pairs]) ** 2, axis=-1), axis=-1)
    best = int(np.argmin(values))
    translation = centre_y - R[best] @ centre_x
    return pairs[best], R[best], translation, values[best], steps[best], not moving[best]


_project = jax.jit(so3.project)


def _first_rotations(x: np.ndarray, y: np.ndarray, count: int) -> np.ndarray:
    """Principal axes onto principal axes, the identity, then Alexa's spiral of quaternions: `count` in all."""
    axes_x, axes_y = (_principal_axes(cloud) for cloud in (x, y))
    flips = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    principal = np.einsum("ij,sj,kj->sik", axes_y, flips, axes_x)
    index = np.arange(max(count - 5, 0)) + 0.5
    share, turns = index / max(count - 5, 1), 2 * np.pi * index
    # Constants of the spiral: √2, and the positive root of ψ⁴ = ψ + 4.
    angles = turns / np.sqrt(2), turns / 1.533751168755204288118041
    radii = np.sqrt(share), np.sqrt(1 - share)
    q = np.stack([f(angle) * r for angle, r in zip(angles, radii, strict=True) for f in (np.sin, np.cos)], axis=-1)
    spiral = spatial.transform.Rotation.from_quat(q).as_matrix() if len(q) else np.empty((0, 3, 3))
    return np.concatenate([principal, np.eye(3)[None], spiral])[:count]


def _principal_axes(x: np.ndarray) -> np.ndarray:
    """Columns: a right-handed orthonormal frame of the eigenvectors of xᵀx."""
    axes = np.linalg.eigh(x.T @ x)[1]
    return axes * np.array([1, 1, np.linalg.det(axes)])


def _forbidden(types: Any, n: int) -> np.ndarray:
    """(*batch, n, n): which points may not be matched."""
    if types is None:
        return np.zeros((n, n), bool)
    of_x, of_y = (np.asarray(part) for part in (types if isinstance(types, tuple) else (types, types)))
    for name, part in (("types of x", of_x), ("types of y", of_y)):
        if not np.issubdtype(part.dtype, np.integer):
            raise TypeError(f"{name}: expected integers (..., {n}), got {part.dtype}")
        if part.shape[-1:] != (n,):
            raise ValueError(f"{name}: expected shape (..., {n}), got {part.shape}")
    if np.any(np.sort(of_x, axis=-1) != np.sort(of_y, axis=-1)):
        raise ValueError("types: expected as many points of each type in x as in y")
    return of_x[..., :, None] != of_y[..., None, :]
