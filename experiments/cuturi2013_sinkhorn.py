"""Cuturi 2013, Genevay 2019, Feydy 2019, Janati 2020: Sinkhorn's value, rate, sample complexity and bias follow laws.

Command: `python -m experiments run sinkhorn --preset cpu` (about 3 minutes a seed; expected: every gate holds).
Values against closed forms of Gaussians and of class functions on SO(3); contraction below Birkhoff's tanh²(η/4); the
error of n samples falls like n^-1/2 at a large ε in every dimension, like n^(-2/d) at a small one; flows along the
biased loss shrink by ε/2, along the divergence they do not; barycenters on S² and SO(3) at the Karcher mean.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn import logsumexp
from scipy import optimize, special

from experiments.engine import style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from experiments.references import entropic_transport
from experiments.simulators import known_transport
from lie import so3, sphere
from lie.statistics import means
from ot import barycenter, costs, sinkhorn, wasserstein

BIBTEX = r"""
@inproceedings{cuturi2013sinkhorn,
  title = {{Sinkhorn} Distances: Lightspeed Computation of Optimal Transport},
  author = {Cuturi, Marco},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {26},
  year = {2013},
}
@inproceedings{genevay2019sample,
  title = {Sample Complexity of {Sinkhorn} Divergences},
  author = {Genevay, Aude and Chizat, L{\'e}na{\"i}c and Bach, Francis and Cuturi, Marco and Peyr{\'e}, Gabriel},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year = {2019},
}
@inproceedings{feydy2019interpolating,
  title = {Interpolating between Optimal Transport and {MMD} using {Sinkhorn} Divergences},
  author = {Feydy, Jean and S{\'e}journ{\'e}, Thibault and Vialard, Fran{\c{c}}ois-Xavier and Amari, Shun-ichi and
    Trouv{\'e}, Alain and Peyr{\'e}, Gabriel},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year = {2019},
}
@inproceedings{janati2020entropic,
  title = {Entropic Optimal Transport between Unbalanced {Gaussian} Measures has a Closed Form},
  author = {Janati, Hicham and Muzellec, Boris and Peyr{\'e}, Gabriel and Cuturi, Marco},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {33},
  year = {2020},
}
"""

CLOSED = ((2, 0.1), (5, 0.1), (2, 1.0), (5, 1.0), (10, 1.0), (20, 1.0))  # (d, level) where 1 % is asked of the value
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # ε over the mean cost where the rate of convergence is measured
SMALL = (0.5, 0.35, 0.25, 0.18, 0.125, 0.09)  # ε over the variance where the bias is measured
SHRINK = 1.0  # ε of the flows, whose target has variance 1
SHAPES = ("sphere", "so3")


@dataclass(frozen=True)
class Config:
    """Sizes of the clouds, and how often each law is drawn."""

    samples: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    """Points of each of the two clouds, for the sample complexity."""
    repeats: tuple[int, ...] = (200, 200, 200, 50, 50)
    """Pairs of clouds for each number of points, in every dimension and at every ε."""
    blocks: int = 10
    closed: int = 5000
    """Points of each cloud where the value is compared with the closed form."""
    flow_points: int = 300
    flow_steps: int = 60
    cloud: int = 60
    """Points of each of the three clouds whose barycenter is sought."""

    def __post_init__(self) -> None:
        for field in ("blocks", "closed", "flow_points", "flow_steps", "cloud"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")
        if len(self.samples) < 2 or min(self.samples) < 2:
            raise Refused(f"samples: expected two or more numbers >= 2, got {self.samples}")
        if len(self.repeats) != len(self.samples) or min(self.repeats) < 1:
            raise Refused(f"repeats: expected {len(self.samples)} positive numbers, one for each of `samples`")


PRESETS = {
    "smoke": Config((16, 32), (10, 10), blocks=2, closed=200, flow_points=60, flow_steps=20, cloud=16),
    "cpu": Config((16, 64, 256, 1024), (200, 200, 200, 50)),
    "paper": Config(),
}


class State(NamedTuple):
    key: Array
    block: Array


Metrics = dict[str, Array]


def init(config: Config, key: Array) -> State:
    return State(key, jnp.int32(0))


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return config.blocks


def done(config: Config, state: State) -> bool:
    return int(state.block) >= config.blocks


def advance(config: Config, state: State) -> tuple[State, Metrics]:
    """A share of the repeats of every law."""
    key, key_samples, key_closed, key_rate, key_flow, key_mean = jax.random.split(state.key, 6)
    metrics = {"block": state.block + 1, "samples": jnp.asarray(config.samples, jnp.int32)}
    worst = []
    for n, repeats in zip(config.samples, config.repeats, strict=True):
        keys = jax.random.split(jax.random.fold_in(key_samples, n), math.ceil(repeats / config.blocks))
        values, errors = known_transport.empirical(n, keys)
        metrics[f"values_{n}"] = values
        worst.append(jnp.max(errors))
    metrics["solver_error"] = jnp.max(jnp.stack(worst))
    metrics["closed"] = closed_forms(config.closed, key_closed)
    metrics |= contraction(key_rate)
    metrics |= bias()
    metrics |= flows(config, key_flow)
    metrics |= centres(config, key_mean)
    return State(key, state.block + 1), metrics


def closed_forms(n: int, key: Array) -> Array:
    """Values between Gaussian clouds of n points, in the order of CLOSED."""
    d = jnp.asarray([d for d, _ in CLOSED], jnp.int32)
    epsilon = jnp.asarray([level * known_transport.mean_cost(d) for d, level in CLOSED], jnp.float32)
    one = lambda case: sinkhorn.solve(*known_transport.gaussians(n, *case[:2]), epsilon=case[2]).value
    return lax.map(one, (d, jax.random.split(key, len(CLOSED)), epsilon))


def contraction(key: Array, n: int = 20, steps: int = 300) -> Metrics:
    """Sinkhorn's own iteration between n random points: per ε, the steepest contraction of Hilbert's metric, its late
    rate, Birkhoff's bound tanh²(η/4), and the second singular value of the plan, squared, which the rate tends to."""
    x, y = jax.random.uniform(key, (2, n, 2), jnp.float32)
    C = costs.SquaredEuclidean()(x, y)

    def one(level: Array) -> tuple[Array, ...]:
        M = C / (level * jnp.mean(C))
        crossed = M[:, None, :, None] + M[None, :, None, :] - M[:, None, None, :] - M[None, :, :, None]
        update = lambda g: -logsumexp((-logsumexp(g - M, axis=1, keepdims=True)) - M, axis=0)

        def step(g: Array, _: None) -> tuple[Array, Array]:
            after = update(g)
            return after, jnp.ptp(after - g)

        g, moved = lax.scan(step, jnp.zeros(n, jnp.float32), None, length=steps)
        seen = moved[1:] > 2e-4  # above rounding
        ratio = jnp.where(seen, moved[1:] / moved[:-1], 0)
        late = ratio[jnp.sum(seen) - 1]
        plan = jax.nn.softmax(g - M, axis=1)
        normal = plan / jnp.sqrt(jnp.sum(plan, axis=0))
        second = jnp.linalg.svd(normal, compute_uv=False)[1]
        return jnp.max(ratio), late, jnp.tanh(jnp.max(crossed) / 4) ** 2, second**2

    names = ("steepest", "late_rate", "birkhoff", "singular")
    return dict(zip(names, lax.map(one, jnp.asarray(RATES, jnp.float32)), strict=True))


def bias(size: int = 400) -> Metrics:
    """W_ε and the divergence between N(0, 1) and N(1, 1.4²) as weighted points of the line, in the order of SMALL."""
    points = jnp.linspace(-7, 9, size, dtype=jnp.float32)
    first, second = (jax.nn.softmax(-(((points - mean) / scale) ** 2) / 2) for mean, scale in ((0, 1), (1, 1.4)))
    pairs = jnp.stack([jnp.stack(pair) for pair in ((first, second), (first, first), (second, second))])
    x = points[:, None]

    def one(case: tuple[Array, Array]) -> Array:
        (a, b), epsilon = case
        return sinkhorn.solve(x, x, a, b, epsilon=epsilon, tolerance=1e-5).value

    epsilon = jnp.tile(jnp.asarray(SMALL, jnp.float32), 3)
    between, own, other = lax.map(one, (jnp.repeat(pairs, len(SMALL), axis=0), epsilon)).reshape(3, -1)
    return {"bias_value": between, "bias_divergence": between - (own + other) / 2}


def flows(config: Config, key: Array) -> Metrics:
    """Points that go down W_ε and the divergence towards a Gaussian cloud of the plane: where they end, how wide.

    −(n/2) ∇ W_ε is T(x) − x for the mean T of what x is coupled to; the divergence adds x − T_self(x).
    """
    key_x, key_y = jax.random.split(key)
    n = 2 * (config.flow_points // 2)
    start = jax.random.uniform(key_x, (n, 2), jnp.float32, -3.5, -1.5)
    half = jax.random.normal(key_y, (n // 2, 2), jnp.float32)
    target = jnp.concatenate([half, -half])
    towards = lambda pair: sinkhorn.solve(*pair, epsilon=SHRINK).barycentric_map()

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        biased, debiased = state
        left, right = jnp.stack([biased, debiased, debiased]), jnp.stack([target, target, debiased])
        biased, mean, own = lax.map(towards, (left, right))
        debiased = debiased + mean - own
        return (biased, debiased), (_variance(biased), _variance(debiased))

    ends, variances = lax.scan(step, (start, start), None, length=config.flow_steps)
    metrics: Metrics = {"flow_start": start, "flow_target": target, "target_variance": _variance(target)}
    for name, end, variance in zip(("biased", "debiased"), ends, variances, strict=True):
        metrics |= {f"{name}_end": end, f"{name}_variance": variance}
    return metrics


def _variance(x: Array) -> Array:
    """Of a cloud, per axis."""
    return jnp.mean((x - jnp.mean(x, axis=0)) ** 2)


def centres(config: Config, key: Array) -> Metrics:
    """Debiased barycenters of three isotropic clouds on S² and SO(3): how far (rad) from the Karcher mean of the
    centres, how wide beside a cloud."""
    metrics: Metrics = {}
    key_centre, key_cloud = jax.random.split(key)
    tangents = 0.5 * jax.random.normal(key_centre, (3, 3), jnp.float32)
    half = 0.2 * jax.random.normal(key_cloud, (config.cloud // 2, 3), jnp.float32)
    cloud = jnp.concatenate([half, -half])  # whose mean is its centre
    for name, space in zip(SHAPES, (sphere, so3), strict=True):
        if space is so3:
            middles = so3.exp(tangents)
            clouds = [so3.retract(middle, cloud) for middle in middles]
        else:
            pole = jnp.asarray([0, 0, 1], jnp.float32)
            middles = sphere.exp(pole, sphere.project(pole, tangents))
            clouds = [sphere.exp(middle, sphere.project(middle, cloud)) for middle in middles]
        solved = barycenter.solve(clouds, group=space, epsilon=0.08)
        middle = karcher(space, solved.points)
        spread = jnp.mean(space.squared_distance(middle, solved.points))
        metrics[f"{name}_offset"] = space.distance(middle, karcher(space, middles))
        metrics[f"{name}_spread"] = jnp.sqrt(spread / jnp.mean(space.squared_distance(middles[0], clouds[0])))
        metrics |= {f"{name}_points": solved.points, f"{name}_clouds": jnp.stack(clouds)}
    return metrics


def karcher(space: Any, points: Array) -> Array:
    """The Fréchet mean on SO(3); on S², which is no group, m ← exp_m of the mean of log_m x."""
    if space is so3:
        return means.frechet_mean(so3, points).mean
    start = sphere.normalize(jnp.mean(points, axis=0))
    return lax.fori_loop(0, 30, lambda _, m: sphere.exp(m, jnp.mean(sphere.log(m, points), axis=0)), start)


def duality(key: Array) -> dict[str, float]:
    """Small problems solved to the end: the exact plan's gap and distance from the simplex method, the entropic gap."""
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    x, y = random.normal(size=(2, 40, 3)).astype(np.float32)
    a, b = random.dirichlet(np.ones(40), size=2).astype(np.float32)
    b *= a.sum() / b.sum()
    exact = wasserstein.exact(x, y, a, b)
    C = np.sum((x[:, None].astype(np.float64) - y) ** 2, axis=-1)
    rows, columns = np.kron(np.eye(40), np.ones(40)), np.kron(np.ones(40), np.eye(40))
    masses = np.concatenate([a, b]).astype(np.float64)
    masses[40:] *= masses[:40].sum() / masses[40:].sum()
    simplex = optimize.linprog(C.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=masses, method="highs-ds")
    epsilon = 0.05 * C.mean()
    solved = sinkhorn.solve(x, y, a, b, epsilon=epsilon, tolerance=1e-6)
    plan = np.asarray(solved.plan(), np.float64)
    primal = np.sum(plan * C) + epsilon * np.sum(special.rel_entr(plan, np.outer(masses[:40], masses[40:])))
    return {
        "gap": abs(float(exact.gap)),
        "simplex": abs(float(exact.value) / float(simplex.fun) - 1),
        "entropic": abs(float(solved.value) / float(primal) - 1),
    }


def result(config: Config, metrics: dict[str, np.ndarray], state: State) -> Result:
    """Each law with its distance."""
    enough = config.closed >= PRESETS["cpu"].closed
    gate = lambda low, high: (low, high) if enough else (-math.inf, math.inf)
    rows = []
    for index, (d, level) in enumerate(CLOSED):
        value = float(metrics["closed"][:, index].mean())
        exact = entropic_transport.gaussian(
            1, np.ones(d), known_transport.spectrum(d), level * known_transport.mean_cost(d)
        )
        label = f"W_ε of Gaussians on R^{d}, ε = {level:g} of the mean cost, {config.closed} points"
        rows.append(Row(label, value, exact, "closed form", "analytic", *gate(0.99 * exact, 1.01 * exact)))
    error = known_transport.root_mean_square_errors(metrics, config.samples)
    slopes = np.polyfit(np.log(config.samples), np.log(error.reshape(len(config.samples), -1)), 1)[0].reshape(-1, 2)
    for case, (value, divergence) in zip(known_transport.cases(), slopes, strict=True):
        where = f"on {case.space if case.space != 'Haar' else 'SO(3), equal laws'}, ε = {case.level:g} of the mean cost"
        label = f"exponent of the error of n samples, W_ε {where}"
        if min(known_transport.LEVELS) < case.level < 1:
            rows.append(Row(label, float(value)))  # between the two laws
        if case.level == 1:  # equal laws: constant potentials, so the first order vanishes
            law = -1.0 if case.space == "Haar" else -0.5
            bounds = gate(law - 0.1, law + 0.1)
            rows.append(Row(label, float(value), law, "Genevay et al. 2019", "analytic", *bounds))
        if case.level == min(known_transport.LEVELS):
            d = case.dimension or 3
            law = max(-0.5, -2 / d)
            bounds = gate(-math.inf, -0.5) if d < 4 else gate(-0.5, math.inf)
            label = label.replace("W_ε", "divergence")
            rows.append(Row(label, float(divergence), law, "n^(-2/d), at most n^-1/2", "analytic", *bounds))
    rows.append(
        Row("largest violation of the marginals in all of these", float(metrics["solver_error"].max()), high=1e-4)
    )
    ratio = metrics["steepest"] / metrics["birkhoff"]
    rows.append(Row("steepest contraction / Birkhoff's bound", float(ratio.max()), high=1.0))
    ratio = metrics["late_rate"] / metrics["singular"]
    rows.append(
        Row(
            "late rate / squared second singular value of the plan, median",
            float(np.median(ratio)),
            1.0,
            "",
            "analytic",
            0.9,
            1.05,
        )
    )
    exact = np.array(
        [entropic_transport.gaussian(1, np.ones(1), np.full(1, 1.4), epsilon) for epsilon in (0.0, *SMALL)]
    )
    worst = np.abs(metrics["bias_value"][0] / exact[1:] - 1).max()
    rows.append(Row("W_ε of Gaussians on the line, largest relative error", float(worst), high=1e-4))
    order = np.polyfit(np.log(SMALL), np.log(np.abs(metrics["bias_divergence"][0] - exact[0])), 1)[0]
    rows.append(Row("exponent of |divergence − W_2²| in ε", float(order), 2.0, "", "analytic", 1.8, 2.2))
    target = metrics["target_variance"]
    for kind, law in (("biased", 1 - SHRINK / 2), ("debiased", 1.0)):
        value = float((metrics[f"{kind}_variance"][:, -1] - target + 1).mean())  # a target of variance 1
        label = f"flow along the {'divergence' if kind == 'debiased' else 'biased loss'}, final variance per axis"
        rows.append(
            Row(
                label,
                value,
                law,
                "target less ε/2" if kind == "biased" else "target",
                "analytic",
                law - 0.05,
                law + 0.05,
            )
        )
    for name, label in zip(SHAPES, ("S²", "SO(3)"), strict=True):
        offset = float(metrics[f"{name}_offset"].mean())
        rows.append(Row(f"barycenter on {label}, distance to the Karcher mean of the centres (rad)", offset, high=0.02))
        spread = float(metrics[f"{name}_spread"].mean())
        rows.append(Row(f"barycenter on {label}, its spread / that of a cloud", spread))
    found = duality(state.key)
    rows.append(Row("exact transport: relative gap of primal and dual", found["gap"], high=1e-6))
    rows.append(Row("exact transport: relative distance from the simplex method", found["simplex"], high=1e-6))
    rows.append(Row("entropic transport: relative gap of primal and dual", found["entropic"], high=1e-5))
    return Result(tuple(rows))


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """Sample complexity at both ends of ε, contraction beside its bounds, flows in the plane, barycenters."""
    picture = style.figure(11, 6)
    large, small, rates, bias_axes, flow = (picture.add_subplot(2, 3, place) for place in range(1, 6))
    shape = style.space(picture, 2, 3, 6, elevation=60)
    samples = tuple(int(n) for n in metrics["samples"][0, -1])
    joined = {f"values_{n}": np.concatenate(list(metrics[f"values_{n}"])) for n in samples}
    error = known_transport.root_mean_square_errors(joined, samples)
    known = known_transport.cases()
    spaces = list(dict.fromkeys(case.space for case in known))
    for axes, level, kind in ((large, 1.0, 0), (small, min(known_transport.LEVELS), 1)):
        for index, case in enumerate(known):
            if case.level == level:
                colour = style.COLOURS[spaces.index(case.space)]
                label = "SO(3), equal laws" if case.space == "Haar" else case.space
                relative = error[:, index, kind] / (case.divergence or case.value)
                axes.plot(samples, relative, "o-", color=colour, markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="samples n")
        axes.set_xticks(samples, [str(n) for n in samples])
        axes.minorticks_off()
    n = np.array(samples, float)
    large.plot(n, 0.05 * (n / n[0]) ** -0.5, ":", color=style.PUBLISHED, label="n^-1/2")
    large.set(ylabel="rms error / divergence", title="W_ε, ε = the mean cost")
    small.plot(n, 0.35 * (n / n[0]) ** -0.5, ":", color=style.PUBLISHED)
    small.plot(n, 14 * (n / n[0]) ** -0.1, "--", color=style.PUBLISHED, linewidth=1, label="n^-1/10")
    small.set(title="divergence, ε = 0.01 of the mean cost")
    large.legend(fontsize=6.5, ncols=2, loc="lower left")
    small.legend(fontsize=6.5, ncols=2, loc="lower left")
    small.set_ylim(bottom=0.02)
    large.set_ylim(bottom=3e-4)
    for name, label, mark in (
        ("birkhoff", "Birkhoff's bound tanh²(η/4)", "k--"),
        ("steepest", "steepest step", "o-"),
        ("late_rate", "late rate", "s-"),
        ("singular", "σ₂² of the plan", "k:"),
    ):
        rates.plot(RATES, np.median(metrics[name], axis=(0, 1)), mark, markersize=4, label=label)
    rates.set(xscale="log", xlabel="ε / mean cost", ylabel="contraction each iteration", title="Sinkhorn's rate")
    rates.set_xticks(RATES, [f"{level:g}" for level in RATES])
    rates.minorticks_off()
    rates.legend(fontsize=7)
    exact = np.array(
        [entropic_transport.gaussian(1, np.ones(1), np.full(1, 1.4), epsilon) for epsilon in (0.0, *SMALL)]
    )
    for name, label, colour in (
        ("bias_value", "W_ε", style.COLOURS[1]),
        ("bias_divergence", "divergence", style.COLOURS[0]),
    ):
        bias_axes.plot(SMALL, np.abs(metrics[name][0, 0] - exact[0]), "o-", color=colour, markersize=4, label=label)
    line = np.array(SMALL)
    bias_axes.plot(line, np.abs(exact[1:] - exact[0]), "+", color="black", label="closed form of W_ε")
    bias_axes.plot(line, 2e-3 * line**2, ":", color=style.PUBLISHED, label="ε²")
    bias_axes.set(
        xscale="log", yscale="log", xlabel="ε", ylabel="distance from W_2²", title="What ε adds (Gaussians, line)"
    )
    bias_axes.set_xticks(SMALL, [f"{epsilon:g}" for epsilon in SMALL])
    bias_axes.minorticks_off()
    bias_axes.legend(fontsize=7)
    for name, label, colour, size in (
        ("flow_target", "target", "#BBBBBB", 6),
        ("flow_start", "start", style.COLOURS[4], 4),
        ("biased_end", "biased", style.COLOURS[1], 6),
        ("debiased_end", "debiased", style.COLOURS[0], 6),
    ):
        flow.scatter(*metrics[name][0, 0].T, s=size, color=colour, label=label, linewidths=0)
    flow.set(title="Gradient flows, ε = the target's variance", aspect="equal", xlabel="x", ylabel="y")
    flow.legend(fontsize=7, loc="upper left", markerscale=2)
    clouds = metrics["sphere_clouds"][0, 0]
    for cloud in clouds:
        style.points(shape, cloud, style.PUBLISHED, 3)
    style.points(shape, metrics["sphere_points"][0, 0], style.COLOURS[0], 6)
    style.sphere(shape)
    style.equal(shape, np.eye(3), -np.eye(3))
    shape.set_title("Barycenter (blue) of three clouds on S²")
    return picture
