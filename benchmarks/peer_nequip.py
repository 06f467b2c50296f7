"""NequIP as an e3nn-jax user writes it: tensor_product, Linear and scatter_sum of its tutorials, natural parities.

Layer for layer as `equivariant.nequip`, but for the form of the cutoff: linear, product with harmonics of the edge
weighted by a radial perceptron, sum over neighbours, linear into features and gates, a linear self-connection for each
species, gate.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness

BASIS, HIDDEN, READOUT = 8, (64, 64), 16


def build(channels: int, max_degree: int, layers: int, species: int, cutoff: float, neighbors: float) -> tuple:
    """(init(key, vectors, kinds, senders, receivers) -> parameters, energy(parameters, ...) -> energies of atoms)."""
    e3nn = harness.peer("e3nn_jax")
    import e3nn_jax.flax as e3nn_flax  # a part of the peer that loads flax's older API, not wanted before
    import flax.linen as nn

    def irreps(top: int) -> Any:
        return e3nn.Irreps([(channels, (l, (-1) ** l)) for l in range(top + 1)])

    class Network(nn.Module):
        @nn.compact
        def __call__(self, vectors, kinds, senders, receivers):
            length = jnp.linalg.norm(vectors, axis=-1)
            embedding = e3nn.bessel(length, BASIS, cutoff) * e3nn.poly_envelope(5, 2)(length / cutoff)[:, None]
            Y = e3nn.spherical_harmonics(range(max_degree + 1), e3nn.IrrepsArray("1o", vectors), True)
            x = e3nn.IrrepsArray(irreps(0), self.param("embedding", nn.initializers.normal(1), (species, channels)))
            x = x[kinds]
            for t in range(layers):
                out = irreps(max_degree if t < layers - 1 else 0)
                gates = e3nn.Irreps(f"{channels * (out.num_irreps // channels - 1)}x0e")
                wanted = (gates + out).simplify() if gates.dim else out
                itself = e3nn_flax.Linear(
                    wanted, num_indexed_weights=species, force_irreps_out=True, name=f"itself_{t}"
                )(kinds, x)
                h = e3nn_flax.Linear(x.irreps, name=f"inner_{t}")(x)
                m = e3nn.tensor_product(h[senders], Y, filter_ir_out=[ir for _, ir in out])
                mlp = e3nn_flax.MultiLayerPerceptron(
                    (*HIDDEN, m.irreps.num_irreps), jax.nn.silu, output_activation=False
                )
                m = mlp(embedding) * m
                m = e3nn.scatter_sum(m, dst=receivers, output_size=kinds.shape[0]) * neighbors**-0.5
                x = e3nn_flax.Linear(wanted, force_irreps_out=True, name=f"outer_{t}")(m) + itself
                x = (
                    e3nn.gate(x, even_act=jax.nn.silu, even_gate_act=jax.nn.silu)
                    if gates.dim
                    else e3nn.scalar_activation(x, [jax.nn.silu])
                )
            y = e3nn_flax.Linear(e3nn.Irreps(f"{READOUT}x0e"), name="readout")(x)
            return e3nn_flax.Linear(e3nn.Irreps("0e"), name="energy")(y).array[:, 0]

    network = Network()
    return network.init, network.apply
