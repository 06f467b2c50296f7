"""Zhou et al. 2019, sanity test: networks learn rotations to a few degrees in 5, 6 or 9 numbers, not in 3 or 4.

Command: `python -m experiments run rotations --preset cpu` (2 minutes a seed; expected: largest error below 10 degrees
for 5-D, 6-D and 9-D with SVD, above 90 for quaternion, axis and angle, Euler). Beside it Levinson et al. 2020: SVD
halves the noise of Gram-Schmidt, E|R' - R|² = 3 σ² against 6 σ²; derivatives where singular values meet; and a head
that predicts a whole matrix Fisher law, calibrated on targets whose noise depends on the rotation.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.engine import style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Certainty, Result, Row
from experiments.simulators import degenerate
from lie import charts, densities, so3

BIBTEX = """@inproceedings{zhou2019continuity,
  author    = {Zhou, Yi and Barnes, Connelly and Lu, Jingwan and Yang, Jimei and Li, Hao},
  title     = {On the continuity of rotation representations in neural networks},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages     = {5745--5753},
  year      = {2019}
}"""


def _svd(x: Array) -> Array:
    return charts.matrix_from_svd(x.reshape(*x.shape[:-1], 3, 3))


def _axis_angle(x: Array) -> Array:
    """The angle π tanh(x_0), as in the paper's program, about the axis of the other three."""
    return charts.matrix_from_axis_angle(x[..., 1:], math.pi * jnp.tanh(x[..., 0]))


class Head(NamedTuple):
    """How many numbers a network gives, the rotation they stand for, and what the paper reports in degrees."""

    label: str
    size: int
    matrix: Callable[[Array], Array]
    published: tuple[float, float, float] | None  # mean, max, standard deviation; from memory
    continuous: bool


HEADS = {
    "sixd": Head("6-D", 6, charts.matrix_from_6d, (0.49, 1.98, 0.27), True),
    "fived": Head("5-D", 5, charts.matrix_from_5d, (0.49, 1.99, 0.27), True),
    "svd": Head("9-D, SVD", 9, _svd, None, True),
    "quaternion": Head("quaternion", 4, charts.matrix_from_quaternion, (3.32, 179.93, 5.97), False),
    "axis_angle": Head("axis, angle", 4, _axis_angle, (3.69, 179.22, 5.99), False),
    "euler": Head("Euler", 3, charts.matrix_from_euler, (6.98, 179.95, 17.31), False),
}
FISHER = "fisher"  # the network whose 9 numbers are the parameter of a law
SPREAD = np.array([2.0, 1.0, 0.25])  # singular values of the true law's parameter, times the concentration
FISHER_SCALE = 20.0  # of the head's numbers: concentrations reach 200
DRAWS, DISPERSIONS = 99, 4  # from each predicted law; groups of targets, from dispersed to concentrated

MAY_NOT_BE_FINITE = ("textbook_jacobian_norm", "textbook_jacobian_error")
SIGMAS = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0)
LABELS = {"svd": "SVD", "gram_schmidt": "Gram-Schmidt"}
LAW = {"svd": 3.0, "gram_schmidt": 6.0}  # E|R' - R|²/σ² as σ -> 0
CALIBRATED = {  # by another implementation, 200 000 draws
    "svd": {0.01: 3.000, 0.1: 3.006, 0.5: 3.459, 1.0: 2.832},
    "gram_schmidt": {0.01: 6.011, 0.1: 6.028, 0.5: 6.563, 1.0: 3.663},
}

THRESHOLDS = np.geomspace(0.01, 180, 80)  # degrees


