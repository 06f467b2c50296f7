"""Probability densities on groups, with respect to normalised Haar measure: log density, score, samples, entropy."""

from lie.densities.concentrated_gaussian import ConcentratedGaussian
from lie.densities.haar import Haar
from lie.densities.isotropic_gaussian import IsotropicGaussian
from lie.densities.matrix_fisher import MatrixFisher

__all__ = ["ConcentratedGaussian", "Haar", "IsotropicGaussian", "MatrixFisher"]
