"""What each public function is called with to be exported: the table of test_export.py.

Whoever adds a public function adds a row, or a line with a reason to HOST_ONLY. Rows hold shapes, so that filling the
table computes nothing.
"""

from functools import partial

import export_rows_equivariant
import jax.numpy as jnp
import numpy as np
import optax
from export_calls import KEY, Call, call, floats, shape_of

from lie import densities, euclidean, group, optimizers, processes, se2, se3, so2, so3, sphere, statistics, su2
from lie.optimizers import robust
from ot import bridge, costs, low_rank, multimarginal, sinkhorn, wasserstein

# Names, or beginnings that end in a dot, of what runs on the host only: why it is never traced.
HOST_ONLY = {
    "lie.check.": "looks at shapes, dtypes and concrete values; every function above it traces it",
    "lie.group.product": "makes a group, computes nothing",
    "lie.record.register": "decorates classes, computes nothing",
    "lie.harmonics.rotation_grid": "a NumPy table of float64, made from static sizes",
    "lie.harmonics.sphere_grid": "a NumPy table of float64, made from static sizes",
    "lie.wigner.clebsch_gordan": "a NumPy table of float64, made from static sizes",
    "lie.wigner.generators": "a NumPy table of float64, made from static sizes",
    "lie.wigner.middle_blocks": "a NumPy table of float64, made from static sizes",
    "ot.costs.wrap": "makes a record of a function, computes nothing",
    "ot.coupling.align": "its assignments are SciPy's",
    "ot.hierarchical.solve": "its assignments are SciPy's",
    "lie.optimizers.certificate.": "SciPy's sparse factorisation and Lanczos iteration, in float64",
    "lie.optimizers.pose_graph.": "reads files and builds sparse SciPy matrices; its residual is traced by the solvers",
    **export_rows_equivariant.HOST_ONLY,
}


def vocabulary(prefix, space, dimension, points, *instance):
    """Rows for the vocabulary that all groups share; `instance` is the group itself where it is a class."""
    sampled = (2, dimension) if space is euclidean else (2,)
    xi, t = floats(2, dimension), floats(2)
    g = h = shape_of(space.exp, xi)
    arguments = {
        "identity": [call(*instance, sampled, jnp.float32)],
        "sample": [call(*instance, sampled, jnp.float32, key=KEY)],
        "hat": [call(*instance, xi)],
        "vee": [call(*instance, shape_of(space.hat, xi))],
        "act": [call(*instance, g, points)],
        "retract": [call(*instance, g, xi)],
        "interpolate": [call(*instance, g, h, t)],
    }
    arguments |= {name: [call(*instance, xi)] for name in ("exp", "left_jacobian", "right_jacobian")}
    arguments |= {name: [call(*instance, xi)] for name in ("left_jacobian_inverse", "right_jacobian_inverse")}
    arguments |= {name: [call(*instance, g)] for name in ("log", "inverse", "adjoint", "project")}
    arguments |= {name: [call(*instance, g, h)] for name in ("compose", "local", "distance", "squared_distance")}
    return {f"{prefix}.{name}": calls for name, calls in arguments.items()}


