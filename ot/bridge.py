"""Schrödinger bridges: the likeliest motion of a Brownian cloud between two samples, in closed form and in K steps."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from lie import check, record, smooth
from ot import _batch, _inputs, costs, paths, sinkhorn

Points = Any


@record.register("potentials", "sigma", "x", "y", "log_b")
@dataclass(frozen=True)
class Bridge:
    """The bridge of dX = σ dW between its two samples, over times 0..1.

    potentials: the record of the static problem, with `error`, `steps` and `converged`. On R^n `log_transition` is None
    and the reference Brownian motion; else it is log p_t(from, to) of the reference on `group`.
    """

    potentials: sinkhorn.Potentials
    sigma: Float[Array, ""]
    x: Points
    y: Points
    log_b: Float[Array, "m"]
    group: Any = None
    log_transition: Callable[[Array, Any, Any], Array] | None = None

    @property
    def error(self) -> Float[Array, ""]:
        """The true L1 violation of both marginals of the static plan."""
        return self.potentials.error

    @property
    def steps(self) -> Int[Array, ""]:
        """Kernel-vector products of the static problem."""
        return self.potentials.steps

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether the static problem met its tolerance."""
        return self.potentials.converged

    def log_future(self, t: Float[ArrayLike, ""], z: Points) -> Float[Array, ""]:
        """log h(t, z), h = Σ_j b_j exp(g_j/ε) p_{1−t}(z, y_j) up to a factor, for one point z: space-time harmonic."""
        potentials = self.potentials
        log_h = (potentials.g + potentials.g_low) / potentials.pairs.epsilon + self.log_b
        if self.log_transition is None:
            squared = costs.SquaredEuclidean()(z[None], self.y)[0]
            return logsumexp(log_h - squared / (2 * self.sigma**2 * (1 - t)))
        remaining = self.log_transition(jnp.asarray(1 - t, log_h.dtype), z, self.y)
        return logsumexp(log_h + remaining)

    def drift(self, t: Float[ArrayLike, ""], z: Points) -> Float[Array, "..."]:
        """σ² ∇ log h(t, z) at times 0 <= t < 1 and points z (*batch, *event): dX = drift dt + σ dW bridges x and y.

        On R^n it is (Σ_j w_j y_j − z)/(1 − t), with w_j ∝ b_j exp(g_j/ε − |z − y_j|²/(2σ²(1 − t))). On a group it is
        the body-frame gradient by automatic differentiation, for `lie.processes.sde`.
        """
        t = jnp.asarray(t, self.sigma.dtype)
        if self.log_transition is None:
            return self._euclidean_drift(t, check.array("z", z, self.y.shape[-1]))
        group, dimension = self.group, self.group.dimension

        def one(z):
            origin = jnp.zeros(dimension, self.sigma.dtype)
            return self.sigma**2 * jax.grad(lambda xi: self.log_future(t, group.retract(z, xi)))(origin)

        for _ in jax.eval_shape(group.local, z, z).shape[:-1]:
            one = jax.vmap(one)
        return one(z)

    def sample(self, t: Float[ArrayLike, "..."], *, size: int, key: PRNGKeyArray) -> Float[Array, "..."]:
        """`size` points at times t (one, or `size` of them): pairs of the static plan, joined by Brownian bridges.

        On R^n only, without discretisation: N((1 − t) x_i + t y_j, σ² t (1 − t)). On a group step `drift`.
        """
        if self.log_transition is not None:
            raise TypeError("sample: Brownian bridges have this closed form on R^n only; integrate `drift` on a group")
        key_pairs, key_noise = jax.random.split(key)
        centre = paths.displacement(self.potentials, t, size=size, key=key_pairs)
        t = jnp.asarray(t, centre.dtype)
        spread = self.sigma * smooth.sqrt(t * (1 - t))
        return centre + spread[..., None] * jax.random.normal(key_noise, centre.shape, centre.dtype)

    def _euclidean_drift(self, t: Array, z: Array) -> Array:
        potentials = self.potentials
        log_h = (potentials.g + potentials.g_low) / potentials.pairs.epsilon + self.log_b
        flat = z.reshape(-1, z.shape[-1])
        scores = log_h - costs.SquaredEuclidean()(flat, self.y) / (2 * self.sigma**2 * (1 - t))
        w = jax.nn.softmax(scores, axis=-1)
        mean = jnp.dot(w, self.y, precision=jax.lax.Precision.HIGHEST)
        return ((mean - flat) / (1 - t)).reshape(z.shape)


