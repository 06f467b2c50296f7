"""Exact transport on the line and on the circle, for any weights: sorting, and on the circle a search for the cut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lie import check, smooth
from ot import _inputs, _validate

_SECTIONS = 76  # golden sections of the cut's range, 2, in float64: to 1e-15


def one_dimensional(
    x: Float[ArrayLike, "..."],
    y: Float[ArrayLike, "..."],
    a: Float[ArrayLike, "..."] | None = None,
    b: Float[ArrayLike, "..."] | None = None,
    *,
    p: float | int = 2,
) -> Float[Array, "..."]:
    """W_p^p of weighted points on the line, ∫_0^1 |F⁻¹(u) − G⁻¹(u)|^p du for p >= 1.

    x and a (*batch, n), y and b (*batch, m) -> (*batch); weights are uniform if None. Leading axes broadcast.
    Both sides are sorted and the quantile functions compared where either jumps. Outside jit the sort runs in NumPy,
    7 to 20 times faster than XLA's on a CPU. Weights are divided by their total. Differentiable in points and weights:
    exact where no two points of one side coincide, a subgradient else. Relative error <= 8 eps (n = m, uniform).
    Raises TypeError and ValueError that name the argument.
    """
    return _on_line(*_measures(x, y, a, b, p))


def circle(
    x: Float[ArrayLike, "..."],
    y: Float[ArrayLike, "..."],
    a: Float[ArrayLike, "..."] | None = None,
    b: Float[ArrayLike, "..."] | None = None,
    *,
    p: float | int = 2,
    period: float = 1.0,
) -> Float[Array, "..."]:
    """W_p^p of weighted points on a circle of circumference `period`, whose distance is the shorter arc; p >= 1.

    x and a (*batch, n), y and b (*batch, m) -> (*batch); any real coordinates, weights uniform if None.
    min over the cut θ of ∫_0^1 |F⁻¹(u) − G⁻¹(u + θ)|^p du on the lifted quantile functions. For p = 1 the best θ is
    the median of F − G weighted by length; else the integral is convex in θ and golden sections find its minimum, on
    the host where the values are at hand. Differentiable where the best cut is unique. Angles: period = 2π.
    Relative error: 1e-9 (float64) and 2e-5 (float32) against linear programs of 16 points.
    Raises TypeError and ValueError that name the argument.
    Source: Delon, Salomon and Sobolevski 2010, Fast transport optimization for Monge costs on the circle.
    """
    if not 0 < period < np.inf:
        raise ValueError(f"period: expected a finite number > 0, got {period}")
    return _on_circle(*_measures(x, y, a, b, p), period)


def _on_line(x: Any, y: Any, a: Any, b: Any, p: float) -> Array:
    if _inputs.concrete(x, y, a, b):
        return jnp.asarray(_on_host(*(None if v is None else np.asarray(v) for v in (x, y, a, b)), p=p), x.dtype)
    if a is None and b is None and x.shape[-1] == y.shape[-1]:
        x, y = (jnp.take_along_axis(v, _order(v), axis=-1) for v in (x, y))
        return jnp.mean(_power(x - y, p), axis=-1)
    (x, a), (y, b) = _at_order(x, _normalised(a, x)), _at_order(y, _normalised(b, y))
    return _integral(x, jnp.cumsum(a, axis=-1), y, jnp.cumsum(b, axis=-1), p)


def _on_circle(x: Any, y: Any, a: Any, b: Any, p: float, period: float) -> Array:
    wrap = lambda v: v / period - jax.lax.stop_gradient(jnp.floor(v / period))
    x, y = wrap(x), wrap(y)
    a, b = _normalised(a, x), _normalised(b, y)
    if p == 1:
        return period * _median_of_gaps(x, y, a, b)
    x, y = _at_order(x, a), _at_order(y, b)
    held = jax.lax.stop_gradient((*x, *y))
    cut = _best_cut_on_host(*held, p=p) if _inputs.concrete(held) else _best_cut(*held, p=p)
    return period**p * _cut_value(*x, *y, cut=_at_jumps(x[1], y[1], cut), p=p)


def _measures(x: Any, y: Any, a: Any, b: Any, p: float | int) -> tuple[Any, Any, Any, Any, float]:
    x, y = check.array("x", x, None), check.array("y", y, None)
    check.same_dtype(x=x, y=y)
    for name, points in (("x", x), ("y", y)):
        if points.shape[-1] == 0:
            raise ValueError(f"{name}: expected at least one point, got shape {points.shape}")
        if _inputs.concrete(points) and not np.isfinite(np.asarray(points)).all():
            raise ValueError(f"{name}: expected finite points, got NaN or infinity")
    if isinstance(p, bool) or not isinstance(p, int | float) or not 1 <= p < np.inf:
        raise ValueError(f"p: expected a finite number >= 1, got {p!r}")
    a = None if a is None else _validate.weights("a", a, x.shape[-1], x.dtype)
    b = None if b is None else _validate.weights("b", b, y.shape[-1], y.dtype)
    batch = np.broadcast_shapes(*(v.shape[:-1] for v in (x, y, a, b) if v is not None))
    dtype, size = x.dtype, max(x.shape[-1], y.shape[-1])
    x, y, a, b = (None if v is None else jnp.broadcast_to(v, (*batch, v.shape[-1])) for v in (x, y, a, b))
    if a is not None and b is not None and _inputs.concrete(a, b):
        totals = [np.asarray(w, np.float64).sum(axis=-1) for w in (a, b)]
        if not np.allclose(*totals, rtol=64 * float(jnp.finfo(dtype).eps) * size**0.5):
            raise ValueError(
                f"a and b: expected equal totals, got {np.ravel(totals[0])[0]} and {np.ravel(totals[1])[0]}"
            )
    return x, y, a, b, float(p)


def _normalised(weights: Array | None, points: Array) -> Array:
    if weights is None:
        return jnp.full_like(points, 1 / points.shape[-1])
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _order(x: Array) -> Array:
    """The sorting permutation, by NumPy where the values are at hand."""
    held = jax.lax.stop_gradient(x)
    if isinstance(held, Tracer):
        return jnp.argsort(held, axis=-1)
    return jnp.asarray(np.argsort(np.asarray(held), axis=-1), jnp.int32)


def _at_order(x: Array, a: Array) -> tuple[Array, Array]:
    order = _order(x)
    return jnp.take_along_axis(x, order, axis=-1), jnp.take_along_axis(a, order, axis=-1)


def _power(difference: Array, p: float) -> Array:
    return _size(difference) if p == 1 else smooth.power(difference * difference, p / 2)


def _size(x: Array) -> Array:
    """|x|, with derivative 0 at 0."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def _on_host(x: Any, y: Any, a: Any, b: Any, p: float) -> Any:
    """The same in NumPy, where no derivative is asked for: values are sorted, not indices."""
    power = lambda d: np.abs(d) if p == 1 else d * d if p == 2 else np.abs(d) ** p
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x, y.astype(np.float32) if y.dtype.itemsize < 4 else y
    if a is None and b is None and x.shape[-1] == y.shape[-1]:
        x, y = (np.sort(v, axis=-1) for v in wide)
        return np.mean(power(x - y), axis=-1)
    sides = []
    for v, weights in zip(wide, (a, b), strict=True):
        if weights is None:
            F = np.broadcast_to(np.arange(1, v.shape[-1] + 1) / v.shape[-1], v.shape)
            sides.append((np.sort(v, axis=-1), F))
        else:
            order = np.argsort(v, axis=-1)
            F = np.cumsum(np.take_along_axis(weights.astype(np.float64), order, axis=-1), axis=-1)
            sides.append((np.take_along_axis(v, order, axis=-1), F / F[..., -1:]))
    (x, F), (y, G) = sides
    return _integral_on_host(x, F, y, G, power)