@dataclass(frozen=True)
class Config:
    """Sizes of the training and of the simulations; defaults are the paper's."""

    heads: tuple[str, ...] = tuple(HEADS)
    steps: int = 500_000
    """Of Adam, every one on new rotations, the same for all heads."""
    blocks: int = 100
    batch: int = 64
    hidden: int = 128
    rate: float = 1e-5
    schedule: Literal["drop", "cosine"] = "drop"
    """A tenth of the rate after 10 000 steps, as in the paper; or a cosine down to 0."""
    tests: int = 100_000
    """Rotations in each evaluation of the heads."""
    calibrations: int = 20_000
    """Targets for which the law of the Fisher head is checked; 0: no such head."""
    draws: int = 4_000_000
    """Noisy matrices for each σ of Levinson's law."""
    matrices: int = 64
    """Whose derivative is looked at, for each distance from a degenerate one."""

    def __post_init__(self) -> None:
        for field in ("steps", "blocks", "batch", "hidden", "tests", "draws", "matrices"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")
        if self.calibrations < 0:
            raise Refused(f"calibrations: expected at least 0, got {self.calibrations}")
        if not set(self.heads) <= set(HEADS) or {HEADS[name].continuous for name in self.heads} != {True, False}:
            raise Refused(f"heads: expected continuous and other ones of {', '.join(HEADS)}, got {self.heads}")


PRESETS = {
    "smoke": Config(("sixd", "quaternion"), 40, 2, 64, 32, 1e-3, "cosine", 500, 0, 20_000, 2),
    "cpu": Config(steps=20_000, blocks=10, rate=1e-3, schedule="cosine", calibrations=5000, draws=500_000, matrices=16),
    "paper": Config(),
}

Layers = list[tuple[Array, Array]]


class State(NamedTuple):
    """Networks by head, their optimiser, and norms and errors of derivatives, found once."""

    key: Array
    block: Array
    networks: dict[str, Layers]
    moments: Any
    derivatives: dict[str, Array]


Metrics = dict[str, Array]


def network(layers: Layers, R: Array) -> Array:
    """A perceptron on the nine entries of R with leaky rectifiers."""
    x = R.reshape(*R.shape[:-2], 9)
    for weight, bias in layers[:-1]:
        x = jax.nn.leaky_relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def predicted_law(layers: Layers, R: Array) -> densities.MatrixFisher:
    """The matrix Fisher law whose parameter the network gives."""
    F = FISHER_SCALE * network(layers, R)
    return densities.MatrixFisher(F.reshape(*F.shape[:-1], 3, 3))


def true_law(R: Array) -> densities.MatrixFisher:
    """Noise about R, three times as wide in one direction as in another, κ = 4 where R turns z over, 100 where not."""
    kappa = 20 * 5 ** R[..., 2, 2]
    return densities.MatrixFisher(R * (kappa[..., None] * SPREAD.astype(R.dtype))[..., None, :])


def losses(networks: dict[str, Layers], R: Array, target: Array) -> Array:
    """Sum over the heads of E|R' - R|², and of −log p(target) for the law: they share nothing but the sum."""
    total = jnp.zeros((), R.dtype)
    for name, layers in networks.items():
        if name == FISHER:
            total = total - jnp.mean(predicted_law(layers, R).log_prob(target))
        else:
            difference = HEADS[name].matrix(network(layers, R)) - R
            total = total + jnp.mean(jnp.sum(difference * difference, axis=(-2, -1)))
    return total


def _optimizer(config: Config) -> optax.GradientTransformation:
    if config.schedule == "cosine":
        return optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))
    return optax.adam(optax.piecewise_constant_schedule(config.rate, {10_000: 0.1}))


