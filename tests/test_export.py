"""Every public function that can be traced exports for cpu, cuda and tpu in one go, with exact dots and no callback.

It can be traced with jax_enable_x64 on, and then off, in one process.

The table is in export_rows.py: `test_every_public_function_is_in_a_table` fails until a new function is there.
"""

import importlib
import inspect
import types
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from export_rows import HOST_ONLY, ROWS

PLATFORMS = ["cpu", "cuda", "tpu"]
PACKAGES = ["lie", "equivariant", "ot"]


def public(name):
    """The full names of the public functions and methods of a module: of `__all__` where it has one, else its own."""
    module = importlib.import_module(name)
    for key in getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]:
        try:
            value = getattr(module, key, None) or importlib.import_module(f"{name}.{key}")
        except ModuleNotFoundError:  # test_architecture reports a listed module that does not exist
            continue
        if isinstance(value, types.ModuleType):
            if value.__name__ == f"{name}.{key}":
                yield from public(value.__name__)
        elif not getattr(value, "__module__", "").startswith(name):
            continue
        elif inspect.isclass(value):
            methods = {} if getattr(value, "_is_protocol", False) else vars(value)
            yield from (f"{name}.{key}.{m}" for m, f in methods.items() if inspect.isfunction(f) and m[0] != "_")
        elif callable(value):
            yield f"{name}.{key}"


def named(name):
    """The object of a full name, modules imported on the way."""
    found: Any = importlib.import_module(name.split(".")[0])
    for depth, part in enumerate(name.split(".")[1:], start=2):
        found = getattr(found, part, None) or importlib.import_module(".".join(name.split(".")[:depth]))
    return found


def traceable(name, row):
    """(function of the traced arrays alone, these arrays); with its vector-Jacobian product, if the row has one."""
    leaves, structure = jax.tree.flatten((row.arguments, row.keywords))
    traced = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]
    arrays = [leaf for leaf, is_traced in zip(leaves, traced, strict=True) if is_traced]
    smoothly = [row.derivative and jnp.issubdtype(array.dtype, jnp.floating) for array in arrays]
    target = named(name)

    def value(*arrays):
        rest = iter(arrays)
        merged = [next(rest) if is_traced else leaf for leaf, is_traced in zip(leaves, traced, strict=True)]
        arguments, keywords = jax.tree.unflatten(structure, merged)
        return target(*arguments, **keywords) if row.via is None else row.via(target, *arguments, **keywords)

    def program(*arrays):
        inputs = [array for array, is_smooth in zip(arrays, smoothly, strict=True) if is_smooth]
        if not inputs:
            return value(*arrays)

        def of_inputs(*inputs):
            rest = iter(inputs)
            return value(*[next(rest) if s else a for a, s in zip(arrays, smoothly, strict=True)])

        result, pull_back = jax.vjp(of_inputs, *inputs)
        return result, pull_back(jax.tree.map(ones, result))

    return program, arrays


def ones(x):
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.ones_like(x) if is_float else np.zeros(x.shape, jax.dtypes.float0)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def is_host_only(name):
    return any(name == entry or (entry.endswith(".") and name.startswith(entry)) for entry in HOST_ONLY)


CASES = [
    pytest.param(name, row, id=f"{name}{i or ''}", marks=[pytest.mark.slow] if row.slow else [])
    for name, rows in ROWS.items()
    for i, row in enumerate(rows)
]


@pytest.mark.parametrize(("name", "row"), CASES)
def test_exports_everywhere_with_exact_dots_and_no_callback(name, row):
    program, arrays = traceable(name, row)
    traced = jax.jit(program).trace(*arrays)
    for equation in equations(traced.jaxpr.jaxpr):
        primitive = equation.primitive.name
        assert not any(word in primitive for word in ("callback", "debug")), f"{primitive} leaves the device"
        if primitive in ("dot_general", "ragged_dot", "conv_general_dilated") and not name.startswith("equivariant"):
            precision = equation.params["precision"]
            exact = jax.lax.Precision.HIGHEST
            assert precision in (exact, (exact, exact)), f"{primitive} with precision {precision}: {equation}"
    wide = [x.dtype for x in jax.tree.leaves(traced.out_info) if x.dtype in (jnp.float64, jnp.complex128)]
    assert not wide, "float32 in, but float64 out"
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(*arrays)
    assert exported.platforms == tuple(PLATFORMS)
    with jax.enable_x64(False):
        jax.eval_shape(program, *arrays)


def test_every_public_function_is_in_a_table():
    functions = {name for package in PACKAGES for name in public(package)}
    assert len(functions) > 150, "the search for public functions finds too few of them"
    missing = sorted(name for name in functions if name not in ROWS and not is_host_only(name))
    assert not missing, "neither in ROWS nor in HOST_ONLY:\n" + "\n".join(missing)


def test_no_line_of_the_tables_is_stale():
    functions = {name for package in PACKAGES for name in public(package)}
    unused = [entry for entry in HOST_ONLY if not any(name == entry or name.startswith(entry) for name in functions)]
    assert not unused, f"nothing public is called so: {unused}"
    assert not [name for name in ROWS if is_host_only(name)], "a function is in both tables"


def test_the_scan_finds_a_dot_and_a_callback_in_nested_programs():
    @jax.custom_jvp
    def f(x):
        return jax.lax.fori_loop(0, 3, lambda i, y: y @ x, x)

    f.defjvp(lambda primals, tangents: (f(*primals), jax.pure_callback(lambda x: x, tangents[0], tangents[0])))
    primal = {equation.primitive.name for equation in equations(jax.make_jaxpr(f)(jnp.eye(2)).jaxpr)}
    along = {e.primitive.name for e in equations(jax.make_jaxpr(lambda x: jax.jvp(f, (x,), (x,)))(jnp.eye(2)).jaxpr)}
    assert "dot_general" in primal
    assert "pure_callback" in along
