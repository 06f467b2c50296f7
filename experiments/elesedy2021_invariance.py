"""Elesedy & Zaidi 2021, theorems 7 and 13: what symmetry gains, σ² (d − dim V^G)/(n − d − 1) in least squares, exactly.

Command: `python -m experiments run invariance --preset cpu` (2 minutes a seed; expected: within 4 standard errors).
Least squares with an invariant (S_d) or equivariant (C_d, O(3)) target, averaged over the group after the fit: the test
risk falls by exactly the formula, on both sides of the divergence at n = d. Beside it the Rademacher bound, far above
the measured gap but with the same ratio, and networks: plain, averaged over O(3) after training, invariant by design.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.engine import style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from lie import smooth, so3

BIBTEX = """@inproceedings{elesedy2021provably,
  author    = {Elesedy, Bryn and Zaidi, Sheheryar},
  title     = {Provably strict generalisation benefit for equivariant models},
  booktitle = {Proceedings of the 38th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {139},
  pages     = {2959--2969},
  year      = {2021}
}"""

NOISE = 0.5  # standard deviation of the labels' noise
BALL, CONFIDENCE = 2.0, 0.05  # radius of the class in |target|, and the bound's probability of failure
NETWORKS = ("plain", "averaged", "invariant")


class Task(NamedTuple):
    """Linear maps R^d -> R^k, their projection on the maps that commute with the group, and its rank."""

    inputs: int
    outputs: int
    rank: int
    project: Callable[[Array], Array]  # of (k, d) matrices
    samples: tuple[int, ...]


def permutations(W: Array) -> Array:
    """Mean over S_d: all columns become their mean."""
    return jnp.broadcast_to(jnp.mean(W, axis=1, keepdims=True), W.shape)


def shifts(W: Array) -> Array:
    """Mean over C_d of Pᵀ W P: the nearest circulant matrix, a convolution."""
    size = W.shape[0]
    turned = [jnp.roll(W, (s, s), axis=(0, 1)) for s in range(size)]
    return jnp.mean(jnp.stack(turned), axis=0)


def orthogonal(W: Array) -> Array:
    """Mean over O(3) of Rᵀ W (R ⊕ ... ⊕ R): each 3x3 block becomes a multiple of the identity (Schur)."""
    blocks = W.reshape(3, -1, 3)
    traces = jnp.trace(blocks, axis1=0, axis2=2) / 3
    return (jnp.eye(3, dtype=W.dtype)[:, None, :] * traces[None, :, None]).reshape(W.shape)


TASKS = {
    "S_d": Task(20, 1, 1, permutations, (5, 10, 15, 30, 40, 60, 100, 200)),
    "C_d": Task(10, 10, 10, shifts, (3, 5, 7, 16, 20, 40, 100, 200)),
    "O(3)": Task(15, 3, 5, orthogonal, (4, 8, 11, 22, 30, 60, 100, 200)),
}


LONG = tuple(n for n in TASKS["S_d"].samples if n > TASKS["S_d"].inputs)  # where the bound is looked at
BOUNDS = 100  # data sets in each block


@dataclass(frozen=True)
class Config:
    """Repeats of least squares, and the learning curve of the networks."""

    repeats: int = 100_000
    """Data sets for each group and number of samples."""
    blocks: int = 20
    samples: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Training points of the networks."""
    steps: int = 20_000
    """Adam's, on all training points at once."""
    hidden: int = 64
    averages: int = 32
    """Elements of O(3) drawn for the mean over the group of a trained network, at each test point."""

    def __post_init__(self) -> None:
        for field in ("repeats", "blocks", "steps", "hidden", "averages"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")
        if not self.samples or min(self.samples) < 1:
            raise Refused(f"samples: expected positive numbers, got {self.samples}")


PRESETS = {
    "smoke": Config(repeats=400, blocks=2, samples=(32, 64), steps=100, hidden=16, averages=8),
    "cpu": Config(repeats=10_000, blocks=10, samples=(64, 128, 256, 512, 1024), steps=2000),
    "paper": Config(),
}


class State(NamedTuple):
    """Networks by name, one for each number of training points, and their optimiser."""

    key: Array
    block: Array
    data_key: Array
    networks: dict[str, Any]
    moments: dict[str, Any]


Metrics = dict[str, Array]


def expected_gain(task: Task, n: int, squared_norm: float = 1.0) -> float:
    """E[risk of W − risk of the mean of W over the group], W least squares (of least norm for n < d), x ~ N(0, I_d).

    The risks differ by |W − project(W)|². For n > d + 1 that is σ² (dk − rank)/(n − d − 1). For n < d − 1 the noise
    brings σ² (dk − rank) n/(d (d − n − 1)), and the target T seen through the projection Π on the row space brings
    |TΠ − project(TΠ)|², which has E Π = n/d and the fourth moments of a uniform subspace: see `leaked`.
    """
    d, free = task.inputs, task.inputs * task.outputs - task.rank
    if n > d + 1:
        return NOISE**2 * free / (n - d - 1)
    if n < d - 1:
        return NOISE**2 * free * n / (d * (d - n - 1)) + squared_norm * leaked(task, n)
    return math.inf


def leaked(task: Task, n: int) -> float:
    """E|TΠ − project(TΠ)|² for the target T of `target`, Π uniform of rank n.

    E Π_ij Π_kl = a δ_ij δ_kl + b (δ_ik δ_jl + δ_il δ_jk); tr Π = n and Π² = Π fix b = n (d − n)/(d (d − 1)(d + 2))
    and a = n (n d + n − 2)/(d (d − 1)(d + 2)).
    """
    d = task.inputs
    T, basis = np.asarray(target(task), np.float64), _basis(task)
    scale = d * (d - 1) * (d + 2)
    a, b = n * (n * d + n - 2) / scale, n * (d - n) / scale
    total = n / d * np.sum(T * T)  # E|TΠ|², and now less E <B, TΠ>² = E tr(BᵀTΠ)² for each unit map B of the rank
    for B in basis:
        M = B.T @ T
        total -= a * np.trace(M) ** 2 + b * (np.sum(M * M) + np.sum(M * M.T))
    return float(total)


def _basis(task: Task) -> np.ndarray:
    """Orthonormal maps (rank, k, d) that commute with the group."""
    size = task.inputs * task.outputs
    units = np.eye(size).reshape(size, task.outputs, task.inputs)
    projected = np.stack([np.asarray(task.project(jnp.asarray(u, jnp.float32)), np.float64).ravel() for u in units])
    values, vectors = np.linalg.eigh((projected + projected.T) / 2)
    return vectors[:, values > 0.5].T.reshape(-1, task.outputs, task.inputs)


def target(task: Task) -> Array:
    """A map that commutes with the group, of Frobenius norm 1."""
    shape = (task.outputs, task.inputs)
    T = task.project(jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32))
    return T / jnp.sqrt(jnp.sum(T * T))


def least_squares(x: Array, y: Array) -> Array:
    """W (k, d) of least norm among those that minimise |y − x Wᵀ|²; rows of zeros do not count.

    By the eigenvectors of xᵀx: away from n = d the rest is far above the rounding that the threshold cuts off.
    """
    multiply = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    values, vectors = jnp.linalg.eigh(multiply(x.T, x))
    kept = values > 1e-5 * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return multiply(vectors * inverse, multiply(vectors.T, multiply(x.T, y))).T


def draw(task: Task, n: Array, count: int, key: Array) -> tuple[Array, Array]:
    """x (count, d) and noisy labels, of which the first n count and the others are 0: one program for every n."""
    key_x, key_noise = jax.random.split(key)
    counts = (jnp.arange(count, dtype=jnp.int32) < n)[:, None]
    x = jnp.where(counts, jax.random.normal(key_x, (count, task.inputs), jnp.float32), 0)
    noise = NOISE * jax.random.normal(key_noise, (count, task.outputs), jnp.float32)
    return x, jnp.where(counts, x @ target(task).T + noise, 0)


def gain(task: Task, n: Array, key: Array) -> Array:
    """|W − project(W)|² for one data set: the risk that averaging over the group removes."""
    W = least_squares(*draw(task, n, max(task.samples), key))
    return jnp.sum((W - task.project(W)) ** 2)


def bound(task: Task, n: Array, key: Array) -> dict[str, Array]:
    """Test less training error of min(|y − Wx|, 1), and the bound 2 R + 3 √(log(2/δ)/2n), with and without averaging.

    R is the Rademacher complexity of {W : |W| <= B} on the sample, B |Σ s_i x_i|/n with random signs: its mean.
    Source: Bartlett & Mendelson 2002; the loss is 1-Lipschitz and in [0, 1]. For one output.
    """
    key_train, key_test, key_signs = jax.random.split(key, 3)
    size, tests = max(task.samples), 1000
    x, y = draw(task, n, size, key_train)
    x_test, y_test = draw(task, jnp.int32(tests), tests, key_test)
    signs = jax.random.rademacher(key_signs, (100, size), jnp.float32)
    count = n.astype(jnp.float32)
    slack = 3 * jnp.sqrt(math.log(2 / CONFIDENCE) / (2 * count))
    W = least_squares(x, y)
    found = {}
    for name, V, seen in (("plain", W, x), ("averaged", task.project(W), task.project(x))):
        V = V * jnp.minimum(1, BALL / jnp.sqrt(jnp.sum(V * V)))
        test, train = (jnp.minimum(smooth.norm(b - a @ V.T), 1) for a, b in ((x_test, y_test), (x, y)))
        complexity = BALL * jnp.mean(smooth.norm(signs @ seen)) / count
        found[f"{name}_gap"] = jnp.mean(test) - jnp.sum(train) / count
        found[f"{name}_bound"] = 2 * complexity + slack
        found[f"{name}_complexity"] = complexity
        found[f"{name}_violated"] = (found[f"{name}_gap"] > found[f"{name}_bound"]).astype(jnp.float32)
    return found


def regression(key: Array, count: int) -> tuple[Array, Array]:
    """Two vectors x (count, 2, 3) ~ N(0, I) and sin|x1| − |x2|³/2 + x1·x2/(|x1||x2|): invariant under O(3)."""
    x = jax.random.normal(key, (count, 2, 3), jnp.float32)
    first, second = smooth.norm(x[:, 0]), smooth.norm(x[:, 1])
    return x, jnp.sin(first) - second**3 / 2 + jnp.sum(x[:, 0] * x[:, 1], axis=1) / (first * second)


def features(name: str, x: Array) -> Array:
    """Coordinates, or for the invariant network the three scalar products."""
    if name == "plain":
        return x.reshape(*x.shape[:-2], 6)
    products = jnp.sum(x[..., :, None, :] * x[..., None, :, :], axis=-1)
    return jnp.stack([products[..., 0, 0], products[..., 0, 1], products[..., 1, 1]], axis=-1)


def network(parameters: list[tuple[Array, Array]], x: Array) -> Array:
    """A perceptron with two hidden layers of SiLU."""
    for weight, bias in parameters[:-1]:
        x = jax.nn.silu(x @ weight + bias)
    weight, bias = parameters[-1]
    return (x @ weight + bias)[..., 0]


def init(config: Config, key: Array) -> State:
    """Untrained networks."""
    key, data_key, *keys = jax.random.split(key, 4)
    networks = {}
    for name, size, one in (("plain", 6, keys[0]), ("invariant", 3, keys[1])):
        widths = (size, config.hidden, config.hidden, 1)
        layers = []
        for layer, (a, b) in enumerate(itertools.pairwise(widths)):
            shape = (len(config.samples), a, b)
            weight = jax.random.normal(jax.random.fold_in(one, layer), shape, jnp.float32) / math.sqrt(a)
            layers.append((weight, jnp.zeros((len(config.samples), b), jnp.float32)))
        networks[name] = layers
    moments = {name: _optimizer(config).init(layers) for name, layers in networks.items()}
    return State(key, jnp.int32(0), data_key, networks, moments)


def _optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-3, config.steps))


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return config.blocks


