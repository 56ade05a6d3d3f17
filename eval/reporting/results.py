"""Read the results of a sweep from its run directories and group trials that differ only in their seed."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from eval.reporting.columns import STEP, is_maximized, order_metrics
from eval.reporting.curves import Curve, choose_styles, read_curves
from eval.reporting.formatting import format_exactly, format_setting, is_oracle
from eval.reporting.marks import mark_data, mark_revisions
from eval.reporting.seeds import Setting
from trainer.config.document import flatten
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.directory import RunDirectory, find_runs
from trainer.runs.job_states import JobState, read_job_states
from trainer.runs.objective import newest_objective, read_direction

STATES = ("done", "running", "pruned", "stopped", "cancelled", "pending", "failed")
SEED = "train.seed"
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """The content of a run directory; missing or half-written files read as empty."""

    run: RunDirectory
    state: str
    config: dict[str, Any]  # dotted keys
    step: int
    steps: int
    eta: float  # seconds; 0 if unknown
    error: str  # of training or evaluation; empty unless one failed
    curves: dict[str, Curve]
    history: dict[str, Curve]  # metrics against the step of the exported weights
    metrics: dict[str, float]
    objective: dict[str, float]  # of a search: name and newest value; else {}
    direction: str  # of the search: maximize or minimize; empty if unknown
    ended: float  # time of the last line of the log of training, seconds since the epoch; 0 if there is none
    validation: dict[str, float]  # of the last exported weights, on the validation split
    intervals: dict[str, tuple[float, float]]
    provenance: dict[str, Any]  # of the evaluation and of the data
    is_evaluated: bool  # also if its metrics are figures without a number, or if it has none
    class_names: list[str]
    files: tuple[str, ...]  # relative to the run directory, sorted

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def method(self) -> str:
        return format_exactly(self.config, "method")

    @property
    def is_tuned(self) -> bool:
        """Return whether its settings were chosen with target labels in sight, as its sweep file says."""
        return self.method in (self.config.get("eval.tuned") or [])

    @property
    def marked_method(self) -> str:
        return f"{self.method} ‡" if self.is_tuned else self.method

    @property
    def seed(self) -> str:
        return format_exactly(self.config, SEED)

    @property
    def links(self) -> list[tuple[str, str]]:
        """Return text and path, relative to the sweep, of the files that the page links."""
        run = self.run
        files = {"config": run.config_file, "metrics": run.metrics_file, "eval": run.evaluation_file}
        files["tensorboard"] = run.tensorboard
        links = [(text, os.path.relpath(file, run.path.parent)) for text, file in files.items() if file.exists()]
        return links + [(os.path.basename(log), log) for log in self.logs]

    @property
    def logs(self) -> list[str]:
        """Return the logs and failure markers, relative to the sweep."""
        logs = [file for file in self.files if file.endswith((".log", ".out", ".err")) or file.startswith("failed.")]
        return [os.path.normpath(os.path.join(self.name, file)) for file in logs]


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep's directory, ordered by setting and seed."""

    directory: Path
    trials: list[Trial]
    swept: list[str]  # keys in which the trials differ
    settings: list[Setting]
    metrics: list[str]
    submission: dict[str, Any]  # the newest one: overrides of the command line, commit, dirty, …; {} if unknown
    abstract: str  # the comment at the head of the sweep's file

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def columns(self) -> list[str]:
        """Return the metrics that a table shows: all but the steps of selected weights."""
        return [name for name in self.metrics if not name.endswith(STEP)]

    @property
    def keys(self) -> list[str]:
        """Return the keys that distinguish the settings of one method."""
        return [key for key in self.swept if key != SEED]

    @property
    def failures(self) -> list[Trial]:
        """Return the trials whose training or evaluation failed."""
        return [trial for trial in self.trials if trial.state == "failed" or trial.error]

    def is_maximized(self, metric: str) -> bool | None:
        """Return whether higher values of a metric are better, as its search or else its file says; None if unknown."""
        directions = {trial.direction for trial in self.trials if metric in trial.objective and trial.direction}
        return "maximize" in directions if directions else is_maximized(metric)

    @property
    def has_oracle(self) -> bool:
        return any(is_oracle(name) for name in self.metrics)

    @property
    def counts(self) -> dict[str, int]:
        """Return state → number of trials, without empty states."""
        count = Counter(trial.state for trial in self.trials)
        return {state: count[state] for state in STATES if count[state]}