def init(config: Config, key: Array) -> State:
    """Untrained networks; derivatives of three projections near degenerate matrices."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    sizes = {name: HEADS[name].size for name in config.heads} | ({FISHER: 9} if config.calibrations else {})
    networks = {}
    for name, size in sizes.items():
        layers = []
        for a, b in itertools.pairwise((9, config.hidden, config.hidden, config.hidden, size)):
            weight = rng.standard_normal((a, b), np.float32) * np.float32(math.sqrt(2 / a))
            layers.append((jnp.asarray(weight), jnp.zeros(b, jnp.float32)))
        networks[name] = layers
    derivatives = {
        name: jnp.asarray(value, jnp.float32) for name, value in degenerate.measure(config.matrices, rng).items()
    }
    return State(key, jnp.int32(0), networks, _optimizer(config).init(networks), derivatives)


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return config.blocks


def done(config: Config, state: State) -> bool:
    return int(state.block) >= config.blocks


def advance(config: Config, state: State) -> tuple[State, Metrics]:
    """Steps of all networks on the same rotations, a test on others, and a share of the noisy matrices."""
    key, key_rotation, key_target, key_draws, key_noise = jax.random.split(state.key, 5)
    steps = math.ceil(config.steps / config.blocks)
    counts = steps * config.batch, config.calibrations, config.tests
    R = so3.sample((sum(counts),), jnp.float32, key=key_rotation)
    R, R_test = jnp.split(R, [sum(counts[:2])])
    target = true_law(R).sample(key=key_target) if config.calibrations else R
    (R, R_calibration), (target, target_calibration) = (jnp.split(x, [counts[0]]) for x in (R, target))

    def step(carry: Any, pair: tuple[Array, Array]) -> tuple[Any, None]:
        networks, moments = carry
        updates, moments = _optimizer(config).update(jax.grad(losses)(networks, *pair), moments, networks)
        return (optax.apply_updates(networks, updates), moments), None

    batched = lambda x: x.reshape(steps, config.batch, 3, 3)
    (networks, moments), _ = jax.lax.scan(step, (state.networks, state.moments), (batched(R), batched(target)))
    metrics: Metrics = {"trained_steps": (state.block + 1) * steps}
    predicted = {name: HEADS[name].matrix(network(networks[name], R_test)) for name in config.heads}
    if config.calibrations:
        predicted[FISHER] = predicted_law(networks[FISHER], R_test).mode
        metrics |= calibration(networks[FISHER], R_calibration, target_calibration, key_draws)
    metrics |= errors(predicted, R_test)
    metrics |= noise_law(math.ceil(config.draws / config.blocks), key_noise)
    metrics |= state.derivatives
    return State(key, state.block + 1, networks, moments, state.derivatives), metrics


def errors(predicted: dict[str, Array], R: Array) -> Metrics:
    """Mean, largest and standard deviation of the angle between two rotations, and the share above each threshold."""
    degrees = jnp.degrees(so3.distance(R, jnp.stack(list(predicted.values()))))
    above = degrees[..., None] > jnp.asarray(THRESHOLDS, degrees.dtype)
    found = {
        "mean_degrees": jnp.mean(degrees, axis=1),
        "max_degrees": jnp.max(degrees, axis=1),
        "sd_degrees": jnp.std(degrees, axis=1),
        "share_above": jnp.mean(above.astype(jnp.float32), axis=1),
    }
    return {f"{name}_{what}": values[k] for what, values in found.items() for k, name in enumerate(predicted)}


def ranks(law: densities.MatrixFisher, target: Array, key: Array) -> tuple[Array, Array]:
    """log p(target), and how many of 99 draws from `law` are less probable: uniform on 0..99 if the law is right.

    At least 5 of them: the target lies in the law's region of highest density, of probability 95 %.
    """
    draws = law.sample((DRAWS,), key=key)
    log_prob = law.log_prob(jnp.concatenate([target[None], draws]))
    return log_prob[0], jnp.sum((log_prob[1:] < log_prob[0]).astype(jnp.int32), axis=0)


def calibration(layers: Layers, R: Array, target: Array, key: Array) -> Metrics:
    """Divergence of the predicted law from the true one, coverage of its 95 % region, and the histogram of ranks."""
    log_prob, rank = ranks(predicted_law(layers, R), target, key)
    group = jnp.minimum((R[:, 2, 2] + 1) / 2 * DISPERSIONS, DISPERSIONS - 1).astype(jnp.int32)
    of_group = jax.nn.one_hot(group, DISPERSIONS, dtype=jnp.float32)
    covered = (rank >= 5).astype(jnp.float32)
    return {
        "fisher_divergence_nats": jnp.mean(true_law(R).log_prob(target) - log_prob),
        "fisher_coverage": jnp.mean(covered),
        "fisher_group_coverage": jnp.sum(covered[:, None] * of_group, axis=0) / jnp.sum(of_group, axis=0),
        "fisher_rank_share": jnp.mean(jax.nn.one_hot(rank // 5, 20, dtype=jnp.float32), axis=0),
    }


def noise_law(draws: int, key: Array) -> Metrics:
    """Mean and mean square of |R' - R|²/σ² for R' from R + σ N, N standard normal, by each σ; any R, so R = I."""
    R, sigma = so3.identity((), jnp.float32), jnp.asarray(SIGMAS, jnp.float32)[:, None]
    M = R + sigma[..., None, None] * jax.random.normal(key, (len(SIGMAS), draws, 3, 3), jnp.float32)
    found = {}
    for name, projected in (("svd", charts.matrix_from_svd(M)), ("gram_schmidt", degenerate.gram_schmidt(M))):
        ratio = jnp.sum((projected - R) ** 2, axis=(-2, -1)) / sigma**2
        found[f"{name}_law_moments"] = jnp.stack([jnp.mean(ratio, axis=1), jnp.mean(ratio * ratio, axis=1)], axis=-1)
    return found


def result(config: Config, metrics: dict[str, np.ndarray], state: State) -> Result:
    """The noise law, the table of errors, the calibration of the predicted law, and derivatives."""
    last = {name: values[-1] for name, values in metrics.items()}
    long_enough = config.steps >= PRESETS["cpu"].steps
    many, trained = (1.0 if enough else math.inf for enough in (config.draws >= PRESETS["cpu"].draws, long_enough))
    rows = []
    for name in config.heads:
        head = HEADS[name]
        bound = {"high": 10 * trained} if head.continuous else {"low": 90 / trained}
        for k, what in enumerate(("mean", "max", "sd")):
            published = (head.published[k], "sanity test", "memory") if head.published else (None, "", "")
            gate = bound if what == "max" else {}
            rows.append(
                Row(f"{head.label}, {what} error (°)", float(last[f"{name}_{what}_degrees"]), *published, **gate)
            )
    means = {name: float(last[f"{name}_mean_degrees"]) for name in config.heads}
    worst = max(means[name] for name in config.heads if HEADS[name].continuous)
    best = min(means[name] for name in config.heads if not HEADS[name].continuous)
    rows.append(Row("largest mean error of 5, 6, 9 numbers / smallest of 3 or 4", worst / best, high=trained))
    if config.calibrations:
        rows += calibration_rows(config, last, trained)
    return Result((*rows, *law_rows(metrics, 0.02 * many), *derivative_rows(last)))


def law_rows(metrics: dict[str, np.ndarray], tolerance: float) -> list[Row]:
    """E|R' − R|²/σ² for each σ: beside the law where σ is small, beside another implementation's values elsewhere."""
    rows = []
    for name, label in LABELS.items():
        ratios = np.mean(metrics[f"{name}_law_moments"], axis=0)[:, 0]
        for sigma, ratio in zip(SIGMAS, ratios, strict=True):
            text, aim, known = f"{label}, E|R′ − R|²/σ² at σ = {sigma:g}", LAW[name], CALIBRATED[name].get(sigma)
            if sigma <= 0.1:
                gate = (1 - tolerance) * aim, (1 + tolerance) * aim
                rows.append(Row(text, float(ratio), aim, "Levinson et al. 2020, σ → 0", "analytic", *gate))
            elif known:
                rows.append(Row(text, float(ratio), known, "another implementation", "calibrated"))
            else:
                rows.append(Row(text, float(ratio)))
    return rows


def calibration_rows(config: Config, last: dict[str, np.ndarray], trained: float) -> list[Row]:
    """How far the Fisher head's law is from the true one; coverage of its 95 % regions."""
    groups = 100 * last["fisher_group_coverage"]
    furthest = float(groups[np.argmax(np.abs(groups - 95))])
    gate = 95 - 2 * trained, 95 + 2 * trained
    noise = 4 * math.sqrt(95 * 5 * DISPERSIONS / config.calibrations)  # standard errors of one group
    wider = gate[0] - noise, gate[1] + noise
    exact: tuple[str, Certainty] = ("exact", "analytic")
    return [
        Row("Fisher head, divergence from the true law (nats)", float(last["fisher_divergence_nats"]), 0, *exact),
        Row("Fisher head, coverage of its 95 % region (%)", 100 * float(last["fisher_coverage"]), 95, *exact, *gate),
        Row("Fisher head, the same furthest from 95 in four groups by noise (%)", furthest, 95, *exact, *wider),
        Row("Fisher head, mean error of its mode, trained on noise (°)", float(last["fisher_mean_degrees"])),
    ]


