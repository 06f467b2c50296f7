"""Motion on groups: orders of convergence, exact transition laws, time reversal and likelihood against closed forms."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax import export

from lie import densities, euclidean, group, processes, se2, se3, so2, so3, su2

ORDERS = {"euler": 1, "munthe_kaas_2": 2, "commutator_free_3": 3, "munthe_kaas_4": 4, "commutator_free_4": 4}
SPACE = euclidean.Space(2)
GROUPS = {
    "so2": so2,
    "se2": se2,
    "so3": so3,
    "se3": se3,
    "su2": su2,
    "euclidean": euclidean.Space(3),
    "product": group.product(so3, SPACE, se2),
}


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def turning(time, R):
    """A field on SO(3) that depends on time and place and commutes with nothing."""
    fixed = so3.act(so3.inverse(R), jnp.array([1.0, -0.5, 0.3], R.dtype)) * jnp.cos(2 * time)
    return fixed + 2 * R[..., 0, :] * R[..., 1, :] + jnp.array([0.3, 0.2, -0.5], R.dtype) * time


@functools.cache
def reference():
    start = so3.exp(jnp.array([0.3, 0.2, 0.1]))
    return start, processes.ode(so3, turning, start, jnp.linspace(0.0, 1.0, 513), method="munthe_kaas_4").final


@pytest.mark.parametrize("method", ORDERS)
def test_methods_have_their_order(method):
    start, end = reference()
    counts = jnp.array([8, 16, 32])
    # Steps of length 0 change nothing: the three step sizes share one compilation.
    times = jnp.minimum(jnp.arange(33)[None] / counts[:, None], 1.0)
    solve = jax.jit(jax.vmap(lambda t: processes.ode(so3, turning, start, t, method=method).final))
    error = np.asarray(so3.distance(solve(times), end))
    measured = np.log2(error[:-1] / error[1:])
    assert (np.abs(measured - ORDERS[method]) < 0.12).all(), (measured, error)
    assert error[-1] < 0.06 * 16.0 ** (1 - ORDERS[method])


def test_keys_of_either_kind_draw_the_same():
    """jax.random.key and the older jax.random.PRNGKey, which is an array of uint32."""

    def walk(key):
        path = processes.brownian_path(so2, so2.identity(), jnp.array([0.0, 0.5, 1.0], jnp.float32), key=key)
        return path, densities.Haar().sample((2,), key=key), SPACE.sample(key=key)

    same = jax.tree.map(jnp.array_equal, walk(jax.random.key(7)), walk(jax.random.PRNGKey(7)))
    assert all(jax.tree.leaves(same))


def test_methods_are_all_tested():
    assert set(ORDERS) == set(processes.METHODS)


@pytest.mark.parametrize("name", GROUPS)
def test_a_constant_body_velocity_is_a_one_parameter_subgroup(name, dtype):
    space = GROUPS[name]
    start = space.sample((2, 3), dtype, key=jax.random.key(0))
    xi = 0.3 * jax.random.normal(jax.random.key(1), (2, 3, space.dimension), dtype)
    path = jax.jit(
        lambda s: processes.ode(
            space, lambda t, x: xi, s, jnp.linspace(0, 2, 11), method="commutator_free_3", store=True
        )
    )(start)
    for step, time in ((0, 0.0), (5, 1.0), (10, 2.0)):
        stored = jax.tree.map(lambda x, step=step: x[step], path.path)
        gap = jnp.max(jnp.abs(space.local(space.retract(start, time * xi), stored)))
        assert gap <= 64 * eps(dtype), (time, gap)  # 5 exponentials and products a step, 10 steps
    assert jax.tree.all(jax.tree.map(lambda x, s: x.dtype == dtype and x.shape == s.shape, path.final, start))


def test_backward_undoes_forward():
    start, end = reference()
    back = processes.ode(so3, turning, end, jnp.linspace(1.0, 0.0, 513), method="munthe_kaas_4").final
    assert so3.distance(start, back) < 1e-11


@pytest.mark.parametrize("method", ["munthe_kaas_4", "commutator_free_4"])
def test_a_free_rigid_body_keeps_its_momentum(method):
    """Euler's equations on SO(3) x R^3: Ṙ = R Ω̂, L̇ = L × Ω, L = I Ω. R L is fixed in space, L·Ω is twice the energy."""
    inertia = jnp.array([1.0, 2.0, 3.5])
    body = group.product(so3, euclidean.Space(3))

    def field(time, state):
        momentum = state[1]
        return jnp.concatenate([momentum / inertia, jnp.cross(momentum, momentum / inertia)], axis=-1)

    start = (so3.identity((), jnp.float64), jnp.array([1.0, 0.4, -2.0]))
    times = jnp.minimum(jnp.arange(101)[None] / jnp.array([[50], [100]]), 1.0) * 5.0
    final = jax.jit(jax.vmap(lambda t: processes.ode(body, field, start, t, method=method).final))(times)
    spatial = np.linalg.norm(so3.act(final[0], final[1]) - start[1], axis=-1)
    energy = np.abs(np.sum(final[1] ** 2 / inertia, -1) - np.sum(start[1] ** 2 / inertia))
    assert spatial[1] < 1e-5
    assert spatial[0] / spatial[1] > 12  # fourth order: 16
    assert energy[1] < 1e-5


