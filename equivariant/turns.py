"""Turns of features into the frame where an edge is the polar axis, and back (eSCN).

The turn is fixed up to a turn about y, and no choice is continuous on the sphere. No angle is ever differentiated:
the derivative of the turn is the shortest rotation that follows r (the horizontal lift, `torque`). Whatever does not
depend on the choice, and messages do not, has exact derivatives of every order so, at the poles too, where the
derivative through angles is wrong by 36 to 100 %.

Rows of aligned features are sorted by |m|, then sign of m, then degree. A pseudotensor is kept as its orders (−m, −m)
multiplied by (1, −1), m > 0: then odd paths, which take m to −m, act like even ones.

Sums run over columns of D_l, each a multiple of one order of x: elementwise over channels. As a batched product of
matrices, which does not see that D has blocks, the turn of a block of edges takes 4.5 times as long at degree 4 on one
core, 7 times at degree 2; block by block in such products 2.5 and 3 times.
"""

from functools import cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from equivariant import torque
from lie import elementwise, smooth, wigner

_HIGHEST = jax.lax.Precision.HIGHEST


class Turn(NamedTuple):
    """D (edges, Σ (2·l + 1)²), constant: its blocks one after the other, row by row; spin (edges, 2): 0 in value, by
    which D depends on r, turns about x and z of the frame of the edge.
    """

    D: Array
    spin: Array


def rows(max_degree: int, max_order: int) -> np.ndarray:
    """Positions l² + l + m of the aligned rows with |m| <= max_order, in their order."""
    signed = [(m, s) for m in range(max_order + 1) for s in ((1, -1) if m else (1,))]
    return np.array([l * l + l + s * m for m, s in signed for l in range(m, max_degree + 1)], np.int32)


def turn(max_degree: int, r: Float[Array, "edges 3"]) -> Turn:
    """The turn that takes r to the y axis, for degrees up to max_degree; the identity for r = 0.

    D(r) = D(R_x(β)) D(R_y(γ)), its entries products of cosines and sines that come from r without an angle.
    """
    middle, cosines, sines, (cos_g, sin_g, y, across) = _angles(max_degree, jax.lax.stop_gradient(r))
    plain, swapped, order = _tables(max_degree)
    D = jnp.matmul(middle, plain.astype(r.dtype), precision=_HIGHEST) * cosines[:, order]
    D = D + jnp.matmul(middle, swapped.astype(r.dtype), precision=_HIGHEST) * sines[:, order]
    zero = jnp.zeros_like(y)
    R = [[cos_g, zero, sin_g], [across * sin_g, y, -across * cos_g], [-y * sin_g, across, y * cos_g]]
    _, spin = _lifted(r, jnp.stack([jnp.stack(row, axis=-1) for row in R], axis=1))
    return Turn(jax.lax.optimization_barrier(D), spin)  # or XLA makes each entry of D anew for every channel


@jax.custom_jvp
def _lifted(r: Array, R: Array) -> tuple[Array, Array]:
    """R (edges, 3, 3) with R r/|r| = (0, 1, 0), and the spin of the frame it turns to."""
    return R, jnp.zeros_like(r[:, :2])


@_lifted.defjvp
def _lifted_jvp(primals, tangents):
    (r, R), (r_dot, _) = primals, tangents  # R moves with r alone
    R, spin = _lifted(r, R)
    moved = elementwise.matvec(R, smooth.divide(r_dot, smooth.norm(r, axis=-1)[:, None]))
    omega_x, omega_z, zero = -moved[:, 2], moved[:, 0], jnp.zeros_like(moved[:, 0])
    hat = [[zero, -omega_z, zero], [omega_z, zero, -omega_x], [zero, omega_x, zero]]
    R_dot = elementwise.matmul(jnp.stack([jnp.stack(row, axis=-1) for row in hat], axis=1), R)
    return (R, spin), (R_dot, jnp.stack([omega_x, omega_z], axis=1))


def into(
    max_order: int, turn: Turn, x: Float[Array, "edges parities orders channels"]
) -> Float[Array, "edges parities rows channels"]:
    """Features in the frame of their edge, rows up to |m| = max_order; D may hold more degrees than x has.

    Reverse differentiation only, to any order: by x, and through the spin by r.
    """
    return cast(Array, _into(max_order, *turn, x)) if x.shape[2] > 1 else x


