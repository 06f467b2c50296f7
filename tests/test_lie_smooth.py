"""smooth's entire functions against mpmath, with two derivatives, at and around every switch and singular point."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lie import smooth

POINTS = [0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.1, 1.0]
for switch in (2.5, 10.0, np.pi**2 / 4, np.pi**2):  # ends of the polynomials; a zero of cos; a zero of sinc
    POINTS += [switch * (1 - 1e-3), switch * (1 - 1e-6), switch * (1 + 1e-6), switch * (1 + 1e-3)]
FAR = [12.0, 25.0, 39.0, 100.0, 400.0, 1e4]


def stumpff(k, x):
    """The series itself, with digits to spare for its cancellation at large x."""
    total, j = mpmath.mpf(0), 0
    while True:
        term = (-x) ** j / mpmath.factorial(2 * j + k)
        total += term
        if abs(term) < mpmath.mpf(10) ** -45:
            return total
        j += 1


def half_cotangent(x):
    return mpmath.mpf(1) if x == 0 else mpmath.sqrt(x) / 2 / mpmath.tan(mpmath.sqrt(x) / 2)


def cotangent_coefficient(x):
    return mpmath.mpf(1) / 12 if x < 1e-25 else (1 - half_cotangent(x)) / x


def slopes(k, x, order):
    """d^order c_k, from c_k' = (k c_{k+2} − c_{k+1})/2, itself checked against differences below."""
    if order == 0:
        return stumpff(k, x)
    higher = slopes(k + 1, x, order - 1)
    return ((k * slopes(k + 2, x, order - 1) if k else 0) - higher) / 2


def truth(f, points):
    with mpmath.workdps(120):
        return np.array([mpmath.nstr(f(mpmath.mpf(float(x))), 30) for x in points], dtype=np.longdouble)


def derivatives(f):
    first = jax.vmap(jax.grad(f))
    return jax.jit(lambda x: (f(x), first(x), jax.vmap(jax.grad(jax.grad(f)))(x)))


def test_derivative_rule_is_that_of_the_series():
    with mpmath.workdps(120):
        x, h = mpmath.mpf("2.3"), mpmath.mpf(10) ** -20
        for k in range(6):
            difference = (stumpff(k, x + h) - stumpff(k, x - h)) / (2 * h)
            assert abs(difference - slopes(k, x, 1)) < 1e-20


@pytest.mark.parametrize("k", range(8))
def test_stumpff(k, dtype):
    x = np.array(POINTS + FAR).astype(dtype)
    found = derivatives(lambda x: smooth.stumpff(k, x))(x)
    eps = float(jnp.finfo(dtype).eps)
    for order, values in enumerate(found):
        assert values.dtype == dtype
        true = truth(lambda x, order=order: slopes(k, x, order), x)
        largest = float(mpmath.factorial(k) ** -1) if order == 0 else np.abs(true).max()
        error = np.abs(np.asarray(values).astype(np.longdouble) - true)
        scale = np.maximum(np.abs(true), largest * (1 if k < 2 else 0))
        scale *= (k + 1) ** order  # k c_{k+2} − c_{k+1} cancels by so much
        near = x <= np.pi**2 * 1.01
        assert (error[near] <= 4 * eps * scale[near]).all(), order
        turns = np.sqrt(x[~near].astype(np.float64))  # θ² is rounded: the angle is known to eps θ
        envelope = truth(lambda x, m=k + order: abs(stumpff(m, x)) + abs(stumpff(m + 1, x)), x[~near])
        assert (error[~near] <= 8 * eps * turns * (k + 1) ** order * envelope).all(), order


def test_family_agrees_with_its_members(dtype):
    x = np.array(POINTS + FAR).astype(dtype)

    def combine(values):
        return sum((k + 1.0) * value for k, value in enumerate(values))

    together = derivatives(lambda x: combine(smooth.stumpff_family(6, x)))(x)
    single = derivatives(lambda x: combine([smooth.stumpff(k, x) for k in range(6)]))(x)
    for order, (a, b) in enumerate(zip(together, single, strict=True)):
        assert np.abs(np.asarray(a - b)).max() <= 32 * jnp.finfo(dtype).eps, order


@pytest.mark.parametrize("name", ["cotangent_coefficient", "half_cotangent"])
def test_cotangents(name, dtype):
    x = np.array([p for p in POINTS if p <= np.pi**2 * 1.01] + [20.0, 30.0]).astype(dtype)
    exact = cotangent_coefficient if name == "cotangent_coefficient" else half_cotangent
    found = derivatives(getattr(smooth, name))(x)
    eps = float(jnp.finfo(dtype).eps)

    def difference(order):
        def f(x):
            h = mpmath.mpf(10) ** -12
            x = (
                x + 3 * h
            )  # 1e-12 off: far below the bounds' effect on these smooth functions in float32, and in float64
            if order == 1:
                return (exact(x + h) - exact(x - h)) / (2 * h)
            return (exact(x + h) - 2 * exact(x) + exact(x - h)) / h**2

        return f if order else exact

    for order, values in enumerate(found):
        true = truth(difference(order), x)
        scale = np.maximum(np.abs(true), 0.5 if name == "half_cotangent" else 0)
        bound = (4 * eps if order < 2 else 16 * eps) * scale + (2e-11 * np.abs(true) if order else 0)
        assert (np.abs(np.asarray(values).astype(np.longdouble) - true) <= bound).all(), order


