"""Figures of an evaluation, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

# The style of all figures, here and in the report.
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "turnout", "pdf.fonttype": 42,
}  # fmt: skip
# Ten colours that colour-blind readers can tell apart (Petroff, Accessible Color Sequences, 2021), but black for the
# second of two near-equal greys.
CLASSES = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#1b1b1b", "#92dadd"),
)
DOMAINS = ("#0072b2", "#d55e00")  # blue and vermilion of Okabe and Ito
GAP = 2  # pixels between images
LEGIBLE = 20  # largest number of classes with numbers in cells and a legend


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at 120 dpi, and beside it as PDF, for a paper."""
    figure.savefig(path, dpi=120)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path.with_suffix(".pdf"), dpi=300, metadata={"CreationDate": None})


@matplotlib.rc_context(STYLE)
def confusion(counts: NDArray[np.int64], title: str, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix [classes, classes], rows true, columns predicted, coloured by the share of its row."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true class (recall)", title=title)
    if len(counts) <= LEGIBLE:
        names = [shorten(name, 16, placeholder="…") for name in classes]
        recalls = [f"{name}  {100 * share[number, number]:.0f} %" for number, name in enumerate(names)]
        axes.set(xticks=range(len(counts)), yticks=range(len(counts)), xticklabels=names, yticklabels=recalls)
        if max(map(len, names)) > 3:
            axes.tick_params("x", rotation=90)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=shade)
    return figure


@matplotlib.rc_context(STYLE)
def embedding(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    domains: NDArray[np.int64],
    sets: Mapping[str, str],
    images: str,
) -> Figure:
    """Draw points [n, 2] coloured by class [n] and, if there are two, by domain [n].

    A label of -1 is no class; `sets` maps a domain to its dataset; `images` says what the points are.
    """
    panels = min(len(sets), 2)
    figure = Figure(figsize=(4.9 * panels, 4.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    scatter(axes[0], points, labels, *legend(labels, classes), f"{images}, by class")
    if panels > 1:
        scatter(
            axes[1],
            points,
            domains,
            [f"{domain} ({name})" for domain, name in sets.items()],
            DOMAINS,
            f"{images}, by domain",
        )
    return figure


@matplotlib.rc_context(STYLE)
def embeddings(
    rows: Sequence[tuple[str, NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]],
    sets: Mapping[str, str],
    classes: Sequence[str] = (),
) -> Figure:
    """Draw a row of two panels, by class and by domain, for each (label, points [n, 2], classes [n], domains [n])."""
    figure = Figure(figsize=(9.8, 4.5 * len(rows) + 0.3), layout="constrained")
    count = 1 + max(int(labels.max()) for _, _, labels, _ in rows)
    classes = classes if len(classes) >= count else [str(number) for number in range(count)]
    names = [f"{domain} ({name})" for domain, name in sets.items()]
    for (label, points, labels, domains), axes in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
        scatter(axes[0], points, labels, *legend(labels, classes), f"{label}: class")
        scatter(axes[1], points, domains, names, DOMAINS, "domain")
    return figure


def legend(labels: NDArray[np.int64], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names and colours of classes; if there are labels of -1, the last of both is that of no class."""
    unlabelled = bool((labels < 0).any())
    return [*classes, *["without label"] * unlabelled], [*shades(len(classes)), *["#c8c8c8"] * unlabelled]


def shades(classes: int) -> Sequence[str]:
    """Return a colour for each class."""
    turbo = colormaps["turbo"].resampled(max(1, classes))
    return CLASSES[:classes] if classes <= len(CLASSES) else [to_hex(turbo(number)) for number in range(classes)]


def scatter(
    axes: Axes,
    points: NDArray[np.float32],
    groups: NDArray[np.int64],
    names: Sequence[str],
    colours: Sequence[str],
    title: str,
) -> None:
    """Draw points [n, 2] coloured by group [n], in random order so that no group hides another, with a legend."""
    order = np.random.default_rng(0).permutation(len(points))
    shades = np.array([to_rgb(colours[group]) for group in groups[order]])
    axes.scatter(points[order, 0], points[order, 1], s=9, linewidths=0, alpha=0.8, c=shades)
    axes.set(xticks=[], yticks=[], title=title)
    if len(names) <= LEGIBLE:
        marks = [Line2D([], [], linestyle="", marker="o", markersize=5, color=colours[i]) for i in range(len(names))]
        columns = {"ncols": min(10, len(names)), "handletextpad": 0, "columnspacing": 0.7}
        axes.legend(marks, names, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, **columns)


def tiled(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images [rows, columns, c, h, w], grey or RGB, as one with white gaps: uint8 [height, width, 3]."""
    (down, across), (height, width) = images.shape[:2], images.shape[3:]
    canvas = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP, 3), 255, np.uint8)
    for row, column in np.ndindex(down, across):
        top, left = row * (height + GAP), column * (width + GAP)
        canvas[top : top + height, left : left + width] = images[row, column].transpose(1, 2, 0)
    return canvas


def mosaic(images: NDArray[np.uint8], rows: Sequence[str] = (), columns: Sequence[str] = (), title: str = "") -> Figure:
    """Draw images [rows, columns, c, h, w], grey or RGB, with names before rows and below columns.

    A pixel is a whole number of dots, so that all pixels look equally large.
    """
    (down, across), (height, width) = images.shape[:2], images.shape[3:]
    canvas = tiled(images)
    scale = max(1, round(960 / max(canvas.shape)))
    tall, wide = (scale * length / 120 for length in canvas.shape[:2])  # inches, at the 120 dpi of `save`
    left, below, above = 1.0 if rows else 0.1, 0.3 if columns else 0.1, 0.4 if title else 0.1
    whole = (left + wide + 0.1, below + tall + above)
    figure = Figure(figsize=whole)
    axes = figure.add_axes((left / whole[0], below / whole[1], wide / whole[0], tall / whole[1]))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_xticks([i * (width + GAP) + width / 2 for i in range(across)] if columns else [], columns or None)
    axes.set_yticks([i * (height + GAP) + height / 2 for i in range(down)] if rows else [], rows or None)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if title:
        figure.text(left / whole[0], 1 - 0.15 / whole[1], title, va="center", fontsize=9)
    return figure
