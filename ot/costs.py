"""Costs between all pairs of two clouds: records that the solvers of `ot` call, cost(x, y) -> (*batch, n, m).

x is (*batch, n, *event), y is (*batch, m, *event); leading axes broadcast. Points on groups may be pytrees, such as
`se3.Pose`, whose leaves share the axes (*batch, n). Arrays of a record are leaves, its parameters static and hashable.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lie import check, group, record, smooth
from ot import _geodesics

Points = Any
"""An array (*batch, n, *event) or a pytree of such arrays that share (*batch, n)."""


@runtime_checkable
class Cost(Protocol):
    """What every cost offers; a record of your own needs no more.

    `event_dimensions`: how many trailing axes make one point, an int, or a pytree of ints shaped like the points.
    `translation_invariant`: whether cost(x + t, y + t) = cost(x, y), so that a solver may centre the clouds.
    `expensive`: whether a pair costs much more than a few operations per coordinate, so that keeping the matrix pays.
    """

    @property
    def event_dimensions(self) -> Any: ...
    @property
    def translation_invariant(self) -> bool: ...
    @property
    def expensive(self) -> bool: ...
    def __call__(self, x: Points, y: Points, /) -> Float[Array, "*batch n m"]: ...


@record.register()
@dataclass(frozen=True)
class SquaredEuclidean:
    """|x − y|², without a factor 1/2, on points (*batch, n, d).

    For d <= 8 a sum of squared differences: relative error <= d eps, and exactly 0 where x = y. For larger d
    |x|² + |y|² − 2 x·y of the clouds moved to the mean of y, never negative: one matrix product, absolute error
    <= 3 eps (|x|² + |y|²) after the move. Derivatives are exact in both forms.
    """

    event_dimensions = 1
    translation_invariant = True
    expensive = False

    def __call__(self, x: Points, y: Points) -> Float[Array, "*batch n m"]:
        """The matrix of |x_i − y_j|². Raises TypeError and ValueError naming x and y for dtypes and shapes."""
        return _geodesics.squared_euclidean(*_vectors(x, y))


@record.register()
@dataclass(frozen=True)
class Euclidean:
    """|x − y| on points (*batch, n, d); the gradient is 0 by choice where x = y.

    Relative error <= d eps for d <= 32. Above, the square is a matrix product as in `SquaredEuclidean`: absolute error
    <= 4 eps (|x|² + |y|²)/|x − y|, so that points closer than √eps |x| lose their digits.
    """

    event_dimensions = 1
    translation_invariant = True
    expensive = False

    def __call__(self, x: Points, y: Points) -> Float[Array, "*batch n m"]:
        """The matrix of |x_i − y_j|. Raises TypeError and ValueError naming x and y for dtypes and shapes."""
        return smooth.sqrt(_geodesics.squared_euclidean(*_vectors(x, y), differences_up_to=32))


@record.register()
@dataclass(frozen=True)
class PowerNorm:
    """|x − y|^p on points (*batch, n, d), |·| the Euclidean norm: the cost of W_p^p. p >= 1 makes W_p a distance.

    Where x = y, derivatives that are infinite or do not exist are 0 by choice. Raises ValueError unless p > 0.
    """

    p: float

    event_dimensions = 1
    translation_invariant = True

    def __init__(self, p: float | int):
        object.__setattr__(self, "p", _positive("p", p))

    @property
    def expensive(self) -> bool:
        """Whether the power is a true power function, not a product or a root."""
        return not (2 * self.p).is_integer()

    def __call__(self, x: Points, y: Points) -> Float[Array, "*batch n m"]:
        """The matrix of |x_i − y_j|^p. Raises TypeError and ValueError naming x and y for dtypes and shapes."""
        smooth_at_zero = self.p >= 2
        squared = _geodesics.squared_euclidean(*_vectors(x, y), differences_up_to=8 if smooth_at_zero else 32)
        return smooth.power(squared, self.p / 2)


@record.register()
@dataclass(frozen=True)
class Sphere:
    """∠(x, y)^power on unit vectors (*batch, n, d + 1) of S^d: the geodesic arc in radians, 0..π.

    From the chord |x − y| for the near half and |x + y| for the far half of the sphere, so that no digits are lost at 0
    or π: error <= 4 eps (absolute, radians; relative near 0). At y = −x the gradient is 0 by choice, at y = x it is 0
    for power = 1. Gradients are those of the chord in R^(d+1): project them for a step on the sphere.
    Raises ValueError unless power > 0 and, under HAAR_CHECK=1, for vectors that are not of unit length.
    """

    power: float = 2.0

    event_dimensions = 1
    translation_invariant = False
    expensive = True

    def __init__(self, power: float | int = 2.0):
        object.__setattr__(self, "power", _positive("power", power))

    def __call__(self, x: Points, y: Points) -> Float[Array, "*batch n m"]:
        """The matrix of ∠(x_i, y_j)^power. Raises TypeError and ValueError naming x and y for dtypes and shapes."""
        x, y = _vectors(x, y)
        _geodesics.require_unit(x=x, y=y)
        return smooth.power(_geodesics.squared_arc(x, y), self.power / 2)


@record.register()
@dataclass(frozen=True)
class Geodesic:
    """d(x, y)^power for the distance d of a group of `lie`: a module (so3, se3, su2, ...) or a `group.product`.

    so2, so3: the angle of x⁻¹y; su2: the double cover's, in which q and −q are 2π apart; se2, se3:
    √(|t|²/length² + θ²), `length` being what one radian is worth in the unit of the translations; products: √Σ d².
    All pairs are compared by unit quaternions (so3) or complex numbers (so2), one for each element, never by n x m
    matrices. Error <= 8 eps radians, at 0 and π too. Along the group the derivatives are those of its own
    `squared_distance`. At distance 0 with power < 2 the gradient is 0 by choice, at the cut locus that of one branch.
    Raises ValueError unless power > 0 and length > 0, or for a length that nothing in the group uses.
    """

    group: group.Group
    power: float = 2.0
    length: float = 1.0

    translation_invariant = False
    expensive = True

    def __init__(self, group: Any, power: float | int = 2.0, length: float | int = 1.0):
        object.__setattr__(self, "group", _geodesics.known_group(group))
        object.__setattr__(self, "power", _positive("power", power))
        object.__setattr__(self, "length", _positive("length", length))
        if self.length != 1 and not _geodesics.uses_length(group):
            raise ValueError(f"length: expected 1 for a group without rigid motions (se2, se3), got {length}")

    @property
    def event_dimensions(self) -> Any:
        """How many trailing axes make one element: 2 for a matrix, a Pose or tuple of ints for their pytrees."""
        return _geodesics.event_dimensions(self.group)

    def __call__(self, x: Points, y: Points) -> Float[Array, "*batch n m"]:
        """The matrix of d(x_i, y_j)^power. Raises TypeError and ValueError naming x and y for elements and shapes."""
        return smooth.power(_geodesics.squared(self.group, x, y, self.length), self.power / 2)


@record.register("C")
@dataclass(frozen=True, eq=False)
class Precomputed:
    """A given matrix C (*batch, N, M); the points are integer indices of its rows and columns, None for all of them.

    cost(i, j) = C[..., i, :][..., j] for i (n,), j (m,). Differentiable in C. Raises TypeError and ValueError for a C
    that is not a matrix of floats and for indices that are not integers or, outside jit, out of range; under jit those
    give NaN.
    """

    C: Float[Array, "*batch N M"]

    event_dimensions = 0
    translation_invariant = False
    expensive = False

    def __init__(self, C: ArrayLike):
        object.__setattr__(self, "C", check.array("C", C, None, None))

    def __call__(self, x: Points = None, y: Points = None) -> Float[Array, "*batch n m"]:
        """The rows x and columns y of C."""
        rows = self.C if x is None else jnp.take(self.C, _indices("x", x, self.C.shape[-2]), axis=-2)
        return rows if y is None else jnp.take(rows, _indices("y", y, self.C.shape[-1]), axis=-1)


@record.register("matrices")
@dataclass(frozen=True, eq=False)
class Grid:
    """Σ_k C_k[i_k, j_k] between the points of two grids, from one matrix C_k (n_k, m_k) for each axis: images, volumes.

    Points are None for all of a grid, n = n_1 ⋯ n_d in the order of `image.ravel()`; flat indices (n,); or one array of
    indices for each axis, which name a smaller grid. `sinkhorn.solve(None, None, a, b, cost=Grid(...))` never makes the
    n x m matrix: n^(1 + 1/d) work and, above 2^24 entries of the matrices' products, memory of the grid. `grid` makes
    one from coordinates. Differentiable in the matrices. Raises TypeError and ValueError for matrices that are none.
    """

    matrices: tuple[Float[Array, "n m"], ...]

    event_dimensions = 0
    translation_invariant = False
    expensive = False

    def __init__(self, *matrices: ArrayLike):
        if not matrices:
            raise ValueError("matrices: expected one for each axis of the grid, got none")
        held = {f"matrices[{k}]": check.array(f"matrices[{k}]", C, None, None) for k, C in enumerate(matrices)}
        check.same_dtype(**held)
        for name, C in held.items():
            if C.ndim != 2 or C.size == 0:
                raise ValueError(f"{name}: expected a matrix (n_k, m_k) without batch axes, not empty; got {C.shape}")
        object.__setattr__(self, "matrices", tuple(held.values()))

    def along_axes(self, x: Points = None, y: Points = None) -> tuple[Float[Array, "n m"], ...]:
        """The matrices between the axes of two grids: all, or those of the indices in x and y."""
        rows = [C if x is None else C[x[k]] for k, C in enumerate(self.matrices)]
        return tuple(C if y is None else C[:, y[k]] for k, C in enumerate(rows))

    def __call__(self, x: Points = None, y: Points = None) -> Float[Array, "n m"]:
        """The matrix between the points x and y, which a grid of many points has no memory for."""
        shapes = zip(*(C.shape for C in self.matrices), strict=True)
        i, j = (_on_axes(points, shape) for points, shape in zip((x, y), shapes, strict=True))
        return (
            sum(C[p][:, q] for C, p, q in zip(self.matrices[1:], i[1:], j[1:], strict=True))
            + (self.matrices[0][i[0]][:, j[0]])
        )


def grid(x: Sequence[ArrayLike], y: Sequence[ArrayLike] | None = None, *, cost: Any = SquaredEuclidean()) -> Grid:
    """The `Grid` of coordinates x[k] (n_k,) and y[k] (m_k,), by default the same, with Σ_k cost(x_k, y_k).

    The sum over the axes is |x − y|² for the default cost. Raises ValueError for numbers of axes that differ.
    """
    y = x if y is None else y
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y: expected as many axes, at least one; got {len(x)} and {len(y)}")
    cost = wrap(cost)
    axes = [
        [check.array(f"{name}[{k}]", p, None)[:, None] for k, p in enumerate(c)] for name, c in (("x", x), ("y", y))
    ]
    return Grid(*(cost(p, q) for p, q in zip(*axes, strict=True)))


@dataclass(frozen=True)
class Function:
    """The cost of a function of two points -> scalar, made by `wrap`.

    The function is static, so a closure over traced arrays is refused by jit's cache as any closure is; a function that
    is a pytree (`jax.tree_util.Partial`, a module of a neural library) keeps its arrays as leaves.
    """

    function: Callable[[Any, Any], Array]
    event_dimensions: Any = 1

    translation_invariant = False
    expensive = True

    def __call__(self, x: Points, y: Points) -> Float[Array, "*batch n m"]:
        """The matrix of function(x_i, y_j). Raises ValueError unless the function returns a scalar."""
        x, y, batch = _broadcast(x, y, self.event_dimensions)
        pairwise = jax.vmap(jax.vmap(self.function, (None, 0)), (0, None))
        for _ in batch:
            pairwise = jax.vmap(pairwise)
        C = pairwise(x, y)
        if jnp.ndim(C) != len(batch) + 2:
            raise ValueError(f"cost: expected a function of two points -> scalar, got a value of shape {C.shape[-1:]}")
        return C


def _flatten_function(cost: Function) -> tuple[tuple, tuple]:
    if jax.tree_util.all_leaves([cost.function]):
        return (), (cost.function, cost.event_dimensions)
    return (cost.function,), (None, cost.event_dimensions)


def _unflatten_function(static: tuple, children: tuple) -> Function:
    function, event_dimensions = static
    return Function(children[0] if children else function, event_dimensions)


jax.tree_util.register_pytree_node(Function, _flatten_function, _unflatten_function)


def wrap(cost: Cost | Callable[[Any, Any], Array], event_dimensions: Any = 1) -> Cost:
    """`cost` itself if it is a cost record, else the record of a function of two points -> scalar.

    The function sees single points, (d,) or a pytree; `event_dimensions` says how many trailing axes those have, as an
    int or a hashable pytree of ints. Raises TypeError for what cannot be called.
    """
    if isinstance(cost, type) or not callable(cost):
        raise TypeError(f"cost: expected a record of ot.costs or a function of two points, got {cost!r}")
    return cost if isinstance(cost, Cost) else Function(cost, event_dimensions)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, which is static, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    return float(value)


def _vectors(x: Points, y: Points) -> tuple[Array, Array]:
    """x (*batch, n, d) and y (*batch, m, d) of one dtype and one d >= 1."""
    x, y = check.array("x", x, None, None), check.array("y", y, None, None)
    check.same_dtype(x=x, y=y)
    if x.shape[-1] != y.shape[-1] or x.shape[-1] == 0:
        raise ValueError(f"x and y: expected points of one dimension d >= 1, (..., d), got x {x.shape}, y {y.shape}")
    return x, y


def _on_axes(points: Points, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The index on each axis of every point of a grid."""
    if isinstance(points, tuple):
        return tuple(index.ravel() for index in jnp.meshgrid(*points, indexing="ij"))
    flat = jnp.arange(math.prod(shape)) if points is None else jnp.asarray(points)
    return jnp.unravel_index(flat, shape)