def derivative_rows(last: dict[str, np.ndarray]) -> list[Row]:
    """Finite where the map is smooth, right to rounding, and as large as it must be where the map is not."""
    repeated, flat, parallel = range(len(degenerate.KINDS))
    error, epsilon, middle = last["ours_jacobian_error"], float(np.finfo(np.float32).eps), degenerate.GAPS.index(1e-3)
    of_condition = [error[flat, k] * gap / epsilon for k, gap in enumerate(degenerate.GAPS) if 1e-5 <= gap < 1]
    textbook = float(last["textbook_jacobian_error"][repeated, degenerate.GAPS.index(1e-5)])
    ours, other = (last[f"{name}_jacobian_norm"][:, middle] for name in ("ours", "gram_schmidt"))
    limit = 2.0, "limit of small gaps", "analytic", 1.98, 2.02
    return [
        Row("derivative of a textbook SVD at the identity, finite share", float(last["textbook_finite_at_identity"])),
        Row("derivative of ours at the identity, finite share", float(last["ours_finite_at_identity"]), low=1.0),
        Row("textbook SVD, s₁ − s₂ = 1e-5: largest relative error of J", textbook),
        Row("ours, s₁ − s₂ from 1 to 0: largest relative error of J", float(error[repeated].max()), high=1e-5),
        Row("ours, s₂ + s₃ down to 1e-5: largest error of J / (eps / gap)", float(max(of_condition)), high=16.0),
        Row("ours, s₂ + s₃ = 1e-3: |J| gap", float(ours[flat] * 1e-3), *limit),
        Row("Gram-Schmidt, columns at 1e-3 rad: |J| angle", float(other[parallel] * 1e-3), *limit),
        Row("ours, the same matrices: |J|", float(ours[parallel]), high=4.0),
    ]


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """Noise law, errors of the heads, their tails; derivatives near degenerate matrices, ranks of the Fisher head."""
    picture = style.figure(10.5, 6.4)
    parts: Any = picture.subfigures(2, 1)
    law, table, tails = parts[0].subplots(1, 3, width_ratios=[1, 1.25, 1.1])
    draw_law(law, metrics)
    draw_errors(table, tails, metrics)
    *derivatives, histogram = parts[1].subplots(1, 4)
    for k, axes in enumerate(derivatives):
        draw_derivatives(axes, metrics, k)
    if "fisher_rank_share" in metrics:
        draw_ranks(histogram, 100 * metrics["fisher_rank_share"][:, -1])
    else:
        histogram.axis("off")
    return picture