def group_rows():
    product = group.product(so3, euclidean.Space(2))
    space = euclidean.Space(3)
    rows = {
        **vocabulary("lie.so2", so2, 1, floats(2, 2)),
        **vocabulary("lie.se2", se2, 3, floats(2, 2)),
        **vocabulary("lie.so3", so3, 3, floats(2, 3)),
        **vocabulary("lie.se3", se3, 6, floats(2, 3)),
        **vocabulary("lie.su2", su2, 3, floats(2, 3)),
        **vocabulary("lie.euclidean", euclidean, 3, floats(2, 3)),
        **vocabulary("lie.group.Product", product, 5, (floats(2, 3), floats(2, 2)), product),
        "lie.euclidean.Space.identity": [call(space, (2,), jnp.float32)],
        "lie.euclidean.Space.sample": [call(space, (2,), jnp.float32, key=KEY)],
        "lie.so3.cross_terms": [call(floats(2), floats(2, 3), floats(2, 3), floats(2, 3))],
        "lie.so3.body_rates": [call(floats(2, 3, 3), floats(2, 3, 3))],
        "lie.so3.log_unchecked": [call(floats(2, 3, 3))],
        "lie.so3.isotropic": [call(floats(2), floats(2), floats(2), floats(2, 3))],
        "lie.so3.compact_isotropic": [call(floats(2), floats(2), floats(2), floats(2, 3))],
        "lie.so3.compact_cross_terms": [call(floats(2), floats(2, 3), floats(2, 3), floats(2, 3))],
        "lie.so3.turned": [call(floats(2, 3, 3), floats(2, 3))],
        "lie.sphere.normalize": [call(floats(2, 3))],
        "lie.sphere.transport": [call(floats(2, 3), floats(3), floats(2, 3))],
        "lie.sphere.interpolate": [call(floats(2, 3), floats(3), floats(2))],
        "lie.sphere.sample": [call((2,), jnp.float32, key=KEY)],
        "lie.su2.canonical": [call(floats(2, 4))],
    }
    for name in ("exp", "log", "distance", "squared_distance", "project", "retract", "local"):
        rows[f"lie.sphere.{name}"] = [call(floats(2, 3), floats(3))]
    for name, module in (("se2", se2), ("se3", se3)):
        pose = shape_of(lambda module=module: module.identity((2,)))
        rows[f"lie.{name}.matrix_from_pose"] = [call(pose)]
        rows[f"lie.{name}.pose_from_matrix"] = [call(shape_of(module.matrix_from_pose, pose))]
    return rows


def smooth_rows():
    names = "cos sinc cosinc cotangent_coefficient cotangent_pair half_cotangent arcsin_squared tanhc norm sqrt acos "
    names += "xlogx log logsumexp angle_over_sine"
    rows = {f"lie.smooth.{name}": [call(floats(3))] for name in names.split()}
    return rows | {
        "lie.smooth.stumpff": [call(3, floats(3))],
        "lie.smooth.stumpff_family": [call(4, floats(3))],
        "lie.smooth.direction": [call(floats(2, 3), floats(3))],
        "lie.smooth.polynomials": [call(((1.0, 2.0), (3.0, 4.0)), floats(2, 3))],
        "lie.smooth.polynomial": [call((1.0, 2.0, 3.0), floats(3))],
        "lie.smooth.divide": [call(floats(3), floats(3))],
        "lie.smooth.power": [call(floats(3), 1.5), call(floats(3), 0.7)],
        "lie.smooth.angle": [call(floats(3), floats(3))],
        "lie.smooth.angle_ratio": [call(floats(3), floats(3))],
        "lie.elementwise.dot": [call(floats(2, 3), floats(2, 3))],
        "lie.elementwise.cross": [call(floats(2, 3), floats(2, 3))],
        "lie.elementwise.matvec": [call(floats(2, 3), floats(3))],
        "lie.elementwise.matmul": [call(floats(2, 3), floats(3, 2))],
        "lie.elementwise.einsum": [call("...ij,...j->...i", floats(2, 3), floats(3))],
        "lie.elementwise.stored": [call(floats(2))],
        "lie.elementwise.transpose": [call(floats(2, 3))],
        "lie.elementwise.bordered": [call(floats(3, 3), floats(3), 1)],
    }


def optimizer_rows():
    R, v = floats(3, 3, 3), floats(3, 3)

    def misfit(R):
        return so3.log(R)

    def chain(measured):
        ends = np.array([0, 1], np.int32), np.array([1, 2], np.int32)
        return [optimizers.Factor(lambda a, b, m: so3.local(a, b) - m, ends, (measured,))]

    def step(optimizer):
        return lambda R, v: optimizer.update(v, optimizer.init(R), R)[0]

    rows = {
        "value_and_grad": [call(R, via=lambda f, R: f(lambda R: jnp.sum(misfit(R) ** 2), so3)(R))],
        "apply_updates": [call(R, v, so3)],
        "project": [call(R, so3)],
        "riemannian": [call(R, v, via=lambda f, R, v: step(f(optax.sgd(0.1, momentum=0.9), so3))(R, v))],
        "vector_norm_adam": [call(R, v, via=lambda f, R, v: step(f(0.1, so3))(R, v))],
        "scale_by_vector_norm_adam": [call(R, v, via=lambda f, R, v: step(f(so3))(v, v))],
    }
    for solver in ("levenberg_marquardt", "trust_region"):
        dense = call(R, via=lambda f, R: f(misfit, R, so3, max_steps=2), derivative=False)
        sparse = call(
            R,
            floats(2, 3),
            via=lambda f, R, v: f(chain(v), R, so3, max_steps=2, linear_solver="cg"),
            derivative=False,
        )
        rows[solver] = [dense, sparse]
    for loss in (robust.Huber, robust.Cauchy, robust.GemanMcClure, robust.Tukey):
        for method in ("value", "weight"):
            rows[f"robust.{loss.__name__}.{method}"] = [call(loss(1.0), floats(3))]
    return {f"lie.optimizers.{name}": calls for name, calls in rows.items()}


