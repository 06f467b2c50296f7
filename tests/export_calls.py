"""How the rows of the tables of test_export.py are written: shapes stand for arrays, so that nothing is computed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

KEY = jax.eval_shape(lambda: jax.random.key(0))


class Call(NamedTuple):
    """Shapes (jax.ShapeDtypeStruct) anywhere in `arguments` and `keywords` are traced, all else is static."""

    arguments: tuple
    keywords: dict[str, Any]
    via: Any  # None, or a function of (the public function, *arguments) where a plain call would not do
    derivative: bool  # also export and scan its reverse derivative
    slow: bool  # seconds to trace: left to the slow tests


def call(*arguments, via=None, derivative=True, slow=False, **keywords):
    return Call(arguments, keywords, via, derivative, slow)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def shape_of(make, *arguments):
    """What `make` returns, as shapes: nothing is computed to fill the table."""
    return jax.eval_shape(make, *arguments)
