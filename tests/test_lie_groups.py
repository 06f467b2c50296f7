"""The laws of every group: axioms, exp and log, adjoint, Jacobians, invariance, shapes, dtypes and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lie import euclidean, group, se2, se3, so2, so3, su2

GROUPS = {
    "so2": so2,
    "se2": se2,
    "so3": so3,
    "se3": se3,
    "su2": su2,
    "euclidean": euclidean.Space(3),
    "product": group.product(so3, euclidean.Space(2), se2),
}
POINTS = {"so2": 2, "se2": 2, "so3": 3, "se3": 3, "su2": 3, "euclidean": 3}  # dimension of what the group moves
COUNT = 5


@pytest.fixture(params=list(GROUPS))
def named(request):
    return request.param, GROUPS[request.param]


def tangents(G, shape, dtype, seed=0, size=0.8):
    return (np.random.default_rng(seed).normal(size=(*shape, G.dimension)) * size).astype(dtype)


def points(name, shape, dtype):
    if name == "product":
        so3_part, plane = points("so3", shape, dtype), points("se2", shape, dtype)
        return so3_part, plane, plane
    return np.random.default_rng(7).normal(size=(*shape, POINTS[name])).astype(dtype)


def gap(a, b):
    """Largest difference of two pytrees."""
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def scale(dtype):
    return float(jnp.finfo(dtype).eps)


def test_satisfies_the_protocol(named):
    assert isinstance(named[1], group.Group)


def test_axioms_inverse_and_action(named, dtype):
    name, G = named
    x = points(name, (COUNT,), dtype)
    a, b, c = (G.exp(tangents(G, (COUNT,), dtype, seed)) for seed in (1, 2, 3))

    @jax.jit
    def laws(a, b, c, x):
        one = G.identity((COUNT,), dtype)
        return [
            (G.compose(G.compose(a, b), c), G.compose(a, G.compose(b, c))),
            (G.compose(a, one), a),
            (G.compose(one, a), a),
            (G.compose(a, G.inverse(a)), one),
            (G.act(G.compose(a, b), x), G.act(a, G.act(b, x))),
            (G.act(one, x), x),
            (G.adjoint(G.compose(a, b)), G.adjoint(a) @ G.adjoint(b)),
            (G.project(a), a),
        ]

    for number, (left, right) in enumerate(laws(a, b, c, x)):
        assert gap(left, right) <= 64 * scale(dtype), number


def test_exp_log_retract_local_and_interpolate(named, dtype):
    _, G = named
    xi, eta = tangents(G, (COUNT,), dtype, 1, 0.7), tangents(G, (COUNT,), dtype, 2, 0.7)

    @jax.jit
    def laws(xi, eta):
        a, b = G.exp(xi), G.exp(eta)
        half = jnp.full(COUNT, 0.5, dtype)
        return [
            (G.log(a), xi),
            (G.exp(G.log(a)), a),
            (G.exp(-xi), G.inverse(a)),
            (G.compose(G.exp(xi / 2), G.exp(xi / 2)), a),
            (G.retract(a, eta), G.compose(a, b)),
            (G.local(a, G.retract(a, eta)), eta),
            (G.local(a, a), jnp.zeros_like(xi)),
            (G.interpolate(a, b, 0.0), a),
            (G.interpolate(a, b, 1.0), b),
            (G.local(a, G.interpolate(a, b, half)), G.local(a, b) / 2),
            (G.vee(G.hat(xi)), xi),
            (G.compose(a, G.compose(G.exp(eta), G.inverse(a))), G.exp((G.adjoint(a) @ eta[..., None])[..., 0])),
        ]

    for number, (left, right) in enumerate(laws(xi, eta)):
        assert gap(left, right) <= 64 * scale(dtype), number


def test_jacobians_are_those_of_exp(named):
    """local(exp ξ, exp(ξ + δ)) = J_r δ and exp(ξ + δ) exp(ξ)⁻¹ = exp(J_l δ) to first order, by differentiation."""
    _, G = named
    xi = tangents(G, (COUNT,), np.float64, 4)
    eye, zero = np.eye(G.dimension), jnp.zeros(G.dimension)

    @jax.jit
    @jax.vmap
    def laws(xi):
        right = jax.jacfwd(lambda d: G.local(G.exp(xi), G.exp(xi + d)))(zero)
        left = jax.jacfwd(lambda d: G.log(G.compose(G.exp(xi + d), G.inverse(G.exp(xi)))))(zero)
        log = jax.jacfwd(lambda d: G.log(G.retract(G.exp(xi), d)))(zero)
        return [
            (G.right_jacobian(xi), right),
            (G.left_jacobian(xi), left),
            (G.right_jacobian_inverse(xi), log),
            (G.right_jacobian(xi) @ G.right_jacobian_inverse(xi), eye),
            (G.left_jacobian(xi) @ G.left_jacobian_inverse(xi), eye),
            (G.right_jacobian(-xi), G.left_jacobian(xi)),
            (G.adjoint(G.exp(xi)) @ G.right_jacobian(xi), G.left_jacobian(xi)),
        ]

    for number, (left, right) in enumerate(laws(xi)):
        assert gap(left, right) <= 1e-13, number


def test_distance_is_a_left_invariant_metric(named, dtype):
    name, G = named
    a, b, c = (G.exp(tangents(G, (COUNT,), dtype, seed, 0.7)) for seed in (1, 2, 3))

    @jax.jit
    def distances(a, b, c):
        ab, moved = G.distance(a, b), G.distance(G.compose(c, a), G.compose(c, b))
        turned = G.distance(G.compose(a, c), G.compose(b, c))
        return ab, moved, turned, G.distance(b, a), G.distance(a, a), G.squared_distance(a, b), G.distance(a, c)

    ab, moved, turned, ba, aa, squared, ac = distances(a, b, c)
    tolerance = 128 * scale(dtype)
    assert gap(ab, moved) <= tolerance
    assert gap(ab, ba) <= tolerance
    assert gap(ab * ab, squared) <= tolerance
    assert (np.asarray(aa) == 0).all()
    assert (np.asarray(ab) <= np.asarray(ac + G.distance(c, b)) + tolerance).all()
    if name in ("so2", "so3", "su2", "euclidean"):  # bi-invariant
        assert gap(ab, turned) <= tolerance


def shapes_of(x):
    return [leaf.shape for leaf in jax.tree.leaves(x)]


def test_broadcasts_over_leading_axes(named):
    """A (2, 1, ...) against B (3, ...) equals the loop over all pairs; a batch of none is a batch."""
    name, G = named
    xi, eta = tangents(G, (2, 1), np.float32, 1), tangents(G, (3,), np.float32, 2)
    a, b, x = G.exp(xi), G.exp(eta), points(name, (3,), np.float32)

    def everything(a, b, x, eta):
        return (
            G.compose(a, b),
            G.local(a, b),
            G.distance(a, b),
            G.interpolate(a, b, 0.3),
            G.act(a, x),
            G.retract(a, eta),
        )

    broadcast = jax.jit(everything)(a, b, x, eta)
    one_by_one = jax.jit(jax.vmap(jax.vmap(everything, (None, 0, 0, 0)), (0, None, None, None)))
    looped = one_by_one(jax.tree.map(lambda leaf: leaf[:, 0], a), b, x, eta)
    assert shapes_of(broadcast) == shapes_of(looped)
    assert gap(broadcast, looped) <= 32 * scale(np.float32)
    empty = jax.eval_shape(G.exp, np.zeros((0, 4, G.dimension), np.float32))
    assert all(shape[:2] == (0, 4) for shape in shapes_of(empty))
    assert shapes_of(jax.eval_shape(G.log, empty)) == [(0, 4, G.dimension)]


@settings(max_examples=6, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    dtype=st.sampled_from([jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]),
    name=st.sampled_from(list(GROUPS)),
)
def test_dtype_and_shape_out_are_those_in(shape, dtype, name):
    G = GROUPS[name]
    xi = jnp.asarray(tangents(G, shape, np.float64, 3, 0.5)).astype(dtype)

    def everything(xi):
        g = G.exp(xi)
        outcomes = [g, G.log(g), G.compose(g, g), G.inverse(g), G.adjoint(g), G.local(g, g), G.distance(g, g)]
        outcomes += [G.interpolate(g, g, 0.5), G.left_jacobian(xi), G.left_jacobian_inverse(xi), G.hat(xi)]
        return [*outcomes, G.project(g), G.identity(shape, dtype), G.sample(shape, dtype, key=jax.random.key(0))]

    for number, outcome in enumerate(jax.eval_shape(everything, xi)):
        for leaf in jax.tree.leaves(outcome):
            assert leaf.dtype == dtype, number
            assert leaf.shape[: len(shape)] == shape, number
    if xi.size:
        size = float(jnp.abs(xi.astype(jnp.float64)).max()) + 1
        there_and_back = jax.jit(lambda xi: G.log(G.exp(xi)))(xi)
        assert gap(there_and_back.astype(jnp.float64), xi.astype(jnp.float64)) <= 16 * scale(dtype) * size


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.float32) for name in ("so2", "se2", "so3", "se3", "su2")]
    + [pytest.param(name, np.float64, marks=pytest.mark.slow) for name in ("so3", "se3", "su2", "product")],
)
def test_derivatives_are_finite_in_mixed_batches(name, dtype):
    """At 0, near and at π, all in one batch; each element as it is alone."""
    G = GROUPS[name]
    angles = [0.0, 1e-30, 1e-12, 1e-5, 0.1, 2.0, np.pi - 1e-3, np.nextafter(dtype(np.pi), dtype(0)), dtype(np.pi)]
    direction = np.zeros(G.dimension)
    direction[-1] = 1  # a rotation in every group that has one
    xi = np.stack([angle * direction for angle in angles]).astype(dtype)

    def everything(xi):
        def loss(u):
            g = G.retract(G.exp(xi), u)
            return jnp.sum(G.log(g) ** 2) + G.distance(g, G.identity((), dtype)) + G.squared_distance(g, G.exp(xi))

        zero = jnp.zeros(G.dimension, dtype)
        return loss(zero), jax.grad(loss)(zero), jax.hessian(loss)(zero), G.log(G.exp(xi))

    batch = jax.jit(jax.vmap(everything))
    found = batch(xi)
    assert all(np.isfinite(leaf).all() for leaf in found)
    alone = [batch(np.stack([row] * len(xi))) for row in xi]
    for which, leaf in enumerate(found):
        for row in range(len(xi)):
            assert (np.asarray(leaf[row]) == np.asarray(alone[row][which][row])).all()


def test_samples_are_elements_and_haar_is_uniform(named):
    name, G = named
    g = jax.jit(lambda key: G.sample((4000,), jnp.float64, key=key))(jax.random.key(3))
    assert gap(jax.jit(G.project)(g), g) <= 1e-14
    if name == "so3":  # the angle of a Haar rotation has E[θ] = π/2 + 2/π, the entries mean 0 and variance 1/3
        assert abs(float(G.distance(G.identity(dtype=jnp.float64), g).mean()) - (np.pi / 2 + 2 / np.pi)) <= 0.04
        assert np.abs(g.mean(0)).max() <= 0.04
        assert np.abs((g**2).mean(0) - 1 / 3).max() <= 0.02


@pytest.mark.parametrize("name", ["so2", "se2", "so3", "se3", "su2"])
def test_bad_input_is_named(name):
    G = GROUPS[name]
    good = G.identity()
    failures = (TypeError, ValueError)
    for f in (G.exp, G.left_jacobian, G.right_jacobian_inverse, G.hat):
        for bad in (jnp.zeros(G.dimension + 1), jnp.zeros(G.dimension, jnp.int32), jnp.full(G.dimension, jnp.nan)):
            with pytest.raises(failures, match=r"xi|omega"):
                f(bad)
    for f in (G.log, G.inverse, G.adjoint):
        with pytest.raises(failures):
            f(jnp.zeros((5, 7)))
    for f in (G.compose, G.local, G.distance):
        with pytest.raises(failures):
            f(good, jnp.zeros((5, 7)))
        with pytest.raises(TypeError, match="one dtype"):
            f(good, G.identity(dtype=jnp.float64))
    with pytest.raises(failures, match="x"):
        G.act(good, jnp.zeros(7))
    with pytest.raises(ValueError, match=r"rotation|unit quaternion"):
        G.log(jax.tree.map(lambda leaf: 2 * leaf, good))


def test_product_says_what_is_wrong():
    with pytest.raises(ValueError, match="at least one"):
        group.product()
    with pytest.raises(ValueError, match="open"):
        group.product(euclidean, euclidean)
    with pytest.raises(ValueError, match="Space"):
        group.product(so3, euclidean).identity()
    with pytest.raises(ValueError, match="tuple of 2"):
        group.product(so3, so2).log((so3.identity(),))
    with pytest.raises(ValueError, match="more than 3"):
        group.product(so3, euclidean).exp(jnp.zeros(3))
    R, x = group.product(so3, euclidean).exp(jnp.arange(5.0, dtype=jnp.float32))
    assert R.shape == (3, 3)
    assert x.tolist() == [3.0, 4.0]


def test_quaternions_cover_rotations_twice():
    q = su2.sample((50,), jnp.float64, key=jax.random.key(1))
    p = su2.sample((50,), jnp.float64, key=jax.random.key(2))
    x = np.random.default_rng(0).normal(size=(50, 3))
    assert gap(su2.adjoint(q), su2.adjoint(-q)) <= 1e-15
    assert gap(su2.canonical(q), su2.canonical(-q)) == 0
    assert (su2.canonical(q)[:, 0] >= 0).all()
    assert gap(su2.canonical(jnp.array([0.0, 0.0, -1.0, 0.0])), jnp.array([0.0, 0.0, 1.0, 0.0])) == 0
    assert gap(su2.adjoint(su2.compose(q, p)), so3.compose(su2.adjoint(q), su2.adjoint(p))) <= 1e-14
    assert gap(su2.act(q, x), so3.act(su2.adjoint(q), x)) <= 1e-14
    assert gap(su2.log(su2.canonical(q)), so3.log(su2.adjoint(q))) <= 1e-13
    assert (jnp.linalg.norm(su2.log(q), axis=-1) <= 2 * np.pi).all()
    assert gap(su2.exp(su2.log(q)), q) <= 1e-14


@pytest.mark.parametrize("poses", [se2, se3])
def test_poses_and_homogeneous_matrices(poses):
    a, b = (poses.exp(tangents(poses, (4,), np.float64, seed)) for seed in (1, 2))
    A, B = poses.matrix_from_pose(a), poses.matrix_from_pose(b)
    assert gap(poses.matrix_from_pose(poses.compose(a, b)), A @ B) <= 1e-14
    assert gap(poses.pose_from_matrix(A), a) == 0
    xi = tangents(poses, (4,), np.float64, 1)
    series, term = np.eye(A.shape[-1]), np.eye(A.shape[-1])
    for n in range(1, 60):
        term = term @ np.asarray(poses.hat(xi)) / n
        series = series + term
    assert gap(series, A) <= 1e-13
    with pytest.raises(TypeError, match="Pose"):
        poses.log(A)


@pytest.mark.parametrize("name", list(GROUPS))
def test_exports_for_all_platforms(name):
    G = GROUPS[name]

    def everything(xi):
        g = G.exp(xi)
        return G.log(G.interpolate(g, G.inverse(g), 0.3)), G.project(g), G.adjoint(g), G.left_jacobian_inverse(xi)

    exported = jax.export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])
    exported(jax.ShapeDtypeStruct((2, G.dimension), jnp.float32))
