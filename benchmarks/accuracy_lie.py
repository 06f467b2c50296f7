"""Worst error of `lie` and of jaxlie against the high-precision tables of HAAR_TRUTH, in eps of the dtype, by region.

Each row is one operation in one dtype: its value is our worst error up to π, the note gives both libraries by region.
Errors are norms relative to the norm of the truth; of matrices of rotations they are absolute (Frobenius).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Metric, Options
from lie import se3, so3, su2

_REGIONS = {"zero": "small", "tiny": "small"}  # merged; the rest keep their names
_ORDER = ("small", "threshold", "mid", "near_pi", "pi", "beyond_pi")
_TABLES = {"float32": "so3_se3_f32", "float64": "so3_se3_f64"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One operation on a batch of inputs (columns of the table), the true value of a row, and the goal in eps."""

    name: str
    inputs: tuple[str, ...]
    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    truth: Callable[[Row], Any]  # None: the row does not apply
    goal: float = 4.0
    absolute: bool = False
    regions: tuple[str, ...] = _ORDER


def measure(options: Options) -> Iterator[Metric]:
    """Our worst error of each operation; jaxlie's beside it. Needs mpmath for the values that the tables imply."""
    jaxlie, mpmath = harness.peer("jaxlie"), harness.peer("mpmath")
    folder = os.environ.get("HAAR_TRUTH", "")
    if not (Path(folder) / f"{_TABLES['float32']}.json").is_file():
        raise harness.Missing("HAAR_TRUTH names no folder with the truth tables")
    for dtype, table in _TABLES.items():
        rows = json.loads((Path(folder) / f"{table}.json").read_text())["rows"]
        rows = [row | {"w": row["xi"][3:]} for row in rows]
        with jax.enable_x64(dtype == "float64"), mpmath.workdps(60):
            for case in cases(jaxlie, mpmath):
                if options.wants(name := f"{case.name}/{dtype}"):
                    yield report(name, case, rows, np.dtype(dtype))


def report(name: str, case: Case, rows: list[Row], dtype: np.dtype) -> Metric:
    """The worst error of a case, with the errors by region of both libraries in the note."""
    rows = [row for row in rows if _region(row) in case.regions and case.truth(row) is not None]
    truths = [case.truth(row) for row in rows]
    columns = [np.array([_floats(row[key]) for row in rows], dtype) for key in case.inputs]
    columns = [jnp.asarray(column) for column in columns]
    ours = by_region(rows, np.asarray(jax.jit(case.ours)(*columns), np.float64), truths, case.absolute, dtype)
    note = "  ".join(f"{region} {ours[region]:.2g}" for region in _ORDER if region in ours)
    if case.theirs is not None:
        values = np.asarray(jax.jit(jax.vmap(case.theirs))(*columns), np.float64)
        theirs = by_region(rows, values, truths, case.absolute, dtype)
        note += "   jaxlie " + "  ".join(f"{region} {theirs[region]:.2g}" for region in _ORDER if region in theirs)
    worst = max(error for region, error in ours.items() if region != "beyond_pi")  # shown, not promised
    return Metric(name, worst, "eps", "lower", 0.5, absolute=True, goal=case.goal, note=note)


def by_region(
    rows: list[Row], values: np.ndarray, truths: list[Any], absolute: bool, dtype: np.dtype
) -> dict[str, float]:
    """Worst error of each region in eps; infinity for what is not finite."""
    worst: dict[str, float] = {}
    for row, value, truth in zip(rows, values, truths, strict=True):
        high, low = _two_floats(truth)
        error = float(np.linalg.norm((value - high) - low))
        scale = 1.0 if absolute else float(np.linalg.norm(high))
        eps = float(np.finfo(dtype).eps)
        in_eps = error / (eps * scale) if scale > 0 else (0.0 if error == 0 else np.inf)
        region = _region(row)
        worst[region] = max(worst.get(region, 0.0), in_eps if np.isfinite(in_eps) else np.inf)
    return worst


