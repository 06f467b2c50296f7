"""Symmetric contraction: a complete basis, equal to dense tensors and to cuequivariance, derivatives of every order."""

import importlib
from collections import Counter
from functools import partial
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import symmetric_basis, symmetric_contraction, term_table, term_unrolled
from equivariant.equivariance import equivariance_error

C, SPECIES = 3, 3
contract = symmetric_contraction.symmetric_contraction


def multiplicities(max_degree, order, parities=1):
    """(parity, degree) -> how often it occurs in the symmetric power, by counting the weights m of its monomials."""
    slots = [(p, l, m) for p in range(parities) for l in range(max_degree + 1) for m in range(-l, l + 1)]
    weights = Counter()
    for factors in combinations_with_replacement(slots, order):
        weights[sum(p + l for p, l, _ in factors) % 2, sum(m for *_, m in factors)] += 1
    return lambda sign, degree: weights[sign, degree] - weights[sign, degree + 1]


@pytest.mark.parametrize(("max_degree", "correlation", "parities"), [(2, 3, 1), (1, 4, 1), (1, 3, 2)])
def test_the_basis_is_complete_and_orthonormal(max_degree, correlation, parities):
    basis = symmetric_basis.symmetric_basis(max_degree, max_degree, correlation, parities, parities)
    found = Counter((path.order, path.parity, path.degree) for path in basis.paths)
    for order in range(1, correlation + 1):
        count = multiplicities(max_degree, order, parities)
        for parity in range(parities):
            for degree in range(max_degree + 1):
                assert found[order, parity, degree] == count((parity + degree) % 2, degree)
    rng = np.random.default_rng(0)
    rows = parities * (max_degree + 1) ** 2
    x = rng.normal(size=(200_000, rows))
    first = [t for t, (row, _) in enumerate(basis.terms) if row == 0]
    monomials = np.stack([np.prod(x[:, basis.terms[t][1]], axis=1) for t in first])
    scalars = [i for i, path in enumerate(basis.paths) if path[:3] == (correlation, 0, 0)]
    y = basis.coefficients[np.ix_(scalars, first)] @ monomials
    same = np.array([[basis.paths[i].factors == basis.paths[j].factors for i in scalars] for j in scalars])
    np.testing.assert_allclose(same * (y @ y.T) / x.shape[0], np.eye(len(scalars)), atol=0.15)


def _inputs(dtype, max_degree=2, parities=1, nodes=11, out=2, correlation=3, parities_out=1):
    keys = jax.random.split(jax.random.key(0), 3)
    paths = len(symmetric_basis.symmetric_basis(max_degree, out, correlation, parities, parities_out).paths)
    weight = jax.random.normal(keys[0], (SPECIES, paths, C), dtype)
    x = jax.random.normal(keys[1], (nodes, parities, (max_degree + 1) ** 2, C), dtype)
    return weight, x, jax.random.randint(keys[2], (nodes,), 0, SPECIES)


