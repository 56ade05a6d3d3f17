"""More than two swept keys as parallel coordinates: a line per setting through its values, coloured by the metric."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from eval.figures import STYLE
from eval.reporting.answer import Answer
from eval.reporting.answer_figure import DECADE, WIDTH, is_numeric, mean_of, name_axis, render
from eval.reporting.formatting import format_number, format_setting
from eval.reporting.seeds import Setting

CAPTION = "A line per configuration, from its settings to its mean over seeds; yellow is best, the best one is thick."
MOST_KEYS = 7
MOST_LINES = 500  # best first
MOST_NAMES = 12  # of a key without numbers


def render_parallel(answer: Answer, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the figure as SVG, PDF and PNG by their suffixes; {} of two keys or fewer, which the answer shows."""
    settings = answer.rank(answer.metric)[:MOST_LINES]
    keys = [key for key in keys if len({format_setting(s.config, key) for s in settings}) > 1]
    if len(keys) <= 2:
        return {}
    with matplotlib.rc_context(STYLE):
        return render(draw_parallel(answer, settings, keys[:MOST_KEYS]))


def draw_parallel(answer: Answer, settings: Sequence[Setting], keys: Sequence[str]) -> Figure:
    """Draw an axis for each key and one for the metric, and a line for each setting, the best one on top."""
    figure = Figure(figsize=(1.5 * WIDTH, 2.9), layout="constrained")
    axes = figure.add_subplot()
    means = [mean_of(s, answer.metric) for s in settings]
    places = [place_values(settings, key) for key in keys]
    low, high = min(means), max(means)
    quality = [(mean - low) / ((high - low) or 1.0) for mean in means]
    columns = [column for column, _ in places] + [quality]
    names = [ends for _, ends in places] + [{0.0: format_number(low), 1.0: format_number(high)}]
    goodness = np.array(quality) if answer.is_maximized else 1 - np.array(quality)
    lines = np.stack([np.broadcast_to(np.arange(len(columns)), (len(settings), len(columns))), np.array(columns).T], -1)
    widths = [2.2, *[0.7] * (len(settings) - 1)]
    colours = colormaps["viridis"](goodness)
    axes.add_collection(LineCollection([*lines[::-1]], colors=colours[::-1], linewidths=widths[::-1]))
    for x, ends in enumerate(names):
        axes.axvline(x, color="black", lw=0.6)
        for y, name in ends.items():
            axes.annotate(name, (x, y), (2, 0), textcoords="offset points", fontsize=6, va="center")
    labels = [*keys, name_axis(answer).replace(" (", "\n(")]
    axes.set(xlim=(-0.1, len(keys) + 0.4), ylim=(-0.05, 1.05), yticks=[])
    axes.set_xticks(range(len(labels)), [label.rpartition(".")[2] for label in labels])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def place_values(settings: Sequence[Setting], key: str) -> tuple[list[float], dict[float, str]]:
    """Return the place of each setting on the axis of a key, from 0 to 1, and the names of places.

    Numbers are on a linear axis, or a logarithmic one where they span a decade or more; NaN is a setting without the
    key, whose line has a gap. Other values are equally far from each other.
    """
    if is_numeric(settings, key):
        numbers = np.array([s.config.get(key, np.nan) for s in settings], float)
        low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        is_logarithmic = low > 0 and high / low >= DECADE
        scaled, ends = (np.log(numbers), np.log([low, high])) if is_logarithmic else (numbers, np.array([low, high]))
        return ((scaled - ends[0]) / (ends[1] - ends[0])).tolist(), {0.0: f"{low:.3g}", 1.0: f"{high:.3g}"}
    texts = [format_setting(s.config, key) for s in settings]
    order = sorted(set(texts))
    places = {text: index / (len(order) - 1) for index, text in enumerate(order)}
    return [places[text] for text in texts], {places[text]: text for text in order[:MOST_NAMES]}
