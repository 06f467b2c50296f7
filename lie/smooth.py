"""Every removable singularity of haar, with all derivatives finite: the only file that guards a division.

Callers pass θ² rather than θ where a function is even in θ: it is entire in θ², so nothing singular is left to meet.
Conventions at the points where no derivative exists are choices, stated in each docstring; all of them give zero.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lie import elementwise

Axis = int | Sequence[int] | None

# Taylor polynomials of c_0, c_1 serve angles up to π/2 (the rest is turned there), the others up to just past π.
_SERIES_END = {0: 2.5, 1: 2.5}
_SERIES_END_ABOVE = 10.0


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def stumpff(order: int, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """c_k(x) = Σ_j (−x)^j / (2j + k)!, for x = θ² >= 0 and k = `order` >= 0.

    c_0 = cos θ, c_1 = sin θ/θ, c_2 = (1 − cos θ)/θ², c_3 = (θ − sin θ)/θ³, and c_k + x c_{k+2} = 1/k!. The family is
    closed under differentiation without a division, c_k' = (k c_{k+2} − c_{k+1})/2, so derivatives of every order are
    as exact as the values. Polynomials only, which XLA vectorises: the C library's cos and sin take four times as long.
    Relative error for θ <= π: <= 2 eps for k <= 6 (absolute for k = 0, 1, which have zeros); past π it grows as eps θ,
    as it must with θ² rounded. Source: Stumpff 1959, Himmelsmechanik I; the derivative follows term by term.
    """
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    value = _circular(order, wide) if order < 2 else _series_or_recursion(order, wide)
    return value.astype(x.dtype)


@stumpff.defjvp
def _stumpff_jvp(order, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    slope = -stumpff(order + 1, x)
    if order > 0:
        slope = slope + order * stumpff(order + 2, x)
    return stumpff(order, x), slope / 2 * x_dot


def _circular(order: int, x: Array) -> Array:
    """c_0 or c_1, beyond π/2 from the reduced angle."""
    reduced, sign, shrunk, _ = _reduce(x)
    value = polynomial(_stumpff_series(order, x.dtype.itemsize), reduced)
    return value * (sign if order == 0 else shrunk)


def _reduce(x: Array) -> tuple[Array, Array, Array, Array]:
    """r², s, s r/θ, 1/x of a reduced angle |r| <= π/2: cos θ = s cos r, sin θ/θ = (s r/θ) sin r/r; below π/2 r = θ.

    1/x is that of 1 below π/2. One root and one division: each is a kernel of its own to compile. (Both from one rsqrt
    would lose an ulp of θ.)
    """
    near = x < _SERIES_END[0]
    far = jnp.where(near, 1, x)
    theta = jnp.sqrt(far)
    inverse_theta = 1 / theta
    turns = jnp.round(theta * (1 / math.pi))
    bits = 2.0**9 if x.dtype.itemsize == 4 else 2.0**28  # so many that turns * coarse is exact for thousands of turns
    coarse = round(math.pi * bits) / bits
    r = (theta - turns * coarse) - turns * (math.pi - coarse + math.sin(math.pi))  # sin of the float π is what it lacks
    r = jnp.clip(r, -1.6, 1.6)  # where θ is so large that its rounding exceeds a turn, the value still lies in [−1, 1]
    sign = jnp.where(near, 1, 1 - 2 * (turns - 2 * jnp.floor(turns / 2)))
    shrunk = jnp.where(near, 1, sign * r * inverse_theta)
    return jnp.where(near, x, r * r), sign, shrunk, inverse_theta * inverse_theta


def _series_or_recursion(order: int, x: Array) -> Array:
    near = x < _SERIES_END_ABOVE
    series = polynomial(_stumpff_series(order, x.dtype.itemsize), jnp.where(near, x, 0))
    far = jnp.where(near, _SERIES_END_ABOVE, x)
    recursion = _circular(order % 2, far)
    for k in range(order % 2, order, 2):
        recursion = (1 / math.factorial(k) - recursion) / far
    return jnp.where(near, series, recursion)


def _stumpff_series(order: int, itemsize: int) -> tuple[float, ...]:
    return _taylor(
        lambda j: (-1) ** j / math.factorial(2 * j + order), _SERIES_END.get(order, _SERIES_END_ABOVE), itemsize
    )


def _taylor(coefficient: Callable[[int], float], end: float, itemsize: int) -> tuple[float, ...]:
    """Taylor coefficients until the next term at `end` falls below a fifth of an ulp of the one at 0."""
    negligible, kept = {4: 2.0**-26, 8: 2.0**-55}[itemsize] * abs(coefficient(0)), []
    while abs(term := coefficient(len(kept))) * end ** len(kept) >= 0.4 * negligible:
        kept.append(term)
    return tuple(kept)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def polynomial(coefficients: tuple[float, ...], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Σ_j coefficients[j] x^j, by Horner's rule; the derivative is again one polynomial, not twice the work."""
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


