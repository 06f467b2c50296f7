"""Linear maps that commute with O(3): by Schur's lemma one matrix over channels for each degree and parity."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import features
from lie import check


def linear(
    weight: Float[ArrayLike, "parities degrees channels_in channels_out"],
    bias: Float[ArrayLike, "channels_out"] | None,
    x: Float[ArrayLike, "*batch parities orders channels_in"],
) -> Float[Array, "*batch parities orders channels_out"]:
    """y_pl = x_pl W_pl, and + bias at true scalars (p = 0, l = 0), where alone a constant is equivariant.

    Raises ValueError or TypeError naming the argument whose shape or dtype is off. Rounding as of a sum of channels_in
    products; the products of matrices follow jax's default precision.
    """
    x = features.array("x", x)
    parities, orders, channels = x.shape[-3:]
    max_degree = features.of(x).max_degree
    weight = check.array("weight", weight, parities, max_degree + 1, channels, None)
    check.same_dtype(weight=weight, x=x)
    # One product of 2-D matrices per degree. Measured forward + backward against e3nn_jax.flax.Linear (2000 nodes, 64
    # channels, degree 1 / 2 / 3, interleaved on two busy cores, medians): this 2.1 / 1.6 / 1.8x; the same without the
    # reshapes 1.4 / 1.3 / 1.2x; all orders in one batched product, which XLA surrounds by transposes, 1.8 / 1.5 / 1.6x,
    # and in blocks of 500 nodes 1.7 / 1.7 / 1.9x; blocks with a backward of their own, written in place, 1.8 / 1.7 /
    # 2.0x, but without forward derivatives. Features with orders first would have 2.2 / 2.4 / 2.8x: what is missing is
    # the reading and writing of the slices, which XLA cannot hand to a product with their stride.
    blocks = []
    for p in range(parities):
        for l, rows in features.degrees(max_degree):
            flat = x[..., p, rows, :].reshape(-1, channels) @ weight[p, l]
            blocks.append(flat.reshape(*x.shape[:-3], 2 * l + 1, weight.shape[-1]))
    if bias is not None:
        bias = check.array("bias", bias, weight.shape[-1])
        check.same_dtype(bias=bias, x=x)
        blocks[0] = blocks[0] + bias
    y = jnp.concatenate(blocks, axis=-2)
    return y.reshape(*x.shape[:-3], parities, orders, weight.shape[-1])


class Linear(nnx.Module):
    """`linear` with its weights: standard normal / √channels_in, so that unit variance stays; the bias starts at 0.

    `layer(x)` with x (*batch, parities, (max_degree + 1)², channels_in). `from_e3nn` takes e3nn-jax's weights instead.
    """

    def __init__(
        self,
        max_degree: int,
        channels_in: int,
        channels_out: int,
        parities: int = 1,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        layout = features.layout(max_degree, channels_in, parities)
        shape = (layout.parities, layout.max_degree + 1, channels_in, check.degree("channels_out", channels_out))
        scale = 1 / math.sqrt(max(channels_in, 1))
        self.weight = nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels_out, jnp.float32)) if bias else None

    def __call__(
        self, x: Float[ArrayLike, "*batch parities orders channels_in"]
    ) -> Float[Array, "*batch parities orders channels_out"]:
        x = features.array("x", x, channels=self.weight.shape[2])
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        return linear(self.weight[...].astype(x.dtype), bias, x)


def from_e3nn(
    parameters: Mapping[str, ArrayLike],
    irreps_in: Any,
    irreps_out: Any,
    *,
    path_normalization: str | float | None = None,
    gradient_normalization: str | float | None = None,
    force_irreps_out: bool = False,
) -> tuple[Array, Array]:
    """(weight, bias) of `linear` that equal an e3nn_jax.flax.Linear from irreps_in to irreps_out, to rounding.

    `parameters` is what its `init` returns under "params", {"w[0,0] 64x0e,32x0e": ...}; the keywords are those it was
    built with. The weights act on features in the layout that holds both irreps; what no irrep uses is 0. Raises
    ValueError for parameters of other irreps.
    """
    import e3nn_jax

    e3nn: Any = e3nn_jax  # its annotations are narrower than what it takes
    given, wanted = e3nn.Irreps(irreps_in).regroup(), e3nn.Irreps(irreps_out).simplify()
    kept = wanted if force_irreps_out else wanted.filter(keep=given)  # what their layer leaves out keeps zeros here
    theirs = e3nn.FunctionalLinear(
        given,
        kept,
        biases=any(name.startswith("b[") for name in parameters),
        path_normalization=path_normalization,
        gradient_normalization=gradient_normalization,
    )
    before, after = features.padded(given), features.padded(wanted)
    parities, degrees = max(before.parities, after.parities), max(before.max_degree, after.max_degree) + 1
    weight, bias = np.zeros((parities, degrees, before.channels, after.channels)), np.zeros(after.channels)
    starts = _starts(kept)
    used = set()
    for path in theirs.instructions:
        mul_out, out = kept[path.i_out]
        place = f"[{path.i_in},{path.i_out}]" if path.i_in >= 0 else f"[{path.i_out}]"
        found = [name for name in parameters if name.split(" ")[0] == ("w" if path.i_in >= 0 else "b") + place]
        shapes = [np.shape(parameters[name]) for name in found]
        if shapes != [tuple(path.path_shape)]:
            raise ValueError(
                f"parameters: expected one entry {place} with shape {tuple(path.path_shape)} for {given} -> {kept}, "
                f"got {dict(zip(found, shapes, strict=True))}"
            )
        used.update(found)
        value = path.path_weight * np.asarray(parameters[found[0]], np.float64)
        columns = slice(starts[path.i_out], starts[path.i_out] + mul_out)
        if path.i_in < 0:
            bias[columns] = value
        else:
            parity = 0 if out.p == (-1) ** out.l else 1
            weight[parity, out.l, : path.path_shape[0], columns] = value
    if used != set(parameters):
        raise ValueError(f"parameters: no place for {sorted(set(parameters) - used)} in {given} -> {kept}")
    dtype = jnp.result_type(*parameters.values()) if parameters else jnp.float32
    return jnp.asarray(weight, dtype), jnp.asarray(bias, dtype)


def _starts(irreps: Any) -> list[int]:
    """The first channel of each term of the irreps: copies of one irrep follow one another."""
    taken, starts = {}, []
    for mul, ir in irreps:
        starts.append(taken.get(ir, 0))
        taken[ir] = taken.get(ir, 0) + mul
    return starts