def test_the_program_does_not_grow_with_the_steps():
    start, _ = reference()

    def equations(steps):
        solve = lambda s: processes.ode(so3, turning, s, jnp.linspace(0.0, 1.0, steps + 1)).final
        return str(jax.make_jaxpr(solve)(start)).count(" = ")

    assert equations(10) == equations(5000)


def test_rounding_leaves_the_group_slowly():
    """10 000 float32 steps: |RᵀR − I| grows like eps times the root of the steps (100), not the steps."""
    start = so3.sample((50,), jnp.float32, key=jax.random.key(3))
    times = jnp.linspace(0.0, 20.0, 10_001, dtype=jnp.float32)
    walk = jax.jit(
        lambda s: processes.sde(so3, lambda t, x: jnp.zeros((50, 3), x.dtype), 1.0, s, times, key=jax.random.key(4))
    )
    R = np.asarray(walk(start).final, np.float64)
    assert np.abs(np.swapaxes(R, -1, -2) @ R - np.eye(3)).max() < 10 * 100 * eps(jnp.float32)


@functools.cache
def walkers(name):
    """20 000 Brownian motions on a group at time 0.8, from a start that is not the identity."""
    space = GROUPS[name]

    @jax.jit
    def run():
        start = space.sample((), jnp.float64, key=jax.random.key(5))
        spread = jax.tree.map(lambda x: jnp.broadcast_to(x, (20_000, *x.shape)), start)
        return spread, processes.brownian(space, spread, 0.8, key=jax.random.key(6))

    return run()


def assert_mean(values, expected, label):
    """Means of samples (first axis) within 4.5 standard errors."""
    values = np.asarray(values)
    error = np.std(values, axis=0) / np.sqrt(len(values))
    assert (np.abs(values.mean(axis=0) - expected) <= 4.5 * error + 1e-12).all(), (label, values.mean(axis=0), expected)


