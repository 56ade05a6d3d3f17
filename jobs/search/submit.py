"""Submit a search: begin its study or go on with it, and run the slots that ask it."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console

from eval.objective import find_metric, is_maximized
from eval.record import needs_evaluation
from jobs import snapshot
from jobs.backends.base import Allocation, Backend, Plan
from jobs.backends.local import LocalBackend
from jobs.command import print_plain
from jobs.plan import build_methods, keep_sweep_file, lock_sweep
from jobs.search import JOURNAL
from jobs.search.study import RETRY, Study, write_search
from jobs.search.summary import summarize
from jobs.stage import stage_datasets
from trainer.config.resolve import load_config
from trainer.config.schema import Config
from trainer.config.search import Search, list_checked
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory, find_runs


def submit_search(options: argparse.Namespace, search: Search, backend: Backend, console: Console) -> int:
    """Search here to the end, or until Ctrl-C, or queue slots on Slurm; return the exit code.

    ConfigError before anything is started.
    """
    search, template = complete(search), search.template()
    sweep, is_local = options.runs / template.name, isinstance(backend, LocalBackend)
    print_plain(console, f"{sweep}: {describe(search)}")
    if not is_local and (nodes := template.resources.nodes) > 1:
        raise ConfigError(f"{search.file}: resources.nodes: {nodes}: trials of a search have one node")
    if options.dry_run:
        plans = plan_slots(sweep, template, options.max_parallel, search.options.most())
        for script in backend.scripts(sweep, plans, snapshot.take(sweep, write=False).folder):
            print(f"\n{script}")
        return 0
    stage_datasets(options.sweep, options.overrides, list_staged(search), console, download=is_local)
    if not is_local:  # here, the first trial fails at once; there, each one that is refused would have waited
        build_methods(list_checked(search), options.sweep)
    with lock_sweep(sweep, "trains" if is_local else "queues"):
        study = begin(sweep, search)
        code = snapshot.take(sweep)
        keep_sweep_file(options, sweep)
        notes = {"overrides": options.overrides, **code.record()}
        if not isinstance(backend, LocalBackend):
            busy = sum(len(job.trials) for job in backend.active(sweep) if job.stage == "train")
            plans = plan_slots(sweep, template, options.max_parallel, count_open(study), busy)
            return queue_slots(backend, sweep, plans, code.folder, notes, console)
        started = time.monotonic()
        completed = backend.search(sweep, template, search.options.most(), code.folder, notes)
        answer = snapshot.write_report(code.folder, sweep)[1] if find_runs(sweep) else ""
    print_plain(console, "\n".join(summarize(study)))
    if not completed:
        print_plain(console, "stopped; rerun the same command to go on with the search")
        return 130
    print_plain(console, f"{time.monotonic() - started:.0f} s; study: {sweep / JOURNAL}")
    print(answer, end="")
    return report_failures(study)


def plan_slots(sweep: Path, config: Config, parallel: int | None, settings: int, busy: int = 0) -> list[Plan]:
    """Return the slots to queue for some settings, beside those that are `busy`: one plan, or none."""
    limit = {"max_parallel": parallel} if parallel else {}
    resources = config.resources.model_copy(update=limit)
    count = min(resources.max_parallel, settings) - busy
    slots = [RunDirectory(sweep / f"slot-{busy + number}") for number in range(count)]
    return [Plan(resources, slots, [], [], config.evaluation_resources(), is_search=True)] if slots else []


def count_open(study: Study) -> int:
    """Return how many settings have not ended; 1 if only the best one's evaluation is missing."""
    unfinished = study.count_fresh() + len(study.trials(TrialState.RUNNING))
    if not study.is_spent():
        unfinished += sum(RETRY in trial.user_attrs for trial in study.trials(TrialState.WAITING))
    best = study.best()
    runs = study.runs(best) if best else []
    return unfinished or int(any(needs_evaluation(load_config(run.config_file), run) for run in runs))


def queue_slots(
    backend: Backend, sweep: Path, plans: list[Plan], code: Path, notes: dict[str, Any], console: Console
) -> int:
    """Queue jobs whose slots ask the study, and the report; return the exit code."""
    if not plans:
        print_plain(console, "nothing to do")
        return 0
    record = backend.submit(sweep, plans, code, notes)
    for array in record["arrays"]:
        print_plain(console, f"search  job {array['id']}  {len(array['trials'])} slots")
    print_plain(console, f"report  job {record['report']}")
    print_plain(console, f"watch:  python jobs/status.py {sweep} --watch")
    return 0


def complete(search: Search) -> Search:
    """Return a search with its direction filled in; ConfigError for a metric that it may not go by."""
    metrics = {find_metric(search.options.metric, config, search.metric_place) for config in search.templates()}
    default = "maximize" if all(map(is_maximized, metrics)) else "minimize"
    direction = search.options.direction or default
    return replace(search, options=search.options.model_copy(update={"direction": direction}))


def list_staged(search: Search) -> list[Config]:
    """Return the configurations to stage for: those of the fixed settings, with the search's metric among theirs."""
    staged = []
    for config in search.templates():
        metric = find_metric(search.options.metric, config, search.metric_place)
        evaluation = config.eval.model_copy(update={"metrics": [*dict.fromkeys([*config.eval.metrics, metric])]})
        staged.append(config.model_copy(update={"eval": evaluation}))
    return staged


def describe(search: Search) -> str:
    """Return one line that says what is searched."""
    options, corners = search.options, search.first_corners()
    seeds = len(search.trials(corners[0]))
    names = dict.fromkeys(name for corner in corners for name in search.dimensions(corner))
    pruner = f", {options.pruner.name} at steps {search.rungs()[:-1]}" if len(search.rungs()) > 1 else ""
    return (
        f"search {', '.join(names)} to {options.direction} {options.metric}: {options.budget()}"
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


def report_failures(study: Study) -> int:
    """Print why trials failed; return the exit code, 1 if none is complete."""
    for trial in study.trials(TrialState.FAIL):
        for run in study.runs(trial):
            if error := run.error() or run.evaluation_error():
                print(f"error: {run.path}: {error}", file=sys.stderr)
    return 0 if study.trials(TrialState.COMPLETE) else 1