def _indices(name: str, indices: Points, size: int) -> Array:
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.ndim != 1:
        raise TypeError(
            f"{name}: expected None or integer indices (n,) into a precomputed cost, got {indices.dtype} with shape "
            f"{indices.shape}"
        )
    if not isinstance(indices, Tracer):
        held = np.asarray(indices)
        if held.size and (held.min() < 0 or held.max() >= size):
            raise ValueError(f"{name}: expected indices in 0..{size - 1}, got {held.min()}..{held.max()}")
    return indices


def _broadcast(x: Points, y: Points, event_dimensions: Any) -> tuple[Points, Points, tuple[int, ...]]:
    """Both clouds with one batch shape: leaves (*batch, n, *event)."""
    batch = np.broadcast_shapes(*_batches("x", x, event_dimensions), *_batches("y", y, event_dimensions))

    def spread(events: int, leaf: Array) -> Array:
        return jnp.broadcast_to(leaf, (*batch, *leaf.shape[leaf.ndim - 1 - events :]))

    return jax.tree.map(spread, event_dimensions, x), jax.tree.map(spread, event_dimensions, y), batch


def _batches(name: str, points: Points, event_dimensions: Any) -> list[tuple[int, ...]]:
    """The batch shape of each leaf."""

    def of_leaf(events: int, leaf: Array) -> tuple[int, ...]:
        if jnp.ndim(leaf) < events + 1:
            raise ValueError(f"got a leaf of shape {jnp.shape(leaf)}")
        batches.append(jnp.shape(leaf)[: jnp.ndim(leaf) - 1 - events])
        return batches[-1]

    batches: list[tuple[int, ...]] = []
    try:
        jax.tree.map(of_leaf, event_dimensions, points)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected a cloud (..., n) of points with {event_dimensions} axes; {error}"
        ) from error
    return batches
