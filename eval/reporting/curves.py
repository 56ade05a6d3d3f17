"""Curves of a sweep: mean and range over the seeds of each setting, as path data that plot.svg.jinja draws."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any, TypeGuard

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]
Curve = tuple[Array, Array]  # increasing steps [n] and finite values [n]

BINS = 300  # points of a line; more cannot be seen at the width of a page
PLOT_POINTS = 24_000  # points of all lines of a plot, which keeps the page light
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")  # Okabe and Ito; gray for black
DASHES = ("", "5 2", "1.5 1.5")  # stroke-dasharray
WIDTH, HEIGHT = 317.0, 194.0  # of the viewBox
RIGHT, TOP, BOTTOM = 300.0, 6.0, 160.0  # edges of the axes
DIGIT_WIDTH = 5.2


@dataclass(frozen=True)
class Style:
    """The look of a line in every plot, and its entry in the legend."""

    entry: int
    colour: str
    dash: str
    distinct: bool  # False: there are too many settings to tell apart, so those of one method share a style


@dataclass(frozen=True)
class Line:
    """A setting in a plot, as path data."""

    mean: str
    band: str  # from the lowest to the highest seed; may be empty
    dots: str  # may be empty


@dataclass(frozen=True)
class Axis:
    """A linear axis from the value `low` at the position `start` to the value `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, values: Array) -> Array:
        """Return the positions of values."""
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return position and label of a few round values."""
        values = np.array(MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(self.low, self.high))
        values = values[(values >= self.low) & (values <= self.high)]
        exponent = floor(log10(np.abs(values).max()))
        scale, suffix = (1.0, "") if -5 < exponent < 6 else (10.0**exponent, f"e{exponent}")
        decimals = max(0, -floor(log10((values[1] - values[0]) / scale) + 1e-6))
        labels = [f"{value:.{decimals}f}{suffix}" for value in np.round(values / scale, decimals) + 0.0]  # no -0
        return list(zip(self.place(values).round(1).tolist(), labels, strict=True))


@dataclass(frozen=True)
class Plot:
    """Metric against step."""

    x: Axis
    y: Axis
    groups: list[tuple[Style, list[Line]]]  # largest first, so that small groups are drawn on top


def choose_styles(methods: Sequence[str]) -> list[Style]:
    """Return the style of each setting, given its method."""
    distinct = len(methods) <= len(PALETTE) * len(DASHES)
    names = sorted(set(methods))
    entries = list(range(len(methods))) if distinct else [names.index(method) for method in methods]
    dashes = [DASHES[entry // len(PALETTE) % len(DASHES)] for entry in entries]
    return [Style(e, PALETTE[e % len(PALETTE)], dash, distinct) for e, dash in zip(entries, dashes, strict=True)]


def read_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Turn rows {"step": …, name: value, …} into a curve per name, without values that are not finite numbers."""
    columns: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get("step")
        if not _is_drawable(step):
            continue
        for name, value in row.items():
            if name not in ("step", "time", "rate") and _is_drawable(value):
                columns.setdefault(name, {})[step] = value
    curves = {}
    for name, column in columns.items():
        steps, values = np.array(sorted(column.items()), float).T
        curves[name] = steps, values
    return curves


def summarize_seeds(seeds: Sequence[Curve], bins: int = BINS) -> tuple[Array, Array, Array, Array]:
    """Return steps, mean, minimum and maximum [n ≤ bins], each over the seeds that have reached the step."""
    seeds = [_average_bins(*seed, bins) for seed in seeds]
    grid = np.unique(np.concatenate([steps for steps, _ in seeds]))
    if len(grid) > bins:
        grid = np.linspace(grid[0], grid[-1], bins)
    values = np.stack([np.interp(grid, steps, value, left=np.nan, right=np.nan) for steps, value in seeds])
    reached = ~np.isnan(values).all(axis=0)
    grid, values = grid[reached], values[:, reached]
    return grid, np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)


def draw_plot(curves: Sequence[tuple[Style, Sequence[Curve]]], markers: bool = False) -> Plot:
    """Lay out the seeds of each setting, with a dot on every point if `markers` and settings are distinct."""
    bins = max(2, min(BINS, PLOT_POINTS // len(curves)))
    summaries = [summarize_seeds(seeds, bins) for _, seeds in curves]
    y = _fit_axis([values for _, _, low, high in summaries for values in (low, high)], 0.05, BOTTOM, TOP)
    left = 9 + DIGIT_WIDTH * max(len(label) for _, label in y.ticks())
    x = _fit_axis([steps for steps, *_ in summaries], 0.02, left, RIGHT)
    groups: dict[Style, list[Line]] = {}
    for (style, seeds), (steps, mean, low, high) in zip(curves, summaries, strict=True):
        line = _path(x.place(steps), y.place(mean))
        outline = np.append(steps, steps[::-1]), np.append(low, high[::-1])
        band = _path(x.place(outline[0]), y.place(outline[1])) if style.distinct and len(seeds) > 1 else ""
        has_dots = (markers and style.distinct) or len(steps) == 1
        dots = line.replace("L", "h0M") + "h0" if has_dots else ""
        groups.setdefault(style, []).append(Line(line, band, dots))
    return Plot(x, y, sorted(groups.items(), key=lambda group: -len(group[1])))


def _fit_axis(curves: Sequence[Array], margin: float, start: float, end: float) -> Axis:
    """Return an axis that shows all values, with a margin as a fraction of their range."""
    low, high = min(float(values.min()) for values in curves), max(float(values.max()) for values in curves)
    magnitude = max(abs(low), abs(high))
    is_constant = high - low < 1e-9 * magnitude + 1e-99
    padding = 0.05 * (magnitude if magnitude > 1e-99 else 1.0) if is_constant else margin * (high - low)
    return Axis(low - padding, high + padding, start, end)


def _path(x: Array, y: Array) -> str:
    """Return path data through points, to a tenth of a unit."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _average_bins(steps: Array, values: Array, bins: int) -> Curve:
    """Average neighbours until at most `bins` points are left."""
    if len(steps) <= bins:
        return steps, values
    starts = np.linspace(0, len(steps), bins, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _is_drawable(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e100  # False for NaN