def _integral_on_host(x: Any, F: Any, y: Any, G: Any, power: Any) -> Any:
    ends = np.concatenate([F, G], axis=-1)
    order = np.argsort(ends, axis=-1, kind="stable")  # two sorted runs, which this sort only has to merge
    ends = np.take_along_axis(ends, order, axis=-1)
    from_x = order < F.shape[-1]
    i = np.cumsum(from_x, axis=-1) - from_x
    j = np.arange(ends.shape[-1]) - i
    apart = np.take_along_axis(x, np.minimum(i, x.shape[-1] - 1), -1)
    apart = apart - np.take_along_axis(y, np.minimum(j, y.shape[-1] - 1), -1)
    return np.sum(np.diff(ends, prepend=0, axis=-1) * power(apart), axis=-1)


def _integral(x: Array, F: Array, y: Array, G: Array, p: float) -> Array:
    """∫_0^1 |F⁻¹ − G⁻¹|^p over the pieces between the jumps of both, F and G being the distribution at x and y."""
    ends = jnp.concatenate([F, G], axis=-1)
    order = _order(ends)
    ends = jnp.take_along_axis(ends, order, axis=-1)
    start = jnp.concatenate([jnp.zeros_like(ends[..., :1]), ends[..., :-1]], axis=-1)
    # Where piece k ends, as many jumps of F have passed as there are among the first k of all jumps.
    from_x = (order < F.shape[-1]).astype(jnp.int32)
    passed = jnp.cumsum(from_x, axis=-1, dtype=jnp.int32) - from_x
    rank = jnp.arange(ends.shape[-1], dtype=jnp.int32)
    i = jnp.minimum(passed, F.shape[-1] - 1)
    j = jnp.minimum(rank - passed, G.shape[-1] - 1)
    apart = jnp.take_along_axis(x, i, axis=-1) - jnp.take_along_axis(y, j, axis=-1)
    return jnp.sum((ends - start) * _power(apart, p), axis=-1)