def solve(
    x: Points,
    y: Points,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    sigma: ArrayLike,
    group: Any = None,
    log_transition: Callable[[Array, Any, Any], Array] | None = None,
    tolerance: ArrayLike = 1e-3,
    max_steps: int = 100_000,
) -> Bridge:
    """The law of paths closest in KL to dX = σ dW among those that lead from x (n, d) to y (m, d) in unit time.

    Its end points are the entropic plan with ε = 2σ² and squared Euclidean cost, between them it is Brownian. On a
    group: `log_transition(t, z, y)` = log p_t(z, y_j) for one point z and the cloud y, the reference's transition
    density; ε is then 1 and the cost −log p_1, and σ² the factor of the reference's generator ½ σ² Σ L_i².
    Differentiable in points, weights and σ. One problem; use `jax.vmap` for more. Raises as `sinkhorn.solve` does.
    Sources: Léonard 2014, DCDS 34:1533; Bunne, Hsieh, Cuturi, Krause 2023, AISTATS (Gaussian closed forms).
    """
    if (group is None) != (log_transition is None):
        raise ValueError("group and log_transition: expected both, or neither for Brownian motion on R^n")
    dtype = jax.tree.leaves(x)[0].dtype
    sigma = _inputs.scalar("sigma", sigma, dtype)
    if sigma.ndim != 0:
        raise ValueError(f"sigma: expected one number, got shape {sigma.shape}; use jax.vmap")
    if log_transition is None:
        x, y = check.array("x", x, None, None), check.array("y", y, None, None)
        if x.ndim != 2 or y.ndim != 2:
            raise ValueError(f"x and y: expected one cloud each, (n, d), got {x.shape} and {y.shape}; use jax.vmap")
        potentials = sinkhorn.solve(x, y, a, b, epsilon=2 * sigma**2, tolerance=tolerance, max_steps=max_steps)
    else:
        one = jnp.ones((), dtype)
        C = -jax.vmap(lambda z: log_transition(one, z, y))(x)
        potentials = sinkhorn.solve(
            None, None, a, b, cost=costs.Precomputed(C), epsilon=one, tolerance=tolerance, max_steps=max_steps
        )
    return Bridge(potentials, sigma, x, y, smooth.log(potentials.pairs.b), group, log_transition)


@record.register("log_kernels", "log_start", "log_end", "value", "error", "steps", "converged")
@dataclass(frozen=True)
class Chain:
    """The bridge of a Markov chain: P(x_0, ..., x_K) = u(x_0) Π_k K_k(x_k, x_{k+1}) v(x_K), and how the fit ended.

    log_start, log_end: log u (*batch, n_0), log v (*batch, n_K). value: KL(P | a ⊗ K_1 ⊗ ... ⊗ K_K), the paths'
    relative entropy. error: the true L1 violation of both ends. steps: passes forth and back.
    """

    log_kernels: tuple[Float[Array, "..."], ...]
    log_start: Float[Array, "*batch n"]
    log_end: Float[Array, "*batch m"]
    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]

    def marginals(self) -> tuple[Float[Array, "..."], ...]:
        """The law at each of the K + 1 times, the ends included."""
        forth, back = _forth(self.log_start, self.log_kernels), _back(self.log_end, self.log_kernels)
        return tuple(jnp.exp(p + q) for p, q in zip(forth, back, strict=True))

    def transitions(self) -> tuple[Float[Array, "..."], ...]:
        """The bridge's own kernels, rows summing to 1: K_k(x, z) h_{k+1}(z)/h_k(x) (Doob's transform)."""
        back = _back(self.log_end, self.log_kernels)
        steps = zip(self.log_kernels, back, back[1:], strict=False)
        return tuple(jnp.exp(_fitted(K + after[..., None, :], before[..., None])) for K, before, after in steps)