def cases(jaxlie: ModuleType, mpmath: ModuleType) -> list[Case]:
    """The operations of the tables; distances and the coupling blocks of inverse Jacobians follow from columns."""
    SO3, SE3, private = jaxlie.SO3, jaxlie.SE3, jaxlie._so3
    principal = _ORDER[:-1]

    def column(key):
        return lambda row: row[key]

    def length_of_log(row):
        return None if row["log_m_w"] is None else mpmath.norm(mpmath.matrix(row["log_m_w"]))

    def translation_of_log(row):
        """J_l⁻¹(ω) t for the rotation vector of the rounded matrix."""
        if row["log_m_w"] is None:
            return None
        return list(_jacobian_inverse(mpmath, row["log_m_w"]) * mpmath.matrix(row["t_in"]))

    def inverse_coupling(row):
        """−J_l⁻¹ Q J_l⁻¹, the upper right block of the inverse of [[J, Q], [0, J]]."""
        inverse = mpmath.matrix(row["jlinv"])
        return (-inverse * mpmath.matrix(row["Q"]) * inverse).tolist()

    def their_left_jacobian(w):
        return private._SO3_jac_left(w, SO3.exp(w).as_matrix())

    def their_pose(R, t):
        return SE3.from_rotation_and_translation(SO3.from_matrix(R), t)

    matrix, quaternion, pose = ("matrix_in",), ("quat_in",), ("matrix_in", "t_in")
    omega, xi = ("w",), ("xi",)
    return [
        Case("so3.exp", omega, so3.exp, lambda w: SO3.exp(w).as_matrix(), column("matrix"), 6.5, True),
        Case("so3.log", matrix, so3.log, lambda R: SO3.from_matrix(R).log(), column("log_m_w"), regions=principal),
        Case(
            "so3.distance",
            matrix,
            lambda R: so3.distance(so3.identity(dtype=R.dtype), R),
            lambda R: jnp.linalg.norm(SO3.from_matrix(R).log()),
            length_of_log,
            regions=principal,
        ),
        Case("so3.left_jacobian", omega, so3.left_jacobian, their_left_jacobian, column("jl")),
        Case(
            "so3.left_jacobian_inverse",
            omega,
            so3.left_jacobian_inverse,
            private._SO3_jac_left_inv,
            column("jlinv"),
            regions=principal,
        ),
        Case("su2.exp", omega, su2.exp, lambda w: SO3.exp(w).wxyz, column("quat"), regions=principal),
        Case(
            "su2.log",
            quaternion,
            lambda q: su2.log(su2.canonical(q)),
            lambda q: SO3(q).log(),
            column("log_q"),
            regions=principal,
        ),
        Case("se3.exp translation", xi, lambda xi: se3.exp(xi).translation, _their_translation(SE3), column("t")),
        Case(
            "se3.log translation",
            pose,
            lambda R, t: se3.log(se3.Pose(R, t))[..., :3],
            lambda R, t: their_pose(R, t).log()[..., :3],
            translation_of_log,
            regions=principal,
        ),
        Case("se3.left_jacobian coupling", xi, lambda xi: se3.left_jacobian(xi)[..., :3, 3:], None, column("Q"), 8.0),
        Case(
            "se3.left_jacobian_inverse coupling",
            xi,
            lambda xi: se3.left_jacobian_inverse(xi)[..., :3, 3:],
            lambda xi: SE3.exp(-xi).jlog()[..., :3, 3:],
            inverse_coupling,
            8.0,
            regions=principal,
        ),
    ]


def _their_translation(SE3: Any) -> Callable[[Any], Any]:
    return lambda xi: SE3.exp(xi).translation()


def _jacobian_inverse(mpmath: ModuleType, omega: list[str]) -> Any:
    """I − ω̂/2 + ω̂² (1 − (θ/2) cot(θ/2))/θ² in mpmath's precision."""
    x, y, z = (mpmath.mpf(entry) for entry in omega)
    hat = mpmath.matrix([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    theta = mpmath.sqrt(x * x + y * y + z * z)
    k = (1 - theta / 2 * mpmath.cot(theta / 2)) / theta**2 if theta > mpmath.mpf("1e-15") else mpmath.mpf(1) / 12
    return mpmath.eye(3) - hat / 2 + k * hat * hat


def _region(row: Row) -> str:
    region: str = row["region"]
    return _REGIONS.get(region, region)


def _floats(entry: Any) -> Any:
    return [_floats(part) for part in entry] if isinstance(entry, list) else float(entry)


def _two_floats(truth: Any) -> tuple[np.ndarray, np.ndarray]:
    """The truth as the sum of two float64 arrays, so that a difference to it keeps all its digits."""
    entries = np.array(truth, dtype=object)
    exact = [Decimal(str(entry)) for entry in entries.ravel()]
    high = [float(entry) for entry in exact]
    low = [float(entry - Decimal(rounded)) for entry, rounded in zip(exact, high, strict=True)]
    return np.reshape(high, entries.shape), np.reshape(low, entries.shape)
