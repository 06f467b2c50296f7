"""Stanfill, Hofmann & Genschel 2014: statistics of real orientations; both published means to all printed digits.

Command: `python -m experiments run orientations --preset cpu --data FOLDER` (2 minutes; expected: no digit differs).
Nickel orientations (3449 places, 14 scans each) and drilling wrists. Simulations check the coverage of confidence
regions, sizes of tests, maximum likelihood and the Bayes posterior. On nickel, neighbours in one grain seem far
apart unless the 24 rotations of the cube are taken into account: mixture, naive Bayes, decision tree with and without.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jax import Array
from scipy.spatial import KDTree
from scipy.stats import rankdata

from experiments.classifiers import crystal_mixture, decision_tree, naive_bayes
from experiments.engine import dataset, style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from experiments.simulators import orientation_samples as samples
from lie import charts, so3, statistics

BIBTEX = """@article{stanfill2014rotations,
  author  = {Stanfill, Bryan and Hofmann, Heike and Genschel, Ulrike},
  title   = {rotations: An {R} package for {SO}(3) data},
  journal = {The R Journal},
  volume  = {6}, number = {1}, pages = {68--78}, year = {2014},
  doi     = {10.32614/RJ-2014-007}
}"""

LOCATION_1 = np.array([[-0.645, -0.286, -0.708], [0.687, -0.623, -0.374], [-0.334, -0.728, 0.599]])
WRIST_1 = np.array([0.987, -0.07, -0.134, 0.049])  # w, x, y, z of subject 1
RADIUS = 0.172  # rad, of the 95 % region of the mean, Cayley κ = 10, n = 50: one random sample
SPACING = 0.2  # of the scan's hexagonal grid, in the unit of its coordinates (micrometres)
SAME_GRAIN = 5.0  # degrees of disorientation between neighbours at most
GRAIN_COLOURS = np.array([*style.COLOURS, "#999999", "#F0E442", "#882255", "#44AA99", "#DDDDDD"])
FEATURES = {"no_angle": None, "misorientation": "raw", "disorientation": "cubic"}


@dataclass(frozen=True)
class Config:
    """Sizes of the simulations and of the mixture."""

    simulations: int = 20_000
    """Samples whose regions and p-values are counted; half of them for tests by permutations."""
    components: int = 14
    """Of the mixture of grains."""
    em_steps: int = 40
    depth: int = 4
    """Of the decision tree."""

    def __post_init__(self) -> None:
        for field in ("simulations", "components", "em_steps", "depth"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")


PRESETS = {"smoke": Config(simulations=40, em_steps=5), "cpu": Config(simulations=4000), "paper": Config()}


class Data(NamedTuple):
    """Valid rotations of the nickel scans and of the drill set's wrists, float32."""

    rotation: np.ndarray  # (n, 3, 3)
    place: np.ndarray  # (n,) index of the location
    scan: np.ndarray  # (n,) 0..13
    position: np.ndarray  # (places, 2) micrometres
    wrist: np.ndarray  # (m, 3, 3)
    subject: np.ndarray  # (m,) 1..8


class State(NamedTuple):
    """`init` analyses the real data on the host; the one block of `advance` adds the simulations."""

    key: Array
    done: Array
    found: dict[str, Array]


Metrics = dict[str, Array]


def data(config: Config, folder: Path | None) -> Data:
    """Reads `ebsd_so3` of the data folder and leaves out what is no rotation (failed measurements)."""
    if folder is None or not (folder / "ebsd_so3").is_dir():
        raise Refused("orientations: no data folder with ebsd_so3/ is given; name one by --data or HAAR_DATA")
    nickel = dataset.load(folder / "ebsd_so3" / "nickel_ebsd.npz")
    R = np.swapaxes(nickel["V"].reshape(-1, 3, 3), -1, -2)  # the file holds columns
    place = nickel["location"].astype(np.int32) - 1
    scan = nickel["rep"].astype(np.int32) - 1
    position = np.zeros((place.max() + 1, 2), np.float32)
    position[place] = np.stack([nickel["xpos"], nickel["ypos"]], axis=1)
    valid = np.isfinite(R).all((1, 2))
    valid &= np.abs(np.swapaxes(R, -1, -2) @ R - np.eye(3, dtype=R.dtype)).max((1, 2)) < 1e-3
    valid[valid] &= np.linalg.det(R[valid]) > 0
    drill = dataset.load(folder / "ebsd_so3" / "drill.npz")
    q = drill["quat_wxyz"]
    keep = (drill["joint"] == 0) & np.isfinite(q).all(1)
    wrist = np.asarray(charts.matrix_from_quaternion(jnp.asarray(q[keep])))
    subject = drill["subject"][keep].astype(np.int32)
    return Data(R[valid], place[valid], scan[valid], position, wrist, subject)


