"""What every group offers, and products of groups: generic code takes a module (`so3`) or a `product`."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, smooth

Element = Any
"""An array or a NamedTuple of arrays; the leading axes are a batch."""


@runtime_checkable
class Group(Protocol):
    """The shared vocabulary. The modules so2, se2, so3, se3, su2, euclidean satisfy it, as does every `product`.

    Increments act on the right: retract(g, xi) = g exp(xi), local(g, h) = log(g⁻¹ h), Jacobians are of the tangent
    vector, exp(xi + δ) = exp(J_l δ) exp(xi) = exp(xi) exp(J_r δ) to first order. `distance` and `squared_distance` are
    left-invariant; `interpolate(g, h, t)` is g exp(t log(g⁻¹ h)); `project` returns the closest element.
    """

    @property
    def dimension(self) -> int | None: ...
    def identity(self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Element: ...
    def exp(self, xi: Float[ArrayLike, "..."], /) -> Element: ...
    def log(self, g: Element, /) -> Float[Array, "..."]: ...
    def compose(self, g: Element, h: Element, /) -> Element: ...
    def inverse(self, g: Element, /) -> Element: ...
    def act(self, g: Element, x: Any, /) -> Any: ...
    def adjoint(self, g: Element, /) -> Float[Array, "..."]: ...
    def left_jacobian(self, xi: Float[ArrayLike, "..."], /) -> Float[Array, "..."]: ...
    def left_jacobian_inverse(self, xi: Float[ArrayLike, "..."], /) -> Float[Array, "..."]: ...
    def right_jacobian(self, xi: Float[ArrayLike, "..."], /) -> Float[Array, "..."]: ...
    def right_jacobian_inverse(self, xi: Float[ArrayLike, "..."], /) -> Float[Array, "..."]: ...
    def hat(self, xi: Float[ArrayLike, "..."], /) -> Any: ...
    def vee(self, matrix: Any, /) -> Float[Array, "..."]: ...
    def retract(self, g: Element, xi: Float[ArrayLike, "..."], /) -> Element: ...
    def local(self, g: Element, h: Element, /) -> Float[Array, "..."]: ...
    def distance(self, g: Element, h: Element, /) -> Float[Array, "..."]: ...
    def squared_distance(self, g: Element, h: Element, /) -> Float[Array, "..."]: ...
    def interpolate(self, g: Element, h: Element, t: Float[ArrayLike, "..."], /) -> Element: ...
    def sample(self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Element: ...
    def project(self, g: Element, /) -> Element: ...


def product(*factors: Group) -> "Product":
    """The direct product: product(so3, euclidean) has elements (R, x) and tangent vectors (ω, v), in order.

    Raises ValueError without a factor, or if more than one factor leaves its dimension open (the module `euclidean`
    does: it takes what the others leave of a tangent vector; `euclidean.Space(n)` fixes it).
    """
    if not factors:
        raise ValueError("product: expected at least one group")
    if sum(factor.dimension is None for factor in factors) > 1:
        raise ValueError("product: at most one factor may leave its dimension open; use euclidean.Space(n)")
    return Product(factors)


@dataclass(frozen=True)
class Product:
    """The group of tuples, one element per factor; tangent vectors are concatenated. Made by `product`."""

    factors: tuple[Group, ...]

    @property
    def dimension(self) -> int | None:
        """Sum of the dimensions; None if a factor leaves its own open."""
        sizes = [factor.dimension for factor in self.factors]
        return None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)

    def identity(self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> tuple:
        """The identities. Raises ValueError if a dimension is open."""
        self._require_dimension("identity")
        return tuple(factor.identity(shape, dtype) for factor in self.factors)

    def exp(self, xi: Float[ArrayLike, "..."]) -> tuple:
        """exp of each part of xi."""
        return self._each("exp", self._split(xi))

    def log(self, g: tuple) -> Float[Array, "..."]:
        """The logarithms, concatenated."""
        return _concatenate(self._each("log", g))

    def compose(self, g: tuple, h: tuple) -> tuple:
        """Factor by factor."""
        return self._each("compose", g, h)

    def inverse(self, g: tuple) -> tuple:
        """Factor by factor."""
        return self._each("inverse", g)

    def act(self, g: tuple, x: tuple) -> tuple:
        """Each factor acts on its own entry of the tuple x."""
        return self._each("act", g, x)

    def adjoint(self, g: tuple) -> Float[Array, "..."]:
        """Block diagonal."""
        return _block_diagonal(self._each("adjoint", g))

    def left_jacobian(self, xi: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Block diagonal."""
        return _block_diagonal(self._each("left_jacobian", self._split(xi)))

    def left_jacobian_inverse(self, xi: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Block diagonal."""
        return _block_diagonal(self._each("left_jacobian_inverse", self._split(xi)))

    def right_jacobian(self, xi: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Block diagonal."""
        return _block_diagonal(self._each("right_jacobian", self._split(xi)))

    def right_jacobian_inverse(self, xi: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Block diagonal."""
        return _block_diagonal(self._each("right_jacobian_inverse", self._split(xi)))

    def hat(self, xi: Float[ArrayLike, "..."]) -> tuple:
        """The matrices of the factors, as a tuple."""
        return self._each("hat", self._split(xi))

    def vee(self, matrix: tuple) -> Float[Array, "..."]:
        """The inverse of `hat`."""
        return _concatenate(self._each("vee", matrix))

    def retract(self, g: tuple, xi: Float[ArrayLike, "..."]) -> tuple:
        """g exp(xi)."""
        return self._each("retract", g, self._split(xi))

    def local(self, g: tuple, h: tuple) -> Float[Array, "..."]:
        """log(g⁻¹ h)."""
        return _concatenate(self._each("local", g, h))

    def distance(self, g: tuple, h: tuple) -> Float[Array, "..."]:
        """√Σ d²: the distance of the product metric; at g = h the gradient is 0 by choice."""
        distances = jnp.broadcast_arrays(*self._each("distance", g, h))
        return smooth.norm(jnp.stack(distances, axis=-1))

    def squared_distance(self, g: tuple, h: tuple) -> Float[Array, "..."]:
        """Σ d², smooth at g = h."""
        first, *rest = self._each("squared_distance", g, h)
        return sum(rest, start=first)

    def interpolate(self, g: tuple, h: tuple, t: Float[ArrayLike, "..."]) -> tuple:
        """Factor by factor, at the same t."""
        return self._each("interpolate", g, h, (t,) * len(self.factors))

    def sample(self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> tuple:
        """Independent samples of the factors. Raises ValueError if a dimension is open."""
        self._require_dimension("sample")
        keys = jax.random.split(key, len(self.factors))
        return tuple(factor.sample(shape, dtype, key=k) for factor, k in zip(self.factors, keys, strict=True))

    def project(self, g: tuple) -> tuple:
        """Factor by factor."""
        return self._each("project", g)

    def _each(self, name: str, *arguments: Any) -> tuple:
        for argument in arguments:
            if not isinstance(argument, tuple) or len(argument) != len(self.factors):
                found = f"{len(argument)} entries" if isinstance(argument, tuple) else type(argument).__name__
                raise ValueError(
                    f"{name}: expected a tuple of {len(self.factors)} entries, one per factor, got {found}"
                )
        return tuple(getattr(factor, name)(*parts) for factor, *parts in zip(self.factors, *arguments, strict=True))

    def _split(self, xi: Float[ArrayLike, "..."]) -> tuple:
        xi = check.array("xi", xi, self.dimension)
        sizes = [factor.dimension for factor in self.factors]
        known = sum(size for size in sizes if size is not None)
        if xi.shape[-1] <= known and None in sizes:
            raise ValueError(f"xi: expected more than {known} entries on its last axis, got shape {xi.shape}")
        parts, start = [], 0
        for size in sizes:
            size = xi.shape[-1] - known if size is None else size
            parts.append(xi[..., start : start + size])
            start += size
        return tuple(parts)

    def _require_dimension(self, name: str) -> None:
        if self.dimension is None:
            raise ValueError(f"{name}: one factor leaves its dimension open; use euclidean.Space(n)")


def _concatenate(parts: tuple) -> Array:
    batch = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return jnp.concatenate([jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in parts], axis=-1)


def _block_diagonal(blocks: tuple) -> Array:
    batch = jnp.broadcast_shapes(*(block.shape[:-2] for block in blocks))
    total, start, rows = sum(block.shape[-1] for block in blocks), 0, []
    for block in blocks:
        size = block.shape[-1]
        padding = [(0, 0)] * (len(batch) + 1) + [(start, total - start - size)]
        rows.append(jnp.pad(jnp.broadcast_to(block, (*batch, size, size)), padding))
        start += size
    return jnp.concatenate(rows, axis=-2)
