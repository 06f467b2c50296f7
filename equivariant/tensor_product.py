"""Tensor products of features: every path (l1, l2) → l3 that O(3) allows, weighted by path and channel or fully mixed.

u_k = √(2·l3 + 1) Σ_ij C[i, j, k] x_i y_j, e3nn's "component" normalisation: from independent x and y of unit variance
each path has unit variance. A path from parities p1, p2 lands in p3 = p1 + p2 + l1 + l2 + l3 mod 2, the others need two
parities to land in. In e3nn's terms: `full` is its tensor_product or, with weights, its fully connected product (uvw),
`channelwise` uvu with one channel in y, `elementwise` uuu.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import features, linear, paths
from lie import check

_HIGHEST = jax.lax.Precision.HIGHEST
Kind = Literal["full", "channelwise", "elementwise"]
Weights = Literal["shared", "given", "none"]


def slots(found: tuple[paths.Path, ...]) -> int:
    """The largest number of paths that reach one degree and parity: kept paths fill so many times the channels."""
    return max((sum(p.out == q.out for p in found) for q in found), default=0)


def full(
    weight: Float[ArrayLike, "*edges paths channels_x channels_y channels_out"] | None,
    x: Float[ArrayLike, "*batch_x parities_x orders_x channels_x"],
    y: Float[ArrayLike, "*batch_y parities_y orders_y channels_y"],
    max_degree: int,
    parities: int = 1,
) -> Float[Array, "*batch parities orders channels_out"]:
    """z_w = Σ_paths Σ_uv W[path, u, v, w] (x_u ⊗ y_v)_path: every pair of channels mixes, along every path.

    With leading axes the weights are per edge. Without weights all paths and pairs of channels are kept, those that
    reach one degree side by side as channels (path, u, v), filled with zeros to the `slots` of the fullest degree: cut
    by `features.to_irreps` that is e3nn_jax.tensor_product.
    Raises ValueError or TypeError naming the argument whose shape or dtype is off.
    """
    x, y, found = _prepared(x, y, max_degree, parities)
    u, v = x.shape[-1], y.shape[-1]
    pieces = _coupled(jnp.repeat(x, v, axis=-1), jnp.tile(y, u) if u * v > 1 and v > 1 else y, found)
    if weight is None:
        return _assembled(pieces, found, max_degree, parities, slots(found) * u * v, keep=True)
    weight = check.array("weight", weight, len(found), u, v, None)
    check.same_dtype(weight=weight, x=x)
    out = weight.shape[-1]
    matrices = weight.reshape(*weight.shape[:-4], len(found) * u * v, out)
    mixed = {}
    for target in dict.fromkeys(p.out for p in found):
        members = [i for i, p in enumerate(found) if p.out == target]
        joined = jnp.concatenate([pieces[i] for i in members], axis=-1)
        matrix = matrices[..., members[0] * u * v : (members[-1] + 1) * u * v, :]
        if matrix.ndim == 2:
            flat = joined.reshape(-1, joined.shape[-1]) @ matrix
            mixed[target] = flat.reshape(*joined.shape[:-1], out)
        else:
            mixed[target] = jnp.matmul(joined, matrix)
    batch = jnp.broadcast_shapes(x.shape[:-3], y.shape[:-3], weight.shape[:-4])
    return _stacked(mixed, batch, max_degree, parities, out, x.dtype)


def channelwise(
    weight: Float[ArrayLike, "*edges paths channels"] | None,
    x: Float[ArrayLike, "*batch_x parities_x orders_x channels"],
    y: Float[ArrayLike, "*batch_y parities_y orders_y 1"],
    max_degree: int,
    parities: int = 1,
    *,
    keep_paths: bool = False,
) -> Float[Array, "*batch parities orders channels_out"]:
    """z_u = Σ_paths W[path, u] (x_u ⊗ y)_path, y with one channel, as harmonics of an edge have; W of 1 if None.

    With keep_paths no sum: the paths to one degree lie side by side as channels (path, u), filled with zeros to the
    `slots` of the fullest degree; cut by `features.to_irreps` that is e3nn_jax.tensor_product times weights.
    Raises ValueError or TypeError naming the argument whose shape or dtype is off.
    """
    return _by_channel(weight, x, features.array("y", y, channels=1), max_degree, parities, keep_paths)


def elementwise(
    weight: Float[ArrayLike, "*edges paths channels"] | None,
    x: Float[ArrayLike, "*batch_x parities_x orders_x channels"],
    y: Float[ArrayLike, "*batch_y parities_y orders_y channels"],
    max_degree: int,
    parities: int = 1,
    *,
    keep_paths: bool = False,
) -> Float[Array, "*batch parities orders channels_out"]:
    """z_u = Σ_paths W[path, u] (x_u ⊗ y_u)_path: channel by channel; W of 1 if None; paths as in `channelwise`.

    For two single irreps this is e3nn_jax.elementwise_tensor_product. Raises as `channelwise`.
    """
    x = features.array("x", x)
    return _by_channel(weight, x, features.array("y", y, channels=x.shape[-1]), max_degree, parities, keep_paths)


class TensorProduct(nnx.Module):
    """One of the products with its weights: layer(x, y), or layer(x, y, weight) with weights "given", as per edge.

    x and y are `features.Layout`s, e.g. Layout(max_degree=2, channels=64); `channels` is the size of the result and
    belongs to "full" alone. Shared weights start normal with variance 1 / (number of terms that are summed), so that
    unit variance stays. `weight_shape` is what one edge's weights must have, `layout` what comes out.
    """

    def __init__(
        self,
        kind: Kind,
        x: features.Layout,
        y: features.Layout,
        max_degree: int,
        channels: int | None = None,
        parities: int = 1,
        *,
        keep_paths: bool = False,
        weights: Weights = "shared",
        rngs: nnx.Rngs | None = None,
    ) -> None:
        x, y = features.layout(*x), features.layout(*y)
        found = paths.between(x, y, features.layout(max_degree, 1, parities).max_degree, parities)
        if kind == "full":
            keep_paths = keep_paths or weights == "none"
            if (channels is None) != keep_paths or (keep_paths and weights != "none"):
                raise ValueError(
                    "channels: expected the channels of the result of a full product, unless weights='none'"
                )
            pairs = x.channels * y.channels
            out, shape = channels or slots(found) * pairs, (len(found), x.channels, y.channels, channels or 0)
        elif kind in ("channelwise", "elementwise"):
            wanted = 1 if kind == "channelwise" else x.channels
            if y.channels != wanted:
                raise ValueError(f"y: expected {wanted} channels for a {kind} product, got {y}")
            if channels is not None:
                raise ValueError(f"channels: a {kind} product has those of x, {x.channels}; got {channels}")
            pairs, shape = 1, (len(found), x.channels)
            out = x.channels * (slots(found) if keep_paths else 1)
        else:
            raise ValueError(f"kind: expected 'full', 'channelwise' or 'elementwise', got {kind!r}")
        if weights not in ("shared", "given", "none"):
            raise ValueError(f"weights: expected 'shared', 'given' or 'none', got {weights!r}")
        self.x, self.y, self.layout = x, y, features.Layout(max_degree, out, parities)
        self.kind, self.keep_paths, self.weights, self.weight_shape = kind, keep_paths, weights, shape
        if weights != "shared":
            self.weight = None
            return
        if rngs is None:
            raise ValueError("rngs: expected nnx.Rngs for weights of the layer's own, got None")
        terms = [pairs * (1 if keep_paths else sum(p.out == q.out for q in found)) for p in found]
        scale = 1 / np.sqrt(np.reshape(terms, (-1, *[1] * (len(shape) - 1)))).astype(np.float32)
        self.weight = nnx.Param(jnp.asarray(scale) * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(
        self,
        x: Float[ArrayLike, "*batch_x parities_x orders_x channels_x"],
        y: Float[ArrayLike, "*batch_y parities_y orders_y channels_y"],
        weight: ArrayLike | None = None,
    ) -> Float[Array, "*batch parities orders channels_out"]:
        x = features.array("x", x, **self.x._asdict())
        y = features.array("y", y, **self.y._asdict())
        if (weight is None) != (self.weights != "given"):
            raise ValueError(f"weight: the layer was made with weights={self.weights!r}; got {type(weight).__name__}")
        if self.weight is not None:
            weight = self.weight[...].astype(x.dtype)
        size = {"max_degree": self.layout.max_degree, "parities": self.layout.parities}
        if self.kind == "full":
            return full(weight, x, y, **size)
        product = channelwise if self.kind == "channelwise" else elementwise
        return product(weight, x, y, **size, keep_paths=self.keep_paths)


def from_e3nn(
    parameters: Mapping[str, ArrayLike], irreps_x: Any, irreps_y: Any, irreps_out: Any, **keywords: Any
) -> Array:
    """Weights of `full` that equal e3nn_jax.tensor_product followed by an e3nn_jax.flax.Linear to irreps_out.

    `parameters` are the Linear's, keywords those of `linear.from_e3nn`. The result fits features in the smallest
    layouts that hold irreps_x and irreps_y, and gives those of irreps_out; missing channels have zeros.
    Raises ValueError for parameters of other irreps or with a bias, which a product has not.
    """
    import e3nn_jax

    e3nn: Any = e3nn_jax  # its annotations are narrower than what it takes
    if any(name.startswith("b[") for name in parameters):
        raise ValueError("parameters: expected none named b[...]: a tensor product has no bias")
    inputs = [e3nn.Irreps(irreps).regroup() for irreps in (irreps_x, irreps_y)]
    out = features.padded(irreps_out)
    mixing, _ = linear.from_e3nn(parameters, e3nn.tensor_product(*inputs), irreps_out, **keywords)
    x, y = (features.padded(irreps) for irreps in inputs)
    copies = [{(ir.l, 0 if ir.p == (-1) ** ir.l else 1): mul for mul, ir in irreps} for irreps in inputs]
    found = paths.between(x, y, out.max_degree, out.parities)
    weight, taken = np.zeros((len(found), x.channels, y.channels, out.channels), mixing.dtype), {}
    for i, path in enumerate(found):
        u, v = copies[0].get(path.x, 0), copies[1].get(path.y, 0)
        start = taken.get(path.out, 0)
        taken[path.out] = start + u * v
        degree, parity = path.out
        weight[i, :u, :v] = np.asarray(mixing[parity, degree, start : start + u * v]).reshape(u, v, -1)
    return jnp.asarray(weight)


def _prepared(
    x: ArrayLike, y: ArrayLike, max_degree: int, parities: int
) -> tuple[Array, Array, tuple[paths.Path, ...]]:
    x, y, out = features.array("x", x), features.array("y", y), features.layout(max_degree, 1, parities)
    check.same_dtype(x=x, y=y)
    try:
        jnp.broadcast_shapes(x.shape[:-3], y.shape[:-3])
    except ValueError as error:
        raise ValueError(f"y: expected leading axes that broadcast with x {x.shape}, got {y.shape}") from error
    return x, y, paths.between(features.of(x), features.of(y), out.max_degree, out.parities)


def _by_channel(weight: ArrayLike | None, x: ArrayLike, y: Array, max_degree: int, parities: int, keep: bool) -> Array:
    x, y, found = _prepared(x, y, max_degree, parities)
    pieces = _coupled(x, y, found)
    if weight is not None:
        weight = check.array("weight", weight, len(found), x.shape[-1])
        check.same_dtype(weight=weight, x=x)
        pieces = [piece * weight[..., i, None, :] for i, piece in enumerate(pieces)]
    return _assembled(pieces, found, max_degree, parities, x.shape[-1] * (slots(found) if keep else 1), keep)


def _coupled(x: Array, y: Array, found: tuple[paths.Path, ...]) -> list[Array]:
    """u of each path, (*batch, 2·l3 + 1, channels)."""
    one = y.shape[-1] == 1
    key = (lambda p: p.x) if one else (lambda p: (p.x, p.y))
    pieces: dict[paths.Path, Array] = {}
    for group in dict.fromkeys(map(key, found)):
        members = tuple(p for p in found if key(p) == group)
        l1, p1 = members[0].x
        part = x[..., p1, l1 * l1 : (l1 + 1) ** 2, :]
        if one:  # a small matrix per edge from y, then one product with all channels
            table = _table(members, y.shape[-3], math.isqrt(y.shape[-2]) - 1).astype(y.dtype)
            M = jnp.matmul(y.reshape(*y.shape[:-3], -1), table.reshape(table.shape[0], -1), precision=_HIGHEST)
            u = jnp.matmul(M.reshape(*M.shape[:-1], -1, 2 * l1 + 1), part, precision=_HIGHEST)
        else:
            l2, p2 = members[0].y
            other = y[..., p2, l2 * l2 : (l2 + 1) ** 2, :]
            pairs = part[..., :, None, :] * other[..., None, :, :]
            pairs = pairs.reshape(*pairs.shape[:-3], -1, pairs.shape[-1])
            table = np.concatenate([paths.coupling(p) for p in members], axis=-1).reshape(pairs.shape[-2], -1)
            u = jnp.matmul(table.T.astype(x.dtype), pairs, precision=_HIGHEST)
        start = 0
        for p in members:
            pieces[p] = u[..., start : start + 2 * p.out[0] + 1, :]
            start += 2 * p.out[0] + 1
    return [pieces[p] for p in found]


@cache
def _table(members: tuple[paths.Path, ...], parities: int, max_degree: int) -> np.ndarray:
    """(parities · orders of y, rows out, orders of x): the couplings of all paths that leave from one part of x."""
    blocks = []
    for p in members:
        (l1, _), (l2, p2), (l3, _) = p
        block = np.zeros((parities, (max_degree + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1))
        block[p2, l2 * l2 : (l2 + 1) ** 2] = paths.coupling(p).transpose(1, 2, 0)
        blocks.append(block.reshape(-1, *block.shape[2:]))
    return np.concatenate(blocks, axis=1)


def _assembled(
    pieces: list[Array], found: tuple[paths.Path, ...], max_degree: int, parities: int, channels: int, keep: bool
) -> Array:
    """Features whose rows are sums over the paths, or the paths side by side and zeros."""
    grouped: dict[tuple[int, int], list[Array]] = {}
    for path, piece in zip(found, pieces, strict=True):
        grouped.setdefault(path.out, []).append(piece)
    batch, dtype = pieces[0].shape[:-2], pieces[0].dtype
    join: Callable[[list[Array]], Array] = partial(jnp.concatenate, axis=-1) if keep else sum  # type: ignore[assignment]
    return _stacked({out: join(parts) for out, parts in grouped.items()}, batch, max_degree, parities, channels, dtype)


def _stacked(
    rows: dict[tuple[int, int], Array],
    batch: tuple[int, ...],
    max_degree: int,
    parities: int,
    channels: int,
    dtype: Any,
) -> Array:
    def block(l: int, p: int) -> Array:
        found = rows.get((l, p))
        if found is None:
            return jnp.zeros((*batch, 2 * l + 1, channels), dtype)
        found = jnp.broadcast_to(found, (*batch, *found.shape[-2:]))
        return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, channels - found.shape[-1])])

    blocks = [block(l, p) for p in range(parities) for l in range(max_degree + 1)]
    return jnp.concatenate(blocks, axis=-2).reshape(*batch, parities, (max_degree + 1) ** 2, channels)
