"""What a run computes on and how precisely: --device, --dtype, --matmul-precision, set before the first array."""

import os
import re
from importlib import metadata
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.engine.exits import Refused

Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Matmul = Literal["default", "high", "highest", "tensorfloat32", "bfloat16", "float32"]


_REWRITES_SUMS = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_sums() -> None:
    """Turns off, for jaxlib 0.10.2, the pass on CPU that sums rows into others (jax-ml/jax#39103): before any device.

    0.10.1 and 0.12 are right. A choice that stands in XLA_FLAGS already is left as it is.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") == "0.10.2" and _REWRITES_SUMS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_REWRITES_SUMS}=".strip()


def use(device: str | None, dtype: Dtype | None, matmul: Matmul | None) -> None:
    """Sets JAX up as asked; None leaves a setting as the environment has it. Refused if the device is not there."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if matmul is not None:
        jax.config.update("jax_default_matmul_precision", None if matmul == "default" else matmul)
    if device is None:
        return
    match = re.fullmatch(r"([a-z]+)(?::([1-9]\d*))?", device)
    if not match or (match[2] and match[1] != "cpu"):
        raise Refused(f"--device {device}: expected cpu, gpu, cuda, rocm or tpu, or cpu:N for N devices of it")
    if match[2]:
        try:
            jax.config.update("jax_num_cpu_devices", int(match[2]))
        except RuntimeError as error:
            raise Refused(f"--device {device}: this process has its devices already") from error
    jax.config.update("jax_platforms", match[1])


def check(device: str | None) -> None:
    """Refused if the device that `use` chose does not start. This makes the devices: `mesh.join` comes before."""
    try:
        found = jax.devices()
    except RuntimeError as error:
        raise Refused(f"--device {device}: {str(error).splitlines()[0]}") from error
    if device is None:
        return
    platform = device.split(":")[0]
    if {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform) != found[0].platform:
        raise Refused(f"--device {device}: this process already computes on {found[0].platform}")


def cast(tree: Any, dtype: Dtype | None) -> Any:
    """`tree` with its real numbers in `dtype`, or as they are."""
    if dtype is None:
        return tree

    def one(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(one, tree)
