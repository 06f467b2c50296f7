"""De Bortoli et al. 2022, SO(3) mixtures: diffusion reaches the data's entropy within 0.10 nats, K = 16, 32, 64 modes.

Command: `python -m experiments run so3_diffusion --preset cpu` (5 minutes a seed; expected: gaps of 0.03 to 0.08 nats).
Brownian motion carries the data to Haar's measure; a network learns the scores by denoising, against the exact scores
of IGSO(3); the reversed diffusion draws; the probability flow gives likelihoods, its divergence exact. The law of the
data is known, and so is the best possible test log-likelihood: minus its entropy, which nobody can exceed. Densities
are against the volume of rotation vectors (8π² in all). Time is log t, t the variance of the Brownian motion.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.engine import experiment, style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from experiments.flows import rotation_map
from experiments.simulators import brownian_mixture
from lie import densities, elementwise, processes, so3
from ot import costs, wasserstein

BIBTEX = """@inproceedings{debortoli2022riemannian,
  author    = {De Bortoli, Valentin and Mathieu, Emile and Hutchinson, Michael and Thornton, James and
               Teh, Yee Whye and Doucet, Arnaud},
  title     = {{R}iemannian score-based generative modelling},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  year      = {2022}
}"""

# Test log-likelihood by the number of modes: mean and spread over 5 seeds, in the README of the paper's repository.
PUBLISHED = {
    "RSGM": {16: (0.89, 0.03), 32: (0.20, 0.03), 64: (-0.49, 0.02)},
    "Moser flow": {16: (0.85, 0.03), 32: (0.17, 0.03), 64: (-0.49, 0.02)},
    "wrapped SGM": {16: (0.87, 0.04), 32: (0.16, 0.03), 64: (-0.58, 0.04)},
}
SOURCE = "RSGM, oxcsml/riemannian-score-sde"
SHAPE = 100.0  # of the Gamma law of the modes' precisions τ; scale 1/√(2τ)
WIDTH = 1 / math.sqrt(2 * SHAPE)  # a typical mode's scale in radians: the data's finest length
START, END = 1e-4, 5.0  # t where the density is taken: 2 % of a mode's variance; t where Haar takes over
LOG_RANGE = math.log(END / START)
STAGES = 4  # network evaluations in one step of the flow
FREQUENCIES = 4
PAIRS = np.triu_indices(9)  # of entries of R: with their products the network sees all functions up to degree 2
MEAN_CEILING = {16: 0.921, 32: 0.235, 64: -0.467}  # over 20 laws: for the published rows, whose laws are not ours
MAY_NOT_BE_FINITE = ("log_likelihood", "gap_error", "draws")


@dataclass(frozen=True)
class Config:
    """Network, its training, and what is spent on measuring it."""

    modes: tuple[int, ...] = (16, 32, 64)
    width: int = 512
    layers: int = 5
    steps: int = 100_000
    batch: int = 512
    rate: float = 5e-4
    average: float = 0.999
    """Decay of the running mean of the parameters, which is what is tested."""
    blocks: int = 20
    tests: int = 8192
    """Test points of the likelihood."""
    flow_steps: int = 25
    """Of the probability flow, four evaluations of the network each."""
    draws: int = 1000
    """Rotations drawn by the reversed diffusion."""
    draw_steps: int = 100

    def __post_init__(self) -> None:
        for field in ("width", "layers", "steps", "blocks", "tests", "flow_steps", "draws", "draw_steps"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")
        if self.batch < 2 or self.batch % 2:
            raise Refused(f"batch: expected an even number, as noise comes in pairs, got {self.batch}")
        if not self.modes or min(self.modes) < 1:
            raise Refused(f"modes: expected positive numbers, got {self.modes}")
        if 2 * self.draws > self.tests:
            raise Refused(f"draws: expected at most half of the {self.tests} tests, got {self.draws}")
        if not 0 <= self.average < 1:
            raise Refused(f"average: expected a number in [0, 1), got {self.average}")


PRESETS = {
    "smoke": Config(
        modes=(2, 4),
        width=32,
        layers=2,
        steps=200,
        batch=64,
        rate=3e-3,
        average=0.9,
        blocks=2,
        tests=128,
        flow_steps=10,
        draws=64,
        draw_steps=25,
    ),
    "cpu": Config(width=128, layers=3, steps=50_000, batch=256, rate=5e-3, blocks=10, tests=4096),
    "paper": Config(),
}


class Lesson(NamedTuple):
    """Data X, noise g of variance t, and the score of X g given X."""

    log_t: Array
    X: Array
    noise: Array
    truth: Array


class State(NamedTuple):
    """All numbers of modes side by side, along the first axis of the last four."""

    key: Array
    step: Array
    law: brownian_mixture.Mixture
    parameters: list[dict[str, Array]]
    average: list[dict[str, Array]]
    moments: Any


Metrics = dict[str, Array]
Score = Callable[[Array, Array], Array]


def network(parameters: list[dict[str, Array]], R: Array, log_t: Array) -> Array:
    """The score s = vee(RᵀM − MᵀR)/2 (t + w²): the gradient of a matrix-Fisher law; a perceptron gives its parameter M.

    Near a mode M is its mean, for t << w² as for t >> w²: what has to be learned is constant there and of order one.
    log_t is a scalar or (*batch).
    """
    phase = (log_t - math.log(START)) * (math.pi / LOG_RANGE)
    phases = phase[..., None] * jnp.arange(1, FREQUENCIES + 1, dtype=R.dtype)
    clock = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
    x = R.reshape(*R.shape[:-2], 9)
    x = jnp.concatenate([x, x[..., PAIRS[0]] * x[..., PAIRS[1]]], axis=-1)
    for layer in parameters[:-1]:
        x = jax.nn.silu(x @ layer["weight"] + layer["bias"] + clock @ layer["clock"])
    M = (x @ parameters[-1]["weight"] + parameters[-1]["bias"]).reshape(R.shape)
    turned = elementwise.matmul(elementwise.transpose(R), M)
    return so3.vee(turned - elementwise.transpose(turned)) / (2 * (jnp.exp(log_t)[..., None] + WIDTH**2))


def untrained(config: Config, key: Array) -> list[dict[str, Array]]:
    """Layers of unit gain; the last one is zero, and the score with it."""
    inputs = 9 + len(PAIRS[0])
    widths = (inputs, *[config.width] * config.layers, 9)
    layers = []
    for (a, b), one in zip(itertools.pairwise(widths), jax.random.split(key, config.layers + 1), strict=True):
        key_weight, key_clock = jax.random.split(one)
        gain = 6.0 if a == inputs else 1.4
        layers.append(
            {
                "weight": gain / math.sqrt(a) * jax.random.normal(key_weight, (a, b), jnp.float32),
                "clock": jax.random.normal(key_clock, (2 * FREQUENCIES, b), jnp.float32) / math.sqrt(2 * FREQUENCIES),
                "bias": jnp.zeros(b, jnp.float32),
            }
        )
    last = layers.pop()
    return [*layers, {"weight": jnp.zeros_like(last["weight"]), "bias": last["bias"]}]


def log_times(count: int, key: Array) -> Array:
    """log t, uniform from START to END: one in each of `count` equal parts, in order."""
    u = jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(key, (count,), jnp.float32)
    return math.log(START) + u / count * LOG_RANGE


def loss(score: Score, lesson: Lesson) -> Array:
    """½ ∫ t E|s(X g) − ∇ log p(X g | X)|² d log t: its excess over the best bounds the divergence of the drawn law.

    The noise comes in pairs g and g⁻¹, whose conditional scores are opposite: for small t, where they are large, their
    errors cancel in the gradient.
    """
    log_t, X, noise, truth = lesson
    pairs = jnp.stack([so3.compose(X, noise), so3.compose(X, so3.inverse(noise))])
    error = score(log_t, pairs) - jnp.stack([truth, -truth])
    return LOG_RANGE / 2 * jnp.mean(jnp.exp(log_t) * jnp.sum(error * error, axis=-1))


def _drift(log_t: Array, R: Array) -> Array:
    return jnp.zeros((*R.shape[:-2], 3), R.dtype)


def _diffusion(log_t: Array, R: Array) -> Array:
    return jnp.exp(log_t / 2)


def log_likelihood(score: Score, R: Array, steps: int) -> Array:
    """log p(R) of the model in nats, by the probability flow from START to Haar's measure at END."""
    flow = processes.probability_flow(so3, _drift, _diffusion, score)
    times = jnp.linspace(math.log(START), math.log(END), steps + 1, dtype=R.dtype)
    end = lambda R: jnp.full(R.shape[:-2], -brownian_mixture.LOG_VOLUME, R.dtype)
    return processes.log_prob(so3, flow, R, times, end).log_prob


