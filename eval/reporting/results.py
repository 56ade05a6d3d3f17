"""Read the results of a sweep from its run directories and group trials that differ only in their seed."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval.reporting.columns import STEP, choose_main, is_maximized, order_metrics
from eval.reporting.curves import choose_styles
from eval.reporting.formatting import format_exactly, format_setting, is_oracle
from eval.reporting.marks import mark_data, mark_revisions
from eval.reporting.seeds import Setting
from eval.reporting.trials import SEED, Trial, read_or, read_trial
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.directory import find_runs
from trainer.runs.job_states import read_job_states

STATES = ("done", "running", "pruned", "stopped", "cancelled", "pending", "failed")


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
    name: str
    is_single: bool  # False: the trials are of several sweeps, that of each being its setting `sweep`

    @property
    def columns(self) -> list[str]:
        """Return the metrics that a table shows: all but the steps of selected weights."""
        return [name for name in self.metrics if not name.endswith(STEP)]

    @cached_property
    def main_columns(self) -> list[str]:
        """Return the metrics that a table shows until others are chosen, that of a search among them."""
        evaluated = self.trials[0].config.get("eval.metrics") or []
        objectives = dict.fromkeys(name for trial in self.trials for name in trial.objective)
        return [*dict.fromkeys([*objectives, *choose_main([n for n in self.columns if not is_oracle(n)], evaluated)])]

    @cached_property
    def others(self) -> list[str]:
        """Return the keys that differ without being swept: those that the method determines, resources, evaluation."""
        keys = sorted({key for trial in self.trials for key in trial.config} - {*self.swept, "method"})
        return [key for key in keys if len({format_exactly(trial.config, key) for trial in self.trials}) > 1]

    @cached_property
    def cost_columns(self) -> list[str]:
        return [*dict.fromkeys(name for trial in self.trials for name in trial.costs)]

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


def read_sweep(directory: Path, *more: Path) -> Sweep:
    """Read every run directory of a sweep; ConfigError if there is none.

    With `more` sweeps, read those as well: their names are then a setting, `sweep`, in which trials differ.
    """
    trials, abstracts = [], []
    for sweep in (directory, *more):
        jobs: dict[str, dict[str, str]] = read_or(partial(submissions.newest_jobs, sweep), dict)
        states = read_job_states(sweep)
        own = [read_trial(run, jobs.get(run.name, {}), states.get(run.name)) for run in find_runs(sweep)]
        if not own:
            raise ConfigError(
                f"{sweep}: no trials (directories with a config.yaml); give the directory of a sweep: logs/<sweep>"
            )
        trials += [replace(t, config=t.config | {"sweep": sweep.resolve().name}) for t in own] if more else own
        abstracts.append(_read_abstract(sweep / "sweep.yaml"))
    mark_data(trials)
    mark_revisions(trials)
    swept = find_swept_keys(trials)
    keys = ["method", *(key for key in swept if key != SEED)]
    trials.sort(key=lambda trial: ([_sort_key(trial.config, key) for key in [*keys, SEED]], trial.name))
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(format_exactly(trial.config, key) for key in keys), []).append(trial)
    styles = choose_styles([group[0].method for group in groups.values()])
    return Sweep(
        directory=directory,
        trials=trials,
        swept=swept,
        settings=[Setting(_label(g[0], keys), style, g) for g, style in zip(groups.values(), styles, strict=True)],
        metrics=order_metrics({name for t in trials for name in t.metrics}, trials[0].config.get("eval.metrics") or []),
        submission={} if more else read_or(lambda: {**submissions.read_lines(directory)[-1]}, dict[str, Any]),
        abstract="\n\n".join(abstracts),
        name=", ".join(sweep.resolve().name for sweep in (directory, *more)),
        is_single=not more,
    )


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


def _read_abstract(file: Path) -> str:
    """Return the comment at the head of a sweep's file."""
    text = read_or(lambda: file.read_text(errors="replace"), str)
    head = re.match(r"(#.*\n)*", text + "\n")
    return re.sub(r"(?m)^# ?", "", head[0]) if head else ""


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
