"""Thomas et al. 2018, section 5.1: tensor field networks tell 8 Tetris shapes at every rotation, trained on one: 100 %.

Command: `python -m experiments run tetris --preset cpu` (a minute; expected: 100 %, and 87.5 % for the control).
Four cubes a shape, one orientation each to learn from, random rotations to test. Two shapes are mirror images: a
network whose outputs are true scalars cannot tell them apart and reaches 7/8 at most, one with pseudoscalars can. A
perceptron on coordinates knows no rotation.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.flatten_util import ravel_pytree

from equivariant import features, graph, tensor_field_network
from experiments.engine import style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from lie import so3

BIBTEX = """@misc{thomas2018tensor,
  author        = {Thomas, Nathaniel and Smidt, Tess and Kearnes, Steven and Yang, Lusann and Li, Li and
                   Kohlhoff, Kai and Riley, Patrick},
  title         = {Tensor field networks: Rotation- and translation-equivariant neural networks for {3D} point clouds},
  year          = {2018},
  eprint        = {1802.08219},
  archivePrefix = {arXiv},
  primaryClass  = {cs.LG}
}"""

SHAPES = {  # centres of the cubes
    "chiral 1": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)],
    "chiral 2": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, -1, 0)],
    "square": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
    "line": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)],
    "corner": [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)],
    "L": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)],
    "T": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1)],
    "zigzag": [(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)],
}
TIE = 1e-4  # of the largest score
MIRRORED = np.array([1, 0, 2, 3, 4, 5, 6, 7])  # what each shape is in a mirror
MODELS = {"odd": "with pseudoscalars", "even": "true scalars only", "plain": "perceptron on coordinates"}


@dataclass(frozen=True)
class Config:
    """The paper's network; presets change the length of training and the number of test rotations."""

    steps: int = 2000
    """Of Adam, on all 8 shapes at once."""
    blocks: int = 50
    """Evaluations on the way."""
    rotations: int = 1000
    """Random rotations of every shape in each evaluation."""
    rate: float = 0.01
    channels: int = 4
    layers: int = 3

    def __post_init__(self) -> None:
        for field in ("steps", "blocks", "rotations", "channels", "layers"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")


PRESETS = {
    "smoke": Config(steps=40, blocks=2, rotations=2),
    "cpu": Config(steps=600, blocks=30, rotations=50),
    "paper": Config(),
}


class State(NamedTuple):
    key: Array
    block: Array
    parameters: dict[str, Array]
    moments: dict[str, Any]


Metrics = dict[str, Array]


def shapes() -> Array:
    """Centred positions (8, 4, 3)."""
    x = np.array(list(SHAPES.values()), np.float32)
    return jnp.asarray(x - x.mean(axis=1, keepdims=True))


def build(config: Config, name: str, rngs: nnx.Rngs) -> nnx.Module:
    """A tensor field network with 8 outputs for each cube, true and pseudoscalar or true alone; or a perceptron."""
    if name == "plain":
        return nnx.Sequential(nnx.Linear(12, 64, rngs=rngs), nnx.silu, nnx.Linear(64, 8, rngs=rngs))
    parities = 2 if name == "odd" else 1
    return tensor_field_network.TensorFieldNetwork(
        layout_out=features.layout(0, len(SHAPES), parities), channels=config.channels, layers=config.layers, rngs=rngs
    )


def logits(model: Any, x: Array) -> Array:
    """(count, 8) class scores of shapes x (count, 4, 3): means over the cubes; a pseudoscalar adds to its class."""
    count, cubes, _ = x.shape
    if isinstance(model, nnx.Sequential):
        return model(x.reshape(count, -1))
    second, first = np.nonzero(~np.eye(cubes, dtype=bool))
    nodes = cubes * np.arange(count)[:, None]
    edges = graph.from_edges((nodes + first).ravel(), (nodes + second).ravel(), count * cubes)
    ones = jnp.ones((count * cubes, 1, 1, 1), x.dtype)
    scalars = model(ones, edges, x.reshape(-1, 3))[:, :, 0]
    return jnp.mean(jnp.sum(scalars, axis=1).reshape(count, cubes, -1), axis=1)


def _predictor(config: Config, name: str) -> Any:
    """predict(parameters, x), the parameters as one vector: some of the network's arrays are empty."""
    structure, shapes = nnx.split(nnx.eval_shape(lambda: build(config, name, nnx.Rngs(0))))
    _, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes))
    return lambda parameters, x: logits(nnx.merge(structure, unravel(parameters)), x)