def read_sweep(directory: Path) -> Sweep:
    """Read every run directory of a sweep; ConfigError if there is none."""
    jobs: dict[str, dict[str, str]] = _read(lambda: submissions.newest_jobs(directory), dict)
    states = read_job_states(directory)
    trials = [read_trial(run, jobs.get(run.name, {}), states.get(run.name)) for run in find_runs(directory)]
    if not trials:
        raise ConfigError(
            f"{directory}: no trials (directories with a config.yaml); give the directory of a sweep: logs/<sweep>"
        )
    mark_data(trials)
    mark_revisions(trials)
    swept = find_swept_keys(trials)
    keys = ["method", *(key for key in swept if key != SEED)]
    trials.sort(key=lambda trial: ([_sort_key(trial.config, key) for key in [*keys, SEED]], trial.name))
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(format_exactly(trial.config, key) for key in keys), []).append(trial)
    styles = choose_styles([group[0].method for group in groups.values()])
    text = _read(lambda: (directory / "sweep.yaml").read_text(errors="replace"), str)
    abstract = re.match(r"(#.*\n)*", text + "\n")
    return Sweep(
        directory=directory,
        trials=trials,
        swept=swept,
        settings=[Setting(_label(g[0], keys), style, g) for g, style in zip(groups.values(), styles, strict=True)],
        metrics=order_metrics({name for t in trials for name in t.metrics}, trials[0].config.get("eval.metrics") or []),
        submission=_read(lambda: {**submissions.read_lines(directory)[-1]}, dict[str, Any]),
        abstract=re.sub(r"(?m)^# ?", "", abstract[0]) if abstract else "",
    )


def read_trial(run: RunDirectory, jobs: Mapping[str, str], job_state: JobState | None) -> Trial:
    """Read a run directory, given its newest job of each stage and the state that the backend last reported."""
    config: dict[str, Any] = _read(lambda: flatten(run.config()), dict)
    status: dict[str, Any] = _read(run.status, dict)
    state, error = _read_state(run, status, job_state)
    evaluation: dict[str, Any] = _read(run.evaluation, dict)
    intervals, provenance = evaluation.get("intervals") or {}, flatten(evaluation.get("provenance") or {})
    data: dict[str, Any] = _read(run.data, dict)
    metrics = {k: v for k, v in (evaluation.get("metrics") or {}).items() if type(v) in (int, float)}
    selected_steps = {f"{k}{STEP}": provenance.get(f"{k}.chosen at step") for k in metrics}
    metrics |= {k: step for k, step in selected_steps.items() if type(step) is int}
    objective = _read(lambda: newest_objective(run), dict[str, float])
    history = [{"step": h.get("step"), **h.get("metrics", {})} for h in evaluation.get("history") or []]
    last = next((h for h in history if h["step"] == evaluation.get("step")), {})
    lines: list[dict[str, Any]] = _read(run.metrics, list)
    steps = int(_number(status.get("steps")) or _number(config.get("train.steps")))
    folders = ["", "eval", *(f"../slurm/{job}" for job in jobs.values() if error or state == "failed")]
    listings: dict[str, list[str]] = {f: _read(partial(os.listdir, run.path / f), list) for f in folders}
    return Trial(
        run=run,
        state=state,
        config=config,
        step=steps if state == "done" else int(_number(status.get("step"))),
        steps=steps,
        eta=_number(status.get("eta")) if state == "running" else 0.0,
        error=error.replace(f"{run.path.resolve().parent}/", ""),
        curves=read_curves(lines),
        history=read_curves(history) if len(history) > 1 else {},
        metrics=objective | metrics,
        objective=objective,
        direction=_read(lambda: read_direction(run), str),
        ended=_number(lines[-1].get("time")) if lines else 0.0,
        validation={k: v for k, v in last.items() if k.startswith("validation/") and type(v) in (int, float)},
        intervals={k: (_number(v[0]), _number(v[1])) for k, v in intervals.items() if len(v) == 2},
        provenance=provenance | flatten({"data": data.get("domains") or {}}),
        is_evaluated=bool(evaluation) or not config.get("eval.metrics"),
        class_names=[str(name) for name in data.get("classes") or []],
        files=tuple(sorted(os.path.join(folder, name) for folder, names in listings.items() for name in names)),
    )