def done(config: Config, state: State) -> bool:
    return int(state.block) >= config.blocks


def advance(config: Config, state: State) -> tuple[State, Metrics]:
    """A share of the repeats and of the networks' training."""
    key, key_gain, key_bound, key_mean = jax.random.split(state.key, 4)
    repeats = math.ceil(config.repeats / config.blocks)
    metrics: Metrics = {"block": state.block + 1, "network_samples": jnp.asarray(config.samples, jnp.float32)}
    for name, task in TASKS.items():
        values = simulate(lambda n, one, task=task: gain(task, n, one), task.samples, repeats, key_gain)
        metrics[f"{name}_gain_moments"] = jnp.stack([jnp.mean(values, axis=1), jnp.mean(values**2, axis=1)], axis=-1)
    found = simulate(lambda n, one: bound(TASKS["S_d"], n, one), LONG, BOUNDS, key_bound)
    metrics |= {name: jnp.mean(values, axis=1) for name, values in found.items()}
    networks, moments, errors = train(config, state, key_mean)
    metrics |= errors
    return State(key, state.block + 1, state.data_key, networks, moments), metrics


def simulate(one: Callable[[Array, Array], Any], samples: tuple[int, ...], repeats: int, key: Array) -> Any:
    """one(n, key), `repeats` times for each n of `samples`: (samples, repeats)."""
    keys = jax.random.split(key, (len(samples), repeats))
    counts = jnp.broadcast_to(jnp.asarray(samples, jnp.int32)[:, None], keys.shape)
    flat = jax.lax.map(lambda pair: one(*pair), (counts.ravel(), keys.ravel()), batch_size=100)
    return jax.tree.map(lambda values: values.reshape(len(samples), repeats), flat)


