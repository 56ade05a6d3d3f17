"""Pictures of an evaluation: drawn without a display, saved whole, sent to TensorBoard as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG at 120 dpi."""
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def to_tensorboard(paths: Sequence[Path], step: int, folder: Path, metrics: dict[str, float]) -> None:
    """Add PNGs under their file names, and scalars."""
    from PIL import Image

    board = SummaryWriter(str(folder))
    for path in paths:
        board.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
    for name, value in metrics.items():
        board.add_scalar(name, value, step)
    board.close()


def confusion(counts: "np.ndarray[Any, Any]", title: str) -> Figure:
    """Draw a confusion matrix, int [classes, classes], rows true, columns predicted, coloured by share of row."""
    figure = Figure(figsize=(4.6, 4.2))
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            shade = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=shade)
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)), xlabel="predicted", ylabel="true", title=title)
    return figure


def scatter(
    axes: Axes, points: "np.ndarray[Any, Any]", groups: "np.ndarray[Any, Any]", names: Sequence[str], title: str
) -> None:
    """Draw points [n, 2] coloured by group [n], with a legend beside them."""
    colours = colormaps["tab10"] if len(names) <= 10 else colormaps["turbo"].resampled(len(names))
    for group, name in enumerate(names):
        chosen = points[groups == group]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=7, linewidths=0, alpha=0.75, color=colours(group), label=name)
    axes.set(xticks=[], yticks=[], title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2.5, handletextpad=0.1)
