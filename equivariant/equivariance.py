"""How far any model is from commuting with a group: max |f(Dx) − D f(x)| / max |f(x)| over random elements.

Inputs and outputs are rotated in float64, on the host; the model runs in its own dtype. What is reported is thus the
model's own error and the rounding of its input, not that of the rotation.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array
from numpy.typing import ArrayLike

from lie import so3, wigner

Act = Callable[["Element", np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Element:
    """x -> R x + t: `matrix` (3, 3) with determinant ±1 and `translation` (3,), both float64."""

    matrix: np.ndarray
    translation: np.ndarray

    def determinant(self) -> float:
        """+1 or −1."""
        return float(np.sign(np.linalg.det(self.matrix)))

    def representation(self, max_degree: int) -> np.ndarray:
        """D_0, ..., D_L of the matrix on the diagonal, float64, det^l within D_l: acts on true tensors."""
        with jax.enable_x64(True):
            return np.asarray(wigner.d_all(jnp.asarray(self.matrix), max_degree))

    def __str__(self) -> str:
        sign = self.determinant()
        angle = np.degrees(np.arccos(np.clip((np.trace(sign * self.matrix) - 1) / 2, -1, 1)))
        return f"rotation by {angle:.0f}°" + ("" if sign > 0 else ", reflected")


@dataclass(frozen=True)
class Row:
    """One output in one dtype: the worst relative `error`, max |f(x)|, and the element where the worst was met."""

    dtype: str
    output: str
    error: float
    scale: float
    worst: Element


@dataclass(frozen=True)
class Report:
    """What `equivariance_error` found. `error` is the largest of all rows; NaN if any output was not finite."""

    group: str
    elements: int
    rows: tuple[Row, ...]

    @property
    def error(self) -> float:
        """The largest relative error of any output in any dtype."""
        return float(np.max([row.error for row in self.rows]))

    def by_dtype(self) -> dict[str, float]:
        """The largest relative error of each dtype."""
        names = dict.fromkeys(row.dtype for row in self.rows)
        return {name: float(np.max([row.error for row in self.rows if row.dtype == name])) for name in names}

    def __str__(self) -> str:
        title = f"{self.group}, {self.elements} elements: max |f(Dx) − D f(x)| / max |f(x)|"
        cells = [("dtype", "output", "error", "in eps", "max |f(x)|", "worst at")]
        for row in self.rows:
            steps = row.error / float(jnp.finfo(row.dtype).eps)
            cells.append(
                (row.dtype, row.output, f"{row.error:.2e}", f"{steps:.1f}", f"{row.scale:.3g}", f"{row.worst}")
            )
        widths = [max(len(line[k]) for line in cells) for k in range(6)]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join([title, *(line.rstrip() for line in lines)])


def equivariance_error(
    model: Callable[..., Any],
    example: Any,
    group: str | np.ndarray = "O3",
    *,
    inputs: Any = None,
    outputs: Any = None,
    dtypes: Sequence[DTypeLike] | None = None,
    samples: int = 32,
    key: Array | None = None,
) -> Report:
    """max |f(Dx) − D f(x)| / max |f(x)| of anybody's model, for each output and dtype.

    `example` is the tuple of the model's arguments (a bare array counts as a tuple of one); the result is any pytree.
    `group`: "SO3", "O3" (every second element has determinant −1), "SE3", "E3" (translations of unit variance too), or
    an array (n, 3, 3) of matrices, for a subgroup. `inputs` has one entry for each argument and `outputs` one for the
    result: a word, a tuple or a mapping that follows the structure as far as needed, or None. The words:

    - "scalars": invariant; also what integers, booleans and keys are without a word;
    - "vectors" (..., 3); "positions" (..., 3), which translate too; "pseudovectors" (..., 3), unmoved by −1;
    - "pseudoscalars": change sign with the determinant; "matrices" (..., 3, 3): R A Rᵀ, a stress for instance;
    - "features" (*batch, parities, (L + 1)², channels), the layout of this library, with one or two parities;
    - irreps such as "8x0e + 4x1o" of an array (..., dim) in e3nn's order; an IrrepsArray of e3nn-jax needs no word;
    - a function (element, array in float64) -> array, for anything else; `element` has .matrix, .translation.

    Without `dtypes` the model sees the example in the dtype of its floats; else the floats are cast to each in turn
    (float64 needs jax_enable_x64). Without `key` the elements are always the same ones. The model is called samples + 1
    times a dtype: hand in jax.jit(model) where that is faster.

    Raises TypeError for a floating-point leaf without a word, ValueError for an unknown word or group, for a shape that
    does not fit its word, and for float64 while x64 is off; each names the argument.
    """
    arguments = example if isinstance(example, tuple) and not hasattr(example, "_fields") else (example,)
    if inputs is not None and (isinstance(inputs, str) or callable(inputs)):
        inputs = (inputs,)
    name, elements = _elements(group, samples, key)
    own = [leaf.dtype for leaf in jax.tree.leaves(arguments) if _is_float(leaf)]
    if not own:
        raise TypeError("example: expected at least one floating-point array, got none")
    rows: list[Row] = []
    for dtype in dtypes or [None]:
        shown = jnp.dtype(own[0] if dtype is None else dtype)
        if shown == jnp.float64 and not jax.config.values["jax_enable_x64"]:
            raise ValueError("dtypes: float64 needs jax_enable_x64, which is off")
        as_asked = partial(_cast, dtype=dtype)
        reference, still = model(*jax.tree.map(as_asked, arguments)), _flatten(arguments, inputs, "argument")
        expected = _flatten(reference, outputs, "output")
        worst = [(-1.0, elements[0])] * len(expected)
        for element in elements:
            moved = [
                _restore(act(element, _wide(leaf)), leaf, dtype) if act else as_asked(leaf) for _, leaf, act in still
            ]
            result = model(*jax.tree.unflatten(_structure(arguments), moved))
            for k, ((_, leaf, act), found) in enumerate(zip(expected, _leaves(result), strict=True)):
                wide = _wide(leaf)
                with np.errstate(invalid="ignore"):  # what is not finite comes out as NaN
                    difference = _wide(found) - (act(element, wide) if act else wide)
                    size, gap = _largest(wide), _largest(difference)
                    error = float(np.divide(gap, size)) if size > 0 else (0.0 if gap == 0 else np.nan)
                if not error <= worst[k][0]:  # NaN stays
                    worst[k] = (error, element) if not np.isnan(worst[k][0]) else worst[k]
        for (label, leaf, _), (error, element) in zip(expected, worst, strict=True):
            rows.append(Row(str(_dtype_of(leaf, shown)), label, error, _largest(_wide(leaf)), element))
    return Report(name, len(elements), tuple(rows))


def _elements(group: str | np.ndarray, samples: int, key: Array | None) -> tuple[str, list[Element]]:
    if not isinstance(group, str):
        matrices = np.asarray(group, np.float64)
        gram = matrices @ np.swapaxes(matrices, -1, -2) if matrices.ndim == 3 and matrices.shape[1:] == (3, 3) else None
        if gram is None or not matrices.size or np.abs(gram - np.eye(3)).max() > 1e-5:
            raise ValueError(f"group: expected orthogonal matrices (n, 3, 3), got an array of shape {matrices.shape}")
        return "given subgroup", [Element(matrix, np.zeros(3)) for matrix in matrices]
    if group not in ("SO3", "O3", "SE3", "E3"):
        raise ValueError(f"group: expected 'SO3', 'O3', 'SE3', 'E3' or matrices (n, 3, 3), got {group!r}")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    key_rotation, key_translation = jax.random.split(jax.random.key(0) if key is None else key)
    with jax.enable_x64(True):
        rotations = np.array(so3.sample((samples,), jnp.float64, key=key_rotation))
        steps = np.asarray(jax.random.normal(key_translation, (samples, 3), jnp.float64))
    if group in ("O3", "E3"):
        rotations[::2] *= -1
    return group, [
        Element(R, t if group in ("SE3", "E3") else np.zeros(3)) for R, t in zip(rotations, steps, strict=True)
    ]


def _flatten(tree: Any, words: Any, what: str) -> list[tuple[str, Any, Act | None]]:
    """(name, leaf, its action) of every leaf."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_has_irreps):
        label = what + jax.tree_util.keystr(path)
        found.append((label, leaf, _action(label, leaf, _word(words, path))))
    return found


