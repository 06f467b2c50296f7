"""Ways to write a rotation, to and from the matrix: quaternion, 6-D, 5-D, 9-D with SVD, Euler angles, axis and angle.

These are the representations that Zhou et al. 2019, Levinson et al. 2020 and Geist et al. 2024 compare; rotation
vectors are `so3.exp` and `so3.log`. A network's output may be any array: each matrix_from_... takes all of them, and
says what it returns where its map is singular. Derivatives there are finite: those of the stated choice.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lie import check, elementwise, smooth, so3, su2


def matrix_from_quaternion(q: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """The rotation of q = (w, x, y, z) of any length, q and −q alike: (w² − |v|²) I + 2 w v̂ + 2 v vᵀ after q/|q|.

    At q = 0: the identity, with zero derivatives. Error <= 3.4 eps in Frobenius norm, float32 and float64.
    """
    q = check.array("q", q, 4)
    return su2.adjoint(smooth.direction(q, su2.identity((), q.dtype)))


def quaternion_from_matrix(R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 4"]:
    """The unit quaternion wxyz of R with w >= 0; at w = 0 (angle π) one of the two, q and −q.

    Derivatives are those of the closest rotation's quaternion, dq = q (0, vee(RᵀdR)/2), exact to every order.
    Error <= 1.2 eps.
    """
    R = check.array("R", R, 3, 3)
    check.rotation("R", R)
    return _quaternion(R)


def matrix_from_6d(x: Float[ArrayLike, "*batch 6"]) -> Float[Array, "*batch 3 3"]:
    """Gram-Schmidt on two columns x = (a, b): first column a/|a|, second b made orthogonal to it, third their product.

    Only directions matter; condition 1/sin∠(a, b). At a = 0 the first column is e_x; where b has no part beside a but
    rounding, the second is the coordinate axis furthest from the first, made orthogonal to it. Orthogonal to rounding
    at every input; error <= 1.9 eps times the condition, in Frobenius norm. The 9-D form of Gram-Schmidt (Levinson et
    al. 2020) is this function of its first two columns.
    Source: Zhou et al. 2019, On the continuity of rotation representations in neural networks, section 4.
    """
    x = check.array("x", x, 6)
    return _gram_schmidt(x[..., :3], x[..., 3:])


def sixd_from_matrix(R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 6"]:
    """The first two columns of R, one after the other."""
    R = check.array("R", R, 3, 3)
    check.rotation("R", R)
    return jnp.concatenate([R[..., :, 0], R[..., :, 1]], axis=-1)


def matrix_from_5d(x: Float[ArrayLike, "*batch 5"]) -> Float[Array, "*batch 3 3"]:
    """x = (a, p), a in R², p in R³: Gram-Schmidt on the columns (2 |p| a, |p|² − 1) and p.

    The paper unprojects p from the stereographic plane to (c, p/|p|), c = (|p|² − 1)/(2 |p|), for the columns (a, c)
    and p/|p|; only their directions matter, so ours need no division. At p = 0 the columns begin −e_z, e_x; where they
    are parallel see `matrix_from_6d`. Error <= 2.3 eps times that condition. Source: Zhou et al. 2019, section 4.2,
    without the constants of their program.
    """
    x = check.array("x", x, 5)
    a, p = x[..., :2], x[..., 2:]
    length = smooth.norm(p, keepdims=True)
    # (|p|² − 1) as a product, and everything over max(1, |p|): no cancellation at |p| = 1, no overflow.
    scale = jax.lax.stop_gradient(jnp.maximum(length, 1))
    first = jnp.concatenate([2 * length / scale * a, (length - 1) * ((length + 1) / scale)], axis=-1)
    return _gram_schmidt(first, p)


def fived_from_matrix(R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 5"]:
    """(R_00, R_10, p), p = b (c + √(1 + c²)): the stereographic projection of (c, b), c = R_20, b the second column.

    Relative error <= 1.9 eps.
    """
    R = check.array("R", R, 3, 3)
    check.rotation("R", R)
    c = R[..., 2, :1]
    factor = jnp.sqrt(1 + c * c) + jnp.abs(c)
    factor = jnp.where(c < 0, 1 / factor, factor)  # c + √(1 + c²) without cancellation
    return jnp.concatenate([R[..., :2, 0], factor * R[..., :, 1]], axis=-1)


def matrix_from_svd(M: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """The rotation closest to any 3x3 matrix, U diag(1, 1, det UVᵀ) Vᵀ: `so3.project`, the 9-D representation.

    Condition s1/(s2 + s3) with signed singular values. Sources: Levinson et al. 2020, Geist et al. 2024 (R9 + SVD).
    """
    return so3.project(M)


def matrix_from_euler(angles: Float[ArrayLike, "*batch n"], sequence: str = "xyz") -> Float[Array, "*batch 3 3"]:
    """Rotations about coordinate axes, one after the other, n = len(sequence) = 1, 2 or 3 radians.

    Lower-case letters turn about the fixed axes (extrinsic), upper-case about the turning ones (intrinsic), as in
    SciPy: "xyz" is R_z(γ) R_y(β) R_x(α), "XYZ" is R_x(α) R_y(β) R_z(γ). Raises ValueError for any other string, also
    where two neighbouring letters agree. Error <= 1.5 eps in Frobenius norm.
    """
    axes = _axes(sequence, (1, 2, 3))
    angles = check.array("angles", angles, len(axes))
    turns = [_turn(axis, angles[..., k]) for k, axis in enumerate(axes)]
    R, *rest = turns if sequence.isupper() else turns[::-1]
    for turn in rest:
        R = elementwise.matmul(R, turn)
    return R


def euler_from_matrix(R: Float[ArrayLike, "*batch 3 3"], sequence: str = "xyz") -> Float[Array, "*batch 3"]:
    """The angles that `matrix_from_euler` turns into R, for each of the 24 sequences of three letters.

    First and third in [−π, π], second in [−π/2, π/2] if the three letters differ, in [0, π] if first and third agree.
    In gimbal lock (second angle at an end of its range) only the sum or the difference of the other two is determined:
    by choice they share it evenly, with zero derivative of the rest. SciPy sets one of them to 0 instead. The rotation
    comes back to rounding at lock and near it. Elsewhere the error is <= 1.2 eps |angles|/cos(second), sin if repeated.
    Source: Bernardes and Viollet 2022, Quaternion to Euler angles conversion, rewritten to keep small angles exact.
    """
    i, j, k = _axes(sequence, (3,))
    R = check.array("R", R, 3, 3)
    check.rotation("R", R)
    extrinsic = sequence.islower()
    if not extrinsic:
        i, k = k, i
    repeated = i == k
    k = 3 - i - j if repeated else k
    sign = (i - j) * (j - k) * (k - i) // 2
    q = _quaternion(R)
    w, x, y, z = q[..., 0], q[..., 1 + i], q[..., 1 + j], sign * q[..., 1 + k]
    if repeated:
        a, b, c, d = w, x, y, z
    else:
        a, b, c, d = w - y, x + z, y + w, z - x
    near, far = _length(a, b), _length(c, d)  # each vanishes in one of the two locks
    half_sum, half_difference = _phase(b, a), _phase(d, c)
    # sin and cos of the second angle without π/2 subtracted: an angle near 0 keeps its digits.
    second = 2 * smooth.angle(far, near) if repeated else smooth.angle(2 * (w * y - x * z), near * far)
    first, third = half_sum - half_difference, half_sum + half_difference
    third = third if repeated else sign * third
    first, third = _principal(first), _principal(third)
    return jnp.stack([first, second, third] if extrinsic else [third, second, first], axis=-1)


def matrix_from_axis_angle(
    axis: Float[ArrayLike, "*#batch 3"], angle: Float[ArrayLike, "*#batch"]
) -> Float[Array, "... 3 3"]:
    """Rotation by `angle` radians about `axis`, of any length; about e_x where the axis is 0. Any angle.

    Error <= 2.2 eps in Frobenius norm.
    """
    axis = check.array("axis", axis, 3)
    angle = check.array("angle", jnp.asarray(angle, axis.dtype) if isinstance(angle, float) else angle)
    check.same_dtype(axis=axis, angle=angle)
    n = smooth.direction(axis, _unit(0, axis.dtype))
    angle, n = jnp.broadcast_arrays(angle[..., None], n)
    angle = angle[..., 0]
    sine = jnp.sin(angle / 2)
    return so3.isotropic(jnp.cos(angle), jnp.sin(angle), 2 * sine * sine, n)


def axis_angle_from_matrix(
    R: Float[ArrayLike, "*batch 3 3"],
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch"]]:
    """Unit axis and angle in [0, π]; at the identity (e_x, 0) with zero derivatives, at π one of the two axes.

    Error of the angle <= 2 eps of itself, of the axis <= 1.1 eps/sin(θ/2) as R is given to eps.
    """
    omega = so3.log(R)
    return smooth.direction(omega, _unit(0, omega.dtype)), smooth.norm(omega)


@jax.custom_jvp
def _quaternion(R: Array) -> Array:
    q = jnp.stack(so3._quaternion_direction(R), axis=-1)  # longer than 1: nothing singular
    return q / jnp.sqrt(elementwise.dot(q, q))[..., None]


@_quaternion.defjvp
def _quaternion_jvp(primals, tangents):
    (R,), (R_dot,) = primals, tangents
    q = _quaternion(R)
    body = so3.vee(elementwise.matmul(elementwise.transpose(R), R_dot))
    return q, su2.compose(q, su2.hat(body))


def _gram_schmidt(a: Array, b: Array) -> Array:
    first = smooth.direction(a, _unit(0, a.dtype))
    rest = b - elementwise.dot(first, b)[..., None] * first
    nearest = jax.nn.one_hot(jnp.argmin(jnp.abs(jax.lax.stop_gradient(first)), axis=-1), 3, dtype=a.dtype)
    beside = nearest - elementwise.dot(first, nearest)[..., None] * first
    noise = 4 * float(jnp.finfo(b.dtype).eps) * jnp.max(jnp.abs(jax.lax.stop_gradient(b)), axis=-1)
    second = smooth.direction(rest, beside, noise)
    # Once more: of a small rest a large part may be rounding along the first column.
    second = second - elementwise.dot(first, second)[..., None] * first
    second = smooth.direction(second, beside)
    return jnp.stack([first, second, elementwise.cross(first, second)], axis=-1)


def _axes(sequence: str, lengths: tuple[int, ...]) -> list[int]:
    letters = sequence.lower() if isinstance(sequence, str) else ""
    one_case = isinstance(sequence, str) and (sequence.islower() or sequence.isupper())
    distinct = all(left != right for left, right in itertools.pairwise(letters))
    if not (one_case and len(letters) in lengths and set(letters) <= set("xyz") and distinct):
        many = "three" if lengths == (3,) else "one to three"
        raise ValueError(
            f"sequence: expected {many} letters of xyz (extrinsic) or XYZ (intrinsic), no two neighbours equal, "
            f"got {sequence!r}"
        )
    return ["xyz".index(letter) for letter in letters]


def _turn(axis: int, angle: Array) -> Array:
    fixed = np.diag(np.eye(3)[axis]).astype(angle.dtype)
    turning = np.eye(3, dtype=angle.dtype) - fixed
    cosine, sine = jnp.cos(angle)[..., None, None], jnp.sin(angle)[..., None, None]
    return cosine * turning + fixed + sine * so3.hat(_unit(axis, angle.dtype))


def _unit(axis: int, dtype: np.dtype) -> Array:
    return jnp.asarray(np.eye(3)[axis], dtype)


def _length(x: Array, y: Array) -> Array:
    return smooth.norm(jnp.stack([x, y], axis=-1))


def _phase(y: Array, x: Array) -> Array:
    """atan2(y, x), and 0 where both are rounding of a unit quaternion."""
    locked = jnp.maximum(jnp.abs(x), jnp.abs(y)) <= float(jnp.finfo(x.dtype).eps)
    return smooth.angle(jnp.where(locked, 0, y), jnp.where(locked, 0, x))


def _principal(angle: Array) -> Array:
    """The angle less a whole turn if it lies outside [−π, π]; the turn in two parts, so that no digits are lost."""
    high = float(np.asarray(2 * np.pi, angle.dtype))
    low = 2 * np.pi - high
    turns = jnp.where(angle > np.pi, 1, jnp.where(angle < -np.pi, -1, 0)).astype(angle.dtype)
    return (angle - turns * high) - turns * low