def chart_rows():
    R, vector = floats(2, 3, 3), floats(2, 3)
    forward = {"quaternion": floats(2, 4), "6d": floats(2, 6), "5d": floats(2, 5), "svd": R, "euler": vector}
    rows = {f"lie.charts.matrix_from_{name}": [call(x)] for name, x in forward.items()}
    rows |= {f"lie.charts.{name}_from_matrix": [call(R)] for name in ("quaternion", "sixd", "fived", "axis_angle")}
    euler = [call(R, "xyz"), call(R, "ZXZ")]
    return rows | {
        "lie.charts.matrix_from_axis_angle": [call(vector, floats(2))],
        "lie.charts.euler_from_matrix": euler,
    }


def density_rows():
    R = floats(2, 3, 3)
    igso3 = shape_of(densities.IsotropicGaussian, R, floats(2))
    rows = {
        "Haar.log_prob": [call(densities.Haar(), R)],
        "Haar.score": [call(densities.Haar(), R)],
        "Haar.sample": [call(densities.Haar(), (2,), key=KEY)],
        "Haar.entropy": [call(densities.Haar())],
        "IsotropicGaussian.log_prob": [call(igso3, R)],
        "IsotropicGaussian.score": [call(igso3, R)],
        "IsotropicGaussian.sample": [call(igso3, (3,), key=KEY)],
        "IsotropicGaussian.entropy": [call(igso3)],
        "IsotropicGaussian.angle_cdf": [call(igso3, floats(2))],
        "IsotropicGaussian.angle_quantile": [call(igso3, floats(2))],
    }
    fisher = shape_of(densities.MatrixFisher, R)
    rows |= {f"MatrixFisher.{name}": [call(fisher, R)] for name in ("log_prob", "score")}
    rows |= {f"MatrixFisher.{name}": [call(fisher)] for name in ("log_normalizer", "scaled_log_normalizer", "entropy")}
    rows["MatrixFisher.expected_deviation"] = [call(fisher, derivative=False)]
    rows["MatrixFisher.sample"] = [call(fisher, (3,), key=KEY, derivative=False)]
    pose = shape_of(lambda: se3.identity((2,)))
    for space, mean in ((so3, R), (se3, pose)):
        covariance = floats(space.dimension, space.dimension)
        gaussian = shape_of(partial(densities.ConcentratedGaussian, space), mean, covariance)
        for name, arguments in (("log_prob", [mean]), ("score", [mean]), ("entropy", [])):
            rows.setdefault(f"ConcentratedGaussian.{name}", []).append(call(gaussian, *arguments))
        rows.setdefault("ConcentratedGaussian.sample", []).append(call(gaussian, (3,), key=KEY))
    return {f"lie.densities.{name}": calls for name, calls in rows.items()}


def process_rows():
    R, times = floats(2, 3, 3), floats(3)
    pose = shape_of(se3.exp, floats(2, 6))

    def still(time, X):
        return jnp.zeros(X.shape[:-1], X.dtype)

    def at_once(f, R):
        return f(so3, still, 1.0, still)(0.0, R)

    rows = {
        "brownian": [call(so3, R, 0.1, key=KEY), call(se3, pose, 0.1, key=KEY), call(su2, floats(2, 4), 0.1, key=KEY)],
        "brownian_path": [call(so3, R, times, key=KEY)],
        "ode": [call(so3, still, R, times, method=method) for method in processes.METHODS],
        "sde": [call(so3, still, 1.0, R, times, key=KEY)],
        "reverse": [call(so3, still, 1.0, still, R, times, key=KEY)],
        "reverse_drift": [call(R, via=at_once)],
        "probability_flow": [call(R, via=at_once)],
        "divergence": [call(so3, lambda X: still(0.0, X), R)],
        "log_prob": [call(so3, still, R, times, lambda X: X[..., 0, 0])],
    }
    return {f"lie.processes.{name}": calls for name, calls in rows.items()}


