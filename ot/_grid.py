"""Products with the kernel of a cost that is a sum over the axes of a grid: one axis at a time, memory of the grid.

K q is d contractions of lines with small matrices, n^(1 + 1/d) work in place of n². e^(−C_k/ε) and the scalings
overflow at small ε, so each contraction is given a height H_k on the grid whose first k axes are already those of x:

    H_0 = g,  H_k = max over j_k of H_(k−1) − C_k,   T_k = exp((H_(k−1) − C_k − H_k)/ε) <= 1,   H_d := −f,

and K = T_d ⋯ T_1 whatever the heights are. Where all |f|, |g| <= 300 ε, the plain matrices e^(−C_k/ε) do in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ot import _doubles

HIGHEST = jax.lax.Precision.HIGHEST

LARGEST_EXPONENT = 80.0
"""Only pairs of points that both lack weight exceed it, and they must not overflow."""

_PLAIN_UP_TO = 300.0
_STORED_ENTRIES = 2**24  # of all T_k, in the working type: 64 MB


class Stage(NamedTuple):
    """One axis: T[r, i, j] = exp((left[r, i] + right[r, j] − C[i, j])/ε), r counting the lines along the axis."""

    C: Float[Array, "n m"]
    left: Float[Array, "lines n"]
    right: Float[Array, "lines m"]


class Separable:
    """The kernel of a grid, with the absorbed potentials f and g in it."""

    def __init__(self, pairs: Any, f: Array, g: Array, epsilon: Array, working: Any, allowed: Array | None = None):
        along_axes = matrices(pairs)
        self.epsilon, self.working = epsilon, working
        self.shapes = tuple(zip(*(C.shape for C in along_axes), strict=True))
        self.stages = stages(along_axes, f, g)
        entries = sum(len(stage.left) * stage.C.size for stage in self.stages)
        self.stored = [self._tensor(stage) for stage in self.stages] if entries <= _STORED_ENTRIES else None
        self.plain = [jnp.exp(-C / epsilon) for C in along_axes]
        self.scales = tuple(jnp.exp(p / epsilon).reshape(s) for p, s in zip((f, g), self.shapes, strict=True))
        largest = [jnp.max(jnp.where(jnp.isfinite(p), jnp.abs(p), 0)) for p in (f, g)]
        self.is_plain = jnp.maximum(*largest) <= _PLAIN_UP_TO * epsilon

    def sweep(self, q: Array, weigh: Callable[..., Array], *rows: Array) -> tuple[Array, Array, Array]:
        """r = K q, p = weigh(r, *rows) and p K."""
        r = self._either(lambda: self._plainly(q, False), lambda: self._carefully(q, False))
        p = weigh(r, *rows)
        return r, p, self._either(lambda: self._plainly(p, True), lambda: self._carefully(p, True))

    def _either(self, plainly: Callable[[], Array], carefully: Callable[[], Array]) -> Array:
        # Stored tensors cost no more than the plain matrices. Else a loop of one round or none: unlike `cond`, it stays
        # a choice under vmap, where no problem of the batch needs the careful way.
        if self.stored is not None:
            return carefully()
        found = plainly()
        state = jnp.where(self.is_plain, found, 0), self.is_plain
        return jax.lax.while_loop(lambda s: ~s[1], lambda _: (carefully(), jnp.asarray(True)), state)[0]

    def _plainly(self, q: Array, back: bool) -> Array:
        before, after = self.scales if back else self.scales[::-1]
        t = before * q.astype(before.dtype).reshape(before.shape)
        for axis, K in enumerate(self.plain):
            K = K.T if back else K
            t = jnp.moveaxis(jnp.tensordot(K, t, ((1,), (axis,)), precision=HIGHEST), 0, axis)
        return (after * t).ravel().astype(self.working)

    def _carefully(self, q: Array, back: bool) -> Array:
        tensors = self.stored if self.stored is not None else [self._tensor(stage) for stage in self.stages]
        return _through(tensors, q, self.shapes, back)

    def _tensor(self, stage: Stage) -> Float[Array, "lines n m"]:
        return jnp.exp(exponent(stage, self.epsilon).astype(self.working))


def matrices(pairs: Any) -> tuple[Float[Array, "n m"], ...]:
    """The costs along the axes of a problem whose cost is a `costs.Grid`."""
    return pairs.cost.along_axes(pairs.x, pairs.y)


def exponent(stage: Stage, epsilon: Array) -> Float[Array, "lines n m"]:
    """(left + right − C)/ε."""
    return (stage.left[:, :, None] + stage.right[:, None, :] - stage.C) / epsilon


def stages(matrices: tuple[Array, ...], f: Array, g: Array) -> list[Stage]:
    """All axes; −∞ in f or g is a point that is not there."""
    shape_x, shape_y = zip(*(C.shape for C in matrices), strict=True)
    height, found = g.reshape(shape_y), []
    for axis, C in enumerate(matrices):
        right = lines(height, axis)
        if axis == len(matrices) - 1:
            return [*found, Stage(C, lines(f.reshape(shape_x), axis), right)]
        top = jnp.max(right[:, None, :] - C, axis=2)
        found.append(Stage(C, -jnp.where(jnp.isfinite(top), top, 0), right))
        height = unlines(top, height.shape, axis)
    raise ValueError("a grid has at least one axis")


def lines(t: Array, axis: int) -> Float[Array, "lines m"]:
    """A tensor as its lines along one axis."""
    return jnp.moveaxis(t, axis, -1).reshape(-1, t.shape[axis])


def unlines(rows: Array, shape: tuple[int, ...], axis: int) -> Array:
    """The tensor of these lines, whose other axes are those of `shape`."""
    rest = (*shape[:axis], *shape[axis + 1 :])
    return jnp.moveaxis(rows.reshape(*rest, rows.shape[-1]), -1, axis)


def _through(tensors: list[Array], q: Array, shapes: Any, back: bool) -> Array:
    """T_d ⋯ T_1 q, or T_1ᵀ ⋯ T_dᵀ q."""
    order = range(len(tensors))
    t = q.reshape(shapes[0] if back else shapes[1])
    for axis in reversed(order) if back else order:
        along = lines(t, axis)
        T = tensors[axis]
        moved = jnp.sum(along[:, :, None] * T, axis=1) if back else jnp.sum(T * along[:, None, :], axis=2)
        t = unlines(moved, t.shape, axis)
    return t.ravel()


def soft_maximum(matrices: tuple[Array, ...], scores: Array, epsilon: Array, working: Any) -> Float[Array, "n"]:
    """log Σ_j exp(scores_j − C_ij/ε) for every i of the grid, in logarithms."""
    t = scores.reshape([C.shape[1] for C in matrices])
    for axis, C in enumerate(matrices):
        exponents = lines(t, axis)[:, None, :] - C / epsilon
        top = jnp.max(exponents, axis=2)
        held = jnp.where(jnp.isfinite(top), top, 0)
        total = jnp.sum(jnp.exp((exponents - held[..., None]).astype(working)), axis=2)
        t = unlines(held + jnp.log(total.astype(held.dtype)), t.shape, axis)
    return t.ravel()


Pair = tuple[Array, Array]
"""A float64 as two numbers of the input's type, high and low."""


