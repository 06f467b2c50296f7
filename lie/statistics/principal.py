"""Principal geodesics: the directions from the mean along which samples on a group vary most."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lie import elementwise
from lie import group as groups
from lie.statistics import means
from lie.statistics import samples as layout


class PrincipalGeodesics(NamedTuple):
    """Geodesics mean · exp(s e_k), e_k = directions[..., k, :]; the most important first.

    `mean` is the record of the Fréchet mean with its convergence; variances are those of `coordinates`
    (n, *batch, dimension), the samples' positions along the directions.
    """

    mean: means.Mean
    directions: Float[Array, "*batch dimension dimension"]
    variances: Float[Array, "*batch dimension"]
    coordinates: Float[Array, "n *batch dimension"]


def principal_geodesics(
    group: groups.Group, samples: groups.Element, weights: ArrayLike | None = None
) -> PrincipalGeodesics:
    """Eigenvectors of Σ_i w_i v_i v_iᵀ, v_i = log(m⁻¹ x_i) at the Fréchet mean m: principal geodesic analysis.

    samples (n, *batch, *element). The linearised analysis: variance is measured in the tangent space at m, which is
    exact for geodesics through m and samples near them, and on R^n is PCA. Each direction has its largest entry
    positive. The tangent's own inner product counts: on SE(n) scale the translation first. Derivatives exist where the
    variances differ. Source: Fletcher, Lu, Pizer, Joshi 2004, IEEE TMI 23:995.
    """
    mean = means.frechet_mean(group, samples, weights)
    tangent = layout.tangent_of(group, samples)
    weights = layout.normalised(weights, tangent)
    tangents = layout.tangents(group, mean.mean, layout.align(samples, tangent, weights.ndim - 1))
    variances, columns = jnp.linalg.eigh(layout.covariance(weights, tangents))
    directions = jnp.swapaxes(columns, -1, -2)[..., ::-1, :]
    largest = jnp.take_along_axis(directions, jnp.argmax(jnp.abs(directions), axis=-1, keepdims=True), axis=-1)
    directions = jnp.where(largest < 0, -directions, directions)
    coordinates = elementwise.matvec(directions, tangents)
    return PrincipalGeodesics(mean, directions, jnp.maximum(variances[..., ::-1], 0), coordinates)


def along(group: groups.Group, geodesics: PrincipalGeodesics, coordinates: Float[ArrayLike, "... k"]) -> groups.Element:
    """mean · exp(Σ_k s_k e_k) for the first k coordinates: with all of them, the samples again."""
    coordinates = jnp.asarray(coordinates)
    used = geodesics.directions[..., : coordinates.shape[-1], :]
    return group.retract(geodesics.mean.mean, elementwise.matvec(jnp.swapaxes(used, -1, -2), coordinates))