def train(config: Config, state: State, key: Array) -> tuple[dict[str, Any], dict[str, Any], Metrics]:
    """Steps of both networks for every number of training points (the first ones of one set), then test errors."""
    key_train, key_test = jax.random.split(state.data_key)
    x, y = regression(key_train, max(config.samples))
    x_test, y_test = regression(key_test, 2000)
    counts = jnp.asarray(config.samples, jnp.int32)
    weight = (jnp.arange(max(config.samples), dtype=jnp.int32) < counts[:, None]) / counts[:, None].astype(jnp.float32)
    optimizer, steps = _optimizer(config), math.ceil(config.steps / config.blocks)
    networks, all_moments, errors = {}, {}, {}
    for name in state.networks:
        inputs = features(name, x)

        def loss(layers: Any, inputs: Array = inputs) -> Array:
            predicted = jax.vmap(network, in_axes=(0, None))(layers, inputs)
            return jnp.sum(weight * (predicted - y) ** 2)

        def step(carry: Any, _: None, loss: Any = loss) -> tuple[Any, None]:
            layers, moments = carry
            updates, moments = optimizer.update(jax.grad(loss)(layers), moments, layers)
            return (optax.apply_updates(layers, updates), moments), None

        start = state.networks[name], state.moments[name]
        (layers, moments), _ = jax.lax.scan(step, start, None, length=steps)
        networks[name], all_moments[name] = layers, moments
        predicted = jax.vmap(network, in_axes=(0, None))(layers, features(name, x_test))
        errors[f"{name}_test_mse"] = jnp.mean((predicted - y_test) ** 2, axis=1)
    R = so3.sample((config.averages, len(y_test)), jnp.float32, key=key)
    R = R * jnp.where(jnp.arange(config.averages) % 2 == 0, 1, -1).astype(R.dtype)[:, None, None, None]  # O(3)
    turned = jnp.einsum("gnij,nvj->gnvi", R, x_test, precision=jax.lax.Precision.HIGHEST)
    mean = jax.lax.map(lambda layers: jnp.mean(network(layers, features("plain", turned)), axis=0), networks["plain"])
    errors["averaged_test_mse"] = jnp.mean((mean - y_test) ** 2, axis=1)
    return networks, all_moments, errors


