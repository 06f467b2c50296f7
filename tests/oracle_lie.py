"""SO(3) and SE(3) in 80 digits: series, quaternions and finite differences in mpmath, independent of `lie`."""

from functools import partial

import mpmath
import numpy as np

DIGITS = 80
# Every decade up to 0.1, both sides of every switch of smooth's polynomials (θ² = 2.5 and 10, θ²/4 = 2.5), up to π.
ANGLES = [0.0, 1e-30, 1e-20, 1e-15, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.7]
ANGLES += [1.0, 1.3, 2.5**0.5 * (1 - 1e-6), 2.5**0.5 * (1 + 1e-6), 1.7, 2.0, 2.3, 2.6, 2.9, 3.0]
ANGLES += [np.pi - gap for gap in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 3e-7)]
PAST_PI = [np.pi, 10**0.5 * (1 - 1e-6), 10**0.5 * (1 + 1e-6), 4.0, 5.5]
AXES = np.array([[0.6, -0.48, 0.64], [1.0, 0.0, 0.0], [-0.3, 0.2, -0.9], [0.05, 0.99, 0.01]])
TRANSLATION = np.array([0.7, -1.1, 0.4])


def rotation_vectors(dtype, angles=ANGLES):
    """(n, 3) rotation vectors of all angles, none of which rounds past π if the angles do not exceed it."""
    unit = AXES / np.linalg.norm(AXES, axis=1, keepdims=True)
    grid = np.array([angle * axis for axis in unit for angle in angles]).astype(dtype)
    length = np.linalg.norm(grid.astype(np.float64), axis=1)
    return grid[(length <= np.pi) | (max(angles) > np.pi)]


def twists(dtype, angles=ANGLES):
    """(n, 6) twists (v, ω) with the same v for all rotation vectors."""
    omega = rotation_vectors(dtype, angles)
    return np.concatenate([np.broadcast_to(TRANSLATION.astype(dtype), omega.shape), omega], axis=1)


def stumpff(k, x):
    total, j = mpmath.mpf(0), 0
    while True:
        term = (-x) ** j / mpmath.factorial(2 * j + k)
        total += term
        if abs(term) < mpmath.mpf(10) ** (-DIGITS - 5):
            return total
        j += 1


def hat(w):
    return mpmath.matrix([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])


def power_series(w, shift):
    """Σ_n ŵ^n/(n + shift)!: the rotation matrix for shift 0, the left Jacobian for shift 1."""
    x, W = sum(c * c for c in w), hat(w)
    one = mpmath.eye(3)
    return one / mpmath.factorial(shift) + stumpff(1 + shift, x) * W + stumpff(2 + shift, x) * W * W


def exp(w):
    return power_series(w, 0)


def left_jacobian(w):
    return power_series(w, 1)


def ad(xi):
    v, w = hat(xi[:3]), hat(xi[3:])
    blocks = mpmath.zeros(6)
    for i in range(3):
        for j in range(3):
            blocks[i, j] = blocks[i + 3, j + 3] = w[i, j]
            blocks[i, j + 3] = v[i, j]
    return blocks


def left_jacobian_se3(xi):
    """Σ_n ad(ξ)^n/(n + 1)!, term by term."""
    total, term, n = mpmath.eye(6), mpmath.eye(6), 0
    while True:
        n += 1
        term = term * ad(xi) / (n + 1)
        total += term
        if mpmath.mnorm(term, 1) < mpmath.mpf(10) ** (-DIGITS + 10):
            return total


def quaternion(w):
    quarter = sum(c * c for c in w) / 4
    return [stumpff(0, quarter), *(stumpff(1, quarter) / 2 * c for c in w)]


def multiply(p, q):
    a, b = p[1:], q[1:]
    cross = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    return [p[0] * q[0] - sum(x * y for x, y in zip(a, b, strict=True))] + [
        p[0] * b[i] + q[0] * a[i] + cross[i] for i in range(3)
    ]


def log_quaternion(q):
    """2 atan2(|v|, w) v/|v|, in the double cover: no branch is cut at π."""
    length = mpmath.sqrt(sum(c * c for c in q[1:]))
    if length == 0:
        return [mpmath.mpf(0)] * 3
    return [2 * mpmath.atan2(length, q[0]) * c / length for c in q[1:]]


def local_log(w, u):
    """log(exp(w) exp(u)), continuous in u."""
    return log_quaternion(multiply(quaternion(w), quaternion(u)))


def local_log_se3(xi, eta):
    """log(exp(ξ) exp(η))."""
    w, u = xi[3:], eta[3:]
    phi = local_log(w, u)
    t = exp(w) * (left_jacobian(u) * mpmath.matrix(eta[:3])) + left_jacobian(w) * mpmath.matrix(xi[:3])
    return [*(mpmath.lu_solve(left_jacobian(phi), t)), *phi]


def at(f, points):
    """u -> f(x, u) for each of the points x, in mpmath."""
    return [partial(f, vector(x)) for x in points]


def vector(x):
    return [mpmath.mpf(float(c)) for c in x]


def flat(x):
    return list(x) if isinstance(x, list) else [x[i, j] for i in range(x.rows) for j in range(x.cols)]


def to_array(x):
    return np.array([mpmath.nstr(c, 40) for c in flat(x)], dtype=np.longdouble)


def first(f, n):
    """(m, n) Jacobian of f at 0, by central differences of step 1e-20."""
    h = mpmath.mpf(10) ** -20
    columns = []
    for i in range(n):
        step = [h if j == i else mpmath.mpf(0) for j in range(n)]
        plus, minus = flat(f(step)), flat(f([-s for s in step]))
        columns.append([(a - b) / (2 * h) for a, b in zip(plus, minus, strict=True)])
    return np.array([[mpmath.nstr(c, 40) for c in column] for column in columns], dtype=np.longdouble).T


def second(f, n):
    """(m, n, n) Hessian of f at 0, by central differences of step 1e-14."""
    h = mpmath.mpf(10) ** -14
    centre = flat(f([mpmath.mpf(0)] * n))
    hessian = np.zeros((len(centre), n, n), dtype=np.longdouble)
    for i in range(n):
        for j in range(i + 1):
            step = [h * ((k == i) + (k == j)) / 2 for k in range(n)]
            other = [h * ((k == i) - (k == j)) / 2 for k in range(n)]
            values = [flat(f(s)) for s in (step, [-x for x in step], other, [-x for x in other])]
            for m, (a, b, c, d) in enumerate(zip(*values, strict=True)):
                hessian[m, i, j] = hessian[m, j, i] = np.longdouble(mpmath.nstr((a + b - c - d) / (h * h), 40))
    return hessian


def error(found, true, relative=True):
    """Frobenius norms of found − true, one per batch element: relative (0/0 = 0), or over max(1, |true|) if not."""
    found, true = np.asarray(found).astype(np.longdouble), np.asarray(true)
    found, true = found.reshape(len(found), -1), true.reshape(len(true), -1)
    size = np.sqrt((true**2).sum(1))
    difference = np.sqrt(((found - true) ** 2).sum(1))
    scale = np.where(size > 0, size, 1) if relative else np.maximum(1, size)
    return (difference / scale).astype(np.float64)
