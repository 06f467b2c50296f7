"""Representations: homomorphism, e3nn's basis, exact derivatives where Euler angles break down, invariant couplings."""

import os
import subprocess
import sys

import e3nn_jax
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import precisions
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from lie import so3, wigner

# the eight rotations at which e3nn-jax's gradients are measured: most are zero, NaN or infinite there
SPECIAL = {
    "identity": (0, 0, 0),
    "about y by 1e-3": (0, 1e-3, 0),
    "about y by 1": (0, 1, 0),
    "about y by pi": (0, np.pi, 0),
    "about x by 1e-4": (1e-4, 0, 0),
    "about x by pi": (np.pi, 0, 0),
    "about z by pi": (0, 0, np.pi),
    "generic": (0.4, -0.7, 1.1),
}


def exact(omega, degree):
    """D_l(exp(ω̂)) by the exponential of e3nn's own generators, in extended precision: scaling, Taylor, squaring."""
    generators = np.asarray(e3nn_jax.generators(degree), np.longdouble)
    argument = np.einsum("k,kij->ij", np.asarray(omega, np.longdouble), generators) / 64
    total = term = np.eye(2 * degree + 1, dtype=np.longdouble)
    for k in range(1, 24):
        term = term @ argument / k
        total = total + term
    for _ in range(6):
        total = total @ total
    return total.astype(np.float64)


def rotations(omegas, dtype):
    """Rotations rounded once from float64."""
    return so3.exp(jnp.asarray(omegas, jnp.float64)).astype(dtype)


def random_omegas(count, seed):
    omegas = np.random.default_rng(seed).normal(size=(count, 3))
    return omegas / np.linalg.norm(omegas, axis=1, keepdims=True) * np.linspace(0.05, np.pi, count)[:, None]


@pytest.mark.parametrize("degree", [1, 2, 5, 12])
def test_d_equals_the_exponential_of_the_generators(degree, dtype):
    omegas = np.concatenate([random_omegas(8, degree), np.array(list(SPECIAL.values()))])
    ours = wigner.d(rotations(omegas, dtype), degree)
    assert ours.dtype == dtype
    # so3.exp is good to 6.5 eps, an error of angle counts l times in D_l
    bound = (8 + 3 * degree) * float(jnp.finfo(dtype).eps)
    assert_allclose(ours, np.stack([exact(omega, degree) for omega in omegas]), rtol=0, atol=bound)


@pytest.mark.parametrize("degree", [1, 2, 6, 10, 12])
def test_d_is_a_homomorphism(degree, dtype):
    Q, R = (so3.sample((64,), dtype, key=jax.random.key(seed)) for seed in (1, 2))
    D = jax.jit(lambda Q, R: (wigner.d(Q, degree), wigner.d(R, degree), wigner.d(so3.compose(Q, R), degree)))
    left, right, both = (np.asarray(block, np.float64) for block in D(Q, R))
    bound = 5e-6 if dtype == jnp.float32 else 1e-14 * (1 + degree / 4)
    assert_allclose(left @ right, both, rtol=0, atol=bound)
    assert_allclose(left @ left.swapaxes(-1, -2), np.broadcast_to(np.eye(2 * degree + 1), left.shape), atol=bound)


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 11])
def test_basis_is_that_of_e3nn(degree):
    R = so3.sample((5,), jnp.float64, key=jax.random.key(0))
    for parity in (1, -1):
        theirs = e3nn_jax.Irrep(degree, parity).D_from_matrix(R)
        assert_allclose(wigner.d(R, degree), theirs, rtol=0, atol=2e-14)
    assert_allclose(wigner.generators(degree), e3nn_jax.generators(degree), rtol=0, atol=1e-14)


def test_degree_one_is_the_rotation_itself(dtype):
    R = so3.sample((20,), dtype, key=jax.random.key(3))
    assert_allclose(wigner.d(R, 1), R, rtol=0, atol=4 * float(jnp.finfo(dtype).eps))
    assert_allclose(wigner.d(-R, 1), -R, rtol=0, atol=4 * float(jnp.finfo(dtype).eps))


def test_a_reflection_acts_as_the_degree_parity(dtype):
    R = so3.sample((2, 3), dtype, key=jax.random.key(4))
    for degree in (2, 3):
        assert_allclose(wigner.d(-R, degree), (-1) ** degree * wigner.d(R, degree), rtol=0, atol=0)


