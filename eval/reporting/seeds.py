"""Trials that differ only in their seed, and the summary of a metric over them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eval.intervals import student_interval
from eval.reporting.curves import Style
from eval.reporting.formatting import format_deviation, format_number
from eval.reporting.marks import read_role
from trainer.runs.costs import sum_costs

if TYPE_CHECKING:
    from eval.reporting.trials import Trial

Interval = tuple[float, float]


class Summary(NamedTuple):
    """A metric over seeds; intervals of 95 %."""

    mean: float
    std: float | None  # sample standard deviation; None for one seed
    n: int
    over_seeds: Interval | None  # of the mean, over training seeds (Student's t); None for one seed
    over_images: Interval | None  # over test images, bounds averaged over the seeds; None if the metric has none


@dataclass(frozen=True)
class Setting:
    """Trials that differ only in the seed."""

    label: str
    style: Style
    trials: "list[Trial]"  # ordered by seed

    @property
    def n(self) -> int:
        """Return the number of finished and evaluated trials."""
        return sum(trial.state == "done" and trial.is_evaluated for trial in self.trials)

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings, dotted keys, of its first trial."""
        return self.trials[0].config

    @property
    def role(self) -> str:
        """Return the role that the method declares; empty if its file no longer exists or cannot be read."""
        return read_role(self.trials[0].method)

    @property
    def costs(self) -> dict[str, float]:
        """Return the costs of its trials: device-hours and the like added up, the largest memory, means of rates."""
        measured = [trial.costs for trial in self.trials if trial.costs]
        sums = sum_costs(measured) if measured else {}
        means = {name: float(np.mean([c[name] for c in measured if name in c])) for c in measured for name in c}
        peaks = {name: max(c.get(name, 0.0) for c in measured) for name in means if name.endswith("memory_gib")}
        return means | peaks | sums

    def values(self, metric: str) -> dict[str, float]:
        """Return seed → value of a metric, or of one of the validation split, of the finished trials."""
        values = {t.seed: (t.validation | t.metrics).get(metric, np.nan) for t in self.trials if t.state == "done"}
        return {seed: value for seed, value in values.items() if np.isfinite(value)}

    def summarize(self, metric: str) -> Summary | None:
        """Summarize a metric over the finished trials that have it; None if none has."""
        trials = [t for t in self.trials if t.state == "done" and metric in t.metrics]
        if not trials:
            return None
        values, n = [t.metrics[metric] for t in trials], len(trials)
        images = [t.intervals[metric] for t in trials if metric in t.intervals]
        with np.errstate(invalid="ignore"):  # the deviation of an infinite metric is NaN
            std = float(np.std(values, ddof=1)) if n > 1 else None
            over_seeds = student_interval(values) if n > 1 else None
        low, high = np.mean(images, axis=0).tolist() if images else (0.0, 0.0)
        return Summary(float(np.mean(values)), std, n, over_seeds, (low, high) if images else None)

    def describe(self, metric: str) -> str:
        """Return mean ± standard deviation as text, marked if it is of one seed or if seeds are missing; or empty."""
        if not (summary := self.summarize(metric)):
            return ""
        if summary.std is None:
            return f"{format_number(summary.mean)} (1 seed)"
        deviation = format_deviation(summary.mean, summary.std)
        return f"{format_number(summary.mean)} ± {deviation}" + (f" (n = {summary.n})" if summary.n != self.n else "")