def generate(score: Score, count: int, steps: int, key: Array) -> Array:
    """Rotations (count, 3, 3) drawn by the reversed diffusion from Haar's measure."""
    key_start, key_noise = jax.random.split(key)
    start = so3.sample((count,), jnp.float32, key=key_start)
    times = jnp.linspace(math.log(END), math.log(START), steps + 1, dtype=jnp.float32)
    return processes.reverse(so3, _drift, _diffusion, score, start, times, key=key_noise).final


def init(config: Config, key: Array) -> State:
    """A law for each number of modes, and an untrained network for each."""

    @jax.jit
    def first(key: Array) -> State:
        key, key_law, key_network = jax.random.split(key, 3)
        keys = jax.random.split(key_network, len(config.modes))
        parameters = jax.vmap(lambda one: untrained(config, one))(keys)
        moments = jax.vmap(_optimizer(config).init)(parameters)
        law = brownian_mixture.sample(config.modes, SHAPE, key_law)
        return State(key, jnp.int32(0), law, parameters, jax.tree.map(jnp.copy, parameters), moments)

    return first(key)


def _optimizer(config: Config) -> optax.GradientTransformation:
    warm = min(100, config.steps // 2)
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, config.rate, warm, config.steps))


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return config.blocks


def done(config: Config, state: State) -> bool:
    return int(state.step) >= config.steps