def test_d_all_holds_every_degree(dtype):
    R = so3.sample((2, 3), dtype, key=jax.random.key(5))
    R = R.at[0].multiply(-1)
    whole = wigner.d_all(R, 4)
    expected = np.asarray(scipy.linalg.block_diag(*[np.asarray(wigner.d(R, degree)[0, 1]) for degree in range(5)]))
    assert whole.shape == (2, 3, 25, 25)
    assert_allclose(whole[0, 1], expected, rtol=0, atol=8 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("degree", [1, 2, 6])
def test_derivatives_are_exact_where_angles_are_singular(degree, dtype):
    R = rotations(np.array(list(SPECIAL.values())), dtype)
    weights = jax.random.normal(jax.random.key(degree), (2 * degree + 1, 2 * degree + 1), dtype)

    def along(R, tangent):
        return jnp.sum(weights * wigner.d(so3.compose(R, so3.exp(tangent)), degree))

    zero = jnp.zeros(3, dtype)
    gradient = jax.jit(jax.vmap(lambda R: jax.grad(along, 1)(R, zero)))(R)
    hessian = jax.jit(jax.vmap(lambda R: jax.hessian(along, 1)(R, zero)))(R)
    G = wigner.generators(degree)
    D = np.stack([exact(omega, degree) for omega in SPECIAL.values()])
    first = np.einsum("ij,nia,kaj->nk", weights, D, G)
    second = np.einsum("ij,nia,kab,lbj->nkl", weights, D, G, G)
    eps, scale = float(jnp.finfo(dtype).eps), np.abs(weights).sum()
    assert_allclose(gradient, first, rtol=0, atol=4 * degree * eps * scale)
    assert_allclose(hessian, (second + second.swapaxes(1, 2)) / 2, rtol=0, atol=4 * degree**2 * eps * scale)


def test_the_ambient_gradient_is_tangent_to_the_group():
    R = so3.sample((), jnp.float64, key=jax.random.key(6))
    gradient = jax.grad(lambda R: wigner.d(R, 3)[2, 5])(R)
    assert_allclose(R.T @ gradient, -(R.T @ gradient).T, rtol=0, atol=1e-14)


@precisions.float64_is_slow
def test_the_rule_leaves_the_value_alone_and_neighbours_too(dtype):
    R = rotations(np.array([*SPECIAL.values(), *random_omegas(3, 7)]), dtype)
    value, slope = jax.jvp(lambda R: wigner.d(R, 3), (R,), (jnp.ones_like(R),))
    assert_allclose(value, wigner.d(R, 3), rtol=0, atol=0)
    assert np.isfinite(slope).all()
    alone = jnp.stack([wigner.d(one, 3) for one in R])
    assert_allclose(value, alone, rtol=0, atol=4 * float(jnp.finfo(dtype).eps))
    assert_allclose(jax.jit(jax.vmap(lambda R: wigner.d(R, 3)))(R), value, rtol=0, atol=4 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_stay_narrow(narrow):
    assert wigner.d(so3.identity((2,), narrow), 2).dtype == narrow
    assert wigner.d_all(so3.identity((2,), narrow), 2).dtype == narrow


@pytest.mark.parametrize("degrees", [(1, 1, 0), (1, 1, 1), (1, 1, 2), (2, 3, 4), (4, 4, 6)])
def test_clebsch_gordan_is_invariant_and_normalised(degrees):
    C = wigner.clebsch_gordan(*degrees)
    R = so3.sample((), jnp.float64, key=jax.random.key(8))
    D1, D2, D3 = (np.asarray(wigner.d(R, degree)) for degree in degrees)
    assert_allclose(np.einsum("ia,jb,abc->ijc", D1, D2, C), np.einsum("ijk,kc->ijc", C, D3), rtol=0, atol=1e-14)
    assert_allclose(np.linalg.norm(C), 1, rtol=1e-14)
    assert_allclose(C, e3nn_jax.clebsch_gordan(*degrees), rtol=0, atol=1e-15)


def test_clebsch_gordan_outside_the_triangle_is_zero_and_the_cache_is_safe():
    assert not wigner.clebsch_gordan(1, 1, 3).any()
    wigner.clebsch_gordan(1, 1, 2)[:] = 7
    wigner.generators(2)[:] = 7
    assert np.abs(wigner.clebsch_gordan(1, 1, 2)).max() < 1
    assert np.abs(wigner.generators(2)).max() < 3


def test_generators_obey_the_algebra():
    for degree in (1, 4, 12):
        x, y, z = wigner.generators(degree)
        assert_allclose(x @ y - y @ x, z, rtol=0, atol=1e-13 * (1 + degree**2))
        assert_allclose(y @ z - z @ y, x, rtol=0, atol=1e-13 * (1 + degree**2))
        assert_allclose(
            x @ x + y @ y + z @ z, -degree * (degree + 1) * np.eye(2 * degree + 1), atol=1e-13 * (1 + degree**2)
        )


def test_importing_wigner_does_not_import_e3nn():
    program = "import sys; from lie import wigner, harmonics; sys.exit('e3nn_jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ, check=False).returncode == 0


def test_exports_for_every_platform():
    function = jax.jit(jax.grad(lambda R: jnp.sum(wigner.d_all(R, 3) ** 3)))
    exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((4, 3, 3), jnp.float32)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_bad_input_is_named(own_checks):
    with pytest.raises(ValueError, match=r"R: expected shape \(\.\.\., 3, 3\), got \(2, 3\)"):
        wigner.d(jnp.ones((2, 3)), 1)
    with pytest.raises(TypeError, match="R: expected a floating-point array"):
        wigner.d(jnp.eye(3, dtype=jnp.int32), 1)
    with pytest.raises(ValueError, match="degree: expected a degree >= 0, got -1"):
        wigner.d(jnp.eye(3), -1)
    with pytest.raises(ValueError, match="R: expected rotation matrices"):
        wigner.d(2 * jnp.eye(3), 1)
    with pytest.raises(ValueError, match="R: expected only finite values"):
        wigner.d(jnp.full((3, 3), jnp.nan), 1)
