"""Read a trial's results from its run directory; missing or half-written files read as empty."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import yaml

from eval.reporting.columns import STEP
from eval.reporting.curves import Curve, read_curves
from eval.reporting.formatting import format_exactly
from trainer.config.document import flatten
from trainer.runs.costs import summarize_costs
from trainer.runs.directory import RunDirectory
from trainer.runs.job_states import JobState
from trainer.runs.objective import newest_objective, read_direction

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
    costs: dict[str, float]  # of training, as trainer.runs.costs gives them; {} if they were not measured
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


def read_trial(run: RunDirectory, jobs: Mapping[str, str], job_state: JobState | None) -> Trial:
    """Read a run directory, given its newest job of each stage and the state that the backend last reported."""
    config: dict[str, Any] = read_or(lambda: flatten(run.config()), dict)
    status: dict[str, Any] = read_or(run.status, dict)
    state, error = _read_state(run, status, job_state)
    evaluation: dict[str, Any] = read_or(run.evaluation, dict)
    intervals, provenance = evaluation.get("intervals") or {}, flatten(evaluation.get("provenance") or {})
    data: dict[str, Any] = read_or(run.data, dict)
    metrics = {k: v for k, v in (evaluation.get("metrics") or {}).items() if type(v) in (int, float)}
    selected_steps = {f"{k}{STEP}": provenance.get(f"{k}.chosen at step") for k in metrics}
    metrics |= {k: step for k, step in selected_steps.items() if type(step) is int}
    objective = read_or(lambda: newest_objective(run), dict[str, float])
    history = [{"step": h.get("step"), **h.get("metrics", {})} for h in evaluation.get("history") or []]
    last = next((h for h in history if h["step"] == evaluation.get("step")), {})
    lines: list[dict[str, Any]] = read_or(run.metrics, list)
    steps = int(read_number(status.get("steps")) or read_number(config.get("train.steps")))
    folders = ["", "eval", *(f"../slurm/{job}" for job in jobs.values() if error or state == "failed")]
    listings: dict[str, list[str]] = {f: read_or(partial(os.listdir, run.path / f), list) for f in folders}
    return Trial(
        run=run,
        state=state,
        config=config,
        step=steps if state == "done" else int(read_number(status.get("step"))),
        steps=steps,
        eta=read_number(status.get("eta")) if state == "running" else 0.0,
        error=error.replace(f"{run.path.resolve().parent}/", ""),
        curves=read_curves(lines),
        history=read_curves(history) if len(history) > 1 else {},
        metrics=objective | metrics,
        objective=objective,
        direction=read_or(lambda: read_direction(run), str),
        costs=read_or(lambda: summarize_costs(status), dict[str, float]),
        ended=read_number(lines[-1].get("time")) if lines else 0.0,
        validation={k: v for k, v in last.items() if k.startswith("validation/") and type(v) in (int, float)},
        intervals={k: (read_number(v[0]), read_number(v[1])) for k, v in intervals.items() if len(v) == 2},
        provenance=provenance | flatten({"data": data.get("domains") or {}}),
        is_evaluated=bool(evaluation) or not config.get("eval.metrics"),
        class_names=[str(name) for name in data.get("classes") or []],
        files=tuple(sorted(os.path.join(folder, name) for folder, names in listings.items() for name in names)),
    )


def _read_state(run: RunDirectory, status: dict[str, Any], job_state: JobState | None) -> tuple[str, str]:
    """Return state and error; an end that the backend reported counts if no record of the trial is newer."""
    state = read_or(run.state, lambda: "pending")
    if state == "done":
        evaluation_error = read_or(run.evaluation_error, str)
        return state, f"evaluation: {evaluation_error}" if evaluation_error else ""
    error = read_or(run.error, str) if state == "failed" else ""
    newest = max(read_number(record.get("time")) for record in (status, read_or(run.failure, dict[str, Any])))
    if job_state and job_state.state == "failed" and read_number(job_state.time) > newest:
        return "failed", job_state.reason or error
    is_waiting = state in ("pending", "stopped")
    if job_state and is_waiting and "cancelled" in job_state.reason and read_number(job_state.time) > newest:
        return "cancelled", error
    return state, error


def read_number(value: Any) -> float:
    """Return a number; 0 for anything else, which a damaged file may hold."""
    return value if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


def read_or(read: Callable[[], T], default: Callable[[], T]) -> T:
    """Read a file that another process may be writing; use the default if it is missing, torn or malformed."""
    try:
        return read()
    except (OSError, ValueError, TypeError, AttributeError, IndexError, yaml.YAMLError):
        return default()