def lower_rate(config: Config, factor: float) -> Config:
    """The same training with a learning rate times `factor`."""
    return replace(config, rate=factor * config.rate)


def model(config: Config, state: State) -> experiment.Model:
    """The body-frame score at (R, log t) for the largest number of modes."""
    largest = int(np.argmax(config.modes))
    inputs = {"rotation": ("batch, 3, 3", "float32"), "log_time": ("batch", "float32")}
    return experiment.Model(jax.tree.map(lambda a: a[largest], state.average), network, inputs)


def advance(config: Config, state: State) -> tuple[State, Metrics]:
    """Steps of each network in turn; after the last ones also likelihoods and draws, which are NaN before."""
    key, key_block = jax.random.split(state.key)
    steps = math.ceil(config.steps / config.blocks)
    learned = state.parameters, state.average, state.moments
    keys = jax.random.split(key_block, len(config.modes))
    block = lambda one: advance_one(config, steps, state.step, *one)
    learned, metrics = lax.map(block, (state.law, learned, keys))
    metrics |= {"trained_steps": state.step + steps, "modes": state.law.count}
    return State(key, state.step + steps, state.law, *learned), metrics


def advance_one(
    config: Config, steps: int, before: Array, law: brownian_mixture.Mixture, learned: Any, key: Array
) -> tuple[Any, Metrics]:
    """One law's block. All rotations it needs are drawn at once: lessons first, then test points."""
    key_time, key_draw, key_measure = jax.random.split(key, 3)
    half = config.batch // 2
    lessons = jax.vmap(lambda one: log_times(half, one))(jax.random.split(key_time, steps)).ravel()
    log_t = jnp.concatenate([lessons, log_times(config.tests, key_measure)])
    X, noise = brownian_mixture.draw(law, jnp.exp(log_t), key_draw)
    count = len(lessons)
    seen = [a[:count].reshape(steps, half, *a.shape[1:]) for a in (log_t, X, noise)]
    learned, errors = train(config, before, learned, *seen)
    test, reached, log_t = X[count:], so3.compose(X[count:], noise[count:]), log_t[count:]
    t = jnp.exp(log_t)
    logs, scores = brownian_mixture.density(law, jnp.stack([test, reached]), jnp.stack([jnp.zeros_like(t), t]))
    score: Score = lambda log_t, R: network(learned[1], R, log_t)
    squared = jnp.sum((score(log_t, reached) - scores[1]) ** 2, axis=-1)
    metrics = {
        "denoising_loss": jnp.mean(errors),
        "score_divergence_nats": LOG_RANGE / 2 * jnp.mean(t * squared),  # ½ ∫ t E|s − ∇ log p_t|² d log t
        "true_log_likelihood": jnp.mean(logs[0]),
        "true_variance": jnp.var(logs[0]),
    }
    measured: Callable[[], Metrics] = lambda: measure(config, score, test, logs[0], key_measure)
    nothing = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), jax.eval_shape(measured))
    return learned, metrics | lax.cond(before + steps >= config.steps, measured, lambda: nothing)


