"""Optimal transport between samples, on R^n and on the spaces of `lie`. Import modules: `from ot import sinkhorn`.

The modules costs, sinkhorn, wasserstein, barycenter, gromov, hierarchical, low_rank, coupling, paths, multimarginal and
bridge arrive one by one; `__all__` lists those that this version has. This `ot` is not POT (Python Optimal Transport),
which has the same import name: asking for a POT name is answered with ours, and files of POT among ours are refused
with ImportError.
"""

import sys
import typing

from lie import _neighbours  # first: HAAR_CHECK's import hook comes with `lie`, before any module of `ot` is loaded
from ot import _guard

_neighbours.refuse_damage("ot")

__all__: list[str] = [
    "barycenter",
    "bridge",
    "costs",
    "coupling",
    "gromov",
    "hierarchical",
    "low_rank",
    "multimarginal",
    "paths",
    "sinkhorn",
    "wasserstein",
]


@typing.no_type_check  # HAAR_CHECK would put frames of its own between the caller and us
def __getattr__(name: str) -> object:
    # Where `from ot import name` asks, Python discards the text of an AttributeError, so it must be an ImportError; no
    # other caller may get one, because hasattr(ot, name) must stay False.
    asking = sys._getframe(1).f_code.co_name
    raise _guard.missing(name, imported=asking == "_handle_fromlist")
