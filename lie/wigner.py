"""Representations of O(3): D_l(R) from the rotation itself, its generators, Clebsch-Gordan coefficients.

The basis is e3nn's: orders m = −l..l about the polar axis y, D_1(R) = R in xyz order, determinant −1 acting as
D_l(−R) = (−1)^l D_l(R).
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lie import check, elementwise, smooth

_HIGHEST = jax.lax.Precision.HIGHEST


def d(R: Float[ArrayLike, "*batch 3 3"], degree: int) -> Float[Array, "*batch orders orders"]:
    """D_l(R), (2l + 1) x (2l + 1), with Y_l(R x) = D_l(R) Y_l(x) and D_l(Q R) = D_l(Q) D_l(R); det R = ±1.

    R is resolved into turns about y, x and y by three Givens rotations: cosines and sines, never an angle, and whatever
    the first turn is at its singularity the last one completes R. With P, Q the two blocks of the middle turn, a
    polynomial in its cosine and sine, D is put together elementwise.

    Derivatives are those of the homomorphism, dD = D Σ_k vee(RᵀdR)_k G_k: exact to every order at every rotation. As a
    function of nine free entries that is the gradient tangent to O(3): components of dR that leave the group count 0.

    Homomorphism max |D(Q)D(R) − D(QR)| over 256 random pairs, float32: 3.6e-7 (l = 2), 1.0e-6 (6), 1.4e-6 (10),
    1.6e-6 (12). 4 to 5 times the speed of e3nn-jax at l = 6 and 10 (1e4 matrices, CPU), gradient included.
    Raises ValueError for a negative degree and, under HAAR_CHECK=1, for R that is not orthogonal.
    """
    return _representation(R, (check.degree("degree", degree),))[0]


def d_all(R: Float[ArrayLike, "*batch 3 3"], max_degree: int) -> Float[Array, "*batch orders orders"]:
    """The block-diagonal matrix of D_0(R), ..., D_L(R), L = `max_degree`: it acts on all (L + 1)² orders of features.

    Accuracy and derivatives as `d`; the phases are shared between the degrees.
    """
    blocks = _representation(R, tuple(range(check.degree("max_degree", max_degree) + 1)))
    size = (max_degree + 1) ** 2
    matrix = jnp.zeros((*blocks[0].shape[:-2], size, size), blocks[0].dtype)
    for l, block in enumerate(blocks):
        matrix = matrix.at[..., l * l : (l + 1) ** 2, l * l : (l + 1) ** 2].set(block)
    return matrix


def generators(degree: int) -> np.ndarray:
    """G_x, G_y, G_z of degree l as float64, (3, 2l + 1, 2l + 1): D_l(exp(ω̂)) = exp(Σ_k ω_k G_k), [G_x, G_y] = G_z."""
    return _generators(check.degree("degree", degree)).copy()


def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """C with D_l1 ⊗ D_l2 → D_l3, float64 (2·l1 + 1, 2·l2 + 1, 2·l3 + 1); Frobenius norm 1, zero outside the triangle.

    Invariant: Σ D_l1[i, a] D_l2[j, b] C[a, b, c] = Σ_k C[i, j, k] D_l3[k, c]. The values are e3nn-jax's, asked for at
    first use; they violate invariance by <= 4e-16 to l = 8, 2e-14 at l = 10 and 1.2e-12 at l = 12.
    """
    return _clebsch_gordan(check.degree("l1", l1), check.degree("l2", l2), check.degree("l3", l3)).copy()


def middle_blocks(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """P, Q (2l + 1, l + 1, l + 1) in float64: Σ_t T_t P_t and Σ_t T_t Q_t are the turn by β about x on the orders >= 0
    and on the orders <= 0 taken by |m| (row and column 0 of Q are 0), with T = (1, cos kβ, sin kβ), k = 1..l.
    """
    spectrum = _turn_about_x(degree)
    P, Q = spectrum[:, degree:, degree:], np.zeros((2 * degree + 1, degree + 1, degree + 1))
    Q[:, 1:, 1:] = spectrum[:, :degree, :degree][:, ::-1, ::-1]
    return P, Q


@cache
def _generators(degree: int) -> np.ndarray:
    size = 2 * degree + 1
    about_x, about_y = np.zeros((size, size)), np.zeros((size, size))
    for m in range(-degree, degree + 1):
        about_y[degree + m, degree - m] = -m
    for m in range(degree):
        step = np.sqrt(degree * (degree + 1) - m * (m + 1)) / 2 if m else np.sqrt(degree * (degree + 1) / 2)
        about_x[degree + m + 1, degree + m], about_x[degree + m, degree + m + 1] = step, -step
        if m:  # the sines couple among themselves as the cosines do
            about_x[degree - m - 1, degree - m], about_x[degree - m, degree - m - 1] = step, -step
    return np.stack([about_x, about_y, about_x @ about_y - about_y @ about_x])


@cache
def _clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    import e3nn_jax  # here, not above: importing lie must not pay for it

    values = np.asarray(e3nn_jax.clebsch_gordan(l1, l2, l3), np.float64)
    return values / np.linalg.norm(values)


@cache
def _turn_about_x(degree: int) -> np.ndarray:
    """S (2l + 1, 2l + 1, 2l + 1) with exp(β G_x) = S_0 + Σ_k cos(kβ) S_k + sin(kβ) S_{l+k}, in float64.

    The spectrum of G_x is known, ik with |k| <= l, so only its projectors are computed: error a few eps.
    """
    size = 2 * degree + 1
    eigenvalues, vectors = np.linalg.eigh(1j * _generators(degree)[0])
    spectrum = np.zeros((size, size, size))
    for k in range(degree + 1):
        vector = vectors[:, np.rint(eigenvalues) == k]
        projector = vector @ vector.conj().T
        spectrum[k] = np.real(projector) * (1 if k == 0 else 2)
        if k > 0:
            spectrum[degree + k] = 2 * np.imag(projector)
    return spectrum


def _representation(R: ArrayLike, degrees: tuple[int, ...]) -> tuple[Array, ...]:
    R = check.array("R", R, 3, 3)
    proper = _proper(R)
    check.rotation("R", proper)
    batch, wide = R.shape[:-2], R.astype(jnp.float32) if R.dtype.itemsize < 4 else R
    blocks = _compiled_blocks(degrees, wide.reshape(-1, 3, 3))
    return tuple(block.reshape(*batch, *block.shape[1:]).astype(R.dtype) for block in blocks)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _blocks(degrees: tuple[int, ...], R: Float[Array, "batch 3 3"]) -> tuple[Array, ...]:
    (alpha, beta, gamma), top = _givens(_proper(R)), max(degrees)
    (a, b), (g, h), middle = multiples(*alpha, top), multiples(*gamma, top), multiples(*beta, top)
    sign = _determinant_sign(R)
    return tuple((sign**l if l % 2 else 1) * _block(l, (a, b), middle, (g, h)).transpose(2, 0, 1) for l in degrees)


@_blocks.defjvp
def _blocks_jvp(degrees, primals, tangents):
    (R,), (R_dot,) = primals, tangents
    blocks = _blocks(degrees, R)
    body = elementwise.matmul(elementwise.transpose(R), R_dot)
    omega = jnp.stack([body[:, i, j] - body[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=-1) / 2
    slopes = []
    for l, block in zip(degrees, blocks, strict=True):
        basis = generators(l).astype(R.dtype)
        direction = sum(omega[:, k, None, None] * basis[k] for k in range(3))
        slopes.append(jnp.matmul(block, direction, precision=_HIGHEST))
    return blocks, tuple(slopes)


_compiled_blocks = jax.jit(_blocks, static_argnums=0)  # outside jit: one compilation, not one per operation


def _block(degree: int, first: Any, middle: Any, last: Any) -> Array:
    """D_l, batch last: there the processor's lanes lie, and every slice over orders is a contiguous piece."""
    size, half = 2 * degree + 1, degree + 1
    (a, b), (c, s), (g, h) = first, middle, last
    table = np.stack(middle_blocks(degree)).transpose(0, 2, 3, 1).reshape(-1, size).astype(c.dtype)
    turn = jnp.concatenate([c[:half], s[1:half]])
    P, Q = jnp.matmul(table, turn, precision=_HIGHEST).reshape(2, half, half, -1)
    a, b, g, h = a[:half, None], b[:half, None], g[None, :half], h[None, :half]
    aP, bP, aQ, bQ = a * P, b * P, a * Q, b * Q
    cosine_cosine, cosine_sine = aP * g - bQ * h, -(aP * h) - bQ * g
    sine_cosine, sine_sine = bP * g + aQ * h, aQ * g - bP * h
    upper = jnp.concatenate([sine_sine[:0:-1, :0:-1], sine_cosine[:0:-1]], axis=1)
    lower = jnp.concatenate([cosine_sine[:, :0:-1], cosine_cosine], axis=1)
    return jnp.concatenate([upper, lower])