def dense(weight, x, species, basis, orders_out):
    """The same through full tensors U (paths, rows, n, n, n), one einsum an order, in NumPy."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)[np.asarray(species)]
    n, y = x.shape[2], np.zeros((x.shape[0], orders_out, x.shape[-1]))
    for order in {path.order for path in basis.paths}:
        U = np.zeros((len(basis.paths), orders_out, *[n] * order))
        for t, (row, rows) in enumerate(basis.terms):
            if len(rows) == order:
                U[(slice(None), row, *rows)] = basis.coefficients[:, t]
        letters = "ijk"[:order]
        subscripts = f"pr{letters},zpc,{','.join(f'z{a}c' for a in letters)}->zrc"
        y += np.einsum(subscripts, U, weight, *[x[:, 0]] * order, optimize=True)
    return y


def test_is_the_dense_contraction_with_the_weights_of_each_species(dtype):
    weight, x, species = _inputs(dtype)
    basis = symmetric_basis.symmetric_basis(2, 2, 3)
    ours = jax.jit(lambda *a: contract(*a, max_degree=2, correlation=3))(weight, x, species)
    expected = dense(weight, x, species, basis, 9)
    assert ours.dtype == dtype
    bound = 16 * float(jnp.finfo(dtype).eps) * np.abs(expected).max()
    np.testing.assert_allclose(ours[:, 0], expected, rtol=0, atol=bound)
    alone = jax.jit(lambda w, x: contract(w, x, max_degree=2, correlation=3))(weight, x)
    np.testing.assert_allclose(alone[:, 0], dense(weight, x, 0 * species, basis, 9), rtol=0, atol=2 * bound)


@pytest.mark.parametrize(
    ("max_degree", "out", "correlation", "parities", "parities_out"),
    [
        (2, 1, 3, 1, 1),
        pytest.param(1, 1, 3, 2, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, 2, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_commutes_with_rotations_reflections_and_permutations(
    max_degree, out, correlation, parities, parities_out, dtype
):
    shape = {"max_degree": max_degree, "parities": parities, "out": out, "correlation": correlation}
    weight, x, species = _inputs(dtype, **shape, parities_out=parities_out)
    layer = partial(contract, max_degree=out, correlation=correlation, parities=parities_out)
    run = jax.jit(lambda x, species: layer(weight, x, species))
    report = equivariance_error(run, (x, species), inputs=("features", None), outputs="features")
    assert report.error < 16 * float(jnp.finfo(dtype).eps), report
    order = np.random.default_rng(0).permutation(x.shape[0])
    scale = float(jnp.max(jnp.abs(run(x, species)))) * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(run(x[order], species[order]), run(x, species)[order], rtol=0, atol=8 * scale)


def test_the_table_of_terms_and_the_unrolled_form_agree():
    """One is for CPU, the other for accelerators; 5 nodes of 700 channels are more than a slab of the table's loop."""
    _, polynomial = symmetric_contraction._tables(1, 1, 3, 1, 1)
    polynomial = polynomial.gradient()  # several terms to one coefficient, multiplicities other than 1
    size = len(polynomial.results)
    keys = jax.random.split(jax.random.key(0), 3)
    P = jax.random.normal(keys[0], (2, polynomial.coefficients, 700), jnp.float64)
    x = jax.random.normal(keys[1], (2, 5, polynomial.variables, 700), jnp.float64)
    d = jax.random.normal(keys[2], (2, 5, size, 700), jnp.float64)
    by_table = jax.jit(partial(term_table.contract, polynomial.table, size))(P, x)
    unrolled = jax.jit(partial(term_unrolled.contract, polynomial.results))(P, x)
    np.testing.assert_allclose(by_table, unrolled, rtol=0, atol=1e-14 * float(jnp.abs(unrolled).max()))
    by_table = jax.jit(partial(term_table.collect, polynomial.table, polynomial.coefficients))(x, d)
    unrolled = jax.jit(partial(term_unrolled.collect, polynomial.results, polynomial.coefficients))(x, d)
    np.testing.assert_allclose(by_table, unrolled, rtol=0, atol=1e-14 * float(jnp.abs(unrolled).max()))


def test_first_and_second_derivatives_are_those_of_the_dense_form():
    """By weights and features, and the gradient of a force loss, against autodiff of a plain JAX evaluation."""
    weight, x, species = _inputs(jnp.float64, max_degree=1, out=1, nodes=5)
    basis = symmetric_basis.symmetric_basis(1, 1, 3)
    target = jax.random.normal(jax.random.key(7), (5, 4, C), jnp.float64)

    def plain(weight, x):
        rows = [[] for _ in range(4)]
        P = jnp.einsum("pt,spc->stc", basis.coefficients, weight)[species]
        for t, (row, factors) in enumerate(basis.terms):
            rows[row].append(P[:, t] * jnp.prod(x[:, 0, np.array(factors)], axis=1))
        return jnp.stack([sum(terms) for terms in rows], axis=1)

    ours = lambda weight, x: contract(weight, x, species, max_degree=1, correlation=3)[:, 0]

    def all_orders(f):
        energy = lambda weight, x: jnp.sum(f(weight, x) * target)
        force = jax.grad(energy, argnums=1)
        loss = lambda weight, x: jnp.sum(force(weight, x) ** 2 * jnp.cos(x))
        return f(weight, x), jax.grad(energy, argnums=(0, 1))(weight, x), jax.grad(loss, argnums=(0, 1))(weight, x)

    found, expected = jax.jit(lambda: (all_orders(ours), all_orders(plain)))()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * float(jnp.max(jnp.abs(b))))


@pytest.mark.slow
def test_many_nodes_in_chunks_are_as_few_nodes_at_once():
    weight, x, species = _inputs(jnp.float32, max_degree=1, out=1, nodes=700)
    both = jax.jit(
        jax.value_and_grad(lambda w, x, z: jnp.sum(jnp.sin(contract(w, x, z, max_degree=1, correlation=3))), (0, 1))
    )
    value, (by_weight, by_x) = both(weight, x, species)
    parts = [both(weight, x[k : k + 100], species[k : k + 100]) for k in range(0, 700, 100)]
    np.testing.assert_allclose(value, sum(part[0] for part in parts), rtol=1e-4)
    np.testing.assert_allclose(
        by_weight, sum(part[1][0] for part in parts), rtol=0, atol=1e-4 * float(jnp.max(jnp.abs(by_weight)))
    )
    np.testing.assert_allclose(
        by_x, jnp.concatenate([part[1][1] for part in parts]), rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(by_x)))
    )


