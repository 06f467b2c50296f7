"""cuequivariance-jax as a peer: its naive method, the only one without a GPU, kept running under jax 0.12."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
from jax.interpreters import partial_eval

from benchmarks import harness


def load() -> tuple[ModuleType, ModuleType]:
    """(cuequivariance, cuequivariance_jax); raises harness.Missing where one is not installed."""
    cue, cuex = harness.peer("cuequivariance"), harness.peer("cuequivariance_jax")
    inner = import_module("cuequivariance_jax.segmented_polynomials.segmented_polynomial")
    rule = inner.segmented_polynomial_dce  # in version 0.13 it takes two arguments, where jax 0.12 passes three
    partial_eval.dce_rules[inner.segmented_polynomial_p] = lambda used, *rest: rule(used, rest[-1])
    return cue, cuex


def symmetric_contraction(max_degree: int, channels: int, correlation: int) -> tuple[int, Callable[..., Any]]:
    """(how many weights a species has, function of weights (species, that many), flat features and species)."""
    cue, cuex = load()
    irreps = cue.Irreps("O3", " + ".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(max_degree + 1)))
    descriptor = cue.descriptors.symmetric_contraction(irreps, irreps, tuple(range(1, correlation + 1)))
    polynomial = (descriptor[0] if isinstance(descriptor, tuple) else descriptor).polynomial

    def contract(weight, x, species):
        out = jax.ShapeDtypeStruct((x.shape[0], polynomial.outputs[0].size), x.dtype)
        return cuex.segmented_polynomial(polynomial, [weight, x], [out], [species, None, None], method="naive")[0]

    return polynomial.inputs[0].size, contract


def convolution(max_degree: int, channels: int) -> Callable[..., Any]:
    """Function of flat features, harmonics, weights (edges, paths · channels), senders, receivers: paths kept."""
    cue, cuex = load()
    irreps, filters = (
        cue.Irreps("O3", " + ".join(f"{count}x{l}{'eo'[l % 2]}" for l in range(max_degree + 1)))
        for count in (channels, 1)
    )
    descriptor = cue.descriptors.channelwise_tensor_product(irreps, filters, irreps)
    polynomial = (descriptor[0] if isinstance(descriptor, tuple) else descriptor).polynomial

    def convolve(x, Y, weights, senders, receivers):
        out = jax.ShapeDtypeStruct((x.shape[0], polynomial.outputs[0].size), x.dtype)
        places = [None, senders, None, receivers]
        return cuex.segmented_polynomial(polynomial, [weights, x, Y], [out], places, method="naive")[0]

    return convolve
