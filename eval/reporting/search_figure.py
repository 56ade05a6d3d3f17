"""The figure of a search: its history with the best value so far, and the objective against each parameter."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.figures import STYLE
from eval.reporting.answer_figure import MOST_PANELS, WIDTH, is_numeric, render, scale_axis
from eval.reporting.curves import PALETTE
from eval.reporting.results import Sweep
from eval.reporting.trials import Trial

CAPTION = "Filled: finished trials, in the order of their ends; hollow: pruned ones; line: best of the finished so far."


def render_search(sweep: Sweep) -> dict[str, bytes]:
    """Return the figure of a search as SVG, PDF and PNG by their suffixes; {} of a sweep without an objective."""
    trials = sorted((t for t in sweep.trials if t.objective), key=lambda t: (t.ended, t.name))
    names = {name for trial in trials for name in trial.objective}
    if len(names) != 1 or len(trials) < 2:
        return {}
    (name,) = names
    keys = [key for key in sweep.keys if is_numeric(sweep.settings, key)][: MOST_PANELS - 1]
    with matplotlib.rc_context(STYLE):
        return render(draw_search(trials, name, keys, bool(sweep.is_maximized(name))))


def draw_search(trials: Sequence[Trial], name: str, keys: Sequence[str], is_maximized: bool) -> Figure:
    """Draw a panel for the history of `trials`, in the order of their ends, and one for each key."""
    rows = -(-(len(keys) + 1) // 2)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
    draw_points(panels[0], list(range(1, len(trials) + 1)), trials, name)
    finished = [np.nan if trial.state != "done" else trial.objective[name] for trial in trials]
    best = (np.fmax if is_maximized else np.fmin).accumulate(finished)
    panels[0].step(range(1, len(trials) + 1), best, where="post", color=PALETTE[1], lw=1.2)
    panels[0].set(xlabel="trial")
    for axes, key in zip(panels[1:], keys, strict=False):
        shown = [trial for trial in trials if key in trial.config]
        scale_axis(axes, sorted({trial.config[key] for trial in shown}))
        draw_points(axes, [trial.config[key] for trial in shown], shown, name)
        axes.set(xlabel=key)
    for axes in panels[::2]:
        axes.set(ylabel=f"{name}\n({'↑' if is_maximized else '↓'} better)")
    for axes in panels[len(keys) + 1 :]:
        axes.set_visible(False)
    return figure


def draw_points(axes: Axes, x: Sequence[float], trials: Sequence[Trial], name: str) -> None:
    """Draw the newest objective of each trial, hollow where the trial did not finish."""
    for is_done in (False, True):
        points = [(a, t.objective[name]) for a, t in zip(x, trials, strict=True) if (t.state == "done") == is_done]
        face = PALETTE[0] if is_done else "none"
        axes.plot(*zip(*points, strict=True) if points else ([], []), "o", ms=3.5, mfc=face, mec=PALETTE[0], mew=0.7)