def _median_of_gaps(x: Array, y: Array, a: Array, b: Array) -> Array:
    """min_θ ∫ |F − G − θ| over the circle: θ the median of the jumping function F − G."""
    at, signed = jnp.concatenate([x, y], axis=-1), jnp.concatenate([a, -b], axis=-1)
    at, signed = _at_order(at, signed)
    above = jnp.cumsum(signed, axis=-1)
    length = jnp.concatenate([jnp.diff(at, axis=-1), at[..., :1] + 1 - at[..., -1:]], axis=-1)
    heights, widths = _at_order(jax.lax.stop_gradient(above), jax.lax.stop_gradient(length))
    half = jnp.argmax(jnp.cumsum(widths, axis=-1) >= 0.5, axis=-1, keepdims=True)
    median = jnp.take_along_axis(heights, half, axis=-1)
    return jnp.sum(length * _size(above - median), axis=-1)


def _lifted(x: Array, a: Array) -> tuple[Array, Array]:
    """Quantiles of three turns: the points at x − 1, x, x + 1 and the distribution function at each, from −1 to 2."""
    F = jnp.cumsum(a, axis=-1)
    return jnp.concatenate([x - 1, x, x + 1], axis=-1), jnp.concatenate([F - 1, F, F + 1], axis=-1)


def _cut_value(x: Array, a: Array, y: Array, b: Array, cut: Array, p: float) -> Array:
    """∫_0^1 |F⁻¹(u) − G⁻¹(u + θ)|^p du, −1 <= θ <= 1."""
    F = jnp.cumsum(a, axis=-1)
    lifted, G = _lifted(y, b)
    G = jnp.clip(G - cut[..., None], 0, 1)  # jumps outside the turn have no width
    return _integral(x, F, lifted, G, p)


def _at_jumps(a: Array, b: Array, cut: Array) -> Array:
    """The cut as the difference of a jump of G and one of F, the closest such pair: the integral is linear in between.

    So written the two jumps stay together when the weights change, as they do at the best cut.
    """
    F, (_, G) = jnp.cumsum(a, axis=-1), _lifted(b, b)
    wanted = jax.lax.stop_gradient(F) + cut[..., None]
    search = jnp.vectorize(jnp.searchsorted, signature="(m),(n)->(n)")
    above = jnp.clip(search(jax.lax.stop_gradient(G), wanted), 1, G.shape[-1] - 1)
    upper, lower = (jnp.take_along_axis(G, at, axis=-1) for at in (above, above - 1))
    closest = jnp.where(jax.lax.stop_gradient(upper + lower) <= 2 * wanted, upper, lower)
    best = jnp.argmin(jnp.abs(jax.lax.stop_gradient(closest) - wanted), axis=-1, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(closest - F, best, axis=-1), axis=-1)


def _best_cut(x: Array, a: Array, y: Array, b: Array, p: float) -> Array:
    """The minimiser of the convex, piecewise smooth integral by golden sections."""
    value = lambda cut: _cut_value(x, a, y, b, cut, p)
    ratio = (5**0.5 - 1) / 2
    low, high = -jnp.ones_like(x[..., 0]), jnp.ones_like(x[..., 0])
    inner = high - ratio * (high - low), low + ratio * (high - low)

    def narrow(_, state):
        low, high, left, right, at_left, at_right = state
        go_left = at_left <= at_right
        low, high = jnp.where(go_left, low, left), jnp.where(go_left, right, high)
        new = jnp.where(go_left, high - ratio * (high - low), low + ratio * (high - low))
        at_new = value(new)
        left, right = jnp.where(go_left, new, right), jnp.where(go_left, left, new)
        at_left, at_right = jnp.where(go_left, at_new, at_right), jnp.where(go_left, at_left, at_new)
        return low, high, left, right, at_left, at_right

    steps = _SECTIONS // 2 if x.dtype.itemsize < 8 else _SECTIONS
    final = jax.lax.fori_loop(0, steps, narrow, (low, high, *inner, value(inner[0]), value(inner[1])))
    return jnp.where(final[4] <= final[5], final[2], final[3])


def _best_cut_on_host(x: Array, a: Array, y: Array, b: Array, p: float) -> Array:
    """The same in NumPy and float64."""
    dtype = x.dtype
    x, a, y, b = (np.asarray(v, np.float64) for v in (x, a, y, b))  # pyright: ignore
    F, G = np.cumsum(a, axis=-1), np.cumsum(b, axis=-1)
    F, G = F / F[..., -1:], G / G[..., -1:]
    lifted, G = np.concatenate([y - 1, y, y + 1], axis=-1), np.concatenate([G - 1, G, G + 1], axis=-1)
    power = lambda d: d * d if p == 2 else np.abs(d) ** p
    value = lambda cut: _integral_on_host(x, F, lifted, np.clip(G - cut[..., None], 0, 1), power)
    ratio = (5**0.5 - 1) / 2
    low, high = -np.ones(x.shape[:-1]), np.ones(x.shape[:-1])
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(_SECTIONS):
        go_left = at_left <= at_right
        low, high = np.where(go_left, low, left), np.where(go_left, right, high)
        new = np.where(go_left, high - ratio * (high - low), low + ratio * (high - low))
        at_new = value(new)
        left, right = np.where(go_left, new, right), np.where(go_left, left, new)
        at_left, at_right = np.where(go_left, at_new, at_right), np.where(go_left, at_left, at_new)
    return jnp.asarray(np.where(at_left <= at_right, left, right), dtype)