def draw_ranks(axes: "style.Axes", share: np.ndarray) -> None:
    """The `share` (seeds, 20) of targets in percent, by rank among draws from their predicted laws: median, range."""
    middle = np.median(share, axis=0)
    spread = np.abs(np.stack([share.min(axis=0), share.max(axis=0)]) - middle)
    at = 2.5 + 5 * np.arange(20)
    axes.bar(at, middle, width=4.4, color=style.COLOURS[0], alpha=0.8, yerr=spread, error_kw={"elinewidth": 0.8})
    axes.axhline(5, color=style.PUBLISHED, linestyle=":")
    axes.text(50, 1.08 * share.max(), "dotted: calibrated", fontsize=7, color=style.PUBLISHED, ha="center")
    axes.set(xlabel="draws less probable (%)", ylabel="targets (%)", xlim=(0, 100), ylim=(0, 1.2 * share.max()))
    axes.set_title("Matrix Fisher head")


def draw_law(axes: "style.Axes", metrics: dict[str, np.ndarray]) -> None:
    """E|R' − R|²/σ² by σ, with its limits and another implementation's values."""
    for (name, label), colour in zip(LABELS.items(), style.COLOURS, strict=False):
        ratio = np.mean(metrics[f"{name}_law_moments"], axis=(0, 1))[:, 0]
        axes.plot(SIGMAS, ratio, "o-", color=colour, markersize=4, label=label)
        axes.axhline(LAW[name], color=style.PUBLISHED, linestyle=":", linewidth=1)
        known = CALIBRATED[name]
        label = "another implementation" if name == "svd" else None
        axes.plot(list(known), list(known.values()), "s", color=style.PUBLISHED, fillstyle="none", label=label)
    axes.set(xscale="log", xlabel="noise σ of each entry", ylabel="E|R′ − R|² / σ²", ylim=(0, 8.6))
    axes.set_title("Noise left by projection; law: 3, 6")
    axes.legend(loc="upper left", fontsize=7)


