"""Frozen dataclasses as pytrees: the named fields hold leaves or pytrees, the others are static."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax

Record = TypeVar("Record")


def register(*leaves: str) -> Callable[[type[Record]], type[Record]]:
    """Class decorator. Rebuilding from leaves skips __init__ and so its checks: JAX puts tracers and markers there."""

    def decorate(cls: type[Record]) -> type[Record]:
        static = tuple(field.name for field in dataclasses.fields(cls) if field.name not in leaves)  # pyright: ignore

        def flatten(record):
            keyed = tuple((jax.tree_util.GetAttrKey(name), getattr(record, name)) for name in leaves)
            return keyed, tuple(getattr(record, name) for name in static)

        def unflatten(values, children):
            record = object.__new__(cls)
            for name, value in (*zip(leaves, children, strict=True), *zip(static, values, strict=True)):
                object.__setattr__(record, name, value)
            return record

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return decorate
