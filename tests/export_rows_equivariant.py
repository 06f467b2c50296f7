"""What each public function of `equivariant` is called with to be exported: rows for the table of test_export.py."""

from functools import partial

import e3nn_jax
import jax
import jax.numpy as jnp
import numpy as np
from export_calls import call, floats, shape_of
from flax import nnx

from equivariant import attention, egnn, radial_field, se3_transformer, sparse_polynomial
from equivariant import graph as graphs

# Names, or beginnings that end in a dot, of what runs on the host only: why it is never traced.
HOST_ONLY = {
    **{f"equivariant.features.{name}": "looks at shapes and dtypes" for name in ("array", "layout", "of", "degrees")},
    **{f"equivariant.features.{name}": "e3nn's irreps, which are static" for name in ("irreps", "padded")},
    "equivariant.features.on_irreps": "wraps a layer, computes nothing",
    **{f"equivariant.segnn.{name}": "makes functions or sizes, computes nothing" for name in ("all_pairs", "along")},
    "equivariant.segnn.balanced_channels": "a static size",
    "equivariant.tensor_product.coupling": "a NumPy table of float64, made from static sizes",
    "equivariant.linear.from_e3nn": "arranges given weights in NumPy",
    "equivariant.symmetric_basis.": "generates tables in NumPy",
    "equivariant.sparse_polynomial.Polynomial.gradient": "rearranges a static list of terms",
    **{
        f"equivariant.tensor_product.{name}": "arranges given or static tables in NumPy"
        for name in ("from_e3nn", "paths", "slots")
    },
    "equivariant.equivariance.": "rotates in NumPy's float64, between calls of the model",
}

_POLYNOMIAL = sparse_polynomial.Polynomial((((0, 1, (0, 1)), (1, 2, (0, 0))),), 2, 2)


def _graph(nodes, edges):
    index, yes = partial(jnp.zeros, dtype=jnp.int32), partial(jnp.ones, dtype=bool)
    shifts = jnp.zeros((edges, 3), jnp.float32)
    return graphs.Graph(index(edges), index(edges), yes(edges), yes(nodes), shifts, jnp.zeros((), bool), index(nodes))


def rows():
    h, x, edges = floats(2, 3, 1), floats(2, 3, 3), floats(2, 3, 3, 2)

    def model(make, *inputs):
        structure, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
        state = jax.tree.map(lambda leaf: floats(*leaf.shape), state)  # with x64 on, NNX makes float64 parameters
        return call(state, *inputs, via=lambda _, state, *inputs: nnx.merge(structure, state)(*inputs))

    egnn_of = partial(egnn.EGNN, hidden=4, layers=2)
    weights = shape_of(lambda: egnn_of(rngs=nnx.Rngs(0)).layers[0].weights(jnp.float32))
    x_features = floats(2, 1, 4, 3)
    graph = shape_of(lambda: _graph(3, 4))
    return {
        "equivariant.features.rotate": [call(x_features, floats(2, 3, 3)), call(floats(2, 9, 3), floats(3, 3))],
        "equivariant.features.from_irreps": [
            call(floats(2, 9), via=lambda f, x: f(e3nn_jax.IrrepsArray("3x0e + 2x1o", x)))
        ],
        "equivariant.features.to_irreps": [call(x_features, via=lambda f, x: f(x, "3x0e + 2x1o").array)],
        "equivariant.linear.linear": [call(floats(1, 2, 3, 5), floats(5), x_features)],
        "equivariant.tensor_product.full": [
            call(floats(5, 3, 1, 5), x_features, floats(2, 1, 4, 1), 2),
            call(None, x_features, x_features, 1),
        ],
        "equivariant.tensor_product.channelwise": [
            call(floats(2, 5, 3), x_features, floats(1, 4, 1), 2, keep_paths=True)
        ],
        "equivariant.tensor_product.elementwise": [call(floats(5, 3), x_features, x_features, 2)],
        "equivariant.activation.sigmoid": [call(floats(3))],
        "equivariant.activation.direction": [call(floats(2, 3, 4))],
        "equivariant.activation.gate": [call(floats(2, 2, 4, 3), floats(2, 6)), call(x_features)],
        "equivariant.activation.norm_activation": [call(x_features, floats(1, 2, 3), unit=True)],
        "equivariant.activation.grid_activation": [call(floats(2, 2, 4, 3), floats(2, 3))],
        "equivariant.attention.softmax": [call(graph, floats(4, 2), floats(4))],
        "equivariant.attention.attend": [call(graph, floats(4, 2), floats(4, 6))],
        "equivariant.attention.Attention.scores": [
            model(
                partial(attention.Attention, 1, 1, 4, embedding=2, heads=2),
                *(floats(3, 1, 4, 4), graph, floats(4, 3), floats(4, 2)),
            )
        ],
        "equivariant.se3_transformer.SE3Transformer": [
            model(
                partial(se3_transformer.SE3Transformer, 2, channels=4, max_degree=1, layers=1, heads=2),
                *(floats(3, 2), graph, floats(4, 3)),
            )
        ],
        "equivariant.normalization.layer_norm": [
            call(x_features, floats(1, 2, 3), floats(3)),
            call(floats(2, 2, 4, 3), over="separable"),
            call(x_features, over="degree"),
        ],
        "equivariant.sparse_polynomial.contract": [call(_POLYNOMIAL, floats(2, 2, 3), floats(2, 4, 2, 3))],
        "equivariant.sparse_polynomial.collect": [call(_POLYNOMIAL, floats(2, 4, 2, 3), floats(2, 4, 1, 3))],
        "equivariant.symmetric_contraction.symmetric_contraction": [
            call(floats(2, 5, 3), floats(5, 1, 4, 3), np.arange(5) % 2, max_degree=1, correlation=2)
        ],
        "equivariant.egnn.EGNN": [model(egnn_of, h, x, x, edges)],
        "equivariant.egnn.message_passing": [
            call(weights, floats(3, 2, 4), floats(3, 2, 3), floats(3, 2, 3), floats(3, 2, 2, 2))
        ],
        "equivariant.egnn.others": [call(floats(3, 2))],
        "equivariant.egnn.silu": [call(floats(3))],
        "equivariant.radial_field.RadialField": [model(partial(radial_field.RadialField, hidden=4), x, x, edges)],
    }