def _word(words: Any, path: Sequence[Any]) -> Any:
    """The entry of `words` for the leaf at `path`: words may stop early, and then hold for all below."""
    for step in path:
        key = next((getattr(step, kind) for kind in ("key", "idx", "name") if hasattr(step, kind)), None)
        if isinstance(words, Mapping):
            words = words.get(key)
        elif hasattr(words, "_fields"):
            words = getattr(words, str(key), None)
        elif isinstance(words, tuple | list) and isinstance(key, int):
            words = words[key] if key < len(words) else None
    return words


def _action(label: str, leaf: Any, word: Any) -> Act | None:
    """How the leaf transforms; None where it does not."""
    if word is None and _has_irreps(leaf):
        return _irreps_action(label, leaf.array.shape, leaf.irreps)
    if not _is_float(leaf):
        return None
    if callable(word):
        return cast(Act, word)
    if not isinstance(word, str):
        raise TypeError(
            f"{label}: expected a word that says how it transforms ('scalars', 'vectors', 'positions', 'features', "
            f"irreps, ...), got {word!r} for a floating-point array of shape {leaf.shape}"
        )
    if word == "scalars":
        return None
    if word == "features":
        return _features_action(label, leaf.shape)
    if word in _SIMPLE:
        trailing, act = _SIMPLE[word]
        if leaf.shape[len(leaf.shape) - len(trailing) :] != trailing:
            raise ValueError(
                f"{label}: expected shape (..., {', '.join('3' * len(trailing))}) of {word}, got {leaf.shape}"
            )
        return act
    return _irreps_action(label, leaf.shape, word)


