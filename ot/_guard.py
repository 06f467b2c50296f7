"""What a user of POT (Python Optimal Transport), who finds haar under the name `ot`, is told at each POT name."""

import importlib.util
import sys
import types

_EXACT = "ot.wasserstein.exact(x, y, a, b, cost=...)"
_LINE = "ot.wasserstein.one_dimensional(x, y, a, b, p=...)"
_SINKHORN = "ot.sinkhorn.solve(x, y, a, b, cost=..., epsilon=reg)"
_UNBALANCED = "ot.sinkhorn.solve(x, y, a, b, epsilon=reg, mass_penalty=(reg_m, reg_m))"
_SLICED = "ot.wasserstein.sliced(x, y, p=..., key=key)"
_CIRCLE = "ot.wasserstein.circle(x, y, a, b, p=...)"
_SPHERE = "ot.wasserstein.sliced(x, y, space=lie.sphere, key=key)"
_BARYCENTER = "ot.barycenter.solve(...)"
_GROMOV = "ot.gromov.solve(...)"
_LOW_RANK = "ot.low_rank.solve(...)"
_COST = "a cost, for example ot.costs.SquaredEuclidean()(x, y); ot.costs.Precomputed(M) takes a matrix"
_CLOCK = "time.perf_counter() of the standard library"

# POT's public names -> ours. A cost matrix M of POT becomes cost=ot.costs.Precomputed(M); weights left out are uniform.
COUNTERPARTS: dict[str, str | None] = {
    "emd": f"{_EXACT}.plan()",
    "emd2": f"{_EXACT}.value",
    "emd2_lazy": f"{_EXACT}.value",
    "emd_1d": _LINE,
    "emd2_1d": _LINE,
    "emd_1d_dual": _LINE,
    "emd_1d_dual_backprop": _LINE,
    "wasserstein_1d": _LINE,
    "lp": _EXACT,
    "sinkhorn": f"the module of this name (`from ot import sinkhorn`): {_SINKHORN}.plan()",
    "sinkhorn2": f"{_SINKHORN}.transport_cost()",
    "bregman": _SINKHORN,
    "solve": f"{_SINKHORN}, or {_EXACT} without regularisation",
    "solve_sample": f"{_SINKHORN}, or {_EXACT} without regularisation",
    "solvers": f"{_SINKHORN}, or {_EXACT} without regularisation",
    "solve_batch": f"{_SINKHORN} with leading axes",
    "solve_sample_batch": f"{_SINKHORN} with leading axes",
    "batch": f"{_SINKHORN} with leading axes",
    "sinkhorn_unbalanced": f"{_UNBALANCED}.plan()",
    "sinkhorn_unbalanced2": f"{_UNBALANCED}.transport_cost()",
    "unbalanced": _UNBALANCED,
    "dist": _COST,
    "dist_batch": f"{_COST}, with leading axes",
    "unif": "weights left out (None), which are uniform",
    "sliced": _SLICED,
    "sliced_wasserstein_distance": _SLICED,
    "max_sliced_wasserstein_distance": _SLICED,
    "gaussian": "ot.wasserstein.gaussian(m1, S1, m2, S2)",
    "wasserstein_circle": _CIRCLE,
    "sliced_wasserstein_sphere": _SPHERE,
    "sliced_wasserstein_sphere_unif": _SPHERE,
    "linear_sliced_wasserstein_sphere": _SPHERE,
    "barycenter": f"the module of this name (`from ot import barycenter`): {_BARYCENTER}",
    "barycenter_unbalanced": _BARYCENTER,
    "solve_bary_sample": _BARYCENTER,
    "gromov": f"the module of this name (`from ot import gromov`): {_GROMOV}",
    "gromov_wasserstein": _GROMOV,
    "gromov_wasserstein2": _GROMOV,
    "gromov_barycenters": _GROMOV,
    "fused_gromov_wasserstein": _GROMOV,
    "fused_gromov_wasserstein2": _GROMOV,
    "lowrank_gromov_wasserstein_samples": _GROMOV,
    "solve_gromov": _GROMOV,
    "solve_gromov_batch": f"{_GROMOV} with leading axes",
    "lowrank": _LOW_RANK,
    "lowrank_sinkhorn": _LOW_RANK,
    "factored": _LOW_RANK,
    "factored_optimal_transport": _LOW_RANK,
    "tic": _CLOCK,
    "toc": _CLOCK,
    "toq": _CLOCK,
    **dict.fromkeys(
        [
            "backend",
            "binary_search_circle",
            "bsp",
            "compute_bspot_bijection",
            "coot",
            "da",
            "datasets",
            "dr",
            "expected_sliced_plan",
            "gmm",
            "linear_circular_ot",
            "mapping",
            "merge_bijections",
            "min_sliced_transport_plan",
            "optim",
            "partial",
            "plot",
            "regpath",
            "semidiscrete",
            "semidiscrete_wasserstein2_unif_circle",
            "sgot",
            "sinkhorn_lpl1_mm",
            "sliced_unbalanced_ot",
            "smooth",
            "stochastic",
            "unbalanced_sliced_ot",
            "uot_1d",
            "utils",
            "weak",
            "weak_optimal_transport",
        ]
    ),
}


def answer(name: str) -> str:
    """The sentence that tells a POT user where POT's `name` is in haar, and whether this version has it."""
    ours = COUNTERPARTS[name]
    if ours is None:
        return f"this `ot` is haar's, not POT (Python Optimal Transport): haar has no counterpart of POT's `{name}`"
    said = f"this `ot` is haar's, not POT (Python Optimal Transport): in place of POT's `{name}` haar has {ours}"
    absent = [module for module in _modules_of(ours) if importlib.util.find_spec(f"ot.{module}") is None]
    return said + "".join(f"; this version of haar does not have ot.{module} yet" for module in absent)


def missing(name: str, imported: bool) -> Exception:
    """The exception for `ot.name`; `imported` where a `from ot import name` asks, which hides an AttributeError's text.

    A POT name that is one of our modules too (sinkhorn, barycenter, gromov) stays an AttributeError, so that Python
    goes on to import the module.
    """
    if name not in COUNTERPARTS:
        return AttributeError(f"module 'ot' has no attribute {name!r}", name=name, obj=sys.modules.get("ot"))
    if imported and importlib.util.find_spec(f"ot.{name}") is None:
        return ImportError(answer(name), name="ot")
    return AttributeError(answer(name), name=name, obj=sys.modules.get("ot"))


class FunctionInPOT(types.ModuleType):
    """The class of our modules that are functions in POT: a call is answered rather than "not callable".

    A module takes it on by its last line, `sys.modules[__name__].__class__ = _guard.FunctionInPOT`.
    """

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError with the answer for POT's function of this name."""
        raise TypeError(answer(self.__name__.rpartition(".")[2]))


def _modules_of(text: str) -> list[str]:
    words = text.replace("(", " ").split()
    return sorted({word.split(".")[1].rstrip(":,;") for word in words if word.startswith("ot.")})
