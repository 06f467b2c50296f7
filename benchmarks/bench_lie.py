"""`lie`'s groups against jaxlie: every operation, float32, batch-first, ratios of time (and of compile time).

Like is compared with like. Where a matrix goes in or comes out, jaxlie starts from or ends at the matrix too:
`exp().as_matrix()`, `from_matrix().log()`, `from_matrix().inverse().as_matrix()`. Matrix `compose` and `act` meet
jaxlie's quaternions as it stores them, which spares jaxlie the conversions: the harder comparison. `su2` meets the same
quaternions. jaxlie runs both under vmap and on the whole batch; the ratio is to the faster of the two.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Metric, Options
from lie import se3, so3, su2

_SIZES = {"1e3": 1_000, "1e5": 100_000, "1e6": 1_000_000}
_ROUNDS = {"1e3": 51, "1e5": 31, "1e6": 15}
_SHOWN_ONLY = float("inf")  # 1e3 measures dispatch, which depends on what ran before: no gate holds on it


@dataclass(frozen=True)
class Case:
    """One operation: ours on batches, theirs on one element, the names of the inputs of each, and the goal at 1e6."""

    name: str
    ours: Callable[..., Any]
    our_inputs: tuple[str, ...]
    theirs: Callable[..., Any]
    their_inputs: tuple[str, ...]
    goal: float = 1.0


def measure(options: Options) -> Iterator[Metric]:
    """Ratios at 1e5 and 1e6 (and 1e3, shown only; 1e5 alone when quick), then compile time and scratch memory."""
    jaxlie = harness.peer("jaxlie")
    for size, count in _SIZES.items():
        if options.quick and size != "1e5":
            continue
        data = inputs(count)
        for case in cases(jaxlie):
            if not options.wants(name := f"{case.name}/{size}"):
                continue
            yield harness.versus(
                name,
                case.ours,
                {"jaxlie vmap": jax.vmap(case.theirs), "jaxlie batch": case.theirs},
                tuple(data[key] for key in case.our_inputs),
                tuple(data[key] for key in case.their_inputs),
                rounds=options.rounds(_ROUNDS[size]),
                tolerance=_SHOWN_ONLY if size == "1e3" else 0.25,
                goal={"1e3": None, "1e5": 1.0, "1e6": case.goal}[size],
            )
    yield from compilation(jaxlie, options)


def compilation(jaxlie: ModuleType, options: Options) -> Iterator[Metric]:
    """How much longer jaxlie's pose-loss gradient takes to compile, and our scratch memory over the result's size."""
    case = next(case for case in cases(jaxlie) if case.name == "se3.pose_loss_gradient")
    data = inputs(1_000)
    ours, theirs = (tuple(data[key] for key in keys) for keys in (case.our_inputs, case.their_inputs))
    if options.wants(name := "se3.pose_loss_gradient/compile"):
        contestants = {"haar": (case.ours, ours), "jaxlie vmap": (jax.vmap(case.theirs), theirs)}
        contestants["jaxlie batch"] = (case.theirs, theirs)
        timings = harness.compile_seconds(contestants, options.rounds(10))
        rival = timings.fastest([key for key in contestants if key != "haar"])
        note = f"haar {timings.median('haar'):.2f} s, {rival} {timings.median(rival):.2f} s"
        yield Metric(name, timings.ratio(rival, "haar"), "x", "higher", 0.25, goal=3.0, note=note)
    if options.wants(name := "se3.pose_loss_gradient/scratch"):
        scratch = harness.temporary_bytes(case.ours, *ours)
        peer_scratch = harness.temporary_bytes(jax.vmap(case.theirs), *theirs)
        note = f"bytes of scratch per pose; jaxlie vmap {peer_scratch / 1e3:.0f}"
        yield Metric(name, scratch / 1e3, "B", "lower", 0.25, note=note)


def cases(jaxlie: ModuleType) -> list[Case]:
    """Every operation compared. Private functions of jaxlie appear where it has no public one."""
    return [*_so3_cases(jaxlie), *_su2_cases(jaxlie), *_se3_cases(jaxlie)]


def _so3_cases(jaxlie: ModuleType) -> list[Case]:
    SO3, private, log_jacobian = jaxlie.SO3, jaxlie._so3, so3.right_jacobian_inverse
    w, R, compose, act = ("omega",), ("R",), ("R", "S"), ("R", "x")

    def their_left_jacobian(w):
        return private._SO3_jac_left(w, SO3.exp(w).as_matrix())

    return [
        Case("so3.exp", so3.exp, w, lambda w: SO3.exp(w).as_matrix(), w, 2.0),
        Case("so3.log", so3.log, R, lambda R: SO3.from_matrix(R).log(), R, 2.0),
        Case("so3.compose", so3.compose, compose, lambda p, q: (SO3(p) @ SO3(q)).wxyz, ("p", "q"), 2.5),
        Case("so3.act", so3.act, act, lambda p, x: SO3(p).apply(x), ("p", "x"), 10.0),
        Case("so3.inverse", so3.inverse, R, lambda R: SO3.from_matrix(R).inverse().as_matrix(), R),
        Case("so3.adjoint", so3.adjoint, R, lambda R: SO3.from_matrix(R).adjoint(), R),
        Case("so3.left_jacobian", so3.left_jacobian, w, their_left_jacobian, w),
        Case("so3.left_jacobian_inverse", so3.left_jacobian_inverse, w, private._SO3_jac_left_inv, w),
        Case("so3.jlog", lambda R: log_jacobian(so3.log(R)), R, lambda R: SO3.from_matrix(R).jlog(), R, 2.0),
    ]


def _su2_cases(jaxlie: ModuleType) -> list[Case]:
    SO3, log_jacobian = jaxlie.SO3, su2.right_jacobian_inverse
    w, p, compose, act = ("omega",), ("p",), ("p", "q"), ("p", "x")
    return [
        Case("su2.exp", su2.exp, w, lambda w: SO3.exp(w).wxyz, w),
        Case("su2.log", su2.log, p, lambda p: SO3(p).log(), p),
        Case("su2.compose", su2.compose, compose, lambda p, q: (SO3(p) @ SO3(q)).wxyz, compose, 5.0),
        Case("su2.act", su2.act, act, lambda p, x: SO3(p).apply(x), act, 10.0),
        Case("su2.inverse", su2.inverse, p, lambda p: SO3(p).inverse().wxyz, p),
        Case("su2.adjoint", su2.adjoint, p, lambda p: SO3(p).adjoint(), p),
        Case("su2.jlog", lambda p: log_jacobian(su2.log(su2.canonical(p))), p, lambda p: SO3(p).jlog(), p),
    ]


def _se3_cases(jaxlie: ModuleType) -> list[Case]:
    SO3, SE3, Pose = jaxlie.SO3, jaxlie.SE3, se3.Pose
    xi, pose, compose, act = ("xi",), ("R", "x"), ("R", "x", "S", "y"), ("R", "x", "y")

    def theirs(R, t):
        return SE3.from_rotation_and_translation(SO3.from_matrix(R), t)

    def their_parts(g):
        return g.rotation().as_matrix(), g.translation()

    def our_compose(R, t, S, u):
        return se3.compose(Pose(R, t), Pose(S, u))

    def our_jlog(R, t):
        return se3.right_jacobian_inverse(se3.log(Pose(R, t)))

    def their_loss(xi, g, y):
        guess = SE3.exp(xi)
        residual, moved = (SE3(g).inverse() @ guess).log(), guess.apply(y) - y
        return jnp.sum(residual * residual) + jnp.sum(moved * moved)

    return [
        Case("se3.exp", se3.exp, xi, lambda xi: their_parts(SE3.exp(xi)), xi, 2.0),
        Case("se3.log", lambda R, t: se3.log(Pose(R, t)), pose, lambda R, t: theirs(R, t).log(), pose, 2.0),
        Case("se3.compose", our_compose, compose, lambda g, h: (SE3(g) @ SE3(h)).wxyz_xyz, ("g", "h"), 3.0),
        Case("se3.act", lambda R, t, y: se3.act(Pose(R, t), y), act, lambda g, y: SE3(g).apply(y), ("g", "y"), 10.0),
        Case(
            "se3.inverse",
            lambda R, t: se3.inverse(Pose(R, t)),
            pose,
            lambda R, t: their_parts(theirs(R, t).inverse()),
            pose,
        ),
        Case("se3.adjoint", lambda R, t: se3.adjoint(Pose(R, t)), pose, lambda g: SE3(g).adjoint(), ("g",)),
        Case("se3.left_jacobian_inverse", se3.left_jacobian_inverse, xi, lambda xi: SE3.exp(-xi).jlog(), xi),
        Case("se3.jlog", our_jlog, pose, lambda R, t: theirs(R, t).jlog(), pose, 2.0),
        Case(
            "se3.pose_loss_gradient",
            jax.grad(_pose_loss),
            ("xi", "R", "x", "y"),
            jax.grad(their_loss),
            ("xi", "g", "y"),
        ),
    ]


def _pose_loss(xi, R, t, y):
    """Σ |log(T⁻¹ exp ξ)|² + |exp(ξ) y − y|²: a measured pose T = (R, t) and a measured point y."""
    guess = se3.exp(xi)
    residual = se3.log(se3.compose(se3.inverse(se3.Pose(R, t)), guess))
    moved = se3.act(guess, y) - y
    return jnp.sum(residual * residual) + jnp.sum(moved * moved)


def inputs(count: int) -> dict[str, jax.Array]:
    """`count` float32 elements of each kind, angles 0 to 3, computed without either library."""
    generator = np.random.default_rng(0)

    def rotation_vectors():
        axis = generator.normal(size=(count, 3))
        return axis / np.linalg.norm(axis, axis=1, keepdims=True) * generator.uniform(0, 3, (count, 1))

    omega, other = rotation_vectors(), rotation_vectors()
    p, q = quaternions(omega), quaternions(other)
    x, y, v = generator.normal(size=(3, count, 3))
    arrays = {
        "omega": omega,
        "xi": np.concatenate([v, omega], axis=1),
        "p": p,
        "q": q,
        "R": matrices(p),
        "S": matrices(q),
        "x": x,
        "y": y,
        "g": np.concatenate([p, x], axis=1),
        "h": np.concatenate([q, y], axis=1),
    }
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def quaternions(omega: np.ndarray) -> np.ndarray:
    """wxyz of rotation vectors away from 0, in NumPy's float64."""
    angle = np.linalg.norm(omega, axis=1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), np.sin(angle / 2) * omega / angle], axis=1)


def matrices(wxyz: np.ndarray) -> np.ndarray:
    """Rotation matrices (w² − |v|²) I + 2 v vᵀ + 2 w v̂ of unit quaternions, in NumPy's float64."""
    w, v = wxyz[:, :1, None], wxyz[:, 1:]
    hat = np.cross(np.eye(3), v[:, None, :])
    scale = w * w - np.sum(v * v, axis=1)[:, None, None]
    return scale * np.eye(3) + 2 * v[:, :, None] * v[:, None, :] + 2 * w * hat