_SIMPLE: dict[str, tuple[tuple[int, ...], Act]] = {
    "vectors": ((3,), lambda g, x: x @ g.matrix.T),
    "positions": ((3,), lambda g, x: x @ g.matrix.T + g.translation),
    "pseudovectors": ((3,), lambda g, x: g.determinant() * x @ g.matrix.T),
    "pseudoscalars": ((), lambda g, x: g.determinant() * x),
    "matrices": ((3, 3), lambda g, x: g.matrix @ x @ g.matrix.T),
}


def _features_action(label: str, shape: tuple[int, ...]) -> Act:
    max_degree = isqrt(shape[-2]) - 1 if len(shape) >= 3 else -1
    if len(shape) < 3 or shape[-3] not in (1, 2) or (max_degree + 1) ** 2 != shape[-2] or max_degree < 0:
        raise ValueError(f"{label}: expected features (..., 1 or 2, (L + 1)**2, channels), got {shape}")

    def act(element: Element, x: np.ndarray) -> np.ndarray:
        signs = np.array([1.0, element.determinant()])[: shape[-3]]
        return signs[:, None, None] * (element.representation(max_degree) @ x)

    return act


def _irreps_action(label: str, shape: tuple[int, ...], irreps: Any) -> Act:
    import e3nn_jax  # at first use: importing this file must not pay for it

    try:
        layout = e3nn_jax.Irreps(irreps)
    except ValueError as error:
        raise ValueError(
            f"{label}: expected 'scalars', 'vectors', 'positions', 'pseudovectors', 'pseudoscalars', 'matrices', "
            f"'features' or irreps, got {irreps!r}"
        ) from error
    if not shape or shape[-1] != layout.dim:
        raise ValueError(f"{label}: expected shape (..., {layout.dim}) of irreps {layout}, got {shape}")

    def act(element: Element, x: np.ndarray) -> np.ndarray:
        D, sign, pieces = element.representation(layout.lmax), element.determinant(), []
        ends = list(itertools.accumulate([mul * ir.dim for mul, ir in layout], initial=0))
        for (mul, ir), start, end in zip(layout, ends[:-1], ends[1:], strict=True):
            block = D[ir.l**2 : (ir.l + 1) ** 2, ir.l**2 : (ir.l + 1) ** 2]
            block = block if ir.p == (-1) ** ir.l else sign * block
            piece = x[..., start:end].reshape(*x.shape[:-1], mul, ir.dim)
            pieces.append((piece @ block.T).reshape(*x.shape[:-1], mul * ir.dim))
        return np.concatenate(pieces, axis=-1)

    return act


def _has_irreps(leaf: Any) -> bool:
    return type(leaf).__name__ == "IrrepsArray" and hasattr(leaf, "irreps")


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_has_irreps)


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree, is_leaf=_has_irreps)


def _array_of(leaf: Any) -> Any:
    return leaf.array if _has_irreps(leaf) else leaf


def _is_float(leaf: Any) -> bool:
    return hasattr(_array_of(leaf), "dtype") and jnp.issubdtype(_array_of(leaf).dtype, jnp.floating)


def _dtype_of(leaf: Any, otherwise: Any) -> Any:
    return _array_of(leaf).dtype if _is_float(leaf) else otherwise


def _wide(leaf: Any) -> np.ndarray:
    return np.asarray(_array_of(leaf)).astype(np.float64)


def _cast(leaf: Any, dtype: DTypeLike | None) -> Any:
    return leaf.astype(dtype) if dtype is not None and _is_float(leaf) else leaf


def _restore(values: np.ndarray, leaf: Any, dtype: DTypeLike | None) -> Any:
    """float64 values as a leaf like `leaf`."""
    array = jnp.asarray(values.astype(_array_of(leaf).dtype if dtype is None else jnp.dtype(dtype)))
    return type(leaf)(leaf.irreps, array) if _has_irreps(leaf) else array


def _largest(x: ArrayLike) -> float:
    return float(np.max(np.abs(x), initial=0.0))
