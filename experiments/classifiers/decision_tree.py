"""A decision tree grown by information gain: each split takes the feature and threshold that lower the entropy most."""

from typing import NamedTuple

import numpy as np


class Tree(NamedTuple):
    """A leaf (`feature` −1) with its probability of class 1, or a split at x[feature] <= threshold."""

    probability: float
    feature: int = -1
    threshold: float = 0.0
    gain: float = 0.0  # bits
    below: "Tree | None" = None
    above: "Tree | None" = None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Probability of class 1 for each row of x (n, features)."""
        if self.below is None or self.above is None:
            return np.full(len(x), self.probability)
        low = x[:, self.feature] <= self.threshold
        result = np.empty(len(x))
        result[low], result[~low] = self.below.predict(x[low]), self.above.predict(x[~low])
        return result


def entropy(probability: np.ndarray | float) -> np.ndarray:
    """−p log₂ p − (1 − p) log₂(1 − p) bits, 0 at both ends."""
    p = np.asarray(probability, np.float64)
    inside = (p > 0) & (p < 1)
    q = np.where(inside, p, 0.5)
    return np.where(inside, -q * np.log2(q) - (1 - q) * np.log2(1 - q), 0.0)


def best_split(x: np.ndarray, labels: np.ndarray, smallest_leaf: int) -> tuple[float, int, float]:
    """(gain in bits, feature, threshold), gain 0 where no threshold leaves `smallest_leaf` samples on both sides."""
    count, best = len(labels), (0.0, -1, 0.0)
    before = float(entropy(labels.mean()))
    below = np.arange(1, count)
    for feature, column in enumerate(x.T):
        order = np.argsort(column, kind="stable")
        values, yes = column[order], np.cumsum(labels[order])
        left, right = yes[:-1] / below, (yes[-1] - yes[:-1]) / (count - below)
        after = (below * entropy(left) + (count - below) * entropy(right)) / count
        allowed = (values[1:] > values[:-1]) & (below >= smallest_leaf) & (count - below >= smallest_leaf)
        gains = np.where(allowed, before - after, 0.0)
        at = int(gains.argmax()) if len(gains) else 0
        if len(gains) and gains[at] > best[0]:
            best = float(gains[at]), feature, float((values[at] + values[at + 1]) / 2)
    return best


def grow(x: np.ndarray, labels: np.ndarray, depth: int, smallest_leaf: int = 20) -> Tree:
    """The tree of at most `depth` splits on a path; leaves hold (yes + 1)/(count + 2), a posterior mean."""
    probability = (float(labels.sum()) + 1) / (len(labels) + 2)
    gain, feature, threshold = best_split(x, labels, smallest_leaf) if depth else (0.0, -1, 0.0)
    if feature < 0:
        return Tree(probability)
    low = x[:, feature] <= threshold
    parts = [grow(x[side], labels[side], depth - 1, smallest_leaf) for side in (low, ~low)]
    return Tree(probability, feature, threshold, gain, *parts)