def init(config: Config, key: Array, data: Data) -> State:
    """Means, posterior and geodesics of the real data, and the grains of the nickel."""
    key, key_test = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    found = wrist_statistics(data, key_test) | means(data) | grains(config, data, rng)
    return State(key, jnp.zeros((), bool), {name: jnp.asarray(value, jnp.float32) for name, value in found.items()})


def means(data: Data) -> dict[str, Any]:
    """Both published means and how many of their printed digits differ."""
    first = statistics.projected_mean(jnp.asarray(data.rotation[data.place == 0]))
    wrist = charts.quaternion_from_matrix(statistics.projected_mean(jnp.asarray(data.wrist[data.subject == 1])))
    wrist = wrist * jnp.sign(wrist[0])
    return {
        "location_1_mean": first,
        "wrist_1_mean": wrist,
        "location_1_wrong_digits": np.sum(np.abs(np.asarray(first) - LOCATION_1) > 5.001e-4),
        "wrist_1_wrong_digits": np.sum(np.abs(np.asarray(wrist) - WRIST_1) > 5.001e-4),
    }


def wrist_statistics(data: Data, key: Array) -> dict[str, Any]:
    """Subject 1: confidence region, posterior at the fitted concentration, principal geodesics; subject 1 against 2."""
    one, two = (jnp.asarray(data.wrist[data.subject == s]) for s in (1, 2))
    scale = statistics.fit_isotropic_gaussian(one).density.scale
    kappa = 1 / (2 * scale * scale)  # the isotropic matrix Fisher law of that spread, to first order
    posterior = statistics.location_posterior(one, kappa)
    region = statistics.confidence_region(so3, one)
    draws = posterior.sample((1000,), key=key)
    geodesics = statistics.principal_geodesics(so3, one)
    return {
        "wrist_coordinates_degrees": jnp.degrees(geodesics.coordinates),
        "wrist_variance_share": geodesics.variances / jnp.sum(geodesics.variances),
        "wrist_kappa": kappa,
        "wrist_region_radius_degrees": jnp.degrees(region.radius),
        "wrist_posterior_radius_degrees": jnp.quantile(jnp.degrees(so3.distance(posterior.mode, draws)), 0.95),
        "wrist_two_sample_p": statistics.energy_test(one, two, key=key).p_value,
    }


def grains(config: Config, data: Data, rng: np.random.Generator) -> dict[str, Any]:
    """Grains by connected neighbours and by EM, with and without the cube; boundaries by two classifiers."""
    places = len(data.position)
    centre = np.full((places, 3, 3), np.nan)
    scatter = np.full(places, np.nan)
    counts = np.bincount(data.place, minlength=places)
    order = np.split(np.argsort(data.place, kind="stable"), np.cumsum(counts)[:-1])
    for place, members in enumerate(order):
        if len(members):
            centre[place] = np.median(data.rotation[members], axis=0)  # robust to a scan of another grain
    seen = np.flatnonzero(counts > 0)
    centre[seen] = np.asarray(so3.project(jnp.asarray(centre[seen], jnp.float32)))
    for place in seen:
        away = crystal_mixture.disorientation(data.rotation[order[place]].astype(np.float64), centre[place])
        scatter[place] = np.mean(away**2)
    pairs = KDTree(data.position).query_pairs(1.05 * SPACING, output_type="ndarray")
    pairs = pairs[np.all(counts[pairs] > 0, axis=1)]
    first, second = pairs.T
    raw = crystal_mixture.misorientation(centre[first], centre[second])
    cubic = crystal_mixture.disorientation(centre[first], centre[second])
    boundary = cubic > SAME_GRAIN
    joined = scipy.sparse.coo_matrix((np.ones(int(np.sum(~boundary))), pairs[~boundary].T), shape=(places, places))
    _, connected = scipy.sparse.csgraph.connected_components(joined, directed=False)
    found: dict[str, Any] = {"pair_misorientation_degrees": raw, "pair_disorientation_degrees": cubic}
    for name, group in (("raw", np.eye(3)[None]), ("cubic", crystal_mixture.cube())):
        mixture = crystal_mixture.fit(centre[seen], group, config.components, config.em_steps, rng)
        label = mixture.responsibilities.argmax(1)
        found[f"{name}_agreement"] = crystal_mixture.adjusted_rand(label, connected[seen])
        found[f"{name}_log_likelihood"] = mixture.log_likelihood
        found[f"{name}_smallest_rise"] = np.diff(mixture.log_likelihood).min()
        map_of_labels = np.full(places, -1)
        map_of_labels[seen] = label
        found[f"{name}_label"] = map_of_labels
    found["position_um"] = data.position
    found |= classify(config, data, pairs, boundary, counts, scatter, rng)
    return found


