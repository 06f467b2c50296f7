"""What networks of atoms share: maps by species against a loop over atoms, energies scaled, shifted and summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from equivariant import atoms, features, graph, radial

SPECIES = jnp.array([0, 2, 1, 2], jnp.int32)


def test_species_linear_is_a_matrix_for_each_species_degree_and_parity():
    keys = jax.random.split(jax.random.key(0))
    weight = jax.random.normal(keys[0], (3, 2, 2, 5, 4), jnp.float64)
    x = jax.random.normal(keys[1], (4, 2, 9, 5), jnp.float64)
    y = atoms.species_linear(weight, x, SPECIES)
    assert y.shape == (4, 2, 4, 4)
    for i, s in enumerate(SPECIES.tolist()):
        for p in range(2):
            for l in range(2):
                rows = slice(l * l, (l + 1) ** 2)
                assert_allclose(y[i, p, rows], x[i, p, rows] @ weight[s, p, l] / np.sqrt(5), atol=1e-13)
    with pytest.raises(ValueError, match="weight: expected one for features"):
        atoms.species_linear(weight, x[:, :1], SPECIES)


def test_layers_by_species_pad_what_the_input_lacks_and_keep_unit_variance():
    layer = atoms.SpeciesLinear(3, features.layout(0, 256), features.layout(1, 64, 2), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 1, 1, 256), jnp.float32)
    y = layer(x, SPECIES)
    assert y.shape == (4, 2, 4, 64)
    assert y.dtype == jnp.float32
    assert 0.7 < float(jnp.var(y[:, 0, 0])) < 1.4
    assert_allclose(y[:, 1], 0)
    assert_allclose(y[:, :, 1:], 0)
    wide = atoms.ChannelLinear(features.layout(1, 256), 64, rngs=nnx.Rngs(0))
    z = wide(jax.random.normal(jax.random.key(2), (4, 1, 4, 256), jnp.float32))
    assert 0.7 < float(jnp.var(z)) < 1.4


def test_energies_are_scaled_shifted_and_isolated_by_species_and_summed_by_structure():
    g = graph.batch([graph.from_edges([], [], 3), graph.from_edges([], [], 1)])
    y = jnp.array([1.0, 10.0, 100.0, 1000.0])
    energies = atoms.AtomicEnergies(3, scale=(2.0, 3.0, 0.5), shift=0.25, isolated=(1.0, -2.0, 4.0))
    assert_allclose(energies(g, y, SPECIES), [2 + 5 + 300 + 0.75 + 3, 500 + 4.25])
    assert atoms.parameter_count(energies) == 0
    for name in ("scale", "shift", "isolated"):
        with pytest.raises(ValueError, match=f"{name}: expected a number or one for each of 3 species, got 2"):
            atoms.AtomicEnergies(3, **{name: (1.0, 2.0)})


def test_edge_embedding_ends_at_the_cutoff_and_is_finite_at_zero():
    vectors = jnp.array([[0.0, 0, 0], [1.0, 1.0, 1.0], [0, 5.0, 0], [6.0, 0, 0]])
    found = atoms.edge_embedding(vectors, 8, 5.0, 6)
    r = jnp.sqrt(3.0)[None]
    assert_allclose(found[1], (radial.bessel(r, 8, 5.0) * radial.polynomial_cutoff(r, 5.0, 6)[:, None])[0], rtol=1e-12)
    assert_allclose(found[2:], 0)
    hessian = jax.hessian(lambda v: jnp.sum(atoms.edge_embedding(v, 8, 5.0, 6)))(vectors)
    assert np.isfinite(hessian).all()
