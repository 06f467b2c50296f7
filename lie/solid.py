"""Solid harmonics: the harmonic polynomials r^l Y_lm, each a product over its nodal planes and cones.

With the polar axis y and ρ² = x² + z², a real harmonic vanishes on planes through the axis and on cones about it, so it
is a product of at most three of x, y, z and of quadratic factors a x² + b y² + c z²:
    cone at the polar angle β:  sin²β y² − cos²β ρ²;    pair of planes at azimuth ±φ:  sin²φ z² − cos²φ x².
Every factor is exact to a few eps of its own terms, also at the poles, where a recursion in y and r² amplifies the
rounding of r² by l²; and one fused loop evaluates all orders, along the processor's lanes.
"""

import math
from decimal import Decimal, localcontext
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from lie import elementwise, smooth


def values(x: Float[Array, "batch 3"], max_degree: int, normalize: bool) -> Float[Array, "batch orders"]:
    """All harmonics up to `max_degree` at the rows of x, or at x/|x| if `normalize`: rows of (max_degree + 1)²."""
    return _compiled_values(max_degree, normalize, x)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _values(max_degree: int, normalize: bool, x: Array) -> Array:
    u = _direction(x) if normalize else x
    x, y, z = (u[:, i : i + 1] for i in range(3))
    y_free, y_slope, free, x_slope, z_slope, xz_slope = (row.astype(u.dtype) for row in _linear_factors(max_degree))
    value = (y_free + y_slope * y) * (free + x_slope * x + z_slope * z + xz_slope * (x * z))
    for row in _quadratic_factors(max_degree):
        a, b, c, d = row.astype(u.dtype)
        value = value * (a * (x * x) + b * (y * y) + c * (z * z) + d)
    if normalize:
        # a unit vector in floating point is too long by 1 + excess/2, and degree l by the l-th power of that
        half_degrees = np.repeat(np.arange(max_degree + 1) / 2, 2 * np.arange(max_degree + 1) + 1)
        value = value * (1 - half_degrees.astype(u.dtype) * _excess(u))
    return value