def back(
    max_degree: int, max_order: int, turn: Turn, y: Float[Array, "edges parities rows channels"]
) -> Float[Array, "edges parities orders channels"]:
    """The transpose of `into`: aligned rows up to |m| = max_order back in the fixed frame."""
    return cast(Array, _back(max_degree, max_order, *turn, y)) if max_degree else y


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _into(max_order: int, D: Array, spin: Array, x: Array) -> Array:
    natural, places = [], _places(_degree(x), max_order, x.shape[1])
    for l in range(_degree(x) + 1):
        block = _block(D, l)[:, None, _kept(l, max_order)]
        natural.append(torque.total(block[..., j, None] * x[:, :, None, l * l + j] for j in range(2 * l + 1)))
    y = jnp.concatenate(natural, axis=2)
    if x.shape[1] == 1:
        return jax.lax.optimization_barrier(y[:, :, places[0].natural])
    y = jnp.stack([y[:, p, of.natural] * of.signs(y.dtype) for p, of in enumerate(places)], axis=1)
    return jax.lax.optimization_barrier(y)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _back(max_degree: int, max_order: int, D: Array, spin: Array, y: Array) -> Array:
    found = []
    for l in range(max_degree + 1):
        block, parts = _block(D, l)[:, _kept(l, max_order)], _natural(max_degree, max_order, l, y)
        found.append(torque.total(block[:, None, i, :, None] * part[:, :, None] for i, part in enumerate(parts)))
    return jnp.concatenate(found, axis=2)


def _into_backward(max_order, saved, y):
    """The spin turns D x by ω·G: its derivative is the torque of D x on y."""
    D, spin, x = saved
    degree = _degree(x)
    whole = into(min(max_order + 1, degree), Turn(D, spin), x)  # generators lead from |m| to |m| ± 1
    return None, _torque(degree, whole, y), back(degree, max_order, Turn(D, spin), y)


def _back_backward(max_degree, max_order, saved, x):
    D, spin, y = saved
    whole = into(min(max_order + 1, max_degree), Turn(D, spin), x)
    kept = len(rows(max_degree, max_order))
    return None, _torque(max_degree, whole, y), whole[:, :, :kept]


_into.defvjp(lambda max_order, *arrays: (_into(max_order, *arrays), arrays), _into_backward)
_back.defvjp(lambda max_degree, max_order, *arrays: (_back(max_degree, max_order, *arrays), arrays), _back_backward)


def _torque(max_degree: int, x: Array, y: Array) -> Array:
    generators = _generators(max_degree, x.shape[1])
    by_channel = torque.total(torque.torque(G, x[:, p], y[:, p]) for p, G in enumerate(generators))
    return torque.over_channels(by_channel)


class _Places(NamedTuple):
    """Of each aligned row: its position in features of all orders (outer ones left out), and ±1."""

    natural: np.ndarray
    sign: np.ndarray

    def signs(self, dtype: Any) -> np.ndarray:
        return self.sign[:, None].astype(dtype)


@cache
def _places(max_degree: int, max_order: int, parities: int) -> tuple[_Places, ...]:
    starts = np.cumsum([0] + [2 * min(l, max_order) + 1 for l in range(max_degree + 1)])
    found = []
    for p in range(parities):
        natural, sign = [], []
        for place in rows(max_degree, max_order):
            l = int(np.sqrt(place))
            m = place - l * l - l
            natural.append(starts[l] + min(l, max_order) + (-m if p else m))
            sign.append(-1 if p and m < 0 else 1)
        found.append(_Places(np.array(natural, np.int32), np.array(sign)))
    return tuple(found)