def answers(scores: Array) -> Array:
    """1 for the class of the highest score; classes whose scores differ by rounding alone share the answer."""
    best = jnp.max(scores, axis=-1, keepdims=True)
    tied = (scores >= best - TIE * jnp.max(jnp.abs(scores))).astype(scores.dtype)
    return tied / jnp.sum(tied, axis=-1, keepdims=True)


def init(config: Config, key: Array) -> State:
    """Untrained networks, each from its own key."""
    key, *keys = jax.random.split(key, 1 + len(MODELS))
    parameters = {
        name: ravel_pytree(nnx.state(build(config, name, nnx.Rngs(params=one)), nnx.Param))[0]
        for name, one in zip(MODELS, keys, strict=True)
    }
    moments = {name: optax.adam(config.rate).init(values) for name, values in parameters.items()}
    return State(key, jnp.int32(0), parameters, moments)


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return config.blocks


def done(config: Config, state: State) -> bool:
    return int(state.block) >= config.blocks


def advance(config: Config, state: State) -> tuple[State, Metrics]:
    """Steps of every model on the 8 shapes as they stand, then what they say of rotated and of mirrored ones."""
    key, key_test = jax.random.split(state.key)
    x, labels = shapes(), jnp.arange(len(SHAPES))
    steps = math.ceil(config.steps / config.blocks)
    R = so3.sample((config.rotations,), jnp.float32, key=key_test)
    turn = lambda R: jnp.einsum("ij,scj->sci", R, x, precision=jax.lax.Precision.HIGHEST)
    parameters, all_moments = {}, {}
    metrics: Metrics = {"trained_steps": (state.block + 1) * steps}
    for name in MODELS:
        predict = _predictor(config, name)

        def loss(values: Any, predict: Any = predict) -> Array:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(predict(values, x), labels))

        def step(carry: Any, _: None, loss: Any = loss) -> tuple[Any, Array]:
            values, moments = carry
            error, gradient = jax.value_and_grad(loss)(values)
            updates, moments = optax.adam(config.rate).update(gradient, moments, values)
            return (optax.apply_updates(values, updates), moments), error

        start = state.parameters[name], state.moments[name]
        (values, moments), errors = jax.lax.scan(step, start, None, length=steps)
        parameters[name], all_moments[name] = values, moments
        still = predict(values, x)
        turned = jax.lax.map(lambda R, predict=predict, values=values: predict(values, turn(R)), R)
        mirrored = jax.lax.map(lambda R, predict=predict, values=values: predict(values, turn(-R)), R)
        confusion = jnp.mean(answers(turned), axis=0)
        metrics |= {
            f"{name}_loss": errors[-1],
            f"{name}_train_accuracy": jnp.mean((jnp.argmax(still, axis=-1) == labels).astype(jnp.float32)),
            f"{name}_test_accuracy": jnp.mean(jnp.diagonal(confusion)),
            f"{name}_confusion": confusion,
            f"{name}_change": jnp.max(jnp.abs(turned - still)) / jnp.max(jnp.abs(still)),
            f"{name}_mirror_accuracy": jnp.mean(answers(mirrored)[:, labels, MIRRORED]),
        }
    return State(key, state.block + 1, parameters, all_moments), metrics


