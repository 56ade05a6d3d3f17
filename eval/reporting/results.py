"""A sweep's results: what its run directories say of every trial, grouped into settings over seeds."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from eval.reporting.curves import Points, Style, points, styles
from eval.reporting.formatting import cell, shown
from trainer.config.document import flatten
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.directory import RunDirectory, find_runs
from trainer.runs.job_states import JobState, read_job_states

STATES = ("done", "running", "stopped", "pending", "failed")
SEED = "train.seed"
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What one run directory says; what is missing or half-written is empty."""

    name: str
    state: str
    config: dict[str, Any]  # dotted keys
    step: int
    steps: int
    eta: float  # seconds; 0 where nobody knows
    error: str  # of training or evaluation; empty unless failed
    curves: dict[str, Points]
    history: dict[str, Points]  # metrics of the evaluation against the step of the weights
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    provenance: dict[str, Any]
    files: tuple[str, ...]  # relative to the run directory, sorted

    @property
    def method(self) -> str:
        return cell(self.config, "method")

    @property
    def seed(self) -> str:
        return cell(self.config, SEED)

    @property
    def logs(self) -> list[str]:
        """The files that say what it printed and why it failed, relative to the sweep."""
        logs = [file for file in self.files if file.endswith((".log", ".out", ".err")) or file.startswith("failed.")]
        return [os.path.normpath(os.path.join(self.name, file)) for file in logs]

    @property
    def failed(self) -> bool:
        """Whether its training failed, or its evaluation."""
        return self.state == "failed" or bool(self.error)


@dataclass(frozen=True)
class Setting:
    """Trials that differ in nothing but the seed."""

    label: str
    style: Style
    trials: list[Trial]  # by seed

    @property
    def n(self) -> int:
        """How many trials the means are taken over, at most."""
        return sum(trial.state == "done" and bool(trial.metrics) for trial in self.trials)

    def summary(self, metric: str) -> tuple[float, float | None, int] | None:
        """Mean, sample standard deviation (None for n = 1) and n over finished trials; None without any."""
        values = [t.metrics[metric] for t in self.trials if t.state == "done" and metric in t.metrics]
        if not values:
            return None
        with np.errstate(invalid="ignore"):  # an infinite metric has no deviation
            return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values)


@dataclass(frozen=True)
class Sweep:
    """The trials of a folder, ordered by setting and seed."""

    name: str
    trials: list[Trial]
    swept: list[str]
    settings: list[Setting]
    metrics: list[str]
    abstract: str  # the comment that the sweep's file opens with

    @property
    def keys(self) -> list[str]:
        """What makes a setting beside the method."""
        return [key for key in self.swept if key != SEED]

    @property
    def counts(self) -> dict[str, int]:
        count = Counter(trial.state for trial in self.trials)
        return {state: count[state] for state in STATES if count[state]}


def read_sweep(folder: Path) -> Sweep:
    """Read every run directory of `folder`; ConfigError without any."""
    jobs: dict[str, dict[str, str]] = _attempt(lambda: submissions.newest_jobs(folder), dict)
    states = read_job_states(folder)
    trials = [read_trial(run, jobs.get(run.name, {}), states.get(run.name)) for run in find_runs(folder)]
    if not trials:
        raise ConfigError(
            f"{folder}: no trial here (a subfolder with a config.yaml); name the folder of a sweep: logs/<sweep>"
        )
    swept = swept_keys(trials)
    keys = ["method", *(key for key in swept if key != SEED)]
    trials.sort(key=lambda trial: ([_order(trial.config, key) for key in [*keys, SEED]], trial.name))
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(cell(trial.config, key) for key in keys), []).append(trial)
    looks = styles([group[0].method for group in groups.values()])
    settings = [Setting(_label(g[0], keys), look, g) for g, look in zip(groups.values(), looks, strict=True)]
    text = _attempt(lambda: (folder / "sweep.yaml").read_text(errors="replace"), str)
    abstract = re.match(r"(#.*\n)*", text + "\n")
    return Sweep(
        name=folder.resolve().name,
        trials=trials,
        swept=swept,
        settings=settings,
        metrics=sorted({name for trial in trials for name in trial.metrics}),
        abstract=re.sub(r"(?m)^# ?", "", abstract[0]) if abstract else "",
    )