def _natural(max_degree: int, max_order: int, l: int, y: Array) -> list[Array]:
    """Out of aligned rows those of degree l, −m to m, each (edges, parities, channels)."""
    first = sum(2 * min(k, max_order) + 1 for k in range(l))
    found = []
    for i in range(first, first + 2 * min(l, max_order) + 1):
        if y.shape[1] == 1:
            (row,) = np.flatnonzero(_places(max_degree, max_order, 1)[0].natural == i)
            found.append(y[:, :, row])
            continue
        of_parity = []
        for p, places in enumerate(_places(max_degree, max_order, y.shape[1])):
            (row,) = np.flatnonzero(places.natural == i)
            of_parity.append(y[:, p, row] if places.sign[row] > 0 else -y[:, p, row])
        found.append(jnp.stack(of_parity, axis=1))
    return found


def _kept(l: int, max_order: int) -> slice:
    missing = max(0, l - max_order)
    return slice(missing, 2 * l + 1 - missing)


def _block(D: Array, l: int) -> Array:
    start, size = l * (4 * l * l - 1) // 3, 2 * l + 1
    return D[:, start : start + size * size].reshape(-1, size, size)


def _degree(x: Array) -> int:
    return int(np.sqrt(x.shape[2])) - 1


def _angles(max_degree: int, r: Array) -> tuple[Array, Array, Array, tuple[Array, ...]]:
    """(1, cos kβ, sin kβ); cos mγ, sin mγ, m = 0..max_degree; cos γ, sin γ, cos β, sin β: made in float64.

    An error of half an eps in an angle is k halves in its multiples: made in float32, they leave an error of
    equivariance of 6.6e-7 at max_degree 4 and 8.8e-7 at 8, so 4.0e-7 and 3.6e-7.
    """
    with jax.enable_x64(True):
        wide = r.astype(jnp.float64)
        length = smooth.norm(wide, axis=-1)
        x, y, z = (smooth.divide(wide[:, i], length, fallback=float(i == 1)) for i in range(3))
        across = smooth.norm(jnp.stack([x, z]), axis=0)
        cos_g, sin_g = smooth.divide(-z, across, fallback=1.0), smooth.divide(x, across)
        multiples = lambda c, s: tuple(a.T for a in wigner.multiples(c, s, max_degree))
        cosines, sines = multiples(y, across)
        middle = jnp.concatenate([cosines, sines[:, 1:]], axis=1)
        found = (middle, *multiples(cos_g, sin_g), (cos_g, sin_g, y, across))
        return jax.tree.map(lambda a: a.astype(r.dtype), found)


@cache
def _tables(max_degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What (1, cos kβ, sin kβ) make of D's entries, to be multiplied by cos mγ and by sin mγ; the m of each entry."""
    plain, swapped, orders = [], [], []
    for l in range(max_degree + 1):
        P, Q = wigner.middle_blocks(l)
        about_x = np.zeros((2 * max_degree + 1, 2 * l + 1, 2 * l + 1))
        about_x[: l + 1, l:, l:], about_x[: l + 1, :l, :l] = P[: l + 1], Q[: l + 1, :0:-1, :0:-1]
        beyond = slice(max_degree + 1, max_degree + 1 + l)
        about_x[beyond, l:, l:], about_x[beyond, :l, :l] = P[l + 1 :], Q[l + 1 :, :0:-1, :0:-1]
        m = np.arange(-l, l + 1)
        plain.append(about_x)
        swapped.append((-np.sign(m) * about_x)[..., ::-1])  # D(R_y(γ)) = cos mγ, −sin mγ across ±m
        orders.append(np.broadcast_to(np.abs(m), about_x.shape[1:]))
    plain, swapped = (np.concatenate([a.reshape(len(a), -1) for a in tables], axis=1) for tables in (plain, swapped))
    return plain, swapped, np.concatenate([a.ravel() for a in orders]).astype(np.int32)


@cache
def _generators(max_degree: int, parities: int) -> tuple[torque.Generators, ...]:
    """G_x and G_z on aligned rows, for each parity."""
    G = np.zeros((2, (max_degree + 1) ** 2, (max_degree + 1) ** 2))
    for l in range(max_degree + 1):
        G[:, l * l : (l + 1) ** 2, l * l : (l + 1) ** 2] = wigner.generators(l)[[0, 2]]
    return tuple(
        torque.generators(of.sign[:, None] * G[:, of.natural][:, :, of.natural] * of.sign)
        for of in _places(max_degree, max_degree, parities)
    )
