"""Submit a search: begin its study or go on with it, and run the slots that ask it."""

import argparse
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console

from eval.objective import find_metric, is_maximized
from jobs import snapshot
from jobs.backends.base import Allocation, Backend
from jobs.backends.local import LocalBackend
from jobs.command import print_plain
from jobs.plan import lock_sweep
from jobs.search.study import JOURNAL, Study, best_trials, write_search
from jobs.stage import stage_datasets
from trainer.config.search import Search
from trainer.errors import ConfigError
from trainer.runs.directory import find_runs


def submit_search(options: argparse.Namespace, search: Search, backend: Backend, console: Console) -> int:
    """Search to the end, or until Ctrl-C; return the exit code. ConfigError before anything is started."""
    search, template = complete(search), search.template()
    sweep = options.runs / template.name
    print_plain(console, f"{sweep}: {describe(search)}")
    if not isinstance(backend, LocalBackend):
        raise ConfigError(f"{search.file}: search: runs on this machine only for now; use --cluster local")
    if options.dry_run:
        return 0
    stage_datasets(options.sweep, options.overrides, [template], console)
    with lock_sweep(sweep, "trains"):
        study = begin(sweep, search)
        code = snapshot.take(sweep)
        if options.sweep.resolve() != (sweep / "sweep.yaml").resolve():
            shutil.copyfile(options.sweep, sweep / "sweep.yaml")
        started = time.monotonic()
        local = LocalBackend(options.max_parallel, console, lambda: find_runs(sweep))
        notes = {"overrides": options.overrides, **code.record()}
        completed = local.search(sweep, template, search.options.trials, code.folder, notes)
        page = write_report(sweep, code.folder)
    print_plain(console, summarize(study))
    if not completed:
        print_plain(console, "stopped; rerun the same command to go on with the search")
        return 130
    print_plain(console, f"{time.monotonic() - started:.0f} s; report: {page}; study: {sweep / JOURNAL}")
    return report_failures(study)


def complete(search: Search) -> Search:
    """Return a search with its direction filled in; ConfigError for a metric that it may not go by."""
    metric = find_metric(search.options.metric, search.template(), search.file)
    default = "maximize" if is_maximized(metric) else "minimize"
    direction = search.options.direction or default
    return replace(search, options=search.options.model_copy(update={"direction": direction}))


def describe(search: Search) -> str:
    """Return one line that says what is searched."""
    options, seeds = search.options, len(search.trials(search.first_corner()))
    pruner = f", {options.pruner.name} at steps {search.rungs()[:-1]}" if len(search.rungs()) > 1 else ""
    return (
        f"search {', '.join(search.space)} to {options.direction} {options.metric}: {options.trials} settings"
        f"{f' × {seeds} seeds' if seeds > 1 else ''} by {options.sampler}{pruner}"
    )


def begin(sweep: Path, search: Search) -> Study:
    """Begin the study of a sweep, or bring it up to date; return it."""
    write_search(sweep, search)
    study = Study(sweep, search)
    with study.mutex:
        study.begin()
        study.mark_pruned(Allocation.local().attempt)
    return study


def write_report(sweep: Path, code: Path) -> Path:
    """Write the report of what has been trained, if anything has; return its page."""
    command = [sys.executable, str(code / "eval" / "report.py"), str(sweep)]
    environment = snapshot.import_environment(code)
    if find_runs(sweep):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    return sweep / "report" / "index.html"


def summarize(study: Study) -> str:
    """Return the number of settings in each state, and the best of those that are complete."""
    counts = Counter(trial.state.name.lower() for trial in study.trials())
    line = f"{study.count_asked()} settings: {', '.join(f'{n} {state}' for state, n in counts.items())}"
    if best := best_trials(study)[:1]:
        values = ", ".join(f"{key}={study.search.space[key].decode(v)}" for key, v in best[0].params.items())
        line += f"; best {study.search.options.metric} {best[0].value:.6g}: {values} ({study.runs(best[0])[0].name})"
    return line


def report_failures(study: Study) -> int:
    """Print why trials failed; return the exit code, 1 if none is complete."""
    for trial in study.trials(TrialState.FAIL):
        for run in study.runs(trial):
            if error := run.error() or run.evaluation_error():
                print(f"error: {run.path}: {error}", file=sys.stderr)
    return 0 if study.trials(TrialState.COMPLETE) else 1
