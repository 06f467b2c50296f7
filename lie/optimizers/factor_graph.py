"""Nonlinear least squares as a factor graph: residuals on edges that touch a few nodes, and its normal equations.

Variables are one batch of group elements (N along the leading axis), or a dict of several. Node n of a variable owns
`dimension` neighbouring scalar unknowns, the components of its body-frame tangent vector. All of the sparse structure
is one integer array per factor: `columns`, (edges, K), the unknowns that each edge touches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from lie import record
from lie.optimizers import elements, robust


@record.register("nodes", "data", "loss")
@dataclass(frozen=True)
class Factor:
    """The same residual on many edges: r_e = residual(x[i_e], x[j_e], ..., *data_e), one vector, which costs ρ(|r_e|²).

    residual: a function of single elements (no edge axis). Hold on to one function object: compiled code is kept by it.
    nodes: one integer array (edges,) per touched element.
    data: a tuple of arrays or pytrees with a leading edge axis, handed to the residual after the elements.
    loss: None (ρ(s) = s) or a loss of `robust`. Weights belong into the residual, as square roots of information.
    variables: where x is a dict, the name of the variable behind each entry of `nodes`.
    """

    residual: Callable[..., Array]
    nodes: tuple[Any, ...]
    data: tuple[Any, ...] = ()
    loss: robust.Loss | None = None
    variables: tuple[str, ...] | None = None


class Linearisation(NamedTuple):
    """Σ ρ(|r|²) near x: value + 2 gᵀδ + δᵀHδ with g = Jᵀ W r and H = Jᵀ W J (Gauss–Newton, W the robust weights)."""

    value: Array
    gradient: Array  # (unknowns,)
    diagonal: Array  # (unknowns,), of H; 1 where H has none
    blocks: list[Array]  # per factor (edges, K, K), the summands of H
    rounding: Array  # the part of `value` that rounding of x alone produces: (eps · largest entry · |J|)²


class Variable(NamedTuple):
    """One batch of elements and where its scalar unknowns lie."""

    name: str | None
    group: Any
    element: Any
    count: int
    dimension: int
    offset: int  # of its first scalar unknown


def variables(x: elements.Parameters, groups: elements.Groups) -> list[Variable]:
    """The variables in the order of their unknowns. Raises ValueError if names do not match or no node axis exists."""
    names = sorted(x) if isinstance(x, dict) else [None]
    if isinstance(x, dict) and not (isinstance(groups, dict) and sorted(groups) == names):
        raise ValueError(f"groups: expected a dict with the variables {names}, got {groups}")
    found, offset = [], 0
    for name in names:
        element, group = (x, groups) if name is None else (x[name], groups[name])
        tangent = jax.tree.leaves(elements.zero_tangents(element, group))
        if len(tangent) != 1 or tangent[0].ndim < 1:
            shapes = jax.tree.map(jnp.shape, element)
            raise ValueError(f"{name or 'x'}: expected one batch of elements with a leading node axis, got {shapes}")
        count, dimension = tangent[0].shape[0], int(np.prod(tangent[0].shape[1:]))
        found.append(Variable(name, group, element, count, dimension, offset))
        offset += count * dimension
    return found


def columns(factors: Sequence[Factor], x: elements.Parameters, groups: elements.Groups) -> list[Array]:
    """Per factor the unknowns (edges, K) of each edge. Raises ValueError or TypeError where the nodes are not valid."""
    by_name = {variable.name: variable for variable in variables(x, groups)}
    return [jnp.concatenate([_unknowns(*pair) for pair in touched(factor, by_name)], axis=1) for factor in factors]


def _unknowns(variable: Variable, nodes: Array) -> Array:
    components = jnp.arange(variable.dimension, dtype=nodes.dtype)
    return variable.offset + nodes[:, None] * variable.dimension + components


def touched(factor: Factor, by_name: dict[str | None, Variable]) -> list[tuple[Variable, Array]]:
    """The variable and the node numbers behind each argument of the residual."""
    names = (None,) * len(factor.nodes) if factor.variables is None else factor.variables
    if len(names) != len(factor.nodes) or not set(names) <= set(by_name):
        raise ValueError(f"variables: expected {len(factor.nodes)} names among {list(by_name)}, got {names}")
    pairs = []
    for name, numbers in zip(names, factor.nodes, strict=True):
        variable, nodes = by_name[name], jnp.asarray(numbers)
        if not jnp.issubdtype(nodes.dtype, jnp.integer) or nodes.ndim != 1:
            raise TypeError(f"nodes: expected integers with shape (edges,), got {nodes.dtype} with shape {nodes.shape}")
        if not isinstance(nodes, Tracer) and nodes.size:
            low, high = np.min(np.asarray(nodes)), np.max(np.asarray(nodes))
            if low < 0 or high >= variable.count:
                raise ValueError(f"nodes: expected numbers in 0..{variable.count - 1}, got {low}..{high}")
        pairs.append((variable, nodes))
    return pairs


def value(factors: Sequence[Factor], x: elements.Parameters, groups: elements.Groups) -> Array:
    """Σ over factors and edges of ρ(|r|²)."""
    by_name = {variable.name: variable for variable in variables(x, groups)}
    total = 0.0
    for factor in factors:
        gathered, _ = _gather(factor, by_name)
        residuals = jax.vmap(factor.residual)(*gathered, *factor.data)
        total = total + jnp.sum(cost(factor.loss, jnp.sum(residuals * residuals, axis=-1)))
    return jnp.asarray(total)


def linearise(
    factors: Sequence[Factor], x: elements.Parameters, groups: elements.Groups, unknowns: Sequence[Array]
) -> Linearisation:
    """Value, gradient and Gauss–Newton matrix at x; `unknowns` from `columns`. Jacobians are forward-mode and exact."""
    by_name = {variable.name: variable for variable in variables(x, groups)}
    size = sum(variable.count * variable.dimension for variable in by_name.values())
    dtype = jax.tree.leaves(x)[0].dtype
    total, gradient, diagonal = jnp.zeros([], dtype), jnp.zeros(size, dtype), jnp.zeros(size, dtype)
    blocks, squared_jacobian = [], jnp.zeros([], dtype)
    for factor, at in zip(factors, unknowns, strict=True):
        gathered, groups_touched = _gather(factor, by_name)
        r, J = jax.vmap(lambda *arguments, f=factor, g=groups_touched: _jacobian(f.residual, g, *arguments))(
            gathered, factor.data
        )
        squared = jnp.sum(r * r, axis=-1)
        weight = jnp.ones_like(squared) if factor.loss is None else factor.loss.weight(squared)
        weighted = weight[:, None, None] * J
        block = jnp.einsum("emi,emj->eij", weighted, J, precision=jax.lax.Precision.HIGHEST)
        total = total + jnp.sum(cost(factor.loss, squared))
        gradient = gradient.at[at].add(jnp.sum(weighted * r[:, :, None], axis=1))
        diagonal = diagonal.at[at].add(jnp.diagonal(block, axis1=1, axis2=2))
        squared_jacobian = squared_jacobian + jnp.sum(weighted * J)
        blocks.append(block)
    return Linearisation(total, gradient, jnp.where(diagonal > 0, diagonal, 1), blocks, rounding(x, squared_jacobian))


def rounding(x: elements.Parameters, squared_jacobian: Array) -> Array:
    """How large the sum of squares is at a perfect fit, because x is stored in its dtype."""
    largest = jnp.ones([], squared_jacobian.dtype)
    for leaf in jax.tree.leaves(x):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0).astype(largest.dtype))
    return (jnp.finfo(largest.dtype).eps * largest) ** 2 * squared_jacobian


def multiply(linearisation: Linearisation, unknowns: Sequence[Array], v: Array) -> Array:
    """H v, edge by edge."""
    result = jnp.zeros_like(v)
    for block, at in zip(linearisation.blocks, unknowns, strict=True):
        result = result.at[at].add(jnp.sum(block * v[at][:, None, :], axis=-1))
    return result


def _gather(factor: Factor, by_name: dict[str | None, Variable]) -> tuple[list[Any], tuple[Any, ...]]:
    pairs = touched(factor, by_name)
    gathered = [jax.tree.map(lambda leaf, nodes=nodes: leaf[nodes], variable.element) for variable, nodes in pairs]
    return gathered, tuple(variable.group for variable, _ in pairs)


def _jacobian(residual: Callable[..., Array], groups: tuple[Any, ...], touched: list[Any], data: tuple[Any, ...]):
    """r and ∂r/∂ξ of residual(x_1 exp ξ_1, x_2 exp ξ_2, ...) at ξ = 0, (m,) and (m, K)."""
    zero, unravel = ravel_pytree(elements.zero_tangents(touched, list(groups)))

    def along(xi):
        moved = elements.retract(touched, unravel(xi), list(groups))
        r = residual(*moved, *data)
        return r, r

    J, r = jax.jacfwd(along, has_aux=True)(zero)
    if r.ndim != 1:
        raise ValueError(f"residual: expected one vector per edge, got shape {r.shape}")
    return r, J


def cost(loss: robust.Loss | None, squared: Array) -> Array:
    """ρ(s), with None for ρ(s) = s."""
    return squared if loss is None else loss.value(squared)
