"""The measure of equivariance: exact maps pass in eps, broken ones show their known error, words are held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant import equivariance
from lie import harmonics, wigner

error = equivariance.equivariance_error
X = jax.random.normal(jax.random.key(0), (5, 3), jnp.float32)


def test_a_map_that_commutes_passes_to_a_few_eps_in_each_dtype():
    report = error(lambda x: x * jnp.sum(x * x, -1, keepdims=True), X, inputs="vectors", outputs="vectors",
                   dtypes=(jnp.bfloat16, jnp.float32, jnp.float64))  # fmt: skip
    for name, largest in report.by_dtype().items():
        assert largest < 16 * float(jnp.finfo(name).eps), report
    assert report.error == report.by_dtype()["bfloat16"]
    assert "float64" in str(report)
    assert str(report).count("\n") == 4


def test_a_map_that_does_not_commute_shows_by_how_much():
    """f(x) = x + e is off by |e − R e| <= 2 |e|, and R runs through the group: the largest nears 2 |e| / max |f|."""
    offset = jnp.asarray([0.0, 0.5, 0.0], jnp.float32)
    report = error(lambda x: x + offset, X, inputs="vectors", outputs="vectors", samples=200)
    gap = report.error * report.rows[0].scale
    assert 0.9 < gap <= 1.0 + 1e-6
    assert report.rows[0].scale == float(jnp.max(jnp.abs(X + offset)))


@pytest.mark.parametrize(("group", "passes"), [("SO3", True), ("O3", False)])
def test_only_reflections_tell_a_cross_product_from_a_vector(group, passes):
    cross = lambda x: jnp.cross(x[:-1], x[1:])
    report = error(cross, X, group, inputs="vectors", outputs="vectors", samples=6)
    assert (report.error < 1e-6) == passes
    assert error(cross, X, group, inputs="vectors", outputs="pseudovectors", samples=6).error < 1e-6
    triple = lambda x: jnp.linalg.det(x[:3])[None]
    assert (error(triple, X, group, inputs="vectors", outputs="scalars", samples=6).error < 1e-6) == passes
    assert error(triple, X, group, inputs="vectors", outputs="pseudoscalars", samples=6).error < 1e-5


@pytest.mark.parametrize(("group", "passes"), [("O3", True), ("E3", False), ("SE3", False)])
def test_translations_belong_to_the_euclidean_groups(group, passes):
    report = error(lambda x: x * 2, X, group, inputs="positions", outputs="positions", samples=3)
    assert (report.error < 1e-6) == passes  # 2 (x + t) is not 2 x + t
    centred = lambda x: x + jnp.mean(x, axis=0)  # (x + t) + mean + t is not either; but x − mean is a vector
    assert (error(centred, X, group, inputs="positions", outputs="positions", samples=3).error < 1e-6) == passes
    relative = lambda x: x - jnp.mean(x, axis=0)
    assert error(relative, X, group, inputs="positions", outputs="vectors", samples=3).error < 1e-5


def test_features_with_pseudo_tensors_matrices_and_structures():
    """Harmonics are true features; multiplied by a triple product they are pseudo; x xᵀ turns on both sides."""

    def model(arguments, count):
        x = arguments["x"]
        Y = harmonics.evaluate(x, 3)[:, None, :, None]
        features = jnp.concatenate([Y, Y * jnp.linalg.det(x[:3])], axis=1)
        return {"features": features, "stress": x[:, :, None] * x[:, None, :], "count": count}

    words = {"features": "features", "stress": "matrices"}
    report = error(model, ({"x": X}, jnp.arange(3)), inputs=({"x": "vectors"}, None), outputs=words, samples=4)
    assert report.error < 1e-5, report
    assert {row.output for row in report.rows} == {"output['features']", "output['stress']", "output['count']"}


def test_irreps_arrays_need_no_word_and_irreps_may_be_words():
    e3nn_jax = pytest.importorskip("e3nn_jax")
    x = e3nn_jax.normal("2x0e + 1o + 1e + 2x2o + 0o", jax.random.key(1), (4,), dtype=jnp.float32)
    square = lambda x: e3nn_jax.tensor_product(x, x)
    assert error(square, x, samples=4).error < 1e-6
    flat = lambda a: square(e3nn_jax.IrrepsArray(x.irreps, a)).array
    irreps = str(square(x).irreps)
    assert error(flat, x.array, inputs=str(x.irreps), outputs=irreps, samples=4).error < 1e-6
    wrong = irreps.replace("0e", "0o", 1)
    assert error(flat, x.array, inputs=str(x.irreps), outputs=wrong, samples=4).error > 0.1


def test_a_subgroup_or_an_action_of_ones_own():
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    cube = lambda x: x**3  # commutes with signed permutations of the axes alone
    assert error(cube, X, np.stack([turn, -turn]), inputs="vectors", outputs="vectors").error < 1e-6
    assert error(cube, X, inputs="vectors", outputs="vectors", samples=3).error > 1e-2
    D = lambda element, Y: Y @ np.asarray(wigner.d(jnp.asarray(element.matrix), 2)).T
    degree_2 = lambda x: harmonics.evaluate(x, 2)[:, 4:]
    assert error(degree_2, X, inputs="vectors", outputs=D, samples=3).error < 1e-6


def test_a_result_without_axes():
    assert error(lambda x: jnp.sum(x * x), X, inputs="vectors", outputs="scalars", samples=3).error < 1e-6


def test_nan_is_reported_not_swallowed():
    report = error(lambda x: x / 0, X, inputs="vectors", outputs="vectors", samples=3)
    assert np.isnan(report.error)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"inputs": None}, TypeError, r"argument\[0\]: expected a word"),
        ({"outputs": None}, TypeError, "output: expected a word"),
        ({"inputs": "features"}, ValueError, r"argument\[0\]: expected features"),
        ({"inputs": "matrices"}, ValueError, r"argument\[0\]: expected shape"),
        ({"inputs": "sclars"}, ValueError, r"argument\[0\]: expected 'scalars'"),
        ({"inputs": "4x1o"}, ValueError, r"argument\[0\]: expected shape \(..., 12\)"),
        ({"group": "O4"}, ValueError, "group: expected"),
        ({"group": np.ones((2, 3, 3))}, ValueError, "group: expected orthogonal"),
        ({"samples": 0}, ValueError, "samples"),
        ({"example": jnp.arange(3)}, TypeError, "example: expected at least one"),
    ],
)
def test_bad_input_is_named(change, kind, message):
    good = {"example": X, "inputs": "vectors", "outputs": "vectors", "samples": 2}
    with pytest.raises(kind, match=message):
        error(lambda x: x, **(good | change))
