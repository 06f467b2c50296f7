"""Our layers inside Linen and Equinox models: the same law of O(3), parameters and gradients where they belong.

Flax's own bridge and Equinox's pytrees suffice; docs/from_e3nn.md shows whole models.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from equivariant import features, linear, normalization, tensor_product
from equivariant.features import Layout
from lie import so3

LAYERS = {  # class, arguments, layouts of the inputs
    "Linear": (linear.Linear, (1, 3, 4, 2), [Layout(1, 3, 2)]),
    "TensorProduct": (
        tensor_product.TensorProduct,
        ("full", Layout(1, 3), Layout(1, 1), 1, 4),
        [Layout(1, 3), Layout(1, 1)],
    ),
    "LayerNorm": (normalization.LayerNorm, (1, 3), [Layout(1, 3)]),
}


def _in_linen(make, arguments, inputs):
    model = bridge.to_linen(make, *arguments)
    variables = model.init(jax.random.key(0), *inputs)
    return variables["params"], lambda parameters, *inputs: model.apply({"params": parameters}, *inputs)


def _in_equinox(make, arguments, inputs):
    equinox = pytest.importorskip("equinox")

    class Model(equinox.Module):
        layer: nnx.Module
        scale: jax.Array

        def __call__(self, *inputs):
            return self.layer(*inputs) * self.scale

    model = Model(make(*arguments, rngs=nnx.Rngs(0)), jnp.ones((), jnp.float32))
    parameters, rest = equinox.partition(model, equinox.is_inexact_array)
    return parameters, lambda parameters, *inputs: equinox.combine(parameters, rest)(*inputs)


@pytest.mark.parametrize("framework", [_in_linen, _in_equinox], ids=["linen", "equinox"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_obey_their_laws_in_other_frameworks(layer, framework):
    make, arguments, layouts = LAYERS[layer]
    keys = jax.random.split(jax.random.key(1), len(layouts))
    inputs = [
        jax.random.normal(key, (5, *wanted.shape), jnp.float32) for key, wanted in zip(keys, layouts, strict=True)
    ]
    parameters, apply = framework(make, arguments, inputs)
    R = so3.sample((5,), jnp.float64, key=jax.random.key(2)) * jnp.array([1.0, -1, 1, -1, 1])[:, None, None]
    rotate = lambda x: features.rotate(x.astype(jnp.float64), R).astype(jnp.float32)
    run = jax.jit(apply)
    y = run(parameters, *inputs)
    np.testing.assert_allclose(run(parameters, *map(rotate, inputs)), rotate(y), rtol=0, atol=2e-5)
    ours = make(*arguments, rngs=nnx.Rngs(0))
    assert sum(a.size for a in jax.tree.leaves(parameters)) - (framework is _in_equinox) == sum(
        a.size for a in jax.tree.leaves(nnx.state(ours, nnx.Param))
    )
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, *inputs) ** 3)))(parameters)
    assert all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(gradient))
