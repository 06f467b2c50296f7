"""Costs between all pairs: against distances of `lie` and NumPy in float64, at 0 and at π, with their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lie import euclidean, group, se2, se3, so2, so3, sphere, su2
from ot import costs

PRODUCT = group.product(so3, euclidean.Space(2))
GROUPS = [so2, so3, su2, se2, se3, euclidean.Space(3), PRODUCT]
KEY_X, KEY_Y = jax.random.split(jax.random.key(4))
FLAT = [costs.SquaredEuclidean(), costs.Euclidean(), costs.PowerNorm(1.5), costs.PowerNorm(3), costs.PowerNorm(0.7)]
POWER = {"SquaredEuclidean": 2.0, "Euclidean": 1.0}


def name_of(space):
    return getattr(space, "__name__", type(space).__name__).split(".")[-1]


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("cost", FLAT, ids=str)
@pytest.mark.parametrize("d", [1, 3, 12, 40])
def test_flat_costs_are_powers_of_the_distance(cost, d, dtype):
    x = jax.random.normal(KEY_X, (2, 1, 5, d), dtype)
    y = jax.random.normal(KEY_Y, (3, 4, d), dtype)
    C = cost(x, y)
    assert C.shape == (2, 3, 5, 4)
    assert C.dtype == dtype
    wide_x, wide_y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    distance = np.linalg.norm(wide_x[..., :, None, :] - wide_y[..., None, :, :], axis=-1)
    power = POWER.get(type(cost).__name__) or cost.p
    # Points are of length √d, the distances of order √(2d): the bound of the product form is relative here.
    assert_allclose(C, distance**power, rtol=4 * (d + 2) * max(1, power) * eps(dtype))


@pytest.mark.parametrize("d", [3, 12])
def test_a_far_away_cloud_keeps_its_digits(d):
    x, y = (1e4 + jax.random.normal(key, (50, d), jnp.float32) for key in (KEY_X, KEY_Y))
    wide = np.asarray(x, np.float64)[:, None] - np.asarray(y, np.float64)[None]
    assert_allclose(costs.SquaredEuclidean()(x, y), (wide**2).sum(-1), rtol=2e-5)


@pytest.mark.parametrize("d", [3, 12])
def test_coincident_points_cost_nothing_and_have_derivatives(d, dtype):
    x = jax.random.normal(KEY_X, (6, d), dtype)
    for cost in FLAT:
        total = lambda x, y, cost=cost: jnp.sum(cost(x, y))
        C = cost(x, x)
        power = POWER.get(type(cost).__name__) or cost.p
        form = 0 if d <= 8 or power < 2 else 8 * d * eps(dtype)
        assert (jnp.diag(C) >= 0).all()
        assert (jnp.diag(C) <= form ** (power / 2)).all()
        gradient, hessian = jax.jit(jax.jacfwd(jax.value_and_grad(total)))(x[:2], x)
        assert np.isfinite(gradient).all()
        assert np.isfinite(hessian).all()
    squared = costs.SquaredEuclidean()
    assert_allclose(jax.grad(lambda x: squared(x, x[:1])[0, 0])(x), jnp.zeros_like(x), atol=1e-30)
    second = jax.hessian(lambda v: squared(v[None], x)[0, 0])(x[0])
    assert_allclose(second, 2 * np.eye(d), atol=16 * eps(dtype))  # clamping at 0 must not touch the derivative


@pytest.mark.parametrize("space", GROUPS, ids=name_of)
def test_geodesic_is_the_distance_of_the_group(space, dtype):
    x, y = space.sample((3, 1, 5), dtype, key=KEY_X), space.sample((2, 4), dtype, key=KEY_Y)
    powers = [1.0, 2.0, 3.0]
    events = costs.Geodesic(space).event_dimensions
    rows = jax.tree.map(lambda e, a: jnp.expand_dims(a, a.ndim - e), events, x)
    columns = jax.tree.map(lambda e, a: jnp.expand_dims(a, a.ndim - e - 1), events, y)
    expected = np.asarray(jax.jit(space.distance)(rows, columns), np.float64)
    all_powers = jax.jit(lambda x, y: [costs.Geodesic(space, power)(x, y) for power in powers])
    for power, C in zip(powers, all_powers(x, y), strict=True):
        assert C.shape == (3, 2, 5, 4)
        assert C.dtype == dtype
        # 7 eps radians, those of su2 up to 2π, and what `distance` itself is off by
        assert_allclose(C, expected**power, rtol=0, atol=12 * eps(dtype) * power * expected.max() ** (power - 1))


@pytest.mark.parametrize("space", [so2, so3, su2, se2, se3], ids=name_of)
def test_geodesic_is_accurate_from_0_to_the_cut_locus(space, dtype):
    theta = np.array([0, 1e-30, 1e-6, 1e-3, 0.5, np.pi / 2, 3.0, np.pi - 1e-3, np.pi - 1e-6])
    axis = np.eye(space.dimension)[-1]
    start = space.identity((1,), dtype)
    turned = space.exp(jnp.asarray(theta[:, None] * axis, dtype))
    C = costs.Geodesic(space, 1.0)(start, turned)[0]
    assert_allclose(C, np.asarray(theta, dtype), rtol=0, atol=8 * eps(dtype))
    small = costs.Geodesic(space, 1.0)(start, turned)[0, :3]  # matrices are given to eps: small angles are relative
    assert_allclose(small, np.asarray(theta[:3], dtype), rtol=8 * eps(dtype), atol=1e-29)


@pytest.mark.slow
def test_rigid_motions_weigh_a_radian_by_length(dtype):
    for space in (se2, se3):
        x, y = space.sample((5,), dtype, key=KEY_X), space.sample((4,), dtype, key=KEY_Y)
        expected = jax.vmap(lambda a, y=y, space=space: jax.vmap(lambda b: space.squared_distance(a, b, 2.5))(y))(x)
        assert_allclose(costs.Geodesic(space, length=2.5)(x, y), expected, rtol=0, atol=64 * eps(dtype))
    with pytest.raises(ValueError, match=r"length: .* without rigid motions"):
        costs.Geodesic(so3, length=2.0)


@pytest.mark.parametrize("space", [so3, su2], ids=name_of)
def test_geodesic_is_invariant_on_both_sides(space, dtype):
    x, y, g = (space.sample((n,), dtype, key=k) for n, k in ((5, KEY_X), (4, KEY_Y), (1, jax.random.key(9))))
    cost = costs.Geodesic(space, 1.0)
    assert_allclose(cost(space.compose(g, x), space.compose(g, y)), cost(x, y), atol=16 * eps(dtype))
    assert_allclose(cost(space.compose(x, g), space.compose(y, g)), cost(x, y), atol=16 * eps(dtype))


@pytest.mark.parametrize("space", [so3, su2, se3, PRODUCT], ids=name_of)
def test_gradient_of_geodesic_is_that_of_the_squared_distance(space):
    x, y = space.sample((4,), jnp.float64, key=KEY_X), space.sample((3,), jnp.float64, key=KEY_Y)
    one = lambda a: jax.tree.map(lambda leaf: leaf[None], a)

    def derivatives(distance):
        def of_pair(a, b):
            along = lambda xi: distance(space.retract(a, xi), b)
            return jax.jacfwd(jax.value_and_grad(along))(jnp.zeros(space.dimension))

        return jax.jit(jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None)))(x, y)

    ours = derivatives(lambda a, b: costs.Geodesic(space)(one(a), one(b))[0, 0])
    theirs = derivatives(space.squared_distance)
    assert_allclose(ours[0], theirs[0], atol=1e-12)
    assert_allclose(ours[1], theirs[1], atol=1e-10)


def test_all_pairs_of_rotations_never_become_matrices():
    R = so3.sample((6,), key=KEY_X)
    jaxpr = jax.make_jaxpr(jax.grad(lambda R, S: jnp.sum(costs.Geodesic(so3)(R, S))))(R, so3.sample((7,), key=KEY_Y))

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.shape for variable in equation.outvars)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    yield from shapes(inner.jaxpr)

    pairs = [shape for shape in shapes(jaxpr.jaxpr) if 6 in shape and 7 in shape]
    assert pairs
    assert max(np.prod(shape) for shape in pairs) == 42


@pytest.mark.parametrize("d", [2, 8])
def test_sphere_is_the_arc_from_0_to_pi(d, dtype):
    x, y = (sphere.sample((5,), dtype, d, key=key) for key in (KEY_X, KEY_Y))
    y = jnp.concatenate([y, x, -x])
    expected = sphere.distance(x[:, None], y)
    assert_allclose(costs.Sphere(1)(x, y), expected, rtol=0, atol=6 * eps(dtype))
    assert_allclose(costs.Sphere(3)(x, y), expected**3, rtol=0, atol=6 * 30 * eps(dtype))
    for power in (1.0, 2.5):
        total = lambda x, power=power: jnp.sum(costs.Sphere(power)(x[None], y))
        slope_and_curvature = jax.jit(jax.vmap(jax.jacfwd(jax.value_and_grad(total))))
        assert all(np.isfinite(part).all() for part in slope_and_curvature(x))


def test_gradient_on_the_sphere_at_right_angles():
    """Where the two forms of the arc meet: x ⟂ y exactly."""
    x, y = jnp.eye(3)[:1], jnp.eye(3)[1:]
    for power in (1.0, 2.0):
        arc = lambda t, power=power: costs.Sphere(power)(jnp.cos(t) * x + jnp.sin(t) * y[:1], y)[0, 0]
        along = jax.grad(arc)(0.0)
        assert_allclose(along, -power * (np.pi / 2) ** (power - 1), rtol=1e-12)


@pytest.mark.parametrize(
    "cost",
    [*FLAT, costs.Sphere(), costs.Sphere(1), costs.wrap(lambda a, b: jnp.cos(a @ b))],
    ids=lambda cost: str(cost)[:30],
)
def test_derivatives_are_those_of_finite_differences(cost):
    x, y, v = (sphere.sample((4,), jnp.float64, key=jax.random.key(k)) for k in range(3))
    along = lambda t: jnp.sum(jnp.sin(cost(x + t * v, y)))  # the chord extends the arc off the sphere
    if isinstance(cost, costs.Sphere):
        along = lambda t: jnp.sum(jnp.sin(cost(sphere.normalize(x + t * v), y)))
    along, first = jax.jit(along), jax.jit(jax.grad(along))
    assert_allclose(first(0.0), (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-7)
    assert_allclose(jax.grad(first)(0.0), (first(1e-5) - first(-1e-5)) / 2e-5, rtol=1e-6)


def test_precomputed_takes_rows_and_columns(dtype):
    C = jax.random.normal(KEY_X, (2, 5, 4), dtype)
    i, j = np.array([3, 0, 3]), np.array([1, 2], np.int32)
    cost = costs.Precomputed(C)
    assert_allclose(cost(None, None), C)
    assert_allclose(cost(i, j), C[:, i][:, :, j])
    assert_allclose(cost(None, j), C[:, :, j])
    gradient = jax.grad(lambda C: jnp.sum(costs.Precomputed(C)(i, j)))(C)
    assert_allclose(gradient[0], np.outer([1, 0, 0, 2, 0], [0, 1, 1, 0]))
    assert np.isnan(jax.jit(lambda i: cost(i, None))(np.array([7]))).all()
    for bad, error in ((np.array([0.0]), TypeError), (np.array([[0]]), TypeError), (np.array([5]), ValueError)):
        with pytest.raises(error, match="x: expected"):
            cost(bad, None)


def test_a_function_of_two_points_becomes_a_cost(dtype):
    x, y = jax.random.normal(KEY_X, (2, 1, 5, 3), dtype), jax.random.normal(KEY_Y, (3, 4, 3), dtype)
    cost = costs.wrap(lambda a, b: jnp.sum((a - b) ** 2))
    assert cost.event_dimensions == 1
    assert cost.expensive
    assert_allclose(cost(x, y), costs.SquaredEuclidean()(x, y), rtol=8 * eps(dtype))
    assert costs.wrap(cost) is cost
    poses = se3.sample((5,), dtype, key=KEY_X), se3.sample((4,), dtype, key=KEY_Y)
    events = costs.Geodesic(se3).event_dimensions
    assert_allclose(costs.wrap(se3.distance, events)(*poses), costs.Geodesic(se3, 1.0)(*poses), atol=8 * eps(dtype))
    scaled = costs.wrap(jax.tree_util.Partial(lambda s, a, b: s * a @ b, jnp.asarray(2, dtype)))
    assert_allclose(jax.jit(lambda cost: cost(x, y))(scaled), 2 * jnp.einsum("abid,cjd->acij", x, y), atol=1e-5)
    with pytest.raises(ValueError, match="two points -> scalar"):
        costs.wrap(lambda a, b: a - b)(x, y)
    with pytest.raises(TypeError, match="cost: expected a record"):
        costs.wrap(costs.SquaredEuclidean)  # pyright: ignore[reportArgumentType] the class, not a record


def test_records_are_static_keys_and_jit_arguments():
    x, y = jnp.ones((3, 3)) / np.sqrt(3), jnp.eye(3)
    records = [*FLAT, costs.Sphere(), costs.Geodesic(euclidean.Space(3)), costs.wrap(jnp.dot)]
    calls = []

    @jax.jit
    def evaluate(cost, x, y):
        calls.append(cost)
        return cost(x, y)

    for record in records:
        assert_allclose(evaluate(record, x, y), record(x, y), rtol=1e-12)
        assert not jax.tree.leaves(record)
    assert len(calls) == len(records)
    assert costs.PowerNorm(3) == costs.PowerNorm(3.0)
    assert hash(costs.Geodesic(PRODUCT, 1.0)) == hash(costs.Geodesic(PRODUCT, 1.0))
    assert all(isinstance(record, costs.Cost) for record in [*records, costs.Precomputed(x)])


@pytest.mark.parametrize("cost", [*FLAT[:3], costs.Sphere()], ids=str)
@pytest.mark.usefixtures("own_checks")
def test_bad_points_are_refused(cost):
    x, y = jnp.ones((4, 3)) / np.sqrt(3), jnp.ones((5, 2)) / np.sqrt(2)
    with pytest.raises(ValueError, match=r"x and y: expected points of one dimension.*\(4, 3\).*\(5, 2\)"):
        cost(x, y)
    with pytest.raises(ValueError, match=r"y: expected shape \(..., any, any\), got \(3,\)"):
        cost(x, x[0])
    with pytest.raises(TypeError, match="x: expected a floating-point array"):
        cost(jnp.ones((4, 3), jnp.int32), x)
    with pytest.raises(TypeError, match=r"one dtype.*x float64, y float32"):
        cost(x, x.astype(jnp.float32))
    with pytest.raises(ValueError, match="y: expected only finite values"):
        cost(x, x.at[2, 1].set(jnp.nan))
    if isinstance(cost, costs.Sphere):
        with pytest.raises(ValueError, match="x: expected unit vectors"):
            cost(2 * x, x)


@pytest.mark.usefixtures("own_checks")
def test_bad_elements_and_parameters_are_refused():
    R, T = so3.identity((4,)), se3.identity((4,))
    with pytest.raises(ValueError, match=r"y: expected shape \(..., any, 3, 3\), got \(4, 3\)"):
        costs.Geodesic(so3)(R, R[:, 0])
    with pytest.raises(ValueError, match="x: expected rotation matrices"):
        costs.Geodesic(so3)(2 * R, R)
    with pytest.raises(TypeError, match=r"y: expected a se3.Pose"):
        costs.Geodesic(se3)(T, T.rotation)
    with pytest.raises(ValueError, match="x: expected a tuple of 2 entries"):
        costs.Geodesic(PRODUCT)(R, R)
    with pytest.raises(TypeError, match="group: expected a group of lie"):
        costs.Geodesic(3)
    for make in (costs.PowerNorm, costs.Sphere, partial(costs.Geodesic, so3)):
        with pytest.raises(ValueError, match="expected a finite number > 0"):
            make(-1.0)
        with pytest.raises(TypeError, match="expected a number"):
            make("2")  # pyright: ignore[reportArgumentType]
