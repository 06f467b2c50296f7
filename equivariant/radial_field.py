"""Radial field: particles push each other along x_i − x_j by a function of distance alone (Köhler et al. 2019, 2020).

The E(n)-equivariant baseline of Satorras et al. 2021: no node features, so a layer cannot tell particles apart but by
the given edge features.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from equivariant import egnn
from lie import check, smooth


class RadialField(nnx.Module):
    """`model(x, v, edges)`: x_i += mean_j (x_i − x_j) tanh φ(|x_i − x_j|, a_ij) + v_i ψ(|v_i|), layer after layer.

    x and v (*batch, n, dimension), edges (*batch, n, n, edge_features). Raises ValueError or TypeError naming the
    argument whose shape or dtype is off. Source: Satorras et al. 2021, appendix; tanh as in their published code.
    """

    def __init__(self, edge_features: int = 2, *, hidden: int = 64, layers: int = 4, rngs: nnx.Rngs) -> None:
        def uniform(shape: tuple[int, ...], bound: float) -> nnx.Param:
            full = (layers, *shape)
            return nnx.Param(jax.random.uniform(rngs.params(), full, jnp.float32, minval=-bound, maxval=bound))

        fan_in = 1 + edge_features
        self.pair = uniform((fan_in, hidden), 1 / math.sqrt(fan_in))
        self.pair_bias = uniform((hidden,), 1 / math.sqrt(fan_in))
        self.pair_out = uniform((hidden,), 1e-3 * math.sqrt(6 / (hidden + 1)))
        self.speed = uniform((hidden,), 1.0)
        self.speed_bias = uniform((hidden,), 1.0)
        self.speed_out = uniform((hidden,), 1 / math.sqrt(hidden))
        self.speed_bias_2 = uniform((), 1 / math.sqrt(hidden))

    def __call__(
        self,
        x: Float[Array, "*batch n dimension"],
        v: Float[Array, "*batch n dimension"],
        edges: Float[Array, "*batch n n edge_features"],
    ) -> Float[Array, "*batch n dimension"]:
        x = check.array("x", x, None, None)
        n, dimension = x.shape[-2:]
        v = check.array("v", v, n, dimension)
        edges = check.array("edges", edges, n, n, self.pair.shape[1] - 1)
        check.same_dtype(x=x, v=v, edges=edges)
        speed = smooth.norm(v, keepdims=True)
        for k in range(self.pair.shape[0]):
            pair, bias, out = self.pair[k].astype(x.dtype), self.pair_bias[k].astype(x.dtype), self.pair_out[k]
            difference = x[..., :, None, :] - x[..., None, :, :]
            invariants = smooth.norm(difference, keepdims=True) * pair[0] + edges @ pair[1:] + bias
            push = jnp.tanh(jnp.sum(egnn.silu(invariants) * out.astype(x.dtype), axis=-1, keepdims=True))
            gain = egnn.silu(speed * self.speed[k].astype(x.dtype) + self.speed_bias[k].astype(x.dtype))
            drift = jnp.sum(gain * self.speed_out[k].astype(x.dtype), axis=-1, keepdims=True)
            drift = drift + self.speed_bias_2[k].astype(x.dtype)
            x = x + jnp.sum(difference * push, axis=-2) / max(n - 1, 1) + drift * v
        return x