def measured_gain(moments: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error by number of samples, from (blocks, n, 2) first and second moments of all repeats."""
    first, second = moments.mean(axis=0).T
    return first, np.sqrt((second - first**2) / repeats)


def result(config: Config, metrics: dict[str, np.ndarray], state: State) -> Result:
    """Distances from the exact formula, bounds that hold, and what symmetry is worth to a network."""
    repeats = config.blocks * math.ceil(config.repeats / config.blocks)
    rows = []
    for name, task in TASKS.items():
        mean, error = measured_gain(metrics[f"{name}_gain_moments"], repeats)
        theory = np.array([expected_gain(task, n) for n in task.samples])
        worst = float(np.abs((mean - theory) / error).max())
        rows.append(Row(f"{name}, largest distance from theory (standard errors)", worst, high=4))
        at = 4  # one number of samples for each group
        label = f"{name}, gain in risk at n = {task.samples[at]}"
        rows.append(Row(label, float(mean[at]), float(theory[at]), "theorem 7 or 13", "analytic"))
    task = TASKS["S_d"]
    found = {name: np.mean(metrics[name], axis=0) for name in metrics if name.startswith(("plain_", "averaged_"))}
    for name in ("plain", "averaged"):
        worst = float(found[f"{name}_violated"].max())
        rows.append(Row(f"Rademacher bound, {name}: share of data sets beyond it", worst, high=CONFIDENCE))
    tightness = float(found["plain_bound"][-1] / found["plain_gap"][-1])
    rows.append(Row(f"Rademacher bound / measured gap of the training error, n = {LONG[-1]}", tightness))
    ratio = float(np.mean(found["averaged_complexity"] / found["plain_complexity"]))
    # |Σ s_i x_i|/√n is |N(0, I)| in d dimensions, and in one for the averaged class.
    lgamma, d = math.lgamma, task.inputs
    aim = math.exp(lgamma(1) - lgamma(0.5) + lgamma(d / 2) - lgamma((d + 1) / 2))
    source = "E|N(0, I)| in 1 and d dimensions"
    rows.append(Row("complexity, averaged / plain", ratio, aim, source, "analytic", 0.97 * aim, 1.03 * aim))
    final = {name: metrics[f"{name}_test_mse"][-1] for name in NETWORKS}
    long_enough = config.steps >= PRESETS["cpu"].steps
    for name in NETWORKS:
        rows.append(Row(f"network, {name}: test MSE at n = {config.samples[-1]}", float(final[name][-1])))
    worst = float((final["averaged"] / final["plain"]).max())
    most = 1.0 if long_enough else math.inf
    rows.append(Row("network, largest test MSE averaged / plain over n", worst, high=most))
    worst = float((final["invariant"] / final["averaged"]).max())
    rows.append(
        Row("network, largest test MSE invariant / averaged over n", worst, high=1.0 if long_enough else math.inf)
    )
    for name in NETWORKS:
        slope = np.polyfit(np.log(config.samples), np.log(final[name]), 1)[0]
        rows.append(Row(f"network, {name}: exponent of the test MSE in n", float(slope)))
    return Result(tuple(rows))


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """The exact gain and its divergence for three groups; the bound beside the gap; networks."""
    picture = style.figure(10.5, 3.4)
    exact, bounds, curves = picture.subplots(1, 3, width_ratios=[1.25, 1, 1])
    for (name, task), colour in zip(TASKS.items(), style.COLOURS, strict=False):
        for side in (np.arange(2, task.inputs - 1), np.arange(task.inputs + 2, 241)):
            exact.plot(side, [expected_gain(task, int(n)) for n in side], color=colour, linewidth=1)
        mean, _ = measured_gain(np.concatenate(metrics[f"{name}_gain_moments"]), 1)
        label = f"{name}, d = {task.inputs}, k = {task.outputs}"
        exact.plot(task.samples, mean, "o", color=colour, markersize=4, label=label)
        exact.axvline(task.inputs, color=colour, linestyle=":", linewidth=0.8)
    exact.set(
        xlabel="training samples n (dotted: n = d)", ylabel="risk removed by averaging", xscale="log", yscale="log"
    )
    exact.set_title("Least squares: theory (lines) and simulation")
    exact.legend()
    for name, colour in (("plain", style.COLOURS[1]), ("averaged", style.COLOURS[0])):
        for what, line in (("bound", "--"), ("gap", "o-")):
            values = np.mean(metrics[f"{name}_{what}"], axis=(0, 1))
            label = f"{name}: {'Rademacher bound' if what == 'bound' else 'measured'}"
            bounds.plot(LONG, values, line, color=colour, markersize=4, label=label)
    bounds.set(xlabel="training samples n", ylabel="test − training error (bounded loss)", xscale="log", yscale="log")
    bounds.set_title("What the bound knows (S_d)")
    bounds.set_xticks(LONG, [str(n) for n in LONG])
    bounds.minorticks_off()
    bounds.set_ylim(bottom=2e-5)
    bounds.legend(fontsize=7, loc="lower left")
    n = metrics["network_samples"][0, -1]
    for name, colour in zip(NETWORKS, (style.COLOURS[1], style.COLOURS[2], style.COLOURS[0]), strict=True):
        values = metrics[f"{name}_test_mse"][:, -1]
        label = "averaged after training" if name == "averaged" else name
        curves.plot(n, np.median(values, axis=0), "o-", color=colour, markersize=4, label=label)
        curves.fill_between(n, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    curves.set(xlabel="training samples n", ylabel="test MSE", xscale="log", yscale="log", title="Networks under O(3)")
    curves.set_xticks(n, [f"{count:.0f}" for count in n])
    curves.minorticks_off()
    curves.legend()
    return picture
