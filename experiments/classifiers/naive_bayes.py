"""Naive Bayes with conjugate laws: features are independent given the class, and each class predicts by its posterior.

Counts out of trials are binomial with a Beta prior, waiting times and squared angles gamma with a Gamma prior on their
rate, labels categorical with a Dirichlet prior; predictive densities are in closed form.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import betaln, gammaln


class Law(Protocol):
    """A prior over the law of one feature, or the posterior after an update."""

    def updated(self, x: np.ndarray) -> "Law": ...

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log predictive density of each x."""
        ...


class BetaBinomial(NamedTuple):
    """x (n, 2) holds successes and trials; the probability of success has the law Beta(a, b)."""

    a: float = 1.0
    b: float = 1.0

    def updated(self, x: np.ndarray) -> "BetaBinomial":
        return BetaBinomial(self.a + x[:, 0].sum(), self.b + (x[:, 1] - x[:, 0]).sum())

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        k, n = x[:, 0], x[:, 1]
        ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        return ways + betaln(self.a + k, self.b + n - k) - betaln(self.a, self.b)


class GammaRate(NamedTuple):
    """x > 0 has a gamma law of known `shape` (1: a waiting time); its rate has the law Gamma(alpha, beta)."""

    shape: float = 1.0
    alpha: float = 1.0
    beta: float = 1.0

    def updated(self, x: np.ndarray) -> "GammaRate":
        return GammaRate(self.shape, self.alpha + len(x) * self.shape, self.beta + float(x.sum()))

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        s, a, b = self
        return a * np.log(b) + (s - 1) * np.log(x) - (a + s) * np.log(b + x) - betaln(a, s)


class DirichletCategorical(NamedTuple):
    """x holds integers 0..k−1; their probabilities have the law Dirichlet(counts)."""

    counts: tuple[float, ...]

    def updated(self, x: np.ndarray) -> "DirichletCategorical":
        more = np.bincount(x, minlength=len(self.counts))
        return DirichletCategorical(tuple(float(c) for c in self.counts + more))

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        return np.log(np.asarray(self.counts) / np.sum(self.counts))[x]


class NaiveBayes(NamedTuple):
    """log odds of class 1 against class 0 from the posteriors of all features."""

    prior_log_odds: float
    laws: Sequence[Mapping[str, Law]]

    def log_odds(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        no, yes = (sum(law[name].log_prob(x) for name, x in features.items()) for law in self.laws)
        return self.prior_log_odds + np.asarray(yes) - np.asarray(no)


def fit(priors: Mapping[str, Law], features: Mapping[str, np.ndarray], labels: np.ndarray) -> NaiveBayes:
    """One posterior per class and feature; the class itself is Bernoulli with a uniform prior."""
    laws = [{name: priors[name].updated(x[labels == c]) for name, x in features.items()} for c in (False, True)]
    yes, count = float(labels.sum()), len(labels)
    return NaiveBayes(float(np.log(yes + 1) - np.log(count - yes + 1)), laws)