@pytest.mark.parametrize(
    "name",
    [name if name in ("so2", "so3", "euclidean") else pytest.param(name, marks=pytest.mark.slow) for name in GROUPS],
)
def test_brownian_motion_has_the_moments_of_its_heat_kernel(name):
    """E D(X₀⁻¹ X_t) = exp(−t Casimir/2) I: Casimir 1 on SO(2), 2 on SO(3) vectors, 3/4 on SU(2) spinors."""
    t, (start, end) = 0.8, walkers(name)
    moved = GROUPS[name].compose(GROUPS[name].inverse(start), end)
    if name in ("so2", "so3"):
        assert_mean(moved, np.exp(-t * {"so2": 0.5, "so3": 1.0}[name]) * np.eye(moved.shape[-1]), name)
    elif name == "su2":
        assert_mean(moved, np.exp(-3 * t / 8) * np.array([1, 0, 0, 0]), name)
    elif name in ("se2", "se3"):
        v = np.asarray(moved.translation)
        assert_mean(moved.rotation, np.exp(-t * {"se2": 0.5, "se3": 1.0}[name]) * np.eye(v.shape[-1]), name)
        assert_mean(v, 0, name)
        assert_mean(v[:, :, None] * v[:, None, :], t * np.eye(v.shape[-1]), name)
    elif name == "euclidean":
        v = np.asarray(end - start)
        assert_mean(v[:, :, None] * v[:, None, :], t * np.eye(3), name)
    else:
        assert_mean(moved[0], np.exp(-t) * np.eye(3), name)
        assert_mean(moved[2].rotation * moved[1][:, :1, None], 0, "factors are independent")