def train(config: Config, before: Array, learned: Any, log_t: Array, X: Array, noise: Array) -> tuple[Any, Array]:
    """Adam, one step for each row of the lessons, and the running mean of the parameters; the losses of all steps."""
    optimizer = _optimizer(config)
    truth = densities.IsotropicGaussian(so3.identity(log_t.shape, X.dtype), jnp.exp(log_t / 2)).score(noise)

    def step(carry: Any, arguments: tuple[Array, Lesson]) -> tuple[Any, Array]:
        (parameters, average, moments), (count, lesson) = carry, arguments
        of = lambda layers: loss(lambda log_t, R: network(layers, R, log_t), lesson)
        error, gradient = jax.value_and_grad(of)(parameters)
        updates, moments = optimizer.update(gradient, moments, parameters)
        parameters = optax.apply_updates(parameters, updates)
        decay = jnp.minimum(config.average, (1 + count) / (10 + count))  # the first parameters are soon forgotten
        average = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, average, parameters)
        return (parameters, average, moments), error

    counts = (before + jnp.arange(len(log_t), dtype=jnp.int32)).astype(jnp.float32)
    return lax.scan(step, learned, (counts, Lesson(log_t, X, noise, truth)))


def measure(config: Config, score: Score, test: Array, true: Array, key: Array) -> Metrics:
    """Log-likelihood of the test points by the model; rotations drawn by it, and two sets of data."""
    size = math.gcd(config.tests, 1024)
    batches = test.reshape(-1, size, 3, 3)
    ours = lax.map(lambda R: log_likelihood(score, R, config.flow_steps), batches).ravel()
    drawn = generate(score, config.draws, config.draw_steps, key)
    sets = jnp.stack([drawn, test[: config.draws], test[config.draws : 2 * config.draws]])
    return {
        "log_likelihood": jnp.mean(ours),
        "gap_error": jnp.std(true - ours) / math.sqrt(config.tests),
        "draws": so3.log(sets),
    }


def result(config: Config, metrics: dict[str, np.ndarray], state: State) -> Result:
    """The table, the gap to the ceiling on the same test points, and draws compared with data."""
    found = {name: np.asarray(values[-1], np.float64) for name, values in metrics.items()}
    ceiling, error = _ceiling(metrics["true_log_likelihood"], metrics["true_variance"], config.tests)
    long_enough = config.steps >= PRESETS["cpu"].steps
    most = 0.05 if config.steps >= PRESETS["paper"].steps else 0.10
    rows = []
    for k, modes in enumerate(config.modes):
        told: tuple[Any, ...] = ()
        aim: tuple[Any, ...] = ()
        if modes in MEAN_CEILING:
            published, source = PUBLISHED["RSGM"][modes][0], "RSGM, from the mean ceiling of 20 laws"
            told, aim = (published, SOURCE, "verified"), (MEAN_CEILING[modes] - published, source, "calibrated")
        gap = float(found["true_log_likelihood"][k] - found["log_likelihood"][k])
        distances = [_distance(found["draws"][k, a], found["draws"][k, b]) for a, b in ((0, 1), (2, 1))]
        name = f"K = {modes}"
        rows += [
            Row(f"{name}, test log-likelihood (nats)", float(found["log_likelihood"][k]), *told),
            Row(f"{name}, ceiling: minus the entropy of the law (nats)", float(ceiling[k])),
            Row(f"{name}, standard error of that (nats)", float(error[k])),
            Row(f"{name}, gap to the ceiling (nats)", gap, *aim, high=most if long_enough else math.inf),
            Row(f"{name}, standard errors above the ceiling", -gap / float(found["gap_error"][k]), high=3.0),
            Row(f"{name}, divergence by exact scores (nats)", float(found["score_divergence_nats"][k])),
            Row(f"{name}, W1 of draws to data / of data to data", distances[0] / distances[1]),
        ]
    count = float(STAGES * config.flow_steps)
    rows.append(Row("network evaluations of a likelihood", count, 100, SOURCE, "verified", high=200))
    name = "divergence at the end from Haar's measure, at most (nats)"
    rows.append(Row(name, brownian_mixture.haar_divergence(END), high=1e-3))
    return Result(tuple(rows))


