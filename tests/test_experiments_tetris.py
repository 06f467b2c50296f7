"""The Tetris experiment: its shapes, what rotations and mirrors do to scores, and how ties are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from experiments import thomas2018_tetris as tetris
from experiments.engine import exits
from lie import so3


def _distances(x):
    return np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1).ravel())


def test_shapes_are_eight_and_only_the_chiral_pair_are_mirror_images():
    x = np.asarray(tetris.shapes())
    assert x.shape == (8, 4, 3)
    assert_allclose(x.mean(axis=1), 0, atol=1e-6)
    alike = [(i, j) for i in range(8) for j in range(i) if np.allclose(_distances(x[i]), _distances(x[j]), atol=1e-6)]
    assert alike == [(1, 0)]
    assert_allclose(x[0] * [1, -1, 1], x[1], atol=1e-6)
    volume = [np.linalg.det(shape[1:] - shape[0]) for shape in x[:2]]
    assert_allclose(volume[0], -volume[1])
    assert abs(volume[0]) > 0.5


@pytest.mark.parametrize("name", [pytest.param("odd", marks=pytest.mark.slow), "even"])
def test_scores_ignore_rotations_and_only_pseudoscalars_see_mirrors(name):
    model = tetris.build(tetris.Config(), name, nnx.Rngs(0))
    parameters = nnx.state(model, nnx.Param)  # at their first values the pseudoscalars vanish
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(parameters))))
    nnx.update(model, jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape, a.dtype), parameters))
    x = tetris.shapes()
    R = so3.sample((), jnp.float32, key=jax.random.key(1))
    still, turned, mirrored = jax.jit(lambda *xs: [tetris.logits(model, a) for a in xs])(x, x @ R.T, -x @ R.T)
    scale = float(jnp.max(jnp.abs(still)))
    assert_allclose(turned, still, atol=1e-4 * scale)
    apart = float(jnp.max(jnp.abs(still[0] - still[1]))) / scale
    if name == "even":
        assert_allclose(mirrored, still, atol=1e-4 * scale)
        assert apart < 3e-6  # rounding
    else:
        assert_allclose(mirrored, still[tetris.MIRRORED], atol=1e-4 * scale)
        assert apart > 3e-5  # small where nothing has been learned, but no rounding


def test_ties_share_the_answer():
    scores = jnp.asarray([[1.0, 0.5, 0.0], [2.0, 2.0 - 1e-6, -1.0]])
    assert_allclose(tetris.answers(scores), [[1, 0, 0], [0.5, 0.5, 0]])


def test_nonsense_is_refused():
    with pytest.raises(exits.Refused, match="steps"):
        tetris.Config(steps=0)


@pytest.mark.slow
def test_cpu_preset_reaches_every_gate():
    config = tetris.PRESETS["cpu"]
    state = tetris.init(config, jax.random.key(7))
    advance = jax.jit(lambda state: tetris.advance(config, state))
    lines = []
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a Python float to an integer power
        while not tetris.done(config, state):
            state, metrics = advance(state)
            lines.append(metrics)
    metrics = {name: np.stack([np.asarray(line[name]) for line in lines]) for name in lines[0]}
    for row in tetris.result(config, metrics, state).rows:
        assert row.low <= row.value <= row.high, row