def chain(
    log_kernels: Sequence[ArrayLike],
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 10_000,
) -> Chain:
    """The law of paths closest in KL to a Markov chain among those that start from a and end in b, by iterated fitting.

    log_kernels: K arrays log K_k (*batch, n_k, n_{k+1}) of any non-negative kernels, −inf where a step is impossible.
    Each round (iterative proportional fitting) refits the start and the end; it costs two passes over all kernels, and
    no product of kernels is formed. Weights (*batch, n_0) and (*batch, n_K), uniform where None.
    Raises ValueError and TypeError that name the argument; a b out of reach gives `converged` False.
    Sources: Fortet 1940; Deming, Stephan 1940; Pavon, Trigila, Tabak 2021, CPAM 74:1545.
    """
    kernels = tuple(_kernel(f"log_kernels[{k}]", K) for k, K in enumerate(log_kernels))
    if not kernels:
        raise ValueError("log_kernels: expected at least one kernel, got none")
    for k, (K, after) in enumerate(itertools.pairwise(kernels)):
        if K.shape[-1] != after.shape[-2]:
            raise ValueError(
                f"log_kernels[{k + 1}]: expected {K.shape[-1]} rows as the step before ends, got {after.shape}"
            )
    check.same_dtype(**{f"log_kernels[{k}]": K for k, K in enumerate(kernels)})
    dtype = kernels[0].dtype
    a = _inputs.weights("a", a, kernels[0].shape[-2], dtype)
    b = _inputs.weights("b", b, kernels[-1].shape[-1], dtype)
    return _fit(kernels, a, b, tolerance, max_steps)


@jax.jit
def _fit(kernels: tuple[Array, ...], a: Array, b: Array, tolerance: Any, max_steps: Any) -> Chain:
    def one(a, b, *kernels):
        return _fit_one(kernels, a, b, tolerance, max_steps)

    return _batch.over(one, [a, b, *kernels], [1, 1] + [2] * len(kernels))


def _fit_one(kernels: tuple[Array, ...], a: Array, b: Array, tolerance: Any, max_steps: Any) -> Chain:
    fixed, start, end = jax.lax.stop_gradient((kernels, a, b))
    log_a, log_b = smooth.log(start), smooth.log(end)

    def advance(state):
        _, log_v, _, steps = state
        log_u = _fitted(log_a, _back(log_v, fixed)[0])
        ahead = _fitted(log_b, _forth(log_u, fixed)[-1])
        # The start is exact after its refit, so what is violated is the end: its marginal is b v / (next v).
        met = (end > 0) & (ahead > -jnp.inf) & (log_v > -jnp.inf)
        ratio = jnp.where(met, log_v - ahead, -jnp.inf)
        unreached = jnp.sum(jnp.where(log_u > -jnp.inf, 0, start))
        return (log_u, log_v), ahead, jnp.sum(end * jnp.abs(jnp.expm1(ratio))) + unreached, steps + 1

    def unfinished(state):
        return ~(state[2] <= tolerance) & (state[3] < max_steps)

    everywhere = jnp.where(end > 0, jnp.zeros_like(end), -jnp.inf)
    first = ((log_a, everywhere), everywhere, jnp.full_like(end[0], jnp.inf), jnp.int32(0))
    (log_u, log_v), _, error, steps = jax.lax.while_loop(unfinished, advance, first)
    # log dP/d(a ⊗ K) = log u − log a + log v: the kernels cancel. The mass, 1, carries the derivative in them.
    mass = jnp.sum(jnp.exp(_forth(log_u, kernels)[-1] + log_v))
    ends = jnp.sum(a * jnp.where(start > 0, log_u, 0)) + jnp.sum(b * jnp.where(log_v > -jnp.inf, log_v, 0))
    value = ends - jnp.sum(smooth.xlogx(a)) - (mass - 1)
    return Chain(kernels, log_u, log_v, value, error, steps, error <= tolerance)


def _fitted(log_weights: Array, log_reach: Array) -> Array:
    """log(w / reach); −∞ where nothing reaches."""
    reached = log_reach > -jnp.inf
    return jnp.where(reached, log_weights - jnp.where(reached, log_reach, 0), -jnp.inf)


def _forth(log_start: Array, kernels: tuple[Array, ...]) -> list[Array]:
    """log of what the start alone puts on each point at each time."""
    passed = [log_start]
    for K in kernels:
        passed.append(smooth.logsumexp(passed[-1][..., :, None] + K, axis=-2))
    return passed


def _back(log_end: Array, kernels: tuple[Array, ...]) -> list[Array]:
    """log h_k: what the end alone says about each point at each time."""
    passed = [log_end]
    for K in reversed(kernels):
        passed.append(smooth.logsumexp(K + passed[-1][..., None, :], axis=-1))
    return passed[::-1]


def _kernel(name: str, K: ArrayLike) -> Array:
    try:
        K = jnp.asarray(K)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of log kernel values, got {type(K).__name__}") from error
    if not jnp.issubdtype(K.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating-point array (..., n, m), got {K.dtype}")
    if K.ndim < 2:
        raise ValueError(f"{name}: expected shape (..., n, m), got {K.shape}")
    _inputs.require(
        name, ~jnp.isnan(K) & ~jnp.isposinf(K), "finite log kernel values, or −inf where a step is impossible"
    )
    return K
