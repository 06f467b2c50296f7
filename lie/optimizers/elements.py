"""Pytrees of group elements and flat arrays: which leaf belongs to which group, their tangent vectors and gradients.

`groups` is a prefix pytree of the parameters: a group (any module or object with the shared vocabulary) covers every
element below it, None covers flat arrays of any shape. An element may itself be a pytree (`se3.Pose`) and counts as
one leaf. The tangent pytree has one array in the place of each element: (*batch, dimension) for a group, the array's
own shape for flat leaves. Tangent vectors live in the body frame: x moves to x exp(xi).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from lie.group import Product

Groups = Any  # a prefix pytree of groups and None
Parameters = Any  # a pytree of group elements and flat arrays
Tangents = Any  # the same pytree with one tangent array in the place of each element


class _Flat:
    """The vocabulary of plain arrays under addition: what None in `groups` stands for."""

    def log(self, x: jax.Array) -> jax.Array:
        return x

    def retract(self, x: jax.Array, v: jax.Array) -> jax.Array:
        return x + v

    def project(self, x: jax.Array) -> jax.Array:
        return x


_FLAT = _Flat()
_MISMATCH = "the tangents do not match the parameters"


def map_elements(f: Callable[..., Any], groups: Groups, parameters: Parameters, *tangents: Tangents) -> Any:
    """The pytree of f(group, element, *tangent vectors) over all elements; flat leaves come with the group of addition.

    Raises ValueError if `groups` is not a prefix of the parameters, or a tangent pytree has another structure.
    """
    prefix = jax.tree.structure(groups, is_leaf=is_group)
    covered = _flatten_up_to(prefix, parameters, "groups is not a prefix of the parameters")
    tangent_parts = [_flatten_up_to(prefix, t, _MISMATCH) for t in tangents]
    results = []
    for position, (group, part) in enumerate(zip(jax.tree.leaves(groups, is_leaf=is_group), covered, strict=True)):
        elements, inner = _elements(group, part)
        rest = [_flatten_up_to(inner, parts[position], _MISMATCH) for parts in tangent_parts]
        vocabulary = _FLAT if group is None else group
        mapped = [f(vocabulary, element, *others) for element, *others in zip(elements, *rest, strict=True)]
        results.append(jax.tree.unflatten(inner, mapped))
    return jax.tree.unflatten(prefix, results)


def retract(parameters: Parameters, tangents: Tangents, groups: Groups) -> Parameters:
    """x exp(xi) for every group element, x + v for every flat array."""
    return map_elements(lambda group, x, v: group.retract(x, v), groups, parameters, tangents)


def coordinates(parameters: Parameters, groups: Groups) -> Tangents:
    """log x for every group element, the array itself for flat leaves."""
    return map_elements(lambda group, x: group.log(x), groups, parameters)


def zero_tangents(parameters: Parameters, groups: Groups) -> Tangents:
    """The zero tangent vector at every element; nothing but shapes and dtypes is read."""

    def zeros(group, x):
        if getattr(group, "dimension", None) is None:  # flat, or a group that takes vectors of any length
            like = jax.eval_shape(group.log, x)
            return jnp.zeros(like.shape, like.dtype)
        leaf, one = jax.tree.leaves(x)[0], jax.tree.leaves(_placeholder(group))[0]
        return jnp.zeros((*leaf.shape[: leaf.ndim - one.ndim], group.dimension), leaf.dtype)

    return map_elements(zeros, groups, parameters)


def project(parameters: Parameters, groups: Groups) -> Parameters:
    """The closest group element to each that rounding has moved off its group; flat arrays stay.

    Matrices drift as the root of the number of steps: R^T R − I reaches 54 eps after 1e3 and 600 eps after 1e5 steps of
    `apply_updates` (float32, steps of 0.01). Projecting costs some 30 such steps, so do it now and then, not always.
    """
    return map_elements(lambda group, x: group.project(x), groups, parameters)


def value_and_grad(f: Callable[..., Any], groups: Groups, has_aux: bool = False) -> Callable[..., tuple[Any, Tangents]]:
    """The function (x, *args) -> (f(x, *args), g) with g_i = ∂/∂ξ_i f(x exp ξ) at ξ = 0: the body-frame gradient.

    g has one vector of the group's dimension per element: the Riemannian gradient of the left-invariant metric in which
    the basis of the Lie algebra is orthonormal. Exact: it differentiates `retract` at ξ = 0, where the exp of every
    group has all derivatives. With `has_aux`, f returns (value, aux) as for `jax.value_and_grad`.
    """

    def evaluate(x: Parameters, *args: Any, **kwargs: Any) -> tuple[Any, Tangents]:
        def along(tangents):
            return f(retract(x, tangents, groups), *args, **kwargs)

        return jax.value_and_grad(along, has_aux=has_aux)(zero_tangents(x, groups))

    return evaluate


def is_group(node: Any) -> bool:
    """Whether a node of `groups` is a leaf of it: a group, or None for flat arrays."""
    return node is None or hasattr(node, "retract")


def _elements(group: Any, part: Any) -> tuple[list[Any], Any]:
    """The elements below one leaf of the prefix; a node with the structure of the group's identity is an element."""
    if group is None:
        return jax.tree.flatten(part)
    element = jax.tree.structure(_placeholder(group))
    return jax.tree.flatten(part, is_leaf=lambda node: jax.tree.structure(node) == element)


@lru_cache
def _placeholder(group: Any) -> Any:
    """Something with the pytree structure of an element; a product may leave a dimension open and have no identity."""
    if isinstance(group, Product):
        return tuple(_placeholder(factor) for factor in group.factors)
    return jax.eval_shape(lambda: group.identity((), jnp.float32))


def _flatten_up_to(structure: Any, tree: Any, complaint: str) -> list[Any]:
    try:
        return structure.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{complaint}: expected the structure {structure}, got {jax.tree.structure(tree)}") from error