def test_brownian_angles_follow_the_heat_kernel():
    start, end = walkers("so3")
    law = densities.IsotropicGaussian(so3.identity((), jnp.float64), jnp.asarray(np.sqrt(0.8)))
    angles = np.asarray(so3.distance(end, start))
    assert scipy.stats.kstest(np.asarray(law.angle_cdf(jnp.asarray(angles))), "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_the_double_cover_is_lifted_by_its_own_heat_kernel():
    """Angles ψ in 0..2π of SU(2): the kernel here is the sum over the characters of all half-integer spins."""
    times = np.array([0.5, 2.0, 7.9, 8.1, 20.0])
    start = su2.identity((5, 10_000), jnp.float64)
    walk = jax.jit(lambda key: processes.brownian(su2, start, jnp.asarray(times)[:, None], key=key))
    q = np.asarray(walk(jax.random.key(7)))
    grid = (np.arange(4000) + 0.5) * 2 * np.pi / 4000
    m = np.arange(1, 60)
    for t, psi in zip(times, 2 * np.arctan2(np.linalg.norm(q[..., 1:], axis=-1), q[..., 0]), strict=True):
        kernel = (m * np.exp(-(m**2 - 1) * t / 8) * np.sin(m * grid[:, None] / 2)).sum(-1) / np.sin(grid / 2)
        cdf = np.cumsum(kernel * np.sin(grid / 2) ** 2 / np.pi) * 2 * np.pi / 4000
        assert abs(cdf[-1] - 1) < 1e-6
        assert scipy.stats.kstest(np.interp(psi, grid, cdf), "uniform").pvalue > 1e-4, t


def test_brownian_motion_at_time_zero_stays_and_has_finite_derivatives():
    start = so3.sample((3,), jnp.float64, key=jax.random.key(8))
    times = jnp.array([0.0, 1e-8, 1.0])
    end = processes.brownian(so3, start, times, key=jax.random.key(9))
    np.testing.assert_array_equal(end[0], start[0])
    assert so3.distance(start[1], end[1]) < 1e-3


@pytest.mark.slow
def test_brownian_motion_is_differentiable_in_time():
    """Reparameterised: also at time 0, where the derivative is 0 by choice, beside a harder neighbour."""
    start, times = so3.sample((2,), jnp.float64, key=jax.random.key(8)), jnp.array([0.0, 0.5])
    walk = jax.jit(lambda t: processes.brownian(so3, start, t, key=jax.random.key(9)))
    slope = jax.jvp(walk, (times,), (jnp.ones(2),))[1]
    numeric = (walk(times + 1e-5) - walk(times - 1e-5 * jnp.array([0.0, 1.0]))) / 2e-5
    np.testing.assert_array_equal(slope[0], 0)
    np.testing.assert_allclose(slope[1], numeric[1], atol=1e-6)


@pytest.mark.slow
def test_brownian_paths_are_markov_and_exact_at_every_time():
    times = jnp.array([0.0, 0.1, 0.5, 1.5])
    start = so3.identity((20_000,), jnp.float64)
    path = jax.jit(lambda key: processes.brownian_path(so3, start, times, key=key))(jax.random.key(10)).path
    np.testing.assert_array_equal(path[0], start)
    for i, j in ((0, 1), (1, 2), (0, 3), (1, 3)):
        step = so3.compose(so3.inverse(path[i]), path[j])
        assert_mean(step, np.exp(-(times[j] - times[i])) * np.eye(3), (i, j))


def test_brownian_motion_refuses_an_unknown_group():
    class Unknown:
        local = staticmethod(so3.local)
        compose = staticmethod(so3.compose)

    with pytest.raises(TypeError):
        processes.brownian(cast(Any, Unknown()), so3.identity(), 1.0, key=jax.random.key(0))


def test_euler_maruyama_is_the_geodesic_random_walk():
    """Four steps of length h = ¼: E R = c(h)⁴ I, c(h) = (1 + 2 (1 − h) exp(−h/2))/3, which differs from exp(−1)."""
    start, h = so3.identity((40_000,), jnp.float64), 0.25
    still = lambda t, x: jnp.zeros(x.shape[:-1], x.dtype)
    end = jax.jit(lambda key: processes.sde(so3, still, 1.0, start, jnp.linspace(0, 1, 5), key=key))(jax.random.key(1))
    assert end.path is None
    assert_mean(end.final, ((1 + 2 * (1 - h) * np.exp(-h / 2)) / 3) ** 4 * np.eye(3), "walk")


def test_langevin_motion_on_the_circle_finds_von_mises():
    """dX = X ∘ (½ ∂ log p dt + dW) leaves p ∝ exp(κ cos θ) alone: E cos θ = I₁(κ)/I₀(κ)."""
    kappa = 1.5
    start = so2.identity((20_000,), jnp.float64)
    drift = lambda t, x: -kappa / 2 * x[..., 1, :1]
    times = jnp.linspace(0, 5, 251)
    end = jax.jit(lambda key: processes.sde(so2, drift, 1.0, start, times, key=key))(jax.random.key(2)).final
    cosine = np.asarray(end[:, 0, 0])
    expected = scipy.special.i1(kappa) / scipy.special.i0(kappa)
    assert abs(cosine.mean() - expected) < 4 * cosine.std() / np.sqrt(len(cosine)) + 0.01  # step bias: order h = 0.02


def test_diffusions_of_time_place_and_coordinate():
    space = euclidean.Space(2)
    start = jnp.zeros((20_000, 2))
    sigma = lambda t, x: jnp.array([1.0, 2.0]) * t
    still = lambda t, x: jnp.zeros_like(x)
    end = processes.sde(space, still, sigma, start, jnp.linspace(0.0, 1.0, 11), store=True, key=jax.random.key(3))
    variance = np.sum((np.arange(10) / 10) ** 2) / 10  # left end points
    assert_mean(end.final**2, variance * np.array([1.0, 4.0]), "variance")
    assert end.path is not None
    assert end.path.shape == (11, 20_000, 2)


SCALE, SIGMA, HORIZON = 0.7, 1.2, 1.0


def log_heat_kernel(cosine, t):
    """log Σ_l (2l+1) exp(−l(l+1) t/2) χ_l(θ), enough degrees for t >= SCALE² = 0.49."""
    previous, character = jnp.ones_like(cosine), 2 * cosine + 1
    total = jnp.ones_like(cosine)
    for l in range(1, 11):
        total = total + (2 * l + 1) * jnp.exp(-l * (l + 1) / 2 * t) * character
        previous, character = character, 2 * cosine * character - previous
    return jnp.log(total)


def heat_score(mean):
    """The score of IGSO(3) that diffuses from SCALE at time 0 with dX = X ∘ SIGMA dW, by the chain rule over cos θ."""

    def score(time, R):
        relative = so3.compose(jnp.broadcast_to(so3.inverse(mean), R.shape), R)
        cosine = (jnp.trace(relative, axis1=-2, axis2=-1) - 1) / 2
        slope = jax.grad(lambda c: jnp.sum(log_heat_kernel(c, SCALE**2 + SIGMA**2 * time)))(cosine)
        return -slope[..., None] * so3.vee(relative)

    return score


@pytest.mark.slow
@pytest.mark.parametrize("noise_ratio", [0.0, 0.5, 1.0])
def test_the_reversed_diffusion_ends_at_the_data(noise_ratio):
    mean = so3.exp(jnp.array([0.4, -1.0, 0.7]))
    last = densities.IsotropicGaussian(mean, jnp.asarray(np.sqrt(SCALE**2 + SIGMA**2 * HORIZON)))
    still = lambda t, x: jnp.zeros(x.shape[:-1], x.dtype)
    times = HORIZON * (1 - jnp.linspace(0, 1, 201)) ** 2

    @jax.jit
    def run(key):
        key_start, key_path = jax.random.split(key)
        start = last.sample((10_000,), key=key_start)
        return processes.reverse(
            so3, still, SIGMA, heat_score(mean), start, times, noise_ratio=noise_ratio, key=key_path
        ).final

    angles = np.asarray(so3.distance(run(jax.random.key(4)), mean))
    law = densities.IsotropicGaussian(mean, jnp.asarray(SCALE))
    uniform = np.asarray(law.angle_cdf(jnp.asarray(angles)))
    assert scipy.stats.kstest(uniform, "uniform").statistic < 1.95 / 100 + 0.01  # 0.1 % point, and the step's bias


@pytest.mark.slow
def test_the_probability_flow_knows_the_likelihood():
    mean = so3.exp(jnp.array([0.4, -1.0, 0.7]))
    first = densities.IsotropicGaussian(mean, jnp.asarray(SCALE))
    last = densities.IsotropicGaussian(mean, jnp.asarray(np.sqrt(SCALE**2 + SIGMA**2 * HORIZON)))
    still = lambda t, x: jnp.zeros(x.shape[:-1], x.dtype)
    field = processes.probability_flow(so3, still, SIGMA, heat_score(mean))
    R = first.sample((5,), key=jax.random.key(5))
    times = HORIZON * jnp.linspace(0, 1, 101) ** 2
    found = jax.jit(lambda R: processes.log_prob(so3, field, R, times, last.log_prob))(R)
    np.testing.assert_allclose(found.log_prob, first.log_prob(R), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.log_volume, found.log_prob - last.log_prob(found.final), atol=1e-14)


def test_the_likelihood_of_a_linear_flow_is_exact():
    """Ẋ = A X + b on R²: log p₀ = log p₁ + tr A; with a rotation factor that turns at a fixed speed, no more volume."""
    A, b = jnp.array([[0.3, -1.0], [0.4, -0.8]]), jnp.array([1.0, 2.0])
    space = group.product(so3, SPACE)
    start = space.sample((3, 1), jnp.float64, key=jax.random.key(6))

    def field(time, state):
        v = jnp.sum(A * state[1][..., None, :], -1) + b
        return jnp.concatenate([jnp.broadcast_to(jnp.array([1.0, 2.0, 0.1]), (3, 1, 3)), v], -1)

    normal = lambda state: -0.5 * jnp.sum(state[1] ** 2, -1)
    found = processes.log_prob(space, field, start, jnp.linspace(0.0, 1.0, 51), normal, method="munthe_kaas_4")
    flow = scipy.linalg.expm(np.asarray(A))
    end = start[1] @ flow.T + np.linalg.solve(A, (flow - np.eye(2)) @ b)
    np.testing.assert_allclose(found.log_volume, np.trace(A), rtol=1e-13)
    np.testing.assert_allclose(found.final[1], end, rtol=1e-7)
    np.testing.assert_allclose(found.log_prob, -0.5 * np.sum(end**2, -1) + np.trace(A), rtol=1e-7)


def test_the_divergence_of_a_gradient_is_the_laplacian(dtype):
    """φ = tr(AR) has Σ L_i² φ = −2 φ: degree 1, eigenvalue −l(l+1)."""
    A = jax.random.normal(jax.random.key(7), (3, 3), dtype)
    R = so3.sample((5, 2), dtype, key=jax.random.key(8))
    phi = lambda R: jnp.sum(A * R, axis=(-2, -1))
    field = lambda R: jax.grad(lambda u: jnp.sum(phi(so3.retract(R, u))))(jnp.zeros(R.shape[:-1], dtype))
    np.testing.assert_allclose(processes.divergence(so3, field, R), -2 * phi(R), rtol=0, atol=64 * eps(dtype))


def test_solutions_differentiate_and_map():
    start, _ = reference()
    times = jnp.linspace(0.0, 0.5, 5)

    def end(u):
        return so3.log(processes.ode(so3, turning, so3.retract(start, u), times, method="munthe_kaas_2").final)

    h, u = 1e-5, jnp.zeros(3)
    moved = np.asarray(jax.jit(jax.vmap(end))(h * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])))
    numeric = (moved[:3] - moved[3:]).T / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(end))(u), numeric, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacrev(end))(u), numeric, atol=1e-9)


