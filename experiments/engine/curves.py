"""Learning curves as inline SVG: median over seeds, a band from smallest to largest, colours set by the page."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 8, 34
_AXES = ("epoch", "trained_steps", "iteration", "samples", "time")  # metrics that are an abscissa, best first
COLOURS = 7  # classes c0 to c6


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Metrics to be drawn in one picture: those that share the longest end that any two share.

    egnn_test_mse and gnn_test_mse -> test_mse; a metric without kin is a picture of its own.
    """
    ends: dict[str, list[str]] = {}
    for name in names:
        words = name.split("_")
        for start in range(len(words)):
            ends.setdefault("_".join(words[start:]), []).append(name)
    found: dict[str, list[str]] = {}
    for name in names:
        words = name.split("_")
        shared = (end for start in range(1, len(words)) if len(ends[end := "_".join(words[start:])]) > 1)
        found.setdefault(next(shared, name), []).append(name)
    return found


def abscissa(columns: Mapping[str, np.ndarray]) -> str:
    """The name of the horizontal axis: a metric that counts upwards alike in all seeds, else the block."""
    for name in _AXES:
        values = columns.get(name)
        if values is not None and (values == values[:1]).all() and (np.diff(values[0]) > 0).all():
            return name
    return "block"


def pictures(columns: Mapping[str, np.ndarray]) -> list[str]:
    """An HTML figure for each group of metrics; columns are (seeds, blocks) and hold `seed` and `block` too."""
    axis = abscissa(columns)
    drawn = [name for name in columns if name not in ("seed", "block", axis)]
    x = columns[axis][0] if len(columns[axis]) else np.zeros(0)
    return [_figure(end, axis, x, {name: columns[name] for name in names}) for end, names in groups(drawn).items()]


def _figure(title: str, axis: str, x: np.ndarray, metrics: Mapping[str, np.ndarray]) -> str:
    finite = np.concatenate([values[np.isfinite(values)] for values in metrics.values()])
    if len(x) < 2 or not len(finite):
        return ""
    logarithmic = bool(finite.min() > 0 and finite.max() > 8 * finite.min())
    scale = np.log10 if logarithmic else np.asarray
    low, high = (float(v) for v in scale(np.array([finite.min(), finite.max()])))
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    right = lambda value: _LEFT + (value - x[0]) / (x[-1] - x[0]) * (WIDTH - _LEFT - _RIGHT)
    up = lambda value: HEIGHT - _BOTTOM - (scale(value) - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
    parts = _frame(axis, x, (low, high), logarithmic, right)
    legend = []
    for i, (name, values) in enumerate(metrics.items()):
        whole = np.atleast_1d(np.isfinite(values).all(axis=0))  # a block where some seed has no number is a gap
        colour, dash = f"c{i % COLOURS}", ' stroke-dasharray="5 3"' if i >= COLOURS else ""
        for piece in np.split(np.arange(len(x)), np.flatnonzero(np.diff(whole)) + 1):
            if not len(piece) or not whole[piece[0]]:
                continue
            h = right(x[piece])
            if len(values) > 1:
                bottom, top = values[:, piece].min(axis=0), values[:, piece].max(axis=0)
                outline = _points(np.r_[h, h[::-1]], np.r_[up(top), up(bottom)[::-1]])
                parts.append(f'<polygon class="band {colour}" points="{outline}"/>')
            line = _points(h, up(np.median(values[:, piece], axis=0)))
            parts.append(f'<polyline class="curve {colour}"{dash} points="{line}"/>')
        label = name.removesuffix(title).strip("_") or name
        last = float(np.median(values[:, -1]))
        legend.append(f'<li><i class="{colour}"></i>{html.escape(label)} <span>{last:.3g}</span></li>')
    described = (
        f"{title.replace('_', ' ')} against {axis}, {'logarithmic' if logarithmic else 'linear'} scale, "
        f"from {finite.min():.3g} to {finite.max():.3g}; {len(metrics)} curve{'s'[: len(metrics) > 1]}"
    )
    return (
        f'<figure class="curves"><figcaption>{html.escape(title.replace("_", " "))}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(described)}">{"".join(parts)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )


def _frame(axis: str, x: np.ndarray, limits: tuple[float, float], logarithmic: bool, right) -> list[str]:
    low, high = limits
    parts = []
    for tick in _ticks(low, high, logarithmic):
        y = HEIGHT - _BOTTOM - (tick - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        label = f"{10.0**tick:.3g}" if logarithmic else f"{tick:.4g}"
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for tick in _ticks(float(x[0]), float(x[-1]), False):
        parts.append(f'<text x="{right(tick):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(
        f'<text x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(axis)}</text>'
    )
    return parts


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers within the limits, about four; in logarithms whole decades, or 1, 2, 5 where few are in sight."""
    if logarithmic:
        decades = [float(d) for d in range(math.ceil(low), math.floor(high) + 1)]
        if len(decades) > 5:
            return decades[:: math.ceil(len(decades) / 5)]
        if len(decades) > 2:
            return decades
        fine = [d + math.log10(k) for d in range(math.floor(low), math.ceil(high) + 1) for k in (1, 2, 5)]
        return [tick for tick in fine if low <= tick <= high]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 5)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _points(h: np.ndarray, v: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(h, v, strict=True))