@polynomial.defjvp
def _polynomial_jvp(coefficients, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return polynomial(coefficients, x), polynomial(_slope(coefficients), x) * x_dot


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def polynomials(rows: tuple[tuple[float, ...], ...], x: Float[Array, "rows *shape"]) -> Float[Array, "rows *shape"]:
    """One `polynomial` for each row of x, all in one chain of operations: less code to compile."""
    length = max(len(row) for row in rows)
    table = np.array([(*row, *[0.0] * (length - len(row))) for row in rows], x.dtype)
    columns = [column.reshape(-1, *[1] * (x.ndim - 1)) for column in table.T]
    value = jnp.broadcast_to(columns[-1], x.shape)
    for column in columns[-2::-1]:
        value = value * x + column
    return value


@polynomials.defjvp
def _polynomials_jvp(rows, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return polynomials(rows, x), polynomials(tuple(_slope(row) for row in rows), x) * x_dot


def _slope(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(j * coefficient for j, coefficient in enumerate(coefficients))[1:] or (0.0,)


def cos(theta_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """cos θ as a function of θ²."""
    return stumpff(0, theta_squared)


def sinc(theta_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sin θ/θ as a function of θ²; 1 at 0."""
    return stumpff(1, theta_squared)


def cosinc(theta_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """(1 − cos θ)/θ² as a function of θ²; 1/2 at 0."""
    return stumpff(2, theta_squared)


def cotangent_coefficient(theta_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """k = (1 − (θ/2) cot(θ/2))/θ² as a function of θ², 0 <= θ < 2π; 1/12 at 0. The ω̂² coefficient of inverse Jacobians.

    Its Taylor series, Σ |B_2n|/(2n)! θ^(2n − 2), serves the half angle y = θ²/4; k(4y) = (k(y) + 1/(4 (1 − y k(y))))/4
    has no cancellation. Relative error <= 2 eps for θ <= π, derivatives likewise.
    """
    return cotangent_pair(theta_squared)[0]


@jax.custom_jvp
def cotangent_pair(theta_squared: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """(k, k') of `cotangent_coefficient` and its derivative by θ², evaluated together."""
    wide = theta_squared.astype(jnp.float32) if theta_squared.dtype.itemsize < 4 else theta_squared
    y = wide / 4
    series = _taylor(_cotangent_series, _SERIES_END_ABOVE, y.dtype.itemsize)
    k, slope = elementwise.stored(polynomials((series, _slope(series)), jnp.broadcast_to(y, (2, *y.shape))))
    tangent = 1 / (1 - y * k)
    value, derivative = (k + tangent / 4) / 4, (slope + (k + y * slope) * tangent * tangent / 4) / 16
    return value.astype(theta_squared.dtype), derivative.astype(theta_squared.dtype)


@cotangent_pair.defjvp
def _cotangent_pair_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    k, slope = cotangent_pair(x)
    y = x / 4
    series = _taylor(_cotangent_series, _SERIES_END_ABOVE, max(4, x.dtype.itemsize))
    a = polynomial(series, y)
    b, c = polynomial(_slope(series), y), polynomial(_slope(_slope(series)), y)
    d, d_slope = 1 - y * a, -(a + y * b)
    curvature = (c + ((2 * b + y * c) * d + 2 * d_slope * d_slope) / (4 * d * d * d)) / 64
    return (k, slope), (slope * x_dot, curvature * x_dot)


@cache
def _cotangent_series(j: int) -> float:
    """|B_2n|/(2n)! for n = j + 1, the coefficients of (1 − (θ/2) cot(θ/2))/θ²: 2 ζ(2n)/(2π)^(2n)."""
    known = {0: 1 / 12, 1: 1 / 720, 2: 1 / 30240}
    n = 2 * (j + 1)
    return known.get(j) or 2 * math.fsum(m**-n for m in range(1, 200)) / (2 * math.pi) ** n


def half_cotangent(theta_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """(θ/2) cot(θ/2) as a function of θ², 0 <= θ < 2π; 1 at 0. Absolute error <= 1 eps up to its zero at θ = π."""
    return 1 - theta_squared * cotangent_coefficient(theta_squared)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def stumpff_family(count: int, x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], ...]:
    """(c_0, ..., c_{count−1})(x) of `stumpff`, count >= 3, sharing one reduction of the angle: less code, less time.

    c_0, c_1, c_2 come from the half angle, w² − y s², w s, s²/2 with w = c_0(y), s = c_1(y), y = x/4.
    """
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    y, size, more = wide / 4, wide.dtype.itemsize, range(3, count)
    reduced, sign, shrunk, reciprocal = _reduce(y)
    near = wide < _SERIES_END_ABOVE
    rows = tuple(_stumpff_series(k, size) for k in (0, 1, *more))
    halved = np.array([[True], [True], *[[False] for _ in more]]).reshape(count - 1, *[1] * x.ndim)
    cosine, sine, *series = elementwise.stored(polynomials(rows, jnp.where(halved, reduced, jnp.where(near, wide, 0))))
    w, s = sign * cosine, shrunk * sine
    members = [w * w - y * s * s, w * s, s * s / 2]
    for k, value in zip(more, series, strict=True):
        members.append(jnp.where(near, value, (1 / math.factorial(k - 2) - members[k - 2]) * (reciprocal / 4)))
    return tuple(member.astype(x.dtype) for member in members)


@stumpff_family.defjvp
def _stumpff_family_jvp(count, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    c = stumpff_family(count + 2, x)
    slopes = [(k * c[k + 2] - c[k + 1]) / 2 for k in range(count)]
    return c[:count], tuple(slope * x_dot for slope in slopes)


@jax.custom_jvp
def arcsin_squared(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """arcsin(√y)² as a function of y, 0 <= y <= 0.8; y + y²/3 + ... at 0. All derivatives are exact there.

    The angle is halved twice, y -> y/(2 + 2√(1 − y)), then Σ_n (4y)^n/(2 n² C(2n, n)): positive terms only. Relative
    error <= 2 eps.
    """
    quarter, _ = _quarter_angle(y)
    return 16 * (quarter * polynomial(_arcsin_series(y.dtype.itemsize)[1:], quarter))


@arcsin_squared.defjvp
def _arcsin_squared_jvp(primals, tangents):
    (y,), (y_dot,) = primals, tangents
    quarter, cosines = _quarter_angle(y)
    slope = polynomial(_slope(_arcsin_series(y.dtype.itemsize)), quarter) / cosines
    return arcsin_squared(y), slope * y_dot


def _quarter_angle(y: Array) -> tuple[Array, Array]:
    """sin²(θ/4) and cos θ cos(θ/2) for y = sin² θ."""
    cosine = jnp.sqrt(1 - y)
    y = y / (2 * (1 + cosine))
    half = jnp.sqrt(1 - y)
    return y / (2 * (1 + half)), cosine * half


@cache
def _arcsin_series(itemsize: int) -> tuple[float, ...]:
    count = 17 if itemsize == 8 else 8
    return 0.0, *(4.0**n / (2 * n * n * math.comb(2 * n, n)) for n in range(1, count + 1))


def tanhc(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """tanh(z)/z as a function of x = z² >= 0; 1 at 0. Relative error <= 2 eps.

    Below 1 by Lambert's continued fraction 1/(1 + x/(3 + x/(5 + ...))), whose derivatives lose no digits.
    """
    inside = x < 1
    near = jnp.where(inside, x, 0)
    fraction = jnp.ones_like(x)
    for k in range(19 if x.dtype.itemsize == 8 else 11, 0, -2):
        fraction = k + near / fraction
    z = jnp.sqrt(jnp.where(inside, 1, x))
    return jnp.where(inside, 1 / fraction, jnp.tanh(z) / z)


def divide(
    numerator: Float[Array, "*shape"], denominator: Float[Array, "*#shape"], fallback: float = 0.0
) -> Float[Array, "*shape"]:
    """numerator / denominator, and `fallback` with zero derivatives where the denominator is exactly 0."""
    at_zero = denominator == 0
    return jnp.where(at_zero, fallback, numerator / jnp.where(at_zero, 1, denominator))


def norm(x: Float[Array, "*shape"], axis: Axis = -1, keepdims: bool = False) -> Float[Array, "..."]:
    """Euclidean norm; at x = 0 the value, gradient and Hessian are 0 (a choice: the subgradient of least norm).

    Scaled by the largest entry of each vector, so that it neither overflows nor underflows. Relative error <= 2 eps.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    usable = (largest > 0) & (largest < jnp.inf)
    scale = jnp.where(usable, largest, 1)
    scaled = x / scale
    squared = jnp.sum(scaled * scaled, axis=axis, keepdims=True)
    length = scale * sqrt(squared)
    return length if keepdims else jnp.squeeze(length, axis=axis)


def direction(
    x: Float[Array, "*batch n"], fallback: Float[Array, "*#batch n"], floor: Float[Array, "*#batch"] | float = 0.0
) -> Float[Array, "*batch n"]:
    """x/|x| over the last axis; the unit vector `fallback` where no entry of x exceeds `floor` in magnitude.

    At x = 0 the derivatives are those of `fallback`; below |x| = 4 sqrt(tiny), where 1/|x|² would overflow, they are 0
    by choice. Scaled by the largest entry, so that nothing overflows or underflows. Error <= 1.5 eps.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    steep = largest < 4 * float(jnp.finfo(x.dtype).tiny) ** 0.5
    absent = largest <= jnp.asarray(floor, x.dtype)[..., None]  # false for NaN, which thus comes out as NaN
    x = jnp.where(steep, jax.lax.stop_gradient(x), x)
    x = jnp.where(absent, fallback, x / jnp.where(absent, 1, largest))
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def angle_over_sine(sine_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """θ/sin θ for 0 <= θ <= π/3 as a function of h = sin²(θ/2) <= 1/4: Σ_k 4^k k!²/(2k+1)! h^k.

    One polynomial with positive terms for the whole range: no digits cancel, and derivatives meet no switch. Relative
    error <= 2 eps. Source: the series of arcsin(z)/sqrt(1 − z²) at z² = h, which is θ/sin θ after division by z.
    """
    bound = {2: 2.0**-14, 4: 2.0**-30, 8: 2.0**-60}[sine_squared.dtype.itemsize]
    coefficients = [1.0]
    while coefficients[-1] * 0.25 ** len(coefficients) > bound:
        k = len(coefficients)
        coefficients.append(coefficients[-1] * 2 * k / (2 * k + 1))
    total = jnp.zeros_like(sine_squared)
    for coefficient in reversed(coefficients):
        total = total * sine_squared + coefficient
    return total


def sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """√x for x >= 0; at x = 0 all derivatives are 0 by choice (they are infinite). NaN for x < 0."""
    at_zero = x == 0
    return jnp.where(at_zero, 0, jnp.sqrt(jnp.where(at_zero, 1, x)))


def power(x: Float[Array, "*shape"], exponent: float) -> Float[Array, "*shape"]:
    """x^exponent for x >= 0 and a fixed exponent > 0, by products and a root where 2 exponent is an integer.

    At x = 0 the value is 0, and so are, by choice, all derivatives of an exponent that is not an integer.
    """
    whole = int(exponent)
    if exponent == whole:
        return x**whole
    if 2 * exponent == 2 * whole + 1:
        return x**whole * sqrt(x) if whole else sqrt(x)
    at_zero = x == 0
    return jnp.where(at_zero, 0, jnp.where(at_zero, 1, x) ** exponent)


def angle(y: Float[Array, "*shape"], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """atan2(y, x) in (−π, π]; 0 with zero derivatives at the origin, where no angle exists."""
    at_origin = (x == 0) & (y == 0)
    return jnp.where(at_origin, 0, jnp.arctan2(jnp.where(at_origin, 0, y), jnp.where(at_origin, 1, x)))


def angle_ratio(w: Float[Array, "*shape"], v_squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """θ/|v| with tan(θ/2) = |v|/w, w >= 0: turns the vector part of a quaternion (w, v) into its rotation vector.

    Any length of the quaternion but 0 will do. Two half-angle steps leave u = tan(θ/8) <= tan(π/8); |v| cancels
    from 8 (arctan u / u) / (...): no switch, no singularity, and no arctan2, which takes twice the time. <= 2 eps.
    """
    wide = jnp.float32 if w.dtype.itemsize < 4 else w.dtype
    w, squared, narrow = w.astype(wide), v_squared.astype(wide), w.dtype
    first = divide(jnp.ones_like(w), w + sqrt(w * w + squared))
    quarter = squared * first * first  # tan²(θ/4) <= 1
    second = 1 / (1 + jnp.sqrt(1 + quarter))
    series = _taylor(lambda j: (-1) ** j / (2 * j + 1), 0.1716, w.dtype.itemsize)
    return (8 * polynomial(series, quarter * second * second) * first * second).astype(narrow)


def acos(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """arccos of x clipped to [−1, 1]; at and beyond ±1 the derivatives are 0 by choice (they are infinite).

    The value loses half the digits near ±1, as the function does: prefer `angle` of a sine and a cosine.
    """
    inside = jnp.abs(x) < 1
    return jnp.where(inside, jnp.arccos(jnp.where(inside, x, 0)), jnp.where(x > 0, 0, jnp.pi).astype(x.dtype))


def xlogx(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x log x for x >= 0; 0 at 0, with zero derivatives there by choice (the slope is −∞)."""
    at_zero = x == 0
    return jnp.where(at_zero, 0, x * jnp.log(jnp.where(at_zero, 1, x)))


def log(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log x for x >= 0; −∞ at 0, with zero derivatives there: the logarithm of an absent weight."""
    at_zero = x == 0
    return jnp.where(at_zero, -jnp.inf, jnp.log(jnp.where(at_zero, 1, x)))


def logsumexp(
    x: Float[Array, "*shape"], axis: Axis = -1, where: Bool[Array, "*#shape"] | None = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """log Σ exp(x) over the entries that `where` keeps; −∞ with zero gradient if none is kept or all are −∞."""
    kept = x if where is None else jnp.where(where, x, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(kept, axis=axis, keepdims=True, initial=-jnp.inf))
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    present = kept > -jnp.inf
    terms = jnp.where(present, jnp.exp(jnp.where(present, kept - shift, 0)), 0)
    total = log(jnp.sum(terms, axis=axis, keepdims=True)) + shift
    total = jnp.where(largest == jnp.inf, jnp.inf, total)
    return total if keepdims else jnp.squeeze(total, axis=axis)
