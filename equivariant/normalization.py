"""Layer normalisation of features: divided by a root mean square that no rotation or reflection changes."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import features
from lie import check, smooth

_OVER = ("degree", "all", "separable")


def layer_norm(
    x: Float[ArrayLike, "*batch parities orders channels"],
    weight: Float[ArrayLike, "parities degrees channels"] | None = None,
    bias: Float[ArrayLike, "channels"] | None = None,
    *,
    over: str = "all",
    epsilon: float = 1e-5,
    center: bool = True,
) -> Float[Array, "*batch parities orders channels"]:
    """y_l = w_l x_l / √(mean square + epsilon) (+ bias on true scalars), each element of the batch by itself.

    The mean is over channels, over the orders of a degree (each degree counting alike, whatever its 2l + 1 orders), and
    `over`:

    - "degree": each degree and parity by itself, as Equiformer (Liao and Smidt 2022) and EquiformerV2's layer_norm;
    - "all": over all degrees together, as EquiformerV2's rms_norm_sh (Liao et al. 2023), so that the relative size of
      the degrees is kept;
    - "separable": true scalars by themselves, all else together, as eSCN's and EquiformerV2's layer_norm_sh.

    True scalars first lose their mean over channels, if `center`. Without epsilon a vanishing mean square gives 0 with
    zero derivatives; with it all derivatives exist and the slope at 0 is w/√epsilon. Statistics of bfloat16 and float16
    are taken in float32. Exact for O(3); error <= 4 eps. Raises ValueError or TypeError naming the argument.
    """
    x = features.array("x", x)
    parities, orders, channels = x.shape[-3:]
    degrees = features.of(x).max_degree + 1
    if over not in _OVER:
        raise ValueError(f"over: expected one of {', '.join(map(repr, _OVER))}, got {over!r}")
    if epsilon < 0:
        raise ValueError(f"epsilon: expected a number >= 0, got {epsilon}")
    if center:
        mean = jnp.mean(x[..., :1, :1, :], axis=-1, keepdims=True)
        x = x - jnp.pad(mean, [(0, 0)] * (x.ndim - 3) + [(0, parities - 1), (0, orders - 1), (0, 0)])
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    squares = jnp.mean(wide * wide, axis=-1)
    of_row = np.repeat(np.arange(degrees), 2 * np.arange(degrees) + 1)
    if over == "degree":
        edges = [l * l for l in range(degrees)]
        blocks = [jnp.mean(squares[..., e : e + 2 * l + 1], axis=-1, keepdims=True) for l, e in enumerate(edges)]
        shrink = _inverse_root(jnp.concatenate(blocks, axis=-1), epsilon)[..., of_row]
    else:
        shares = np.broadcast_to(1 / (2 * of_row + 1), (parities, orders)).copy()
        first = np.zeros((parities, orders))
        first[0, 0] = 1
        if over == "separable":
            shares[0, 0] = 0
        mean_square = jnp.sum(squares * (shares / max(round(shares.sum()), 1)).astype(wide.dtype), axis=(-2, -1))
        shrink = jnp.broadcast_to(_inverse_root(mean_square, epsilon)[..., None, None], squares.shape)
        if over == "separable":
            alone = _inverse_root(squares[..., :1, :1], epsilon)
            shrink = jnp.where(first > 0, alone, shrink)
    factor = shrink.astype(x.dtype)[..., None]
    if weight is not None:
        weight = check.array("weight", weight, parities, degrees, channels)
        check.same_dtype(x=x, weight=weight)
        factor = factor * weight[:, of_row]
    y = x * factor
    if bias is None:
        return y
    bias = check.array("bias", bias, channels)
    check.same_dtype(x=x, bias=bias)
    return y + jnp.pad(bias[None, None], [(0, parities - 1), (0, orders - 1), (0, 0)])


class LayerNorm(nnx.Module):
    """`layer_norm` with a weight for each parity, degree and channel and a bias of true scalars; at first 1 and 0.

    `affine=False` leaves both out. Parameters: (parities (L + 1) + 1) channels.
    """

    def __init__(
        self,
        max_degree: int,
        channels: int,
        parities: int = 1,
        *,
        over: str = "all",
        epsilon: float = 1e-5,
        center: bool = True,
        affine: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        layout = features.layout(max_degree, channels, parities)
        shape = (layout.parities, layout.max_degree + 1, layout.channels)
        self.weight = nnx.Param(jnp.ones(shape, jnp.float32)) if affine else None
        self.bias = nnx.Param(jnp.zeros(layout.channels, jnp.float32)) if affine else None
        self.layout, self.over, self.epsilon, self.center = layout, over, epsilon, center

    def __call__(
        self, x: Float[ArrayLike, "*batch parities orders channels"]
    ) -> Float[Array, "*batch parities orders channels"]:
        x = features.array("x", x, **self.layout._asdict())
        parameters = [] if self.weight is None or self.bias is None else [self.weight[...], self.bias[...]]
        own = (parameter.astype(x.dtype) for parameter in parameters)
        return layer_norm(x, *own, over=self.over, epsilon=self.epsilon, center=self.center)


def _inverse_root(mean_square: Array, epsilon: float) -> Array:
    root = smooth.sqrt(mean_square + epsilon)
    return smooth.divide(jnp.ones_like(root), root)
