"""Records as pytrees: JAX rebuilds them around anything, and a stored field never meets the checks of a made one."""

import jax
import jax.numpy as jnp
import pytest

from lie import densities, optimizers, so3, statistics
from lie.optimizers import robust

EYE = jnp.eye(3)
RECORDS = {
    "InverseGamma": lambda: statistics.InverseGamma(2.0, 1.0),
    "InverseWishart": lambda: statistics.InverseWishart(EYE, 6.0),
    "Huber": lambda: robust.Huber(1.5),
    "Cauchy": lambda: robust.Cauchy(1.5),
    "GemanMcClure": lambda: robust.GemanMcClure(1.5),
    "Tukey": lambda: robust.Tukey(1.5),
    "Factor": lambda: optimizers.Factor(so3.local, (jnp.arange(2), jnp.arange(2)), (EYE,), robust.Huber(1.0)),
    "Haar": lambda: densities.Haar(),
    "IsotropicGaussian": lambda: densities.IsotropicGaussian(EYE, 0.5),
    "MatrixFisher": lambda: densities.MatrixFisher(EYE),
    "ConcentratedGaussian": lambda: densities.ConcentratedGaussian(so3, EYE, EYE),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_rebuilt_around_anything(name):
    """With HAAR_CHECK=1 too: the strings and markers that JAX puts in place of leaves are no arrays."""
    record = RECORDS[name]()
    leaves, structure = jax.tree.flatten(record)
    marked = jax.tree.unflatten(structure, [f"leaf {i}" for i in range(len(leaves))])
    assert jax.tree.leaves(marked) == [f"leaf {i}" for i in range(len(leaves))]
    again = jax.tree.map(lambda leaf: leaf, record)
    assert type(again) is type(record)
    assert jax.tree.structure(again) == structure
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(record)]
    assert all(path.startswith(".") for path in paths)


def test_the_axes_of_a_batch_of_records_are_a_record():
    laws = jax.vmap(densities.MatrixFisher)(jnp.stack([EYE, 2 * EYE]))
    axes = jax.tree.map(lambda _: 0, laws)
    assert jax.vmap(lambda law: law.log_normalizer(), in_axes=(axes,))(laws).shape == (2,)
    losses = robust.Huber(jnp.array([1.0, 2.0]))
    values = jax.vmap(lambda loss: loss.value(jnp.array(9.0)), in_axes=(jax.tree.map(lambda _: 0, losses),))(losses)
    assert values.tolist() == [5.0, 8.0]