def statistic_rows():
    R, x, pose = floats(5, 3, 3), floats(4, 3, 3), shape_of(se3.exp, floats(7, 6))
    kernel = statistics.heat_kernel(0.5)
    geodesics = shape_of(lambda R: statistics.principal_geodesics(so3, R), R)
    region = shape_of(lambda R: statistics.confidence_region(so3, R), R)
    rows = {
        "frechet_mean": [call(so3, R, derivative=False), call(se3, pose, derivative=False)],
        "geodesic_median": [call(so3, R, derivative=False)],
        "projected_mean": [call(R)],
        "fit_isotropic_gaussian": [call(R, derivative=False, slow=True)],
        "fit_matrix_fisher": [call(R, derivative=False)],
        "fit_concentrated_gaussian": [call(so3, R, derivative=False, slow=True)],
        "location_posterior": [call(R, floats())],
        "InverseGamma.log_prob": [call(statistics.InverseGamma(2.0, 1.0), floats(2))],
        "InverseWishart.updated": [
            call(floats(3, 3), floats(5, 3), via=lambda f, M, v: f(statistics.InverseWishart(M, 5.0), v).matrix)
        ],
        "principal_geodesics": [call(so3, R, derivative=False)],
        "along": [call(so3, geodesics, floats(2), derivative=False)],
        "confidence_region": [call(so3, R, derivative=False)],
        "bootstrap_region": [call(so3, R, resamples=19, key=KEY, derivative=False)],
        "contains": [call(so3, region, floats(3, 3), derivative=False)],
        "energy_test": [call(R, x, permutations=9, key=KEY, derivative=False)],
        "kernel_test": [call(R, x, kernel, permutations=9, key=KEY, derivative=False)],
        "heat_kernel": [call(R, via=lambda f, R: f(0.5)(R, R))],
        "rayleigh": [call(R)],
        "bingham": [call(floats(5, 4))],
        "sobolev": [call(R, 2)],
        "gine": [call(R)],
    }
    return {f"lie.statistics.{name}": calls for name, calls in rows.items()}


def representation_rows():
    return {
        "lie.solid.values": [call(floats(2, 3), 3, True)],
        "lie.svd3.svd": [call(floats(2, 3, 3), derivative=False)],
        "lie.wigner.d": [call(floats(2, 3, 3), 3)],
        "lie.wigner.d_all": [call(floats(2, 3, 3), 2)],
        "lie.wigner.multiples": [call(floats(4), floats(4), 3)],
        "lie.harmonics.evaluate": [call(floats(2, 3), 3), call(floats(2, 3), 3, normalize=False)],
        "lie.harmonics.to_grid": [call(floats(2, 9, 2), 3)],
        "lie.harmonics.from_grid": [call(floats(4, 7, 2), 2)],
        "lie.harmonics.fourier_so3": [call(floats(5, 3, 5), 1)],
        "lie.harmonics.inverse_fourier_so3": [call((floats(2, 1, 1), floats(2, 3, 3)), 2)],
    }