def test_angle_ratio(dtype):
    theta = np.array([0.0, 1e-30, 1e-10, 1e-3, 0.5, 1.5, 2.5, 3.0, np.pi - 1e-4, np.pi])
    w, v = np.cos(theta / 2).astype(dtype), np.sin(theta / 2).astype(dtype)
    found = np.asarray(smooth.angle_ratio(jnp.asarray(w), jnp.asarray(v * v)))
    with mpmath.workdps(40):
        true = [
            2 / mpmath.mpf(float(c)) if s == 0 else 2 * mpmath.atan2(float(s), float(c)) / float(s)
            for c, s in zip(w, v, strict=True)
        ]
    true = np.array([mpmath.nstr(x, 30) for x in true], dtype=np.longdouble)
    assert (np.abs(found - true) <= 3 * jnp.finfo(dtype).eps * true).all()
    assert float(smooth.angle_ratio(jnp.zeros((), dtype), jnp.zeros((), dtype))) == 0


def test_custom_rules_leave_the_value_alone(dtype):
    """Evaluated without jit, so that no fusion reorders the same operations: jvp's primal is the value, bit by bit."""
    x = jnp.array(POINTS + FAR, dtype)
    one = jnp.ones_like(x)
    for f in (
        lambda x: smooth.stumpff(0, x),
        lambda x: smooth.stumpff(3, x),
        lambda x: smooth.stumpff_family(4, x)[3],
        lambda x: smooth.polynomial((1.0, 2.0, 3.0), x),
    ):
        assert (jax.jvp(f, (x,), (one,))[0] == f(x)).all()
    small = x[x < 30]
    for f in (smooth.cotangent_coefficient, smooth.half_cotangent, lambda x: smooth.cotangent_pair(x)[1]):
        assert (jax.jvp(f, (small,), (jnp.ones_like(small),))[0] == f(small)).all()


def mixed(f, hard, easy, dtype):
    """Value, gradient and Hessian at a hard point among easy ones are finite, and the easy ones are as if alone."""

    def both(x):
        return f(x), jax.grad(f)(x), jax.hessian(f)(x)

    batch = jax.jit(jax.vmap(both))
    together = batch(np.array([hard, easy, hard]).astype(dtype))
    alone = batch(np.array([easy, easy, easy]).astype(dtype))
    for a, b in zip(together, alone, strict=True):
        assert np.isfinite(a).all()
        assert (np.asarray(a[1]) == np.asarray(b[1])).all()
    return together


def test_norm_and_angles_at_their_singular_points(dtype):
    _, gradient, hessian = mixed(smooth.norm, [0.0, 0.0, 0.0], [1.0, 2.0, -2.0], dtype)
    assert (gradient[0] == 0).all()
    assert (hessian[0] == 0).all()
    n = np.array([1, 2, -2]) / 3
    assert np.abs(np.asarray(gradient[1]) - n).max() <= 4 * jnp.finfo(dtype).eps
    assert np.abs(np.asarray(hessian[1]) - (np.eye(3) - np.outer(n, n)) / 3).max() <= 4 * jnp.finfo(dtype).eps
    tiny, huge = jnp.array([3e-30, 4e-30, 0], dtype), jnp.array([3e30, 4e30, 0], dtype)
    assert abs(smooth.norm(tiny) / dtype(5e-30) - 1) <= 4 * jnp.finfo(dtype).eps
    assert abs(smooth.norm(huge) / dtype(5e30) - 1) <= 4 * jnp.finfo(dtype).eps
    value, gradient, _ = mixed(lambda p: smooth.angle(p[0], p[1]), [0.0, 0.0], [1.0, 1.0], dtype)
    assert value[0] == 0
    assert (gradient[0] == 0).all()
    assert abs(float(value[1]) - np.pi / 4) <= 4 * jnp.finfo(dtype).eps
    for end, angle in ((1.0, 0.0), (-1.0, np.pi), (1.5, 0.0)):
        value, gradient, _ = mixed(smooth.acos, end, 0.3, dtype)
        assert abs(float(value[0]) - angle) <= 4 * jnp.finfo(dtype).eps
        assert gradient[0] == 0


def test_roots_logarithms_and_quotients_at_zero(dtype):
    for f, at_zero in ((smooth.sqrt, 0.0), (smooth.xlogx, 0.0), (lambda x: smooth.divide(1 + x, x, 7.0), 7.0)):
        value, gradient, hessian = mixed(f, 0.0, 2.0, dtype)
        assert value[0] == at_zero
        assert gradient[0] == hessian[0] == 0
    assert smooth.log(jnp.zeros((), dtype)) == -np.inf
    assert jax.grad(smooth.log)(jnp.zeros((), dtype)) == 0
    x = jnp.array([[1.0, 2.0, -jnp.inf], [-jnp.inf] * 3], dtype)
    value, gradient = jax.jit(lambda x: (smooth.logsumexp(x), jax.jacrev(smooth.logsumexp)(x)))(x)
    assert abs(float(value[0]) - np.log(np.exp(1) + np.exp(2))) <= 4 * jnp.finfo(dtype).eps
    assert value[1] == -np.inf
    assert np.isfinite(gradient).all()