def product(
    matrices: tuple[Array, ...], f: Pair, g: Pair, epsilon: Array, v: Float[Array, "..."], back: bool = False
) -> Float[Array, "..."]:
    """Σ_j exp((f_i + g_j − C_ij)/ε) v_j, or with `back` Σ_i v_i exp(…): exponents in float64, the rest in v's type.

    Differentiable to any order. The heights drop out of the product, so they are constants, kept as H/ε: exponents stay
    of order one where they count, and so does their derivative in ε. The tensors are made again on the way back.
    """
    shape_x, shape_y = zip(*(C.shape for C in matrices), strict=True)
    height: Pair = tuple(part.reshape(shape_y) for part in g)  # pyright: ignore[reportAssignmentType]
    staged = []
    tops = _tops(matrices, f, g)
    for axis, C in enumerate(matrices):
        right = tuple(lines(part, axis) for part in height)
        if axis == len(matrices) - 1:
            left = tuple(lines(part.reshape(shape_x), axis) for part in f)
        else:
            left = tuple(-part for part in tops[axis])
            height = tuple(unlines(part, height[0].shape, axis) for part in tops[axis])  # pyright: ignore
        staged.append((C, left, right))
    contract = jax.checkpoint(_contract, static_argnums=(5,))
    t = v.reshape(shape_x if back else shape_y)
    order = range(len(matrices))
    for axis in reversed(order) if back else order:
        t = unlines(contract(*staged[axis], epsilon, lines(t, axis), back), t.shape, axis)
    return t.ravel()


def _tops(matrices: tuple[Array, ...], f: Pair, g: Pair) -> list[Pair]:
    """The heights after each axis but the last, as lines along it."""
    return [] if len(matrices) == 1 else _made_tops(*jax.lax.stop_gradient((matrices, f, g)))


@_doubles.inside
def _made_tops(matrices: tuple[Array, ...], f: Pair, g: Pair) -> list[Pair]:
    wide = tuple(C.astype(jnp.float64) for C in matrices)
    whole_f, whole_g = (high.astype(jnp.float64) + low.astype(jnp.float64) for high, low in (f, g))
    tops = [-stage.left for stage in stages(wide, whole_f, whole_g)[:-1]]
    high = [top.astype(f[0].dtype) for top in tops]
    low = [(top - h.astype(top.dtype)).astype(h.dtype) for top, h in zip(tops, high, strict=True)]
    return list(zip(high, low, strict=True))


def _contract(C: Array, left: Pair, right: Pair, epsilon: Array, along: Array, back: bool) -> Array:
    T = jnp.exp(_precise_exponent(C, left, right, epsilon))
    return jnp.sum(along[:, :, None] * T, axis=1) if back else jnp.sum(T * along[:, None, :], axis=2)


@jax.custom_jvp
def _precise_exponent(C: Array, left: Pair, right: Pair, epsilon: Array) -> Float[Array, "lines n m"]:
    return _wide_exponent(C, left, right, epsilon)


@_doubles.inside
def _wide_exponent(C: Array, left: Pair, right: Pair, epsilon: Array) -> Array:
    on_left, on_right = (high.astype(jnp.float64) + low.astype(jnp.float64) for high, low in (left, right))
    exponents = exponent(Stage(C.astype(jnp.float64), on_left, on_right), epsilon.astype(jnp.float64))
    return jnp.minimum(exponents, LARGEST_EXPONENT).astype(C.dtype)


@_precise_exponent.defjvp
def _precise_exponent_jvp(primals, tangents):
    C_dot, left_dot, right_dot, epsilon_dot = tangents
    E, epsilon = _precise_exponent(*primals), primals[3]
    left, right = (high + low for high, low in (left_dot, right_dot))
    moved = left[:, :, None] + right[:, None, :] - C_dot
    return E, (moved - E * epsilon_dot) / epsilon