def _read_state(run: RunDirectory, status: dict[str, Any], job_state: JobState | None) -> tuple[str, str]:
    """Return state and error; an end that the backend reported counts if no record of the trial is newer."""
    state = _read(run.state, lambda: "pending")
    if state == "done":
        evaluation_error = _read(run.evaluation_error, str)
        return state, f"evaluation: {evaluation_error}" if evaluation_error else ""
    error = _read(run.error, str) if state == "failed" else ""
    newest = max(_number(record.get("time")) for record in (status, _read(run.failure, dict[str, Any])))
    if job_state and job_state.state == "failed" and _number(job_state.time) > newest:
        return "failed", job_state.reason or error
    is_waiting = state in ("pending", "stopped")
    if job_state and is_waiting and "cancelled" in job_state.reason and _number(job_state.time) > newest:
        return "cancelled", error
    return state, error


def find_swept_keys(trials: Sequence[Trial]) -> list[str]:
    """Return the dotted keys in which the trials differ, except for those that the method determines.

    The method determines a key of `model` that only some methods have, if it is constant within each of them.
    """
    swept = []
    for key in sorted({key for trial in trials for key in trial.config}):
        if key == "method" or key.partition(".")[0] in ("resources", "eval"):
            continue
        values: dict[str, set[str | None]] = {}
        for trial in trials:
            value = format_exactly(trial.config, key) if key in trial.config else None
            values.setdefault(trial.method, set()).add(value)
        varies_within_method = any(len(of_method) > 1 for of_method in values.values())
        is_universal = not any(None in of_method for of_method in values.values())
        differs = len(set().union(*values.values())) > 1
        if varies_within_method or (differs and (is_universal or not key.startswith("model."))):
            swept.append(key)
    return swept


def _label(trial: Trial, keys: Sequence[str]) -> str:
    """Return the method and its swept values, with the last part of each key if that is unambiguous."""
    last_parts = Counter(key.rpartition(".")[2] for key in keys)
    parts = [trial.marked_method or "?"]
    for key in keys:
        if key != "method" and key in trial.config:
            last = key.rpartition(".")[2]
            parts.append(f"{last if last_parts[last] == 1 else key} {format_setting(trial.config, key)}")
    return " · ".join(parts)


def _sort_key(config: dict[str, Any], key: str) -> tuple[int, float, str]:
    """Order absent values before numbers before text."""
    value = config.get(key)
    if isinstance(value, int | float):
        return 1, value, ""
    return (2, 0.0, format_exactly(config, key)) if key in config else (0, 0.0, "")


def _number(value: Any) -> float:
    """Return a number; 0 for anything else, which a damaged file may hold."""
    return value if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


def _read(read: Callable[[], T], default: Callable[[], T]) -> T:
    """Read a file that another process may be writing; use the default if it is missing, torn or malformed."""
    try:
        return read()
    except (OSError, ValueError, TypeError, AttributeError, IndexError, yaml.YAMLError):
        return default()
