"""Features: arrays (*batch, parities, (max_degree + 1)², channels), the action of O(3) on them, exchange with e3nn-jax.

Parity 0 holds true tensors, degree l changing sign by (−1)^l under x → −x; parity 1, where it is there, pseudotensors,
by −(−1)^l. The row of order m of degree l is l² + l + m, in e3nn's basis. All degrees have the same channels, last, so
that a layer is a product of matrices over contiguous memory; irreps with other multiplicities are padded by zeros.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from lie import check, elementwise, wigner


class Layout(NamedTuple):
    """What an array of features holds: `channels` tensors of each degree 0..max_degree, for each of the parities."""

    max_degree: int
    channels: int
    parities: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """The trailing axes of the array: (parities, (max_degree + 1)², channels)."""
        return self.parities, (self.max_degree + 1) ** 2, self.channels


def layout(max_degree: int, channels: int, parities: int = 1) -> Layout:
    """A checked Layout: TypeError for what is no int, ValueError for parities other than 1 and 2 or a negative size."""
    if parities not in (1, 2):
        raise ValueError(f"parities: expected 1 (true tensors) or 2 (true and pseudo), got {parities!r}")
    return Layout(check.degree("max_degree", max_degree), check.degree("channels", channels), int(parities))


def array(
    name: str,
    x: ArrayLike,
    *,
    max_degree: int | None = None,
    channels: int | None = None,
    parities: int | None = None,
) -> Array:
    """`x` as an array of features, with the given degree, channels and parities where they are given.

    Raises TypeError for what is no floating-point array, ValueError for a wrong shape and, under HAAR_CHECK=1, for NaN;
    each names the argument, its shape and what was expected.
    """
    x = check.array(name, x)
    given = (
        1 <= x.shape[-3] <= 2 if x.ndim >= 3 and parities is None else x.ndim >= 3 and x.shape[-3] == parities,
        x.ndim >= 2 and math.isqrt(x.shape[-2]) ** 2 == x.shape[-2] > 0,
        x.ndim >= 2 and (max_degree is None or x.shape[-2] == (max_degree + 1) ** 2),
        x.ndim >= 1 and channels in (None, x.shape[-1]),
    )
    if not all(given):
        spelled = (
            "1 or 2 parities" if parities is None else parities,
            "(max_degree + 1)**2" if max_degree is None else f"{(max_degree + 1) ** 2} = ({max_degree} + 1)**2",
            "channels" if channels is None else channels,
        )
        raise ValueError(f"{name}: expected features of shape (..., {', '.join(map(str, spelled))}), got {x.shape}")
    return x


def of(x: Float[Array, "*batch parities orders channels"]) -> Layout:
    """The layout of an array of features."""
    x = array("x", x)
    return Layout(math.isqrt(x.shape[-2]) - 1, x.shape[-1], x.shape[-3])


def degrees(max_degree: int) -> Iterator[tuple[int, slice]]:
    """(l, rows of degree l) for l = 0..max_degree."""
    return ((l, slice(l * l, (l + 1) ** 2)) for l in range(max_degree + 1))


def rotate(
    x: Float[ArrayLike, "*features parities orders channels"], R: Float[ArrayLike, "*rotations 3 3"]
) -> Float[Array, "*batch parities orders channels"]:
    """The action of R in O(3), det R = ±1: D_l(R) on degree l, and a factor det R on pseudotensors.

    Leading axes broadcast. Equals e3nn-jax's `transform_by_matrix`. Error of R Q against R after Q as `wigner.d`.
    """
    x, R = array("x", x), check.array("R", R, 3, 3)
    check.same_dtype(x=x, R=R)
    D = wigner.d_all(R, of(x).max_degree)[..., None, :, :]
    turned = jnp.matmul(D, x, precision=jax.lax.Precision.HIGHEST)
    if x.shape[-3] == 1:
        return turned
    determinant = elementwise.dot(R[..., 0, :], elementwise.cross(R[..., 1, :], R[..., 2, :]))
    sign = jnp.where(determinant < 0, -1, 1).astype(x.dtype)[..., None, None, None]
    return jnp.concatenate([turned[..., :1, :, :], sign * turned[..., 1:, :, :]], axis=-3)


def irreps(layout: Layout) -> Any:
    """The e3nn_jax.Irreps of a layout, sorted as e3nn sorts: 64x0e + 64x0o + 64x1o + 64x1e for degree 1, 2 parities."""
    import e3nn_jax  # here, not above: importing haar must not pay for it

    return e3nn_jax.Irreps(
        [(layout.channels, (l, (-1) ** (l + p))) for l in range(layout.max_degree + 1) for p in range(layout.parities)]
    )


def padded(irreps: Any) -> Layout:
    """The smallest layout that holds the e3nn irreps; the multiplicities of an irrep that occurs twice add up."""
    places = _places(_irreps("irreps", irreps))
    if not places:
        return Layout(0, 0)
    return Layout(
        max(l for _, l, _, _ in places), max(start + mul for _, _, start, mul in places), 1 + max(p for p, *_ in places)
    )


def from_irreps(x: Any, layout: Layout | None = None) -> Float[Array, "*batch parities orders channels"]:
    """Features from an e3nn_jax.IrrepsArray, by default in the smallest layout that holds it; lossless.

    Copies of an irrep become channels in the order in which they occur; missing ones are zeros. Raises ValueError if
    the layout has too few degrees, channels or parities, TypeError for what is no IrrepsArray.
    """
    import e3nn_jax

    if not isinstance(x, e3nn_jax.IrrepsArray):
        raise TypeError(f"x: expected an e3nn_jax.IrrepsArray, got {type(x).__name__}")
    needed, chosen = padded(x.irreps), padded(x.irreps) if layout is None else layout
    for field, need, have in zip(Layout._fields, needed, chosen, strict=True):
        if need > have:
            raise ValueError(f"layout: {x.irreps} needs {field} = {need}, got {chosen}")
    values = check.array("x", x.array, x.irreps.dim)
    batch, found = values.shape[:-1], {}
    for (p, l, _, mul), piece in zip(_places(x.irreps), x.irreps.slices(), strict=True):
        chunk = values[..., piece].reshape(*batch, mul, 2 * l + 1)
        found.setdefault((p, l), []).append(jnp.swapaxes(chunk, -1, -2))

    def block(p: int, l: int) -> Array:
        missing = chosen.channels - sum(chunk.shape[-1] for chunk in found.get((p, l), ()))
        zeros = [jnp.zeros((*batch, 2 * l + 1, missing), values.dtype)] if missing else []
        blocks = [*found.get((p, l), ()), *zeros]
        return jnp.concatenate(blocks, axis=-1) if blocks else jnp.zeros((*batch, 2 * l + 1, 0), values.dtype)

    rows = [[block(p, l) for l in range(chosen.max_degree + 1)] for p in range(chosen.parities)]
    return jnp.stack([jnp.concatenate(row, axis=-2) for row in rows], axis=-3)


def to_irreps(x: Float[ArrayLike, "*batch parities orders channels"], irreps: Any) -> Any:
    """The e3nn_jax.IrrepsArray with these irreps, taken from the first channels of each degree and parity.

    Undoes `from_irreps`: to_irreps(from_irreps(x), x.irreps) is x. Raises ValueError for irreps that x does not hold.
    """
    import e3nn_jax

    x, irreps = array("x", x), _irreps("irreps", irreps)
    needed, have = padded(irreps), of(x)
    for field, need, found in zip(Layout._fields, needed, have, strict=True):
        if need > found:
            raise ValueError(f"irreps: {irreps} needs {field} = {need}, but x holds {have}")
    batch = x.shape[:-3]
    pieces = [
        jnp.swapaxes(x[..., p, l * l : (l + 1) ** 2, start : start + mul], -1, -2).reshape(*batch, mul * (2 * l + 1))
        for p, l, start, mul in _places(irreps)
    ]
    values = jnp.concatenate(pieces, axis=-1) if pieces else jnp.zeros((*batch, 0), x.dtype)
    return e3nn_jax.IrrepsArray(irreps, values)


def on_irreps(
    layer: Callable[..., Any], irreps_in: Any, irreps_out: Any, *, layout: Layout | tuple[Layout, ...] | None = None
) -> Callable[..., Any]:
    """The layer, taking and returning e3nn_jax.IrrepsArray: a drop-in for models written with e3nn-jax.

    The first argument (the first n, if irreps_in is a tuple of n) comes with irreps_in and is handed to the layer as
    features in `layout` (default: the smallest that holds them); all other arguments pass through. What the layer
    returns is cut to irreps_out (a tuple of them if it returns a tuple of features). An nnx.Module is wrapped by an
    nnx.Module, which keeps its parameters under `.layer`, anything else by a plain function.
    Raises ValueError if an argument has other irreps, or the layer does not return what irreps_out asks for.
    """
    several = isinstance(irreps_in, tuple) and not hasattr(irreps_in, "dim")  # e3nn's Irreps are tuples too
    wanted = tuple(_irreps("irreps_in", i) for i in (irreps_in if several else (irreps_in,)))
    layouts = layout if isinstance(layout, tuple) and not isinstance(layout, Layout) else (layout,) * len(wanted)
    if len(layouts) != len(wanted):
        raise ValueError(f"layout: expected {len(wanted)}, one for each of irreps_in, got {len(layouts)}")
    multiple = isinstance(irreps_out, tuple) and not hasattr(irreps_out, "dim")
    given = tuple(_irreps("irreps_out", i) for i in (irreps_out if multiple else (irreps_out,)))

    def call(layer: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        features = [
            from_irreps(_matching(f"argument {k}", x, want), chosen)
            for k, (x, want, chosen) in enumerate(zip(arguments, wanted, layouts, strict=False))
        ]
        if len(features) < len(wanted):
            raise TypeError(f"expected {len(wanted)} IrrepsArrays as first arguments, got {len(arguments)} arguments")
        result = layer(*features, *arguments[len(wanted) :], **keywords)
        if not multiple:
            return to_irreps(result, given[0])
        if not isinstance(result, tuple) or len(result) != len(given):
            raise ValueError(f"irreps_out: the layer does not return a tuple of {len(given)} features")
        return tuple(to_irreps(x, irreps) for x, irreps in zip(result, given, strict=True))

    if isinstance(layer, nnx.Module):
        return _OnIrreps(layer, call)
    return lambda *arguments, **keywords: call(layer, *arguments, **keywords)


class _OnIrreps(nnx.Module):
    def __init__(self, layer: nnx.Module, call: Callable[..., Any]) -> None:
        self.layer, self._call = layer, call

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._call(self.layer, *arguments, **keywords)


def _irreps(name: str, irreps: Any) -> Any:
    import e3nn_jax

    try:
        return e3nn_jax.Irreps(irreps)
    except Exception as error:
        raise ValueError(f"{name}: expected e3nn irreps such as '64x0e + 32x1o', got {irreps!r}") from error


def _matching(name: str, x: Any, wanted: Any) -> Any:
    found = getattr(x, "irreps", None)
    if found is None:
        raise TypeError(f"{name}: expected an e3nn_jax.IrrepsArray with irreps {wanted}, got {type(x).__name__}")
    if found.regroup() != wanted.regroup():
        raise ValueError(f"{name}: expected irreps {wanted}, got {found}")
    return x


def _places(irreps: Any) -> list[tuple[int, int, int, int]]:
    """(parity index, degree, first channel, channels) of each term of the irreps."""
    taken, places = {}, []
    for mul, ir in irreps:
        key = (0 if ir.p == (-1) ** ir.l else 1, ir.l)
        places.append((*key, taken.get(key, 0), mul))
        taken[key] = taken.get(key, 0) + mul
    return places