def test_everything_exports():
    R, times, key = so3.identity((2,), jnp.float32), jnp.linspace(0, 1, 5, dtype=jnp.float32), jax.random.key(0)
    still = lambda t, x: jnp.zeros(x.shape[:-1], x.dtype)
    raw = jax.random.key_data(key)

    def everything(R, raw):
        key = jax.random.wrap_key_data(raw)
        a = processes.ode(so3, turning, R, times, method="munthe_kaas_4").final
        b = processes.reverse(so3, still, 1.0, still, a, times[::-1], key=key).final
        c = processes.brownian(su2, su2.identity((2,)), 1.0, key=key)
        return processes.log_prob(so3, turning, b, times, lambda x: x[..., 0, 0])[0], c

    exported = export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(R, raw)
    assert exported.out_avals[0].dtype == jnp.float32


def test_arguments_are_checked(own_checks):
    R, times = so3.identity((2,), jnp.float64), jnp.linspace(0.0, 1.0, 3)
    good, key = lambda t, x: jnp.zeros((2, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="method: expected one of euler"):
        processes.ode(so3, good, R, times, method="rk45")
    with pytest.raises(ValueError, match=r"field: expected .* shape \(2, 3\), got \(3,\)"):
        processes.ode(so3, lambda t, x: jnp.zeros(3), R, times)
    with pytest.raises(TypeError, match=r"field: expected .* dtype float64, got float32"):
        processes.ode(so3, lambda t, x: jnp.zeros((2, 3), jnp.float32), R, times)
    with pytest.raises(ValueError, match=r"times: expected shape \(steps \+ 1,\)"):
        processes.ode(so3, good, R, times[None])
    with pytest.raises(TypeError, match="times: expected a floating-point array"):
        processes.ode(so3, good, R, jnp.arange(3))
    with pytest.raises(ValueError, match=r"drift: expected shape \(..., 3\), got \(2,\)"):
        processes.sde(so3, lambda t, x: jnp.zeros(2), 1.0, R, times, key=key)
    with pytest.raises(ValueError, match="diffusion: expected a shape that broadcasts"):
        processes.sde(so3, good, lambda t, x: jnp.ones((5, 2, 3)), R, times, key=key)
    with pytest.raises(ValueError, match="time: expected times >= 0"):
        processes.brownian(so3, R, -1.0, key=key)
    with pytest.raises(ValueError, match="only finite values"):
        processes.brownian(so3, R, jnp.nan, key=key)