def classify(
    config: Config,
    data: Data,
    pairs: np.ndarray,
    boundary: np.ndarray,
    counts: np.ndarray,
    scatter: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Areas under the ROC curve on half of the pairs: is there a grain boundary between two neighbours?

    The truth comes from the means of 14 scans; the angle from one scan. Features: scans that succeeded out of 28
    (binomial), scatter within a place and squared angle (gamma), direction of the pair (categorical).
    """
    scan = rng.integers(14)
    one = np.full((len(data.position), 3, 3), np.nan)
    one[data.place[data.scan == scan]] = data.rotation[data.scan == scan]
    seen = np.isfinite(one[pairs]).all((1, 2, 3))
    pairs, boundary = pairs[seen], boundary[seen]
    first, second = pairs.T
    step = data.position[second] - data.position[first]
    direction = np.round(np.mod(np.degrees(np.arctan2(step[:, 1], step[:, 0])), 180) / 60).astype(int) % 3
    basic = {
        "success": np.stack([counts[first] + counts[second], np.full(len(pairs), 28)], axis=1),
        "scatter": scatter[first] + scatter[second],
        "direction": direction,
    }
    angles = {
        "raw": crystal_mixture.misorientation(one[first], one[second]),
        "cubic": crystal_mixture.disorientation(one[first], one[second]),
    }
    train = rng.permutation(len(pairs)) < len(pairs) // 2
    found = {}
    for name, kind in FEATURES.items():
        features = basic if kind is None else basic | {"angle": angles[kind] ** 2}
        features = {f: np.maximum(x, 1e-6) if f in ("scatter", "angle") else x for f, x in features.items()}
        priors = {
            "success": naive_bayes.BetaBinomial(),
            "direction": naive_bayes.DirichletCategorical((1.0, 1.0, 1.0)),
            "scatter": naive_bayes.GammaRate(0.5),
            "angle": naive_bayes.GammaRate(0.5),
        }
        model = naive_bayes.fit(priors, {f: x[train] for f, x in features.items()}, boundary[train])
        scores = {"bayes": model.log_odds({f: x[~train] for f, x in features.items()})}
        table = np.stack([x if x.ndim == 1 else x[:, 0] for x in features.values()], axis=1)
        tree = decision_tree.grow(table[train], boundary[train], config.depth)
        scores["tree"] = tree.predict(table[~train])
        for method, score in scores.items():
            found[f"{method}_{name}_area"] = area_under_roc(score, boundary[~train])
        found[f"{name}_first_gain_bits"] = tree.gain
    return found


def area_under_roc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half."""
    ranks, yes = rankdata(score), int(positive.sum())
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * (len(score) - yes)))


def done(config: Config, state: State) -> bool:
    return bool(state.done)


