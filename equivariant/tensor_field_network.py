"""Tensor field network: point convolutions with radial functions times harmonics, self-interaction, nonlinearity."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import activation, convolution, features, linear, radial
from equivariant import graph as graphs
from equivariant.features import Layout
from lie import check, smooth


def shifted_softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log((exp(x) + 1)/2), which is 0 at 0. Absolute error <= 2 eps max(1, |x|)."""
    return jax.nn.softplus(x) - jnp.asarray(0.6931471805599453, x.dtype)


class TensorFieldNetwork(nnx.Module):
    """`model(x, graph, positions)`: features x of layout_in at the nodes to features of layout_out at the nodes.

    Each layer: self-interaction, convolution with all paths kept (the paper's concatenation), self-interaction, and
    η(|V_l| + b_l) V_l with shifted softplus η; then one more self-interaction. Defaults are the paper's for the shapes
    of four cubes: 3 layers of 4 channels of degrees 0 and 1, filters of degrees 0 and 1, 4 Gaussians, 8 classes:
    972 parameters, where the published code has 683 that act, without pseudotensors and matrices before convolutions.

    Ours differs thus: radial functions vanish smoothly at the cutoff and have no biases, silu for the rectifier; two
    parities keep the cross product of two vectors apart as a pseudovector, so that reflections commute, too. One node
    without neighbours, coincident nodes and empty graphs are allowed. `positions` (nodes, 3) in the unit of the cutoff.
    Raises ValueError or TypeError naming the argument whose shape or dtype is off.
    Source: Thomas et al. 2018, sections 3, 4.1 to 4.3 and 5.1.
    """

    def __init__(
        self,
        layout_in: Layout = Layout(0, 1),  # noqa: B008  an immutable record
        layout_out: Layout = Layout(0, 8),  # noqa: B008
        *,
        max_degree: int = 1,
        channels: int = 4,
        layers: int = 3,
        parities: int = 2,
        basis: int = 4,
        cutoff: float = 3.5,
        nonlinearity: Callable[[Array], Array] = shifted_softplus,
        rngs: nnx.Rngs,
    ) -> None:
        inside = features.layout(max_degree, channels, parities)
        self.layout_in, self.layout_out = features.layout(*layout_in), features.layout(*layout_out)
        if self.layout_out.max_degree > max_degree or self.layout_out.parities > parities:
            raise ValueError(
                f"layout_out: expected at most degree {max_degree} and {parities} parities, got {layout_out}"
            )
        self.basis, self.cutoff = basis, float(cutoff)
        before, self.first, self.convolutions = self.layout_in, nnx.List([]), nnx.List([])
        self.activations = nnx.List([])
        for _ in range(layers):
            self.first.append(
                linear.Linear(before.max_degree, before.channels, channels, before.parities, bias=False, rngs=rngs)
            )
            self.convolutions.append(
                convolution.Convolution(
                    before.max_degree,
                    max_degree,
                    channels,
                    embedding=basis,
                    degree_filter=max_degree,
                    parities_in=before.parities,
                    parities_out=parities,
                    hidden=(basis,),
                    rngs=rngs,
                )
            )
            self.activations.append(
                activation.NormActivation(max_degree, channels, parities, activation=nonlinearity, rngs=rngs)
            )
            before = inside
        self.last = linear.Linear(
            self.layout_out.max_degree, before.channels, self.layout_out.channels, self.layout_out.parities, rngs=rngs
        )

    def __call__(
        self,
        x: Float[ArrayLike, "nodes parities_in orders_in channels_in"],
        graph: graphs.Graph,
        positions: Float[ArrayLike, "nodes 3"],
    ) -> Float[Array, "nodes parities_out orders_out channels_out"]:
        y = features.array("x", x, **self.layout_in._asdict())
        positions = check.array("positions", positions, 3)
        check.same_dtype(x=y, positions=positions)
        vectors = graphs.vectors(graph, positions)
        r = smooth.norm(vectors)
        embedding = radial.gaussian(r, self.basis, self.cutoff) * radial.polynomial_cutoff(r, self.cutoff)[:, None]
        for first, convolve, nonlinear in zip(self.first, self.convolutions, self.activations, strict=True):
            y = nonlinear(convolve(first(y), graph, vectors, embedding))
        parities, orders, _ = self.layout_out.shape
        return self.last(y[..., :parities, :orders, :])