def draw_errors(table: "style.Axes", tails: "style.Axes", metrics: dict[str, np.ndarray]) -> None:
    """Mean and largest error of each head beside the published ones, and the share of rotations above each error."""
    names = [name for name in HEADS if f"{name}_mean_degrees" in metrics]
    for k, name in enumerate(names):
        head, colour = HEADS[name], style.COLOURS[k]
        for column, (what, marker) in enumerate((("mean", "o"), ("max", "^"))):
            found = metrics[f"{name}_{what}_degrees"][:, -1]
            table.plot(found, np.full_like(found, k), marker, color=colour, markersize=5)
            if head.published:
                table.plot(head.published[column], k + 0.28, marker, color=style.PUBLISHED, mfc="none", markersize=5)
        share = np.median(metrics[f"{name}_share_above"][:, -1], axis=0)
        tails.plot(THRESHOLDS, np.where(share > 0, share, np.nan), color=colour, label=head.label)
    for marker, colour, label in (
        ("o", "k", "mean"),
        ("^", "k", "largest"),
        ("s", style.PUBLISHED, "published (memory)"),
    ):
        table.plot([], [], marker, color=colour, mfc="none", markersize=5, label=label)
    table.set_yticks(range(len(names)), [HEADS[name].label for name in names])
    table.set(xscale="log", xlabel="error (degrees)", ylim=(len(names) - 0.4, -1.1), xlim=(0.1, 400))
    table.legend(loc="upper center", ncols=3, fontsize=7, columnspacing=0.8, handletextpad=0.1)
    table.set_title("Heads on new rotations")
    tails.set(xscale="log", yscale="log", xlabel="error (degrees)", ylabel="share of rotations above", xlim=(0.01, 200))
    tails.set_title("Their tails")
    tails.legend(fontsize=7, loc="lower left")


def draw_derivatives(axes: "style.Axes", metrics: dict[str, np.ndarray], kind: int) -> None:
    """Relative error of J where the map is smooth, its norm where it is not; 0 stands at the left end."""
    x = np.array([gap or degenerate.GAPS[-2] / 10 for gap in degenerate.GAPS])
    what, top = ("error", 3.0) if kind == 0 else ("norm", 3e8)
    lines = {
        "textbook": ("SVD, textbook", 1, "v"),
        "ours": ("SVD, ours", 0, "o"),
        "gram_schmidt": ("Gram-Schmidt", 2, "s"),
    }
    for name, (label, colour, marker) in lines.items():
        if f"{name}_jacobian_{what}" in metrics:
            y = np.max(metrics[f"{name}_jacobian_{what}"][:, -1, kind], axis=0)
            finite = np.where(np.isfinite(y), y, np.nan)
            axes.plot(x, finite, marker + "-", color=style.COLOURS[colour], markersize=3.5, label=label)
            label = "not finite" if (name, kind) == ("textbook", 0) else None
            axes.plot(x, np.where(np.isfinite(y), np.nan, top), "x", color=style.COLOURS[colour], label=label)
    if kind > 0:
        axes.plot(x[:-1], 2 / x[:-1], ":", color=style.PUBLISHED, label="2 / gap", zorder=0)
    gap = list(degenerate.KINDS.values())[kind]
    axes.set(
        xscale="log", yscale="log", xlabel=gap, ylabel="|J|, Frobenius" if kind else "relative error of J (float32)"
    )
    axes.set_xticks([1e-8, 1e-6, 1e-4, 1e-2, 1], ["0", "$10^{-6}$", "$10^{-4}$", "$10^{-2}$", "1"])
    axes.minorticks_off()
    axes.set_title(("Singular values meet", "No nearest rotation", "Columns become parallel")[kind])
    if kind != 1:
        axes.legend(fontsize=7)