@pytest.mark.slow
def test_spans_what_cuequivariance_spans():
    """Both normalise their own way: so every one of their paths is a fixed combination of ours, exactly, and back."""
    cue = pytest.importorskip("cuequivariance")
    importlib.import_module("cuequivariance_jax")
    irreps = cue.Irreps("O3", "1x0e + 1x1o + 1x2e")
    descriptor = cue.descriptors.symmetric_contraction(irreps, irreps, (1, 2, 3))
    polynomial = (descriptor[0] if isinstance(descriptor, tuple) else descriptor).polynomial
    basis = symmetric_basis.symmetric_basis(2, 2, 3)
    assert polynomial.inputs[0].size == len(basis.paths)
    x = np.random.default_rng(0).normal(size=(40, 9))
    theirs = np.stack([np.concatenate([polynomial(row, v)[0] for v in x]) for row in np.eye(len(basis.paths))])
    monomials = np.stack([np.prod(x[:, rows], axis=1) for _, rows in basis.terms])
    place = np.array([row for row, _ in basis.terms])
    ours = np.stack([[(basis.coefficients * (place == r)) @ monomials[:, n] for r in range(9)] for n in range(40)])
    ours = ours.reshape(360, -1).T
    for a, b in ((ours, theirs), (theirs, ours)):
        coefficients, *_ = np.linalg.lstsq(a.T, b.T, rcond=None)
        np.testing.assert_allclose(a.T @ coefficients, b.T, rtol=0, atol=1e-10 * np.abs(b).max())


def test_finite_at_zero_and_unit_variance_at_the_start():
    layer = symmetric_contraction.SymmetricContraction(2, 2, 64, species=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (300, 1, 9, 64), jnp.float32)
    species = jnp.arange(300) % 2
    y = jax.jit(layer)(x, species)
    np.testing.assert_allclose(jnp.mean(y * y, axis=(0, 1, 3)), 1, atol=0.35)
    zero = jnp.zeros((2, 1, 9, 64), jnp.float32)
    np.testing.assert_array_equal(layer(zero, jnp.array([0, 1])), 0)
    assert len(layer.paths) == 27


@pytest.mark.parametrize("nodes", [0, 1])
def test_no_node_one_node_and_two_leading_axes(nodes):
    weight, x, species = _inputs(jnp.float32, max_degree=1, out=1, nodes=6)
    f = jax.jit(lambda x, z: contract(weight, x, z, max_degree=1, correlation=3))
    together = f(x.reshape(2, 3, *x.shape[1:]), species.reshape(2, 3))
    np.testing.assert_allclose(together.reshape(6, 1, 4, C), f(x, species), rtol=1e-5, atol=1e-5)
    few = f(x[:nodes], species[:nodes])
    np.testing.assert_allclose(few, f(x, species)[:nodes], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.zeros((4, 1, 3, C))}, ValueError, "x: expected features"),
        ({"x": jnp.zeros((4, 1, 4, C), jnp.float32)}, TypeError, "one dtype"),
        ({"x": jnp.full((4, 1, 4, C), jnp.nan)}, ValueError, "x: expected only finite"),
        ({"weight": jnp.zeros((2, 3, C))}, ValueError, r"weight: expected shape"),
        ({"species": jnp.zeros(4)}, TypeError, "species: expected integers"),
        ({"species": jnp.zeros(3, jnp.int32)}, ValueError, r"species: expected shape \(4,\)"),
        ({"species": jnp.full(4, 2)}, ValueError, "species: expected integers from 0 to 1"),
        ({"correlation": 0}, ValueError, "correlation: expected"),
        ({"parities": 3}, ValueError, "parities: expected"),
        ({"max_degree": -1}, ValueError, "max_degree: expected"),
    ],
)
def test_bad_input_is_named(change, error, message, own_checks):
    paths = len(symmetric_basis.symmetric_basis(1, 1, 2).paths)
    good = {"weight": jnp.zeros((2, paths, C)), "x": jnp.zeros((4, 1, 4, C)), "species": jnp.zeros(4, jnp.int32)}
    with pytest.raises(error, match=message):
        contract(**({**good, "max_degree": 1, "correlation": 2} | change))
