"""Rotations of crystals: the 24 rotations of a cube, disorientation angles, and mixtures that know the symmetry, by EM.

A crystal's orientation R and R S look the same for every S of the cube's group. The components are matrix Fisher laws
exp(κ tr(MᵀR))/c(κ) of the variant R S nearest to M, and one uniform law for what belongs to no grain.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ive, logsumexp

LARGEST_ANGLE_DEGREES = float(np.degrees(2 * np.arctan(np.sqrt(2 * (np.sqrt(2) - 1) ** 2 + (3 - 2 * np.sqrt(2)) ** 2))))


def cube() -> np.ndarray:
    """The 24 rotations (24, 3, 3) that map a cube to itself; the identity comes first."""
    signs = itertools.product((1.0, -1.0), repeat=3)
    matrices = [np.eye(3)[list(p)] * s for s in signs for p in itertools.permutations(range(3))]
    group = np.array([S for S in matrices if np.linalg.det(S) > 0])
    return group[np.argsort(-np.trace(group, axis1=1, axis2=2), kind="stable")]


def angle(trace: np.ndarray) -> np.ndarray:
    """Rotation angle in degrees from the trace of a rotation matrix."""
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def misorientation(R1: np.ndarray, R2: np.ndarray) -> np.ndarray:
    """Angle of R1ᵀ R2 in degrees, symmetry ignored."""
    return angle(np.einsum("...ij,...ij", R1, R2))


def disorientation(R1: np.ndarray, R2: np.ndarray) -> np.ndarray:
    """Smallest angle in degrees of R1ᵀ R2 S over the cube's rotations S: at most 62.80 (LARGEST_ANGLE_DEGREES)."""
    return angle(np.einsum("...ik,ski->...s", np.swapaxes(R1, -1, -2) @ R2, cube()).max(-1))


def nearest_variant(M: np.ndarray, R: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The R S nearest to M, S in `group`."""
    chosen = np.einsum("...ik,ski->...s", np.swapaxes(M, -1, -2) @ R, group).argmax(-1)
    return R @ group[chosen]


class Mixture(NamedTuple):
    """Weights (k + 1,), the last of the uniform law; modes (k, 3, 3); concentrations (k,); the path of EM."""

    weights: np.ndarray
    modes: np.ndarray
    kappa: np.ndarray
    log_likelihood: np.ndarray  # mean per orientation, before each step
    responsibilities: np.ndarray  # (n, k + 1)


def deviation(kappa: float) -> float:
    """E[1 − cos ω] of the angle to the mode: (I0 − 2 I1 + (I0 + I2)/2)/(I0 − I1) at 2κ."""
    i0, i1, i2 = (ive(n, 2 * kappa) for n in (0, 1, 2))
    return float((1.5 * i0 - 2 * i1 + 0.5 * i2) / (i0 - i1))


def log_density(one_minus_cosine: np.ndarray, kappa: np.ndarray | float) -> np.ndarray:
    """log of exp(κ tr(MᵀR))/c(κ) against Haar, c(κ) = e^κ (I0(2κ) − I1(2κ))."""
    return -2 * kappa * one_minus_cosine - np.log(ive(0, 2 * kappa) - ive(1, 2 * kappa))


def fit(
    R: np.ndarray,
    group: np.ndarray,
    components: int,
    steps: int,
    rng: np.random.Generator,
    largest_kappa: float = 1e4,
) -> Mixture:
    """EM from modes that are far from each other; κ <= `largest_kappa` keeps single points from being components.

    `group` is `cube()`, or the identity alone, which ignores the symmetry.
    """
    modes = _spread(R, group, components, rng)
    kappa, weights = np.full(components, 100.0), np.full(components + 1, 1 / (components + 1))
    path = []
    responsibilities = np.empty(0)
    for _ in range(steps):
        aligned = nearest_variant(modes[None], R[:, None], group)
        # 1 − cos ω = |R − M|²/4, without cancellation
        away = np.sum((aligned - modes) ** 2, axis=(2, 3)) / 4
        logs = np.concatenate([log_density(away, kappa) - np.log(len(group)), np.zeros((len(R), 1))], axis=1) + np.log(
            weights
        )
        total = logsumexp(logs, axis=1, keepdims=True)
        path.append(float(np.mean(total)))
        responsibilities = np.exp(logs - total)
        mass = responsibilities.sum(0)
        weights = np.maximum(mass, 1e-9) / np.maximum(mass, 1e-9).sum()
        moment = np.einsum("nk,nkij->kij", responsibilities[:, :-1], aligned)
        modes = np.array([_project(m) for m in moment])
        away = np.sum((aligned - modes) ** 2, axis=(2, 3)) / 4
        mean_away = (responsibilities[:, :-1] * away).sum(0) / np.maximum(mass[:-1], 1e-9)
        kappa = np.array([_concentration(a, largest_kappa) for a in mean_away])
    return Mixture(weights, modes, kappa, np.array(path), responsibilities)


def _concentration(mean_away: float, largest: float) -> float:
    smallest = 0.01
    if mean_away <= deviation(largest):
        return largest
    if mean_away >= deviation(smallest):
        return smallest
    root: Any = brentq(lambda x: deviation(np.exp(x)) - mean_away, np.log(smallest), np.log(largest))
    return float(np.exp(root))


def _project(M: np.ndarray) -> np.ndarray:
    U, _, V = np.linalg.svd(M)
    return U @ np.diag([1, 1, np.linalg.det(U @ V)]) @ V


def _spread(R: np.ndarray, group: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Orientations drawn one after the other with probability ∝ |R S − M|² to the nearest before (k-means++)."""
    chosen = [R[rng.integers(len(R))]]
    nearest = np.full(len(R), np.inf)
    while len(chosen) < count:
        away = np.sum((nearest_variant(chosen[-1], R, group) - chosen[-1]) ** 2, axis=(1, 2))
        nearest = np.minimum(nearest, away)
        chosen.append(R[rng.choice(len(R), p=nearest / nearest.sum())])
    return np.array(chosen)


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two labellings, 1 for equal and 0 on average for random ones. Source: Hubert & Arabie 1985."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: np.ndarray) -> float:
        return float(np.sum(counts * (counts - 1) / 2))

    both, one, other = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = one * other / (len(a) * (len(a) - 1) / 2)
    return (both - expected) / ((one + other) / 2 - expected)