def _givens(R: Array) -> tuple[tuple[Array, Array], ...]:
    """(cos, sin) of α, β, γ with R = R_y(α) R_x(β) R_y(γ), each pair normalised; det R = +1, (batch, 3, 3)."""
    pair = jnp.stack([R[:, 2, 1], R[:, 0, 1]])
    length = smooth.norm(pair, axis=0)
    cos_a, sin_a = smooth.divide(pair[0], length, fallback=1.0), smooth.divide(pair[1], length)
    cos_b, sin_b = R[:, 1, 1], sin_a * R[:, 0, 1] + cos_a * R[:, 2, 1]
    cos_g, sin_g = cos_a * R[:, 0, 0] - sin_a * R[:, 2, 0], cos_a * R[:, 0, 2] - sin_a * R[:, 2, 2]
    shrink_b, shrink_g = (jax.lax.rsqrt(c * c + s * s) for c, s in ((cos_b, sin_b), (cos_g, sin_g)))  # of about 1
    return (cos_a, sin_a), (cos_b * shrink_b, sin_b * shrink_b), (cos_g * shrink_g, sin_g * shrink_g)


def multiples(cosine: Array, sine: Array, top: int) -> tuple[Array, Array]:
    """cos kφ and sin kφ, k = 0..top, both (top + 1, batch), of cos φ and sin φ, (batch,).

    By doubling, so that errors grow with k, not k².
    """
    cosines, sines = cosine[None], sine[None]
    while cosines.shape[0] < top:
        c, s = cosines[-1:], sines[-1:]
        cosines, sines = (
            jnp.concatenate([cosines, cosines * c - sines * s]),
            jnp.concatenate([sines, sines * c + cosines * s]),
        )
    one = jnp.ones_like(cosine)[None]
    return jnp.concatenate([one, cosines[:top]]), jnp.concatenate([jnp.zeros_like(one), sines[:top]])


def _determinant_sign(R: Array) -> Array:
    a, b, c = R[..., 0, :], R[..., 1, :], R[..., 2, :]
    determinant = elementwise.dot(a, elementwise.cross(b, c))
    return jnp.where(determinant < 0, -1, 1).astype(R.dtype)[..., None, None]


def _proper(R: Array) -> Array:
    """R or −R, whichever has determinant +1."""
    return R * _determinant_sign(R)
