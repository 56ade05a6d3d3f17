"""The answer of a sweep as a figure: its main metric against what was swept."""

import io
from collections.abc import Mapping, Sequence
from math import prod
from textwrap import shorten
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, StrMethodFormatter

from eval.figures import STYLE
from eval.reporting.answer import Answer
from eval.reporting.curves import PALETTE
from eval.reporting.formatting import format_number, format_setting
from eval.reporting.seeds import Setting

UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
SEEDS = "Points: seeds. Bars: mean over seeds and its 95 % interval (Student's t)."
CAPTIONS = {
    "lines": f"{SEEDS} Bands: settings without the key, with their interval.",
    "maps": "Cells: mean over seeds; the frame marks the best mean.",
    "panels": "A point per configuration, mean over its seeds, against one key at a time.",
    "list": SEEDS,
}
WIDTH = 4.4  # inches: labels stay readable in a column of a paper and on a phone
MOST_LINES = 6  # of one numeric key; more are a list
MOST_ROWS = 30  # of a list, best first
MOST_PANELS = 6
DECADE = 10.0  # values that span more than this are on a logarithmic axis


def render_answer(answer: Answer, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the figure as SVG, PDF and PNG by their suffixes; {} if there is nothing to compare."""
    if len(answer.ranked) + len(answer.bounds) < 2:
        return {}
    with matplotlib.rc_context(STYLE):
        return render(draw_answer(answer, keys))


def render(figure: Figure) -> dict[str, bytes]:
    """Return a figure as SVG, PDF and PNG by their suffixes, without dates."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # computed once, not again for each file
    contents = {}
    for form, undated in UNDATED.items():
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=300, metadata=undated, transparent=form == "svg")
        contents[form] = file.getvalue()
    contents["svg"] = follow_theme(contents["svg"])
    return contents


def follow_theme(svg: bytes) -> bytes:
    """Draw what is black in the colour of text, which is light on a dark page."""
    style = b"<style>svg{fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#e4e5e3}}</style>"
    return svg.replace(b"#000000", b"currentColor").replace(b" <defs>", style + b" <defs>", 1)


def choose_form(answer: Answer, keys: Sequence[str]) -> tuple[str, list[str], dict[str, list[Setting]]]:
    """Return the form, the numeric keys that it shows, and the settings by their other values.

    Lines over one numeric key, maps over two whose values make a grid, panels over more, else a sorted list.
    """
    settings = answer.rank(answer.metric)
    keys = [key for key in keys if len({format_setting(s.config, key) for s in settings}) > 1]
    numeric = [key for key in keys if is_numeric(settings, key)]
    rest = group_settings(settings, [key for key in keys if key not in numeric])
    if len(numeric) == 1 and len(rest) <= MOST_LINES:
        return "lines", numeric, rest
    if len(numeric) == 2 and len(rest) <= MOST_PANELS and is_grid(settings, numeric):
        return "maps", numeric, rest
    return ("panels", numeric[:MOST_PANELS], rest) if len(numeric) > 1 else ("list", [], rest)


def describe_form(answer: Answer, keys: Sequence[str]) -> str:
    """Return what the marks of the figure mean."""
    return CAPTIONS[choose_form(answer, keys)[0]]


def draw_answer(answer: Answer, keys: Sequence[str]) -> Figure:
    """Draw the figure in the form that suits what was swept."""
    form, numeric, rest = choose_form(answer, keys)
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    if form == "lines":
        draw_lines(figure.add_subplot(), answer, numeric[0], rest)
    elif form == "maps":
        figure.set_size_inches(WIDTH, 0.4 + 2.9 * len(rest))
        for axes, (label, group) in zip(figure.subplots(len(rest), squeeze=False)[:, 0], rest.items(), strict=True):
            draw_map(axes, answer, numeric, group, label if len(rest) > 1 else "")
    elif form == "panels":
        draw_panels(figure, answer, numeric, rest)
    else:
        draw_list(figure, answer, answer.rank(answer.metric))
    return figure


def is_numeric(settings: Sequence[Setting], key: str) -> bool:
    """Return whether a key has two or more values, all of them numbers."""
    values = {s.config[key] for s in settings if key in s.config and not isinstance(s.config[key], list | dict)}
    return len(values) > 1 and all(type(s.config.get(key, 0)) in (int, float) for s in settings)


def is_grid(settings: Sequence[Setting], keys: Sequence[str]) -> bool:
    """Return whether at least half of the cells of a map would have a value."""
    cells = {tuple(s.config.get(key) for key in keys) for s in settings}
    return 2 * len(cells) >= prod(len({s.config.get(key) for s in settings}) for key in keys)


