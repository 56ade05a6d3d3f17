"""Curves of a sweep: one figure per metric, one line per setting, the range over its seeds as a light band."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps [n], increasing, and finite values [n]

LIMIT = 300  # points of a line: more cannot be seen at the width of a page
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c8c8c",
)  # Okabe and Ito, for dark and light
DASHES = ("", "5 2", "1.5 1.5")  # of SVG and, split, of matplotlib
INK = "#010203"  # stands for the colour of the page's text, which differs between light and dark
AXES: Any = {  # settings of matplotlib, whose type names every one of them
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Style:
    """How a line looks in every figure, and which entry of the legend it belongs to."""

    entry: int
    colour: str
    dash: str
    alone: bool  # False: there are more settings than can be told apart, so all of a method look the same


def styles(methods: Sequence[str]) -> list[Style]:
    """The style of each setting, given its method; settings of one method share one where there are too many."""
    alone = len(methods) <= len(PALETTE) * len(DASHES)
    entries = list(range(len(methods))) if alone else [sorted(set(methods)).index(m) for m in methods]
    dash = [DASHES[entry // len(PALETTE) % len(DASHES)] for entry in entries]
    return [Style(e, PALETTE[e % len(PALETTE)], d, alone) for e, d in zip(entries, dash, strict=True)]


def points(rows: Iterable[Mapping[str, Any]]) -> dict[str, Points]:
    """Turn rows {"step": …, name: value, …} into a curve per name; what is not a finite number is left out."""
    columns: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get("step")
        if not _drawable(step):
            continue
        for name, value in row.items():
            if name not in ("step", "time", "rate") and _drawable(value):
                columns.setdefault(name, {})[step] = value
    curves = {}
    for name, column in columns.items():
        steps = sorted(column)
        curves[name] = np.array(steps, float), np.array([column[step] for step in steps], float)
    return curves


def band(seeds: Sequence[Points]) -> tuple[NDArray[np.float64], ...]:
    """Steps, mean, lowest and highest value [n ≤ LIMIT] over the seeds that have reached each step."""
    seeds = [_thin(*seed) for seed in seeds]
    grid = np.unique(np.concatenate([steps for steps, _ in seeds]))
    if len(grid) > LIMIT:
        grid = np.linspace(grid[0], grid[-1], LIMIT)
    values = np.stack([np.interp(grid, steps, value, left=np.nan, right=np.nan) for steps, value in seeds])
    reached = ~np.isnan(values).all(axis=0)
    grid, values = grid[reached], values[:, reached]
    return grid, np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)


def draw(name: str, lines: Sequence[tuple[Style, Sequence[Points]]], markers: bool = False) -> str:
    """An <svg> for inline use: `lines` are settings with their seeds. It holds no text but numbers and "step".

    Lines are vectors in a group of class `curve e<entry>`; hundreds of settings become one picture inside vector axes.
    """
    with rc_context({**AXES, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot(xlabel="step")
        if all(style.alone for style, _ in lines):
            for style, seeds in lines:
                _draw_setting(axes, style, seeds, markers)
        else:
            _draw_crowd(axes, lines)
        axes.margins(x=0.02)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, dpi=220, metadata={"Date": None})
    return _inline(file.getvalue())


def _draw_setting(axes: Axes, style: Style, seeds: Sequence[Points], markers: bool) -> None:
    steps, mean, low, high = band(seeds)
    dashes = tuple(float(length) for length in style.dash.split())
    look: dict[str, Any] = {"color": style.colour, "gid": f"e{style.entry}"}
    dot = "o" if markers or len(steps) == 1 else ""
    if len(seeds) > 1:
        axes.fill_between(steps, low, high, alpha=0.16, linewidth=0, **look)
    axes.plot(steps, mean, linewidth=1.5, linestyle=(0, dashes) if dashes else "-", marker=dot, markersize=3.5, **look)


def _draw_crowd(axes: Axes, lines: Sequence[tuple[Style, Sequence[Points]]]) -> None:
    paths: dict[Style, list[NDArray[np.float64]]] = {}
    for style, seeds in lines:
        paths.setdefault(style, []).append(np.column_stack(band(seeds)[:2]))
    for style, crowd in sorted(paths.items(), key=lambda item: -len(item[1])):  # the few stand out from the many
        thick = 1.5 if len(crowd) <= 7 else 0.7
        axes.add_collection(LineCollection(crowd, colors=style.colour, linewidths=thick, alpha=0.6, rasterized=True))
    axes.autoscale_view()


def _inline(svg: str) -> str:
    """Make matplotlib's file a part of a page: its size, colours and font are the page's, its ids do not clash."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    svg = re.sub(r'<g id="(e\d+)">', r'<g class="curve \1">', svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r' d="([^"]*)"', lambda path: f' d="{_short(path[1])}"', svg)
    return re.sub(r"\n\s*", "\n", svg.replace(INK, "currentColor"))


def _short(path: str) -> str:
    """A path without what cannot be seen: less than a hundredth of a point, and white space."""
    return re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\s*\n\s*|(?<=[MLz]) ", "", path))


def _thin(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Points:
    """Average neighbours until at most LIMIT points are left."""
    if len(steps) <= LIMIT:
        return steps, values
    starts = np.linspace(0, len(steps), LIMIT, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _drawable(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e100  # False for NaN, too