def advance(config: Config, state: State, data: Data) -> tuple[State, Metrics]:
    """The simulations: shares of regions that cover, of tests that reject at 5 %, and one maximum likelihood fit."""
    key, *keys = jax.random.split(state.key, 6)
    count = config.simulations
    cover, radius = samples.simulate(samples.region, count, keys[0])
    rejected = samples.simulate(samples.tests, count, keys[1])
    credible = samples.simulate(samples.posterior, count, keys[2])
    differing = samples.simulate(samples.two_samples, max(count // 2, 1), keys[3])
    metrics = {
        "region_coverage": jnp.mean(cover.astype(jnp.float32)),
        "region_radius": jnp.mean(radius),
        "posterior_coverage": jnp.mean(credible.astype(jnp.float32)),
        "likelihood_z": samples.likelihood(keys[4]),
        "energy_size": jnp.mean(differing.astype(jnp.float32)),
    }
    metrics |= {f"{name}_size": jnp.mean(value.astype(jnp.float32)) for name, value in rejected.items()}
    return State(key, jnp.ones((), bool), state.found), metrics | state.found


SIZES = {
    "rayleigh": "Rayleigh",
    "bingham": "Bingham",
    "gine": "Giné",
    "sobolev4": "Sobolev, degree 4",
    "energy": "energy, two samples",
}


def result(config: Config, metrics: dict[str, np.ndarray], state: State, data: Data) -> Result:
    """Printed digits, coverages, sizes, and what the cube's symmetry is worth."""
    found = {name: np.asarray(value)[-1] for name, value in metrics.items()}
    enough = config.simulations >= PRESETS["cpu"].simulations

    def row(label: str, value: Any, low: float = -math.inf, high: float = math.inf, gated: bool = enough) -> Row:
        return Row(label, float(value), low=low if gated else -math.inf, high=high if gated else math.inf)

    rows = [
        Row(
            "mean of location 1, printed digits that differ",
            float(found["location_1_wrong_digits"]),
            0.0,
            "R package",
            "verified",
            0,
            0,
        ),
        Row(
            "mean wrist of subject 1, printed digits that differ",
            float(found["wrist_1_wrong_digits"]),
            0.0,
            "R package",
            "verified",
            0,
            0,
        ),
        row("coverage of the 95 % region (%)", 100 * found["region_coverage"], 93, 97),
        Row(
            "its mean radius (rad)",
            float(found["region_radius"]),
            RADIUS,
            "R package, one sample",
            "verified",
            0.15,
            0.19,
        ),
        row("coverage of the 95 % posterior region (%)", 100 * found["posterior_coverage"], 93, 97),
        row("maximum likelihood of κ, error in standard errors", found["likelihood_z"], -3, 3),
    ]
    for name, label in SIZES.items():
        rows.append(row(f"size of the 5 % test, {label} (%)", 100 * found[f"{name}_size"], 3.5, 6.5))
    cubic, raw = found["pair_disorientation_degrees"], found["pair_misorientation_degrees"]
    bound = float(crystal_mixture.LARGEST_ANGLE_DEGREES)
    rows += [
        Row(
            "nickel, largest disorientation of neighbours (°)",
            float(cubic.max()),
            bound,
            "cubic symmetry",
            "analytic",
            high=bound,
        ),
        row(
            "nickel, neighbours of one grain over 20° apart without symmetry (%)",
            100 * np.mean(raw[cubic < SAME_GRAIN] > 20),
        ),
        row("nickel, mixture and connected grains agree (Rand index)", found["cubic_agreement"]),
        row("the same without symmetry", found["raw_agreement"]),
        row(
            "EM, smallest rise of the log likelihood",
            min(found["cubic_smallest_rise"], found["raw_smallest_rise"]),
            -1e-6,
            gated=True,
        ),
    ]
    for method, label in (("bayes", "naive Bayes"), ("tree", "decision tree")):
        rows += [
            row(f"boundaries by {label}, {name.replace('_', ' ')}: area under ROC", found[f"{method}_{name}_area"])
            for name in FEATURES
        ]
    rows += [
        row(f"first split of the tree, {name.replace('_', ' ')} (bits)", found[f"{name}_first_gain_bits"])
        for name in FEATURES
    ]
    rows += [
        row("wrist 1, 95 % region's radius (°)", found["wrist_region_radius_degrees"]),
        row("wrist 1, 95 % posterior radius (°)", found["wrist_posterior_radius_degrees"]),
        row("wrist 1, variance along the first principal geodesic (%)", 100 * found["wrist_variance_share"][0]),
        row("wrists 1 and 2, p of the energy test", found["wrist_two_sample_p"]),
    ]
    return Result(tuple(rows))


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """Grains, angles between neighbours, boundaries found, simulated shares, wrists, printed means."""
    found = {name: value[:, -1] for name, value in metrics.items()}
    picture = style.figure(10.5, 6.4)
    axes = picture.subplots(2, 3)
    for place, (name, title) in zip(
        axes[0, :2], {"raw": "ignoring the cube", "cubic": "with the cube"}.items(), strict=True
    ):
        label, position = found[f"{name}_label"][0], found["position_um"][0]
        seen = label >= 0
        sizes = np.bincount(label[seen].astype(int))
        rank = np.argsort(np.argsort(-sizes))[label[seen].astype(int)]
        place.scatter(*position[seen].T, c=GRAIN_COLOURS[np.minimum(rank, 11)], s=5, marker="h", linewidths=0)
        agreement = np.mean(found[f"{name}_agreement"])
        place.set(xlabel="x (µm)", ylabel="y (µm)", aspect="equal", title=f"Grains by EM, {title} ({agreement:.2f})")
    _draw_angles(axes[0, 2], found)
    _draw_areas(axes[1, 0], found)
    _draw_shares(axes[1, 1], found)
    _draw_wrists(axes[1, 2], found)
    return picture


def _draw_angles(axes: Any, found: dict[str, np.ndarray]) -> None:
    bins = np.linspace(0, 180, 91)
    for name, label, colour in (("misorientation", "symmetry ignored", 1), ("disorientation", "cubic symmetry", 0)):
        values = found[f"pair_{name}_degrees"][0]
        axes.hist(values, bins=bins, histtype="step", linewidth=1.3, color=style.COLOURS[colour], label=label)
    axes.axvline(
        crystal_mixture.LARGEST_ANGLE_DEGREES, color=style.PUBLISHED, linestyle=":", label="62.8°, the largest"
    )
    axes.set(
        xlabel="angle between neighbours (°)",
        ylabel="pairs",
        yscale="log",
        ylim=(0.8, 3e4),
        title="Neighbours on the nickel",
    )
    axes.legend(loc="upper right")


def _draw_areas(axes: Any, found: dict[str, np.ndarray]) -> None:
    for shift, method, label in ((-0.12, "bayes", "naive Bayes"), (0.12, "tree", "decision tree")):
        values = np.array([found[f"{method}_{name}_area"] for name in FEATURES])
        colour = style.COLOURS[0] if method == "bayes" else style.COLOURS[1]
        axes.plot(
            np.repeat(np.arange(len(FEATURES)) + shift, values.shape[1]), values.ravel(), "o", color=colour, label=label
        )
    axes.set_xticks(range(len(FEATURES)), ["counts and\nscatter only", "+ angle,\nraw", "+ angle,\ncubic"])
    axes.set(ylabel="area under the ROC curve", title="Is there a boundary between neighbours?")
    axes.legend(loc="lower right")


def _draw_shares(axes: Any, found: dict[str, np.ndarray]) -> None:
    rows = {"confidence region": ("region_coverage", 95), "posterior region": ("posterior_coverage", 95)}
    rows |= {label: (f"{name}_size", 5) for name, label in SIZES.items()}
    for height, (metric, aim) in enumerate(rows.values()):
        values = 100 * found[metric] - aim
        axes.plot(values, np.full(len(values), height), "o", color=style.COLOURS[0], markersize=5)
        width = 2 if aim == 95 else 1.5
        axes.plot([-width, width], [height, height], color=style.PUBLISHED, linewidth=6, alpha=0.25)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.axvline(0, color=style.PUBLISHED, linewidth=0.8)
    axes.set(xlabel="simulated − nominal (%), gate in grey", title="Coverage at 95 % and sizes at 5 %")


def _draw_wrists(axes: Any, found: dict[str, np.ndarray]) -> None:
    coordinates, share = found["wrist_coordinates_degrees"][0], found["wrist_variance_share"][0]
    axes.scatter(*coordinates[:, :2].T, s=14, color=style.COLOURS[5])
    turn = np.linspace(0, 2 * np.pi, 200)
    for name, label, colour in (("region", "95 % region of the mean", 0), ("posterior", "95 % posterior", 1)):
        radius = found[f"wrist_{name}_radius_degrees"][0]
        line = "-" if name == "region" else "--"
        axes.plot(radius * np.cos(turn), radius * np.sin(turn), line, color=style.COLOURS[colour], label=label)
    printed, ours = WRIST_1, found["wrist_1_mean"][0]
    text = (
        "mean wxyz, printed " + " ".join(f"{x:.3f}" for x in printed) + "\nours " + " ".join(f"{x:.3f}" for x in ours)
    )
    axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=7)
    axes.set(
        xlabel=f"1st geodesic (°), {100 * share[0]:.0f} % of variance",
        ylabel=f"2nd (°), {100 * share[1]:.0f} %",
        title="Wrist of subject 1",
    )
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="upper right")