@_values.defjvp
def _values_jvp(max_degree, normalize, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    value = _values(max_degree, normalize, x)
    u_dot = jax.jvp(_direction, (x,), (x_dot,))[1] if normalize else x_dot
    return value, _third_p.bind(u_dot, value, missing="upper", max_degree=max_degree)


_compiled_values = jax.jit(_values, static_argnums=(0, 1))  # outside jit: one compilation, not one per operation


def _direction(x: Array) -> Array:
    """x/|x| along the last axis; 0 with zero derivatives at 0."""
    pole = jnp.array([0, 1, 0], x.dtype)  # never seen: it keeps the division finite where x = 0
    return jnp.where(jnp.any(x != 0, axis=-1, keepdims=True), smooth.direction(x, pole), 0)


def _excess(u: Array) -> Array:
    """|u|² − 1 for a rounded unit vector, to a fraction of an ulp: squares of half-length heads are exact; 0 at 0."""
    head = jax.lax.reduce_precision(u, *_HALF_LENGTH[u.dtype.itemsize])
    squares, rest = head * head, (u - head) * (u + head)
    excess = ((squares[:, :1] - 1) + squares[:, 1:2] + squares[:, 2:]) + (rest[:, :1] + rest[:, 1:2] + rest[:, 2:])
    return jax.lax.stop_gradient(jnp.where(excess > -0.5, excess, 0))


_HALF_LENGTH = {4: (8, 11), 8: (11, 25)}  # exponent and mantissa bits of a head whose square is exact, by item size


def _third(missing: str, first: Array, second: Array, max_degree: int) -> Array:
    """From two of lower (batch, orders), direction (batch, 3), upper (batch, orders), the cofactor of the third in
    Σ size · upper[k] direction[axis] lower[j], the derivative of harmonics in a direction paired with a cotangent.
    """
    sides = [side for side in _SIDES if side != missing]
    pair = {side: array.T for side, array in zip(sides, (first, second), strict=True)}
    # Products with one factor in common are summed before they meet it: at degree 8 a third of the time, for the loop
    # over rows then has two thirds of the multiplications and fits the registers. Measured and slower: one matrix
    # product with the table of coefficients (4 to 13 times), tiles of 16 rows (2 times), a loop for each axis (equal).
    shared, inner = ("upper", "lower") if missing == "direction" else ("direction", (set(sides) - {"direction"}).pop())
    columns = [{} for _ in range(3 if missing == "direction" else (max_degree + 1) ** 2)]
    for size, places in _slopes(max_degree):
        columns[places[missing]].setdefault(places[shared], []).append(size * pair[inner][places[inner]])
    zero = jnp.zeros_like(first[:, 0])
    cofactor = jnp.stack(
        [
            _sum([pair[shared][place] * _sum(terms) for place, terms in groups.items()]) if groups else zero
            for groups in columns
        ],
        axis=-1,
    )
    return elementwise.stored(cofactor) if missing == "direction" else cofactor  # else evaluated for every consumer


def _sum(terms: list[Array]) -> Array:
    """Pairwise: short chains of additions, which the processor overlaps."""
    half = len(terms) // 2
    return terms[0] if half == 0 else _sum(terms[:half]) + _sum(terms[half:])


_SIDES = ("direction", "lower", "upper")


def _batch(operands, axes, *, missing, max_degree):
    size = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    rows = [
        jnp.broadcast_to(operand, (size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    flat = [row.reshape(-1, row.shape[-1]) for row in rows]
    result = _third_p.bind(*flat, missing=missing, max_degree=max_degree)
    return result.reshape(*rows[0].shape[:2], -1), 0


def _transposed(cotangent, operand, place, missing, max_degree):
    sides = [side for side in _SIDES if side != missing]
    known = {missing: cotangent, sides[1 - place]: operand}
    ordered = (known[side] for side in _SIDES if side in known)
    return _third_p.bind(*ordered, missing=sides[place], max_degree=max_degree)


def _first_transposed(cotangent, _, second, *, missing, max_degree):
    return _transposed(cotangent, second, 0, missing, max_degree)


def _second_transposed(cotangent, first, _, *, missing, max_degree):
    return _transposed(cotangent, first, 1, missing, max_degree)


def _abstract(first, second, *, missing, max_degree):
    return first.update(shape=(first.shape[0], 3 if missing == "direction" else (max_degree + 1) ** 2))


# A primitive, because the transpose that JAX derives of a stack of columns reads a whole array for every column, which
# takes ten times as long as one loop over the rows. The form is linear in each side, so the three results suffice.
_third_p = Primitive("harmonic_slopes")
_third_p.def_impl(lambda *pair, **parameters: _compiled_third(parameters["missing"], *pair, parameters["max_degree"]))
_third_p.def_abstract_eval(_abstract)
mlir.register_lowering(
    _third_p,
    mlir.lower_fun(
        lambda first, second, *, missing, max_degree: _third(missing, first, second, max_degree), multiple_results=False
    ),
)
batching.primitive_batchers[_third_p] = _batch
ad.defbilinear(_third_p, _first_transposed, _second_transposed)
_compiled_third = jax.jit(_third, static_argnums=(0, 3))


def _norm(l: int, m: int) -> float:
    """From r^l P_l^m(y/r) (no Condon-Shortley sign) to "component" normalisation: mean square 1 on the sphere."""
    return math.sqrt((2 * l + 1) * (1 if m == 0 else 2) * (math.factorial(l - m) / math.factorial(l + m)))


@cache
def _linear_factors(max_degree: int) -> np.ndarray:
    """Rows p, q, r, s, t, w of (p + q y) (r + s x + t z + w x z), over the orders of all degrees."""
    rows = np.zeros((6, (max_degree + 1) ** 2))
    for l in range(max_degree + 1):
        for m in range(-l, l + 1):
            column, sine, odd = l * l + l + m, m < 0, abs(m) % 2
            rows[(l - m) % 2, column] = _quadratics(l, m)[0]
            rows[2 + sine + 2 * (odd != sine), column] = 1
    return rows


@cache
def _quadratic_factors(max_degree: int) -> np.ndarray:
    """(factors, 4, orders): a, b, c, d of a x² + b y² + c z² + d; 1 where an order has fewer than max_degree // 2."""
    table = np.zeros((max_degree // 2, 4, (max_degree + 1) ** 2))
    table[:, 3] = 1
    for l in range(max_degree + 1):
        for m in range(-l, l + 1):
            for i, factor in enumerate(_quadratics(l, m)[1]):
                table[i, :, l * l + l + m] = [*factor, 0]
    return table


@cache
def _quadratics(l: int, m: int) -> tuple[float, list[tuple[float, float, float]]]:
    """Scale, and (a, b, c) of the quadratic factors: cones, then pairs of planes.

    c is a power of two, so that one rounding less is made, and such that all factors are of about the same size.
    """
    order = abs(m)
    cones = _cones(l, order)
    pole = math.factorial(l + order) / (2**order * math.factorial(order) * math.factorial(l - order))
    scale = _norm(l, order) * pole * (order if m < 0 else 1)  # the value at y = 1 of F_l^m times that of c_m or s_m/x
    planes = _planes(order, m < 0)
    scale /= math.prod(s for _, s in cones + planes)
    even_share = scale ** (1 / max(1, len(cones + planes)))
    factors = []
    for c, s in cones:
        power = 2.0 ** round(math.log2(even_share * c))
        scale *= c / power
        factors.append((-power, power * (s / c), -power))
    for c, s in planes:
        power = 2.0 ** round(math.log2(even_share * s))
        scale *= s / power
        factors.append((-power * (c / s), 0.0, power))
    return scale, factors


def _cones(l: int, m: int) -> list[tuple[float, float]]:
    """cos²β, sin²β of the zeros of P_l^m, both to full precision, from eigenvalues as a start."""
    k = np.arange(1, l - m)
    side = np.sqrt(k * (k + 2 * m) / ((2 * k + 2 * m + 1) * (2 * k + 2 * m - 1)))
    starts = np.linalg.eigvalsh(np.diag(side, 1) + np.diag(side, -1))[(l - m + 1) // 2 :] if l > m + 1 else []
    weights = [
        (-1) ** j * math.comb(l, j) * math.comb(2 * l - 2 * j, l) * math.perm(l - 2 * j, m)
        for j in range((l - m) // 2 + 1)
    ]
    return [(float(t), float(1 - t)) for t in _zeros(weights, [start**2 for start in starts])]


def _planes(m: int, sine: bool) -> list[tuple[float, float]]:
    """cos²φ, sin²φ of the zeros of cos mφ, or of sin mφ / sin φ, in 0 < φ < π/2: from a polynomial in cot²φ."""
    angles = [(2 * i + 1 + sine) * math.pi / (2 * m) for i in range((m - sine) // 2)]
    weights = [(-1) ** j * math.comb(m, 2 * j + sine) for j in range((m - sine) // 2 + 1)]
    zeros = _zeros(weights, [math.tan(angle) ** -2 for angle in angles])
    return [(float(t / (1 + t)), float(1 / (1 + t))) for t in zeros]


def _zeros(weights: list[int], starts: list[float]) -> list[Decimal]:
    """Zeros of a polynomial, the highest power first, by Newton's iteration in 50 digits."""
    zeros = []
    with localcontext(prec=50):
        for start in starts:
            t = Decimal(float(start))
            for _ in range(3):
                value, slope = Decimal(0), Decimal(0)
                for weight in weights:
                    value, slope = value * t + weight, slope * t + value
                t -= value / slope
            zeros.append(t)
    return zeros


@cache
def _gradient(l: int, m: int) -> list[tuple[int, list[tuple[int, float]]]]:
    """∂x, ∂y, ∂z of R_lm: pairs of axis and [(order, coefficient), ...] in degree l − 1.

    From (∂z + i∂x) R^m = −R^{m+1}, (∂z − i∂x) R^m = (l + m)(l + m − 1) R^{m−1}, ∂y R^m = (l + m) R^m, unnormalised.
    """
    order, sign = abs(m), 1 if m >= 0 else -1
    slopes = {0: [], 1: [], 2: []}
    if order < l:
        slopes[1].append((m, (l + order) * _norm(l, order) / _norm(l - 1, order)))
    if order + 1 < l:
        size = (1 if m == 0 else 0.5) * _norm(l, order) / _norm(l - 1, order + 1)
        slopes[2].append((sign * (order + 1), -size))
        slopes[0].append((-sign * (order + 1), -sign * size))
    if order > 0:
        size = 0.5 * (l + order) * (l + order - 1) * _norm(l, order) / _norm(l - 1, order - 1)
        if m > 0 or order > 1:
            slopes[2].append((sign * (order - 1), size))
        if m < 0 or order > 1:
            slopes[0].append((-sign * (order - 1), -sign * size))
    return [(axis, row) for axis, row in slopes.items() if row]


@cache
def _slopes(max_degree: int) -> list[tuple[float, dict[str, int]]]:
    """All coefficients with their axis, order of the lower and order of the upper degree."""
    return [
        (size, {"direction": axis, "lower": (l - 1) ** 2 + l - 1 + order, "upper": l * l + l + m})
        for l in range(1, max_degree + 1)
        for m in range(-l, l + 1)
        for axis, row in _gradient(l, m)
        for order, size in row
    ]
