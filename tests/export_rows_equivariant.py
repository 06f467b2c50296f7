"""What each public function of `equivariant` is called with to be exported: rows for the table of test_export.py."""

from functools import partial

import e3nn_jax
import jax
import jax.numpy as jnp
import numpy as np
from export_calls import call, floats, shape_of
from flax import nnx

from equivariant import (
    aligned,
    attention,
    coupled,
    egnn,
    equiformer_v2,
    mace,
    nequip,
    paths,
    radial_field,
    se3_transformer,
    sparse_polynomial,
    torque,
    turns,
)
from equivariant import graph as graphs
from lie import wigner

# Names, or beginnings that end in a dot, of what runs on the host only: why it is never traced.
HOST_ONLY = {
    **{f"equivariant.features.{name}": "looks at shapes and dtypes" for name in ("array", "layout", "of", "degrees")},
    **{f"equivariant.features.{name}": "e3nn's irreps, which are static" for name in ("irreps", "padded")},
    "equivariant.features.on_irreps": "wraps a layer, computes nothing",
    **{f"equivariant.segnn.{name}": "makes functions or sizes, computes nothing" for name in ("all_pairs", "along")},
    "equivariant.segnn.balanced_channels": "a static size",
    "equivariant.linear.from_e3nn": "arranges given weights in NumPy",
    "equivariant.symmetric_basis.": "generates tables in NumPy",
    "equivariant.sparse_polynomial.Polynomial.gradient": "rearranges a static list of terms",
    "equivariant.term_table.table": "rearranges a static list of terms",
    **{
        f"equivariant.tensor_product.{name}": "arranges given or static tables in NumPy"
        for name in ("from_e3nn", "slots")
    },
    "equivariant.ase_calculator.": "makes an object for ASE, which calls compiled programs from the host",
    "equivariant.atoms.parameter_count": "adds sizes",
    "equivariant.atoms.species_of": "looks at shapes and dtypes",
    "equivariant.graph.from_edges": "sorts given edges in NumPy",
    "equivariant.radial.Perceptron.weights": "lists parameters, computes nothing",
    "equivariant.paths.": "lists and couples paths in NumPy",
    "equivariant.turns.rows": "static positions",
    "equivariant.torque.generators": "static tables",
    "equivariant.coupled.entries": "tables in NumPy",
    "equivariant.aligned.PathsSummed.floats": "a static size",
    "equivariant.coupled.PathsKept.floats": "a static size",
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
    product = paths.product(1, 1, 1)
    on_edges = floats(4, 1, 4, 3), floats(4, 3), floats(4, len(paths.of(product)), 3)

    def with_frame(kernel):
        frame = shape_of(lambda v: kernel.frame(product, v), on_edges[1])
        return kernel, product, on_edges[0], frame, on_edges[2]

    kept = shape_of(lambda *a: coupled.PathsKept().messages(product, *a), *with_frame(coupled.PathsKept())[2:])
    index = jax.ShapeDtypeStruct((4,), jnp.int32)
    return {
        "equivariant.features.rotate": [call(x_features, floats(2, 3, 3)), call(floats(2, 9, 3), floats(3, 3))],
        "equivariant.features.from_irreps": [
            call(floats(2, 9), via=lambda f, x: f(e3nn_jax.IrrepsArray("3x0e + 2x1o", x)))
        ],
        "equivariant.features.to_irreps": [call(x_features, via=lambda f, x: f(x, "3x0e + 2x1o").array)],
        "equivariant.linear.linear": [call(floats(1, 2, 3, 5), floats(5), x_features)],
        "equivariant.convolution.summed": [call(product, floats(3, 1, 4, 3), graph, *on_edges[1:])],
        "equivariant.convolution.kept": [call(product, floats(3, 1, 4, 3), graph, *on_edges[1:])],
        "equivariant.turns.turn": [call(2, floats(4, 3))],
        "equivariant.turns.into": [call(1, shape_of(lambda r: turns.turn(2, r), floats(4, 3)), floats(4, 2, 9, 3))],
        "equivariant.turns.back": [call(2, 1, shape_of(lambda r: turns.turn(2, r), floats(4, 3)), floats(4, 2, 7, 3))],
        "equivariant.torque.spin": [call(floats(4, 3))],
        "equivariant.torque.torque": [
            call(torque.generators(wigner.generators(1)), floats(4, 2, 3, 5), floats(4, 2, 3, 5))
        ],
        "equivariant.torque.over_channels": [call(floats(4, 2, 6))],
        "equivariant.torque.total": [call(floats(3), via=lambda f, x: f([x, x]))],
        "equivariant.aligned.PathsSummed.frame": [call(aligned.PathsSummed(), product, on_edges[1])],
        "equivariant.aligned.PathsSummed.messages": [call(*with_frame(aligned.PathsSummed()))],
        "equivariant.coupled.PathsKept.frame": [call(coupled.PathsKept(), product, on_edges[1])],
        "equivariant.coupled.PathsKept.messages": [call(*with_frame(coupled.PathsKept()))],
        "equivariant.coupled.gather": [call(product, kept)],
        "equivariant.edge_blocks.total": [
            call(
                floats(3, 1, 4, 3),
                *on_edges[1:],
                *(index, index),
                via=lambda f, x, v, W, s, r: f(aligned.PathsSummed(), product, None, x, v, W, (), s, r, 2),
            )
        ],
        "equivariant.tensor_product.full": [
            call(floats(5, 3, 1, 5), x_features, floats(2, 1, 4, 1), 2),
            call(None, x_features, x_features, 1),
        ],
        "equivariant.tensor_product.channelwise": [
            call(floats(2, 5, 3), x_features, floats(1, 4, 1), 2, keep_paths=True)
        ],
        "equivariant.tensor_product.elementwise": [call(floats(5, 3), x_features, x_features, 2)],
        "equivariant.tensor_field_network.shifted_softplus": [call(floats(3))],
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
        "equivariant.equiformer_v2.EquiformerV2": [
            model(
                partial(equiformer_v2.EquiformerV2, 2, channels=4, max_degree=1, max_order=1, layers=1, basis=3),
                *(graph, floats(4, 3), jax.ShapeDtypeStruct((3,), jnp.int32)),
            )
        ],
        "equivariant.normalization.layer_norm": [
            call(x_features, floats(1, 2, 3), floats(3)),
            call(floats(2, 2, 4, 3), over="separable"),
            call(x_features, over="degree"),
        ],
        "equivariant.sparse_polynomial.contract": [call(_POLYNOMIAL, floats(2, 2, 3), floats(2, 4, 2, 3))],
        "equivariant.sparse_polynomial.collect": [call(_POLYNOMIAL, floats(2, 4, 2, 3), floats(2, 4, 1, 3))],
        "equivariant.term_table.contract": [call(_POLYNOMIAL.table, 1, floats(2, 2, 3), floats(2, 4, 2, 3))],
        "equivariant.term_table.collect": [call(_POLYNOMIAL.table, 2, floats(2, 4, 2, 3), floats(2, 4, 1, 3))],
        "equivariant.term_unrolled.contract": [call(_POLYNOMIAL.results, floats(2, 2, 3), floats(2, 4, 2, 3))],
        "equivariant.term_unrolled.collect": [call(_POLYNOMIAL.results, 2, floats(2, 4, 2, 3), floats(2, 4, 1, 3))],
        "equivariant.symmetric_contraction.symmetric_contraction": [
            call(floats(2, 5, 3), floats(5, 1, 4, 3), np.arange(5, dtype=np.int32) % 2, max_degree=1, correlation=2)
        ],
        "equivariant.graph.vectors": [call(graph, floats(3, 3))],
        "equivariant.graph.sum_edges": [call(graph, floats(4, 2))],
        "equivariant.graph.sum_nodes": [call(graph, floats(3, 2))],
        "equivariant.graph.batch": [call([graph, graph], derivative=False)],
        "equivariant.graph.radius_graph": [
            call(floats(5, 3), 2.0, max_edges=20),
            call(floats(5, 3), 2.0, floats(3, 3), periodic=(True, False, True), max_edges=20),
        ],
        "equivariant.radial.bessel": [call(floats(4), 3, 2.0)],
        "equivariant.radial.gaussian": [call(floats(4), 3, 2.0)],
        "equivariant.radial.bernstein": [call(floats(4), 3)],
        "equivariant.radial.polynomial_cutoff": [call(floats(4), 2.0)],
        "equivariant.radial.bump_cutoff": [call(floats(4), 2.0)],
        "equivariant.radial.perceptron": [call((floats(3, 5), floats(5, 2)), floats(4, 3))],
        "equivariant.potential.forces": [
            call(graph, floats(3, 3), floats(3, 3), via=lambda f, g, x, cell: f(jnp.sum, x, g, cell=cell)),
            call(
                floats(3, 3), floats(3, 3), via=lambda f, x, cell: f(lambda x, c: jnp.sum(x) + jnp.sum(c), x, cell=cell)
            ),
        ],
        "equivariant.frames.frames": [call(floats(2, 4, 3))],
        "equivariant.frames.average": [
            call(floats(4, 3), via=lambda f, x: f(jnp.sin, x, group="O(3)", output="points"))
        ],
        "equivariant.frames.principal_axes": [call(floats(2, 3, 3))],
        "equivariant.atoms.edge_embedding": [call(floats(4, 3), 3, 2.0, 6)],
        "equivariant.atoms.species_linear": [
            call(floats(2, 1, 2, 3, 5), floats(3, 1, 4, 3), np.arange(3, dtype=np.int32) % 2)
        ],
        "equivariant.nequip.NequIP": [
            model(
                partial(nequip.NequIP, 2, channels=2, max_degree=1, layers=2, radial_hidden=(3,)),
                *(graph, floats(4, 3)),
                np.arange(3, dtype=np.int32) % 2,
            )
        ],
        "equivariant.mace.MACE": [
            model(
                partial(mace.MACE, 2, channels=2, max_degree=1, degree_filter=1, correlation=2, radial_hidden=(3,)),
                *(graph, floats(4, 3)),
                np.arange(3, dtype=np.int32) % 2,
            )
        ],
        "equivariant.egnn.EGNN": [model(egnn_of, h, x, x, edges)],
        "equivariant.egnn.message_passing": [
            call(weights, floats(3, 2, 4), floats(3, 2, 3), floats(3, 2, 3), floats(3, 2, 2, 2))
        ],
        "equivariant.egnn.others": [call(floats(3, 2))],
        "equivariant.egnn.silu": [call(floats(3))],
        "equivariant.radial_field.RadialField": [model(partial(radial_field.RadialField, hidden=4), x, x, edges)],
    }