def _ceiling(means: np.ndarray, variances: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of log p over the test points of all blocks (the first axis), and its standard error."""
    return means.mean(axis=0), np.sqrt(variances.mean(axis=0) / (points * len(means)))


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """W1 in radians between two sets of rotation vectors."""
    first, second = (so3.exp(jnp.asarray(points, jnp.float32)) for points in (x, y))
    found = wasserstein.exact(first, second, cost=costs.Geodesic(so3, 1.0))
    if not found.converged:
        raise FloatingPointError(f"W1: the duality gap is still {float(found.gap)}")
    return float(found.value)


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """Likelihoods and gaps beside the published ones, learning curves, and draws beside data."""
    picture = style.figure(10.5, 6.2)
    parts: Any = picture.subfigures(2, 1, height_ratios=[1.1, 1])
    above, below = parts
    table, gaps, curves = above.subplots(1, 3)
    modes = metrics["modes"][0, -1].astype(int)
    at = np.arange(len(modes))
    last = {name: values[:, -1] for name, values in metrics.items()}
    _draw_table(table, modes, metrics)
    _draw_gaps(gaps, modes, last)
    for axes in (table, gaps):
        axes.set_xticks(at, [str(k) for k in modes])
        axes.set(xlabel="modes K", xlim=(-0.5, len(modes) - 0.5))
    step = metrics["trained_steps"][0]
    for k in at:
        values = metrics["score_divergence_nats"][:, :, k]
        curves.plot(step, np.median(values, axis=0), color=style.COLOURS[k], label=f"K = {modes[k]}")
        curves.fill_between(step, values.min(axis=0), values.max(axis=0), color=style.COLOURS[k], alpha=0.2, lw=0)
    curves.set(xlabel="step", ylabel="divergence (nats)", yscale="log", title="Distance from the exact scores")
    curves.legend()
    middle = len(modes) // 2
    maps: Any = below.subplots(1, 2, subplot_kw={"projection": "mollweide"})
    for axes, points, what in zip(maps, last["draws"][0, middle], ("drawn", "data"), strict=False):
        shown = rotation_map.draw(axes, np.asarray(so3.exp(jnp.asarray(points, jnp.float32))))
        axes.set_title(f"K = {modes[middle]}, {what}: where rotations take (1, 1, 1)", fontsize=9)
    below.colorbar(shown, ax=maps, shrink=0.7, label="turn about it (rad)")
    return picture


def _draw_table(axes: Any, modes: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
    markers = zip(PUBLISHED.items(), "sd^", (0.12, 0.24, 0.36), strict=True)
    for (name, values), marker, shift in markers:
        known = [(k + shift, *values[m]) for k, m in enumerate(modes) if m in values]
        if known:
            x, y, spread = np.transpose(known)
            axes.errorbar(x, y, spread, fmt=marker, color=style.PUBLISHED, markersize=4, label=f"{name} (published)")
    for k in range(len(modes)):
        ours, ceiling = metrics["log_likelihood"][:, -1, k], metrics["true_log_likelihood"][..., k].mean(axis=1)
        x = k - 0.2 + 0.1 * (np.arange(len(ours)) - (len(ours) - 1) / 2)
        labels = ("ceiling of each law", "ours") if k == 0 else (None, None)
        axes.plot(x, ceiling, "_", color=style.COLOURS[1], markersize=8, label=labels[0])
        axes.plot(x, ours, "o", color=style.COLOURS[0], markersize=4, label=labels[1])
    axes.set(ylabel="test log-likelihood (nats)", title="Likelihood by the probability flow")
    axes.legend(fontsize=7)


def _draw_gaps(axes: Any, modes: np.ndarray, last: dict[str, np.ndarray]) -> None:
    for k, m in enumerate(modes):
        gap = last["true_log_likelihood"][:, k] - last["log_likelihood"][:, k]
        x = k - 0.2 + 0.1 * (np.arange(len(gap)) - (len(gap) - 1) / 2)
        label = "ours ± 3 standard errors" if k == 0 else None
        axes.errorbar(x, gap, 3 * last["gap_error"][:, k], fmt="o", color=style.COLOURS[0], markersize=4, label=label)
        if m in MEAN_CEILING:
            value, spread = PUBLISHED["RSGM"][m]
            label, grey = "RSGM (published, from the mean ceiling)" if k == 0 else None, style.PUBLISHED
            axes.errorbar(k + 0.2, MEAN_CEILING[m] - value, spread, fmt="s", color=grey, markersize=4, label=label)
    axes.axhline(0.10, color=style.COLOURS[1], linestyle=":", linewidth=1, label="gate")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="ceiling − log-likelihood (nats)", title="Gap: the divergence from the data's law")
    axes.set_ylim(top=1.5 * max(axes.get_ylim()[1], 0.11))  # the legend stands above the points
    axes.legend(fontsize=7, loc="upper left")