def result(config: Config, metrics: dict[str, np.ndarray], state: State) -> Result:
    """Accuracies on rotated shapes beside the published 100 %, and what symmetry says must be."""
    last = {name: float(values[-1]) for name, values in metrics.items() if np.ndim(values) == 1}
    long_enough = config.steps >= PRESETS["cpu"].steps
    all_right = 100.0 if long_enough else -math.inf
    rows = [
        Row(
            "TFN with pseudoscalars, accuracy on rotated shapes (%)",
            100 * last["odd_test_accuracy"],
            100.0,
            "section 5.1",
            "verified",
            low=all_right,
        ),
        Row(
            "TFN with true scalars, accuracy on rotated shapes (%)",
            100 * last["even_test_accuracy"],
            87.5,
            "mirror images have equal scores",
            "analytic",
            low=87.5 - 1e-3 if long_enough else -math.inf,
            high=87.5 + 1e-3,
        ),
        Row("perceptron, accuracy on rotated shapes (%)", 100 * last["plain_test_accuracy"], high=100 * 7 / 8),
        Row("perceptron, accuracy on the shapes it learned (%)", 100 * last["plain_train_accuracy"], low=all_right),
        Row(
            "TFN with pseudoscalars, mirrored shapes named as mirrored (%)",
            100 * last["odd_mirror_accuracy"],
            100.0,
            "pseudoscalars change sign",
            "analytic",
            low=all_right,
        ),
    ]
    for name in ("odd", "even"):
        rows.append(Row(f"TFN {MODELS[name]}, largest relative change of a score", last[f"{name}_change"], high=1e-4))
    return Result(tuple(rows))


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """The shapes; accuracy while training; what each network calls the rotated shapes."""
    picture = style.figure(10.5, 4.9)
    parts: Any = picture.subfigures(2, 1, height_ratios=[1, 2.6])
    above, below = parts
    pieces = above.subplots(1, len(SHAPES), subplot_kw={"projection": "3d"})
    for k, (axes, (name, cubes)) in enumerate(zip(pieces, SHAPES.items(), strict=True)):
        at = np.array(cubes) - np.min(cubes, axis=0)
        filled = np.zeros(at.max(axis=0) + 1, bool)
        filled[tuple(at.T)] = True
        colour = style.COLOURS[1] if k < 2 else style.COLOURS[5]
        axes.voxels(filled, facecolors=colour, edgecolor="white", linewidth=0.5)
        axes.set(xlim=(0, 3), ylim=(0, 3), zlim=(0, 3))
        axes.set_box_aspect((1, 1, 1), zoom=1.5)
        axes.axis("off")
        axes.set_title(name, fontsize=8)
    curve, *maps = below.subplots(1, 4, width_ratios=[1.6, 1, 1, 1])
    step = metrics["trained_steps"][0]
    for name, colour in zip(MODELS, (style.COLOURS[0], style.COLOURS[1], style.COLOURS[2]), strict=True):
        values = 100 * metrics[f"{name}_test_accuracy"]
        curve.plot(step, np.median(values, axis=0), color=colour, label=MODELS[name])
        curve.fill_between(step, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    for height, text in ((100, "published"), (87.5, "most without chirality")):
        curve.axhline(height, color=style.PUBLISHED, linestyle=":", linewidth=1)
        curve.text(step[-1], height + 0.8, text, fontsize=7, color=style.PUBLISHED, ha="right")
    curve.set(xlabel="step", ylabel="accuracy on rotated shapes (%)", ylim=(0, 107))
    curve.legend(loc="center right")
    for axes, name in zip(maps, MODELS, strict=True):
        confusion = np.mean(metrics[f"{name}_confusion"][:, -1], axis=0)
        shown = axes.imshow(confusion, vmin=0, vmax=1, cmap="Blues")
        axes.set_xticks(range(len(SHAPES)), list(SHAPES), rotation=90, fontsize=7)
        axes.set_yticks(range(len(SHAPES)), list(SHAPES) if name == "odd" else [""] * len(SHAPES), fontsize=7)
        axes.set_title(MODELS[name], fontsize=8)
        axes.set_xlabel("called")
        if name == "odd":
            axes.set_ylabel("is")
    below.colorbar(shown, ax=maps, shrink=0.6, label="share of rotations")
    return picture