def group_settings(settings: Sequence[Setting], keys: Sequence[str]) -> dict[str, list[Setting]]:
    """Return label → settings of the same method and, by `keys`, the same other values; in a fixed order."""
    groups: dict[str, list[Setting]] = {}
    for s in settings:
        values = [f"{key.rpartition('.')[2]} {format_setting(s.config, key)}" for key in keys if key in s.config]
        groups.setdefault(" · ".join([s.trials[0].marked_method, *values]), []).append(s)
    return dict(sorted(groups.items()))


def draw_lines(axes: Axes, answer: Answer, key: str, groups: Mapping[str, list[Setting]]) -> None:
    """Draw seeds as points, mean and interval as a line against a numeric key; settings without it as bands."""
    values = sorted({s.config[key] for group in groups.values() for s in group if key in s.config})
    scale_axis(axes, values)
    for colour, (label, group) in zip(PALETTE, groups.items(), strict=False):
        points = sorted((s for s in group if key in s.config), key=lambda s: s.config[key])
        if not points:
            draw_band(axes, answer, group[0], label, colour)
            continue
        x = [s.config[key] for s in points]
        for s in points:
            draw_seeds(axes, [s.config[key]] * len(s.values(answer.metric)), s.values(answer.metric), colour)
        means = [mean_of(s, answer.metric) for s in points]
        axes.errorbar(x, means, half_widths(points, answer.metric), color=colour, marker="o", ms=4, capsize=2, lw=1.2,
                      label=label)  # fmt: skip
    for setting in answer.bounds:
        if setting.values(answer.metric):
            name = f"{setting.trials[0].marked_method} ({setting.role.replace('_', ' ')})"
            draw_band(axes, answer, setting, name, "#6b7178", ":" if setting.role == "lower_bound" else "-.")
    draw_reported(axes, answer)
    limit_axis(axes, answer)
    axes.set(xlabel=key, ylabel=name_axis(answer))
    handles, labels = axes.get_legend_handles_labels()
    labels = [shorten(label, 34, placeholder="…") for label in labels]
    axes.legend(handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def draw_band(axes: Axes, answer: Answer, setting: Setting, label: str, colour: str, style: str = "--") -> None:
    """Draw a setting that does not have the key: its mean and interval over the whole width."""
    mean, width = mean_of(setting, answer.metric), half_widths([setting], answer.metric)[0]
    axes.axhline(mean, color=colour, lw=1.2, ls=style, label=label)
    axes.axhspan(mean - width, mean + width, color=colour, alpha=0.15, lw=0)


def draw_reported(axes: Axes, answer: Answer) -> None:
    """Draw the range of published results of each method, from `eval.reference` of the sweep's file, hatched."""
    ranges: dict[str, Any] = {}
    for trial in (s.trials[0] for s in (*answer.ranked, *answer.bounds)):
        ranges[trial.method] = trial.config.get(f"eval.reference.{trial.method}")
    for method, bounds in ranges.items():
        if isinstance(bounds, list) and len(bounds) == 2 and answer.metric == "accuracy/target":
            axes.axhspan(*bounds, facecolor="none", edgecolor="#8c8c8c", hatch="///", lw=0, alpha=0.6,
                         label=f"{method}, reported elsewhere")  # fmt: skip


def draw_map(axes: Axes, answer: Answer, keys: Sequence[str], settings: Sequence[Setting], title: str) -> None:
    """Draw the mean over seeds in each cell of two numeric keys; the best cell has a frame."""
    columns, rows = (sorted({s.config[key] for s in settings if key in s.config}) for key in keys)
    cells = np.full((len(rows), len(columns)), np.nan)
    for s in settings:
        if all(key in s.config for key in keys):
            cells[rows.index(s.config[keys[1]]), columns.index(s.config[keys[0]])] = mean_of(s, answer.metric)
    image = axes.imshow(cells, cmap="viridis" if answer.is_maximized else "viridis_r", origin="lower", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=name_axis(answer))
    names = [[f"{value:g}" for value in values] for values in (columns, rows)]
    axes.set(xlabel=keys[0], ylabel=keys[1], title=title)
    axes.set_xticks(range(len(columns)), names[0], rotation=45 if len(columns) > 6 else 0)
    axes.set_yticks(range(len(rows)), names[1])
    axes.spines[:].set_visible(False)
    if len(columns) <= 8 and not np.isnan(cells).all():
        low, high = np.nanmin(cells), np.nanmax(cells)
        for (row, column), value in np.ndenumerate(cells):
            is_dark = (value - low < 0.6 * (high - low)) == answer.is_maximized
            axes.text(column, row, "" if np.isnan(value) else f"{value:.3g}", ha="center", va="center",
                      fontsize=6.5, color="white" if is_dark else "#111111")  # fmt: skip
    if not np.isnan(cells).all():
        row, column = np.unravel_index((np.nanargmax if answer.is_maximized else np.nanargmin)(cells), cells.shape)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#d55e00", lw=2))


def draw_panels(figure: Figure, answer: Answer, keys: Sequence[str], groups: Mapping[str, list[Setting]]) -> None:
    """Draw a panel for each numeric key: the mean of each setting against it, whatever its other values are."""
    rows = -(-len(keys) // 2)
    figure.set_size_inches(WIDTH, 0.5 + 1.8 * rows)
    panels = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
    for axes, key in zip(panels, keys, strict=False):
        values = sorted({s.config[key] for group in groups.values() for s in group if key in s.config})
        scale_axis(axes, values)
        for number, (label, group) in enumerate(groups.items()):
            points = [s for s in group if key in s.config]
            x, y = [s.config[key] for s in points], [mean_of(s, answer.metric) for s in points]
            axes.plot(x, y, "o", ms=3, alpha=0.7, mew=0, color=PALETTE[number % len(PALETTE)], label=label)
        axes.set(xlabel=key)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    for axes in panels[::2]:
        axes.set(ylabel=name_axis(answer))
    if 1 < len(groups) <= MOST_LINES:
        handles, labels = panels[0].get_legend_handles_labels()
        labels = [shorten(label, 34, placeholder="…") for label in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def draw_list(figure: Figure, answer: Answer, settings: Sequence[Setting]) -> None:
    """Draw a row per setting, best at the top, with bounds: seeds as points, mean and interval."""
    bounds = [setting for setting in answer.bounds if setting.values(answer.metric)]
    shown = [*settings[: MOST_ROWS - len(bounds)], *bounds]
    order = sorted(shown, key=lambda s: mean_of(s, answer.metric), reverse=answer.is_maximized)
    figure.set_size_inches(WIDTH, 0.7 + 0.22 * len(order))
    axes = figure.add_subplot()
    for row, s in enumerate(order):
        colour, values = "#6b7178" if s in bounds else PALETTE[0], s.values(answer.metric)
        axes.plot(list(values.values()), [row] * len(values), "o", ms=3, mew=0, alpha=0.45, color=colour)
        axes.errorbar(mean_of(s, answer.metric), row, xerr=half_widths([s], answer.metric), color=colour, marker="D",
                      ms=4, capsize=2, lw=1.2)  # fmt: skip
    axes.set_yticks(range(len(order)), [shorten(s.label, 42, placeholder="…") for s in order])
    axes.set(xlabel=name_axis(answer), ylim=(len(order) - 0.5, -0.5))
    axes.set_xlim(*pad_range([value for s in order for value in s.values(answer.metric).values()]))
    axes.grid(axis="x", alpha=0.3)


def draw_seeds(axes: Axes, x: Sequence[float], values: Mapping[str, float], colour: str) -> None:
    """Draw a point for each seed."""
    axes.plot(x, list(values.values()), "o", ms=3, mew=0, alpha=0.45, color=colour)


def mean_of(setting: Setting, metric: str) -> float:
    """Return the mean over the finished seeds."""
    return float(np.mean(list(setting.values(metric).values())))


def half_widths(settings: Sequence[Setting], metric: str) -> list[float]:
    """Return half of the 95 % interval over seeds of each setting; 0 for one seed, which has none."""
    intervals = [summary.over_seeds if (summary := s.summarize(metric)) else None for s in settings]
    return [(interval[1] - interval[0]) / 2 if interval else 0.0 for interval in intervals]


def scale_axis(axes: Axes, values: Sequence[float]) -> None:
    """Put the swept values on the axis, a logarithmic one where they span a decade or more."""
    if values and min(values) > 0 and max(values) / min(values) >= DECADE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) / min(values) < DECADE**2 else (1,)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
    if len(values) <= 8:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()


def limit_axis(axes: Axes, answer: Answer) -> None:
    """Show all seeds; an interval of two seeds, which is very wide, may leave the figure."""
    settings = [s for s in (*answer.ranked, *answer.bounds) if s.values(answer.metric)]
    axes.set_ylim(*pad_range([value for s in settings for value in s.values(answer.metric).values()]))
    axes.grid(axis="y", alpha=0.3)


def pad_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of values with a margin."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def name_axis(answer: Answer) -> str:
    """Return the metric and the direction that is better."""
    return f"{answer.metric} ({'↑' if answer.is_maximized else '↓'} better)"


def describe_figure(answer: Answer) -> str:
    """Return the text for readers who do not see the figure: the mean of each setting, best first."""
    settings = [*answer.rank(answer.metric), *(s for s in answer.bounds if s.values(answer.metric))]
    means = [f"{s.label} {format_number(mean_of(s, answer.metric))}" for s in settings[:MOST_ROWS]]
    return f"{answer.metric}: {', '.join(means)}"
