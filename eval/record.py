"""The results of an evaluation: eval/metrics.json and the files beside it."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eval.metrics import Metric, recipe, select_options
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text
from trainer.runs.directory import RunDirectory

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Result:
    """The result of one metric: names such as accuracy/target, values in the unit that its file states."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %
    provenance: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, float]] = field(default_factory=dict)  # step → metrics, if milestones were exported

    def choose(self, rule: str, name: str, criterion: str, best: Callable[..., int] = min) -> None:
        """Add `<rule>/<name>` of the milestone with the best criterion, the earliest of equal ones, and its step."""
        step = best(self.history, key=lambda step: self.history[step][criterion])
        self.metrics[f"{rule}/{name}"] = self.history[step][name]
        self.provenance[f"{rule}/{name}"] = {"chosen at step": step, "chosen by": criterion}

    def numbers(self) -> list[tuple[str, float]]:
        """Return name and value of every number."""
        bounds = [(f"interval of {name}", bound) for name, pair in self.intervals.items() for bound in pair]
        rows = [(f"{name} at step {step}", v) for step, row in self.history.items() for name, v in row.items()]
        return [*self.metrics.items(), *bounds, *rows]


def is_current(run: RunDirectory, steps: int, metrics: list[str], options: Mapping[str, Any] = EMPTY) -> bool:
    """Return whether the newest evaluation is of the last step's weights, as they are, and has all metrics.

    `options` are those of `eval:` that differ from their defaults; each metric must have been computed with its own,
    and by its present recipe, unless the weights were removed since.
    """
    record = run.evaluation()
    if record.get("step") != steps:
        return False
    weights = run.exported_weights().get(steps)
    # Weights may be removed once they are evaluated.
    exported = weights.stat().st_mtime if weights else 0.0
    evaluated = run.evaluation_file.stat().st_mtime
    evaluations = record.get("provenance", {}).get("evaluations", {})
    return exported < evaluated and all(
        name in evaluations
        and evaluations[name].get("options", {}) == select_options(name, options)
        and (weights is None or evaluations[name].get("recipe", Metric.recipe) == recipe(name))
        for name in metrics
    )


def needs_evaluation(config: Config, run: RunDirectory) -> bool:
    """Return whether a trained trial's evaluation is missing or lacks metrics of the config."""
    current = is_current(run, config.train.steps, config.eval.metrics, config.eval.options())
    return bool(config.eval.metrics) and not current


def list_chosen_steps(run: RunDirectory) -> set[int]:
    """Return the steps of the exported weights that the metrics of the newest evaluation are of."""
    record = run.evaluation()
    choices = [value for value in record.get("provenance", {}).values() if isinstance(value, dict)]
    steps = [record.get("step"), *(choice.get("chosen at step") for choice in choices)]
    return {step for step in steps if isinstance(step, int)}


def reusable_record(run: RunDirectory, weights: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """Return the record to add to: that of the same weights, unless `metrics` replaces all of it."""
    record = run.evaluation()
    provenance = record.get("provenance", {})
    same = provenance.get("weights") == weights and set(provenance["evaluations"]) - set(metrics)
    return record if same else {}


def merge(
    record: dict[str, Any], step: int, weights: dict[str, Any], name: str, result: Result, details: dict[str, Any]
) -> dict[str, Any]:
    """Return the record with the result of a metric added, and how it was computed: versions, device, seconds.

    ConfigError if a number is not finite, which JSON cannot represent.
    """
    for key, value in result.numbers():
        if not isfinite(value):
            raise ConfigError(f"eval/metrics/{name}.py: {key}: is {value}, which JSON cannot represent; leave that out")
    provenance = record.get("provenance", {})
    evaluations = provenance.get("evaluations", {}) | {name: details}
    history = {row["step"]: row["metrics"] for row in record.get("history", [])}
    for milestone, row in result.history.items():
        history[milestone] = history.get(milestone, {}) | row
    return {
        "step": step,
        "metrics": record.get("metrics", {}) | result.metrics,
        "intervals": record.get("intervals", {}) | result.intervals,
        "history": [{"step": milestone, "metrics": row} for milestone, row in sorted(history.items())],
        "provenance": {**provenance, **result.provenance, "weights": weights, "evaluations": evaluations},
    }


def publish(run: RunDirectory, new_files: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Put the files of a metric, TensorBoard's and then metrics.json in place, each as a whole; return the record."""
    from eval.events import write_events

    folder, text = run.evaluation_directory, json.dumps(record, indent=1, allow_nan=False) + "\n"
    if len(record["provenance"]["evaluations"]) == 1:  # no earlier result is kept, so none of its files either
        for stale in [path for path in folder.iterdir() if path.suffix in (".png", ".pdf", ".npz")]:
            stale.unlink()
    for file in sorted(new_files.iterdir()):
        os.replace(file, folder / file.name)
    write_events(record, folder, run)
    write_text(run.evaluation_file, text)
    return record
