"""Any optax transformation on pytrees of group elements and flat arrays, and the Adam that keeps the symmetry.

    optimizer = optimizers.riemannian(optax.adam(1e-2), groups)
    state = optimizer.init(parameters)
    value, gradient = optimizers.value_and_grad(loss, groups)(parameters)
    updates, state = optimizer.update(gradient, state, parameters)
    parameters = optimizers.apply_updates(parameters, updates, groups)

Momentum is a body-frame vector: it is carried from x to x exp ξ by left translation, unchanged in coordinates. Hence
every optimizer here commutes with x -> h x: body-frame gradients do not see h. A change of the body frame, x -> x h,
turns gradients by Ad(h)ᵀ. Sums of gradients (SGD, momentum) turn along where Ad is orthogonal (SO(3), and rotations of
the body frame of SE(3)); Adam's component-wise second moments do not, so its path depends on the choice of axes.
`vector_norm_adam` takes one second moment |g|² per element and commutes with both.
"""

import math

import jax
import jax.numpy as jnp
import optax

from lie import smooth
from lie.optimizers import elements


def riemannian(
    transformation: optax.GradientTransformation, groups: elements.Groups
) -> optax.GradientTransformationExtraArgs:
    """`transformation` acting on body-frame gradients; its updates are tangent vectors for `apply_updates`.

    `groups` is a prefix pytree of the parameters: a group covers every element below it (an `se3.Pose` is one element),
    None covers flat arrays, which are treated as optax does. Gradients come from `value_and_grad`.
    The transformation sees log x in the place of a group element x. So weight decay contracts along the geodesic to the
    identity, x -> exp((1 − rate · decay) log x); transformations that keep copies of the parameters and add updates to
    them (lookahead, schedule-free, line searches) have no meaning on a group.
    """
    wrapped = optax.with_extra_args_support(transformation)

    def init(params):
        return wrapped.init(elements.coordinates(params, groups))

    def update(updates, state, params=None, **extra):
        seen = None if params is None else elements.coordinates(params, groups)
        return wrapped.update(updates, state, seen, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_updates(
    parameters: elements.Parameters, updates: elements.Tangents, groups: elements.Groups
) -> elements.Parameters:
    """x exp(update) for every group element, x + update for every flat array; dtypes stay."""

    def step(group, x, update):
        return group.retract(x, update.astype(jax.tree.leaves(x)[0].dtype))

    return elements.map_elements(step, groups, parameters, updates)


def vector_norm_adam(
    learning_rate: optax.ScalarOrSchedule,
    groups: elements.Groups,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adam with one second moment per group element, ready for `apply_updates`; flat leaves get the usual Adam.

    See `scale_by_vector_norm_adam`. Commutes with x -> h x on every group and with x -> x h where Ad(h) is orthogonal.
    """
    chained = optax.chain(
        scale_by_vector_norm_adam(groups, b1, b2, epsilon), optax.scale_by_learning_rate(learning_rate)
    )
    return riemannian(chained, groups)


def scale_by_vector_norm_adam(
    groups: elements.Groups, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """m / (√v + ε) with m the mean of g (as in Adam) and v the mean of |g|², a scalar per group element.

    Both means are corrected for their start at zero. A first step therefore has length 1 per element, where Adam's has
    length √dimension. On SE(3) translation and rotation share one norm: choose the unit of length accordingly, or use
    the product of SO(3) and a Euclidean space as two leaves. Source: after Kingma & Ba 2015, Algorithm 1; one norm per
    vector as in vector Adam (Ling et al. 2022).
    """

    def init(params):
        moments = jax.tree.map(jnp.zeros_like, _squared_norms(params, groups))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params), moments)

    def update(updates, state, params=None):
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        second = jax.tree.map(lambda v, s: b2 * v + (1 - b2) * s, state.nu, _squared_norms(updates, groups))

        def scaled(m, v):
            steps = count.astype(m.dtype)
            return smooth.divide(m / _weight(b1, steps), smooth.sqrt(v / _weight(b2, steps)) + epsilon)

        return jax.tree.map(scaled, mean, second), optax.ScaleByAdamState(count, mean, second)

    return optax.GradientTransformation(init, update)


def _weight(decay: float, steps: jax.Array) -> jax.Array:
    """1 − decayⁿ, the total weight of a mean that started at zero; direct subtraction loses 3 digits at 0.999."""
    return jnp.ones_like(steps) if decay == 0 else -jnp.expm1(steps * math.log(decay))


def _squared_norms(tangents: elements.Tangents, groups: elements.Groups) -> elements.Tangents:
    """|g|² with a kept last axis for the vectors of groups, component by component for flat leaves."""
    groups_given, prefix = jax.tree.flatten(groups, is_leaf=elements.is_group)
    parts = []
    for group, part in zip(groups_given, prefix.flatten_up_to(tangents), strict=True):
        vectors = group is not None
        parts.append(jax.tree.map(lambda g, v=vectors: jnp.sum(g * g, axis=-1, keepdims=True) if v else g * g, part))
    return jax.tree.unflatten(prefix, parts)