def beyond_pairs_rows():
    x, y, z, R = floats(5, 2), floats(4, 2), floats(3, 2), floats(4, 3, 3)
    many = shape_of(lambda x, y, z: multimarginal.solve([x, y, z], edges="chain", epsilon=1.0), x, y, z)
    dense = shape_of(lambda x, y: multimarginal.solve([x, y], epsilon=1.0), x, y)
    thin = shape_of(lambda x, y: low_rank.solve(x, y, rank=2), x, y)
    plan = shape_of(lambda x, y: sinkhorn.solve(x, y, epsilon=1.0), x, y)
    bridged = shape_of(lambda x, y: bridge.solve(x, y, sigma=1.0), x, y)
    chained = shape_of(lambda K, L: bridge.chain([K, L]), floats(3, 4), floats(4, 2))
    return {
        "ot.multimarginal.solve": [call([x, y, z], edges="chain", epsilon=1.0), call([x, y], epsilon=1.0)],
        "ot.multimarginal.MultiMarginal.plan": [call(many), call(dense)],
        "ot.multimarginal.MultiMarginal.pair": [call(many, 0, 2)],
        "ot.low_rank.solve": [call(x, y, rank=2)],
        "ot.low_rank.LowRank.plan": [call(thin)],
        "ot.low_rank.LowRank.apply": [call(thin, floats(4))],
        "ot.low_rank.LowRank.barycentric_map": [call(thin, y)],
        "ot.coupling.pair": [call(x, y, key=KEY, derivative=False)],
        "ot.paths.interpolate": [call(x, x, 0.5), call(R, R, floats(4), group=so3)],
        "ot.paths.velocity": [call(x, x, 0.5), call(floats(4, 3), floats(4, 3), floats(4), group=sphere)],
        "ot.paths.displacement": [call(plan, 0.5, size=3, key=KEY, derivative=False)],
        "ot.gromov.solve": [call(x, y, epsilon=1.0, starts=3, key=KEY)],
        "ot.barycenter.solve": [
            call([x, y], support=z, epsilon=1.0, derivative=False),
            call([R, R], group=so3, epsilon=1.0, derivative=False),
        ],
        "ot.bridge.solve": [call(x, y, sigma=1.0)],
        "ot.bridge.chain": [call([floats(3, 4), floats(4, 2)])],
        "ot.bridge.Bridge.log_future": [call(bridged, 0.5, floats(2))],
        "ot.bridge.Bridge.drift": [call(bridged, 0.5, z)],
        "ot.bridge.Bridge.sample": [call(bridged, 0.5, size=3, key=KEY, derivative=False)],
        "ot.bridge.Chain.marginals": [call(chained)],
        "ot.bridge.Chain.transitions": [call(chained)],
    }


def wasserstein_rows():
    x, y, R, S = floats(5, 3), floats(6, 3), floats(5, 3, 3), floats(6, 3, 3)
    a, b = floats(5), floats(6)
    square, rotations = floats(5, 3), costs.Geodesic(so3)
    plan = shape_of(lambda x: wasserstein.exact(x, x), x)
    rows = {
        "exact": [call(x, square), call(x, y, a, b), call(R, S, cost=rotations)],
        "Exact.plan": [call(plan, derivative=False)],
        "one_dimensional": [call(a, b), call(a, b, a, b, p=1), call(a, b, p=1.5)],
        "circle": [call(a, b, p=1), call(a, b, a, b, p=2)],
        "sliced": [call(x, y, key=KEY), call(x, y, space=sphere, key=KEY), call(R, S, space=so3, key=KEY)],
        "gaussian": [call(floats(2, 3), floats(2, 3, 3), floats(3), floats(3, 3))],
        "linear_program": [call(floats(4), floats(2, 4), floats(2), floats(3, 4), floats(3), derivative=False)],
    }
    return {f"ot.wasserstein.{name}": calls for name, calls in rows.items()}


def sinkhorn_rows():
    x, y = floats(5, 3), floats(6, 3)
    plan = shape_of(lambda x, y: sinkhorn.solve(x, y, epsilon=1.0), x, y)
    batch = [floats(2, 5, 3), y, floats(5), floats(2, 6)]
    pixels = shape_of(lambda u, v: costs.grid((u, v)), floats(3), floats(2))
    rows = {
        "costs.grid": [call((floats(3), floats(2)))],
        "costs.Grid.along_axes": [call(pixels)],
        "sinkhorn.solve": [
            call(x, y, epsilon=1.0),
            call(*batch, epsilon=1.0, mass_penalty=(1.0, 2.0), tolerance=1e-6),
            call(None, None, floats(6), floats(6), cost=pixels, epsilon=1.0),
        ],
        "sinkhorn.Potentials.plan": [call(plan)],
        "sinkhorn.Potentials.apply": [call(plan, floats(6))],
        "sinkhorn.Potentials.transport_cost": [call(plan)],
        "sinkhorn.Potentials.barycentric_map": [call(plan)],
        "sinkhorn.Potentials.sample_pairs": [call(plan, 4, key=KEY, derivative=False)],
        "wasserstein.sinkhorn_divergence": [call(x, y, epsilon=1.0)],
    }
    return {f"ot.{name}": calls for name, calls in rows.items()}


ROWS: dict[str, list[Call]] = {
    **wasserstein_rows(),
    **smooth_rows(),
    **group_rows(),
    **chart_rows(),
    **optimizer_rows(),
    **density_rows(),
    **process_rows(),
    **statistic_rows(),
    **representation_rows(),
    **export_rows_equivariant.rows(),
    **beyond_pairs_rows(),
    **sinkhorn_rows(),
}