def read_trial(run: RunDirectory, jobs: Mapping[str, str], job_state: JobState | None = None) -> Trial:
    """Read a run directory, which may change meanwhile: what cannot be read is empty.

    `jobs` are the newest ids by stage. `job_state` explains a trial that exited without a marker.
    """
    config: dict[str, Any] = _attempt(lambda: flatten(run.config()), dict)
    status: dict[str, Any] = _attempt(run.status, dict)
    evaluation: dict[str, Any] = _attempt(run.evaluation, dict)
    milestones = [{"step": h.get("step"), **h.get("metrics", {})} for h in evaluation.get("history") or []]
    intervals, provenance = evaluation.get("intervals") or {}, flatten(evaluation.get("provenance") or {})
    metrics = {k: v for k, v in (evaluation.get("metrics") or {}).items() if type(v) in (int, float)}
    chosen = {f"{k} step": provenance.get(f"{k}.chosen at step") for k in metrics}
    metrics |= {k: step for k, step in chosen.items() if type(step) is int}
    state = _attempt(run.state, lambda: "pending")
    steps = int(_number(status.get("steps")) or _number(config.get("train.steps")))
    error = _attempt(run.error, str) if state == "failed" else ""
    newest = max(_number(record.get("time")) for record in (status, _attempt(run.failure, dict[str, Any])))
    if job_state and job_state.state == "failed" and state != "done" and _number(job_state.time) > newest:
        state, error = "failed", job_state.reason or error
    if state == "done" and (evaluation_error := _attempt(run.evaluation_error, str)):
        error = f"evaluation: {evaluation_error}"
    logs = [f"../slurm/{job}" for job in jobs.values()] if error or state == "failed" else []
    files = [f for folder in ("", "eval", *logs) for f in _inside(run.path, folder)]
    return Trial(
        name=run.name,
        state=state,
        config=config,
        step=steps if state == "done" else int(_number(status.get("step"))),
        steps=steps,
        eta=_number(status.get("eta")) if state == "running" else 0.0,
        error=error.replace(f"{run.path.resolve().parent}/", ""),
        curves=points(_attempt(run.metrics, list)),
        history=points(milestones) if len(milestones) > 1 else {},
        metrics=metrics,
        intervals={k: (_number(v[0]), _number(v[1])) for k, v in intervals.items() if len(v) == 2},
        provenance=provenance,
        files=tuple(sorted(files)),
    )


def swept_keys(trials: Sequence[Trial]) -> list[str]:
    """The dotted keys in which the trials differ, without those that only follow from the method.

    A key of `model` that some methods do not have follows from the method unless it varies within one of them.
    """
    swept = []
    for key in sorted({key for trial in trials for key in trial.config}):
        if key == "method" or key.partition(".")[0] in ("resources", "eval"):
            continue
        values: dict[str, set[str | None]] = {}
        for trial in trials:
            values.setdefault(trial.method, set()).add(cell(trial.config, key) if key in trial.config else None)
        varies = any(len(of_method) > 1 for of_method in values.values())
        everywhere = not any(None in of_method for of_method in values.values())
        differs = len(set().union(*values.values())) > 1
        if varies or (differs and (everywhere or not key.startswith("model."))):
            swept.append(key)
    return swept


def _label(trial: Trial, keys: Sequence[str]) -> str:
    last = Counter(key.rpartition(".")[2] for key in keys)
    values = [key for key in keys if key != "method" and key in trial.config]
    names = [short if last[short := key.rpartition(".")[2]] == 1 else key for key in values]
    return " · ".join(
        [trial.method or "?", *(f"{n} {shown(trial.config, k)}" for n, k in zip(names, values, strict=True))]
    )


def _order(config: dict[str, Any], key: str) -> tuple[int, float, str]:
    """Sorts absent before numbers before text."""
    value = config.get(key)
    if isinstance(value, int | float):
        return 1, value, ""
    return (2, 0.0, cell(config, key)) if key in config else (0, 0.0, "")


def _inside(path: Path, folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(path / folder)]
    except OSError:
        return []


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


def _attempt(read: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Read what another process may be writing: a file that is missing, torn or odd is as good as none."""
    try:
        return read()
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return otherwise()
