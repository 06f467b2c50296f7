"""Statistics on groups: means, principal geodesics, confidence regions, fits of the densities, hypothesis tests.

Samples carry their axis first, (n, *batch, *element), as `density.sample((n,), key=key)` returns them; weights are (n,)
or (n, *batch). Every iteration returns a record with error, steps and converged.
"""

from lie.statistics.fits import (
    Fit,
    InverseGamma,
    InverseWishart,
    fit_concentrated_gaussian,
    fit_isotropic_gaussian,
    fit_matrix_fisher,
    location_posterior,
)
from lie.statistics.means import Mean, frechet_mean, geodesic_median, projected_mean
from lie.statistics.principal import PrincipalGeodesics, along, principal_geodesics
from lie.statistics.regions import Region, bootstrap_region, confidence_region, contains
from lie.statistics.two_samples import energy_test, heat_kernel, kernel_test
from lie.statistics.uniformity import Test, bingham, gine, rayleigh, sobolev

__all__ = [
    "Fit",
    "InverseGamma",
    "InverseWishart",
    "Mean",
    "PrincipalGeodesics",
    "Region",
    "Test",
    "along",
    "bingham",
    "bootstrap_region",
    "confidence_region",
    "contains",
    "energy_test",
    "fit_concentrated_gaussian",
    "fit_isotropic_gaussian",
    "fit_matrix_fisher",
    "frechet_mean",
    "geodesic_median",
    "gine",
    "heat_kernel",
    "kernel_test",
    "location_posterior",
    "principal_geodesics",
    "projected_mean",
    "rayleigh",
    "sobolev",
]
