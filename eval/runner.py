"""Bring the evaluation of a trial up to date: compute each metric that is missing or outdated, and keep the others."""

import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from eval import distributed, metrics, record
from trainer.config.resolve import load_config
from trainer.errors import ConfigError, DataError
from trainer.runs import checkpoints
from trainer.runs.checkpoints import describe
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import explain_missing_locks

LIBRARIES = ("torch", "numpy", "scikit-learn")


@contextmanager
def collect_errors(errors: list[tuple[int, str]]) -> Iterator[None]:
    """Add an error inside to a list, as exit code and message, and continue; a bug is printed with its traceback."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if distributed.is_main():
            print(f"error: {error}", file=sys.stderr, flush=True)
        errors.append((2, " ".join(str(error).split())))
    except Exception as error:
        if not distributed.is_main():
            raise  # the main process may wait for this one: the launcher ends it
        traceback.print_exc()
        errors.append((1, " ".join(f"{type(error).__name__}: {error}".split())))


def update_evaluation(run: RunDirectory, requested: list[str], force: bool) -> int:
    """Compute every metric of a trial that is missing or outdated; return the exit code.

    A metric that fails is reported on stderr and in eval/failed.json, and does not stop other metrics or trials.
    """
    errors: list[tuple[int, str]] = []
    due: list[str] = []
    exists = run.exists()
    with ExitStack() as stack:
        if distributed.is_main():
            with collect_errors(errors):
                if not exists:
                    raise ConfigError(
                        f"{run.path}: is not a run directory: it has no config.yaml; give logs/<sweep>/<trial>"
                    )
                stack.enter_context(lock_evaluation(run))
                due = list_due(run, requested, force)
        due = distributed.broadcast(due)
        if due:
            with collect_errors(errors):
                evaluate(run, due, errors)
            if distributed.is_main() and not errors:
                drop_checkpoints(run)
    if distributed.is_main() and exists:  # not after an interruption: an earlier failure is then still valid
        run.fail_evaluation("; ".join(message for _, message in errors))
    return max((code for code, _ in errors), default=0)


def drop_checkpoints(run: RunDirectory) -> None:
    """Remove the checkpoints of a trial that is finished and has all metrics, unless it says `keep_checkpoints`."""
    config = load_config(run.config_file)
    if run.is_done() and not config.train.keep_checkpoints and not record.needs_evaluation(config, run):
        checkpoints.remove_all(run)


def list_due(run: RunDirectory, requested: list[str], force: bool) -> list[str]:
    """Return the metrics to compute: the requested ones, else those of the config; ConfigError if there are none."""
    config = load_config(run.config_file)
    names = requested or config.eval.metrics
    if not names:
        valid = ", ".join(metrics.names())
        raise ConfigError(f"{run.path}: eval.metrics: names nothing; give --metrics, of: {valid}")
    metrics.check_names(names, str(run.config_file))
    steps, options = config.train.steps, config.eval.options()
    due = [name for name in names if force or not record.is_current(run, steps, [name], options)]
    if not due:
        print(f"{run.name}: already evaluated", file=sys.stderr)
    return due


@contextmanager
def lock_evaluation(run: RunDirectory) -> Iterator[None]:
    """Hold an exclusive lock on the trial's eval/ directory, once another evaluation has released it."""
    folder = run.evaluation_directory
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        with explain_missing_locks(folder / ".lock"):
            stack.enter_context(FileLock(folder / ".lock"))
        try:
            yield
        finally:
            shutil.rmtree(new_files(run), ignore_errors=True)


def new_files(run: RunDirectory) -> Path:
    """Return the folder for files of a metric that is being computed."""
    return run.evaluation_directory / ".new"


def evaluate(run: RunDirectory, names: list[str], errors: list[tuple[int, str]]) -> None:
    """Compute metrics of the newest exported weights; each result is kept as soon as it is there."""
    import torch

    from eval.trial import open_trial

    # Several processes share a device only if there are fewer devices.
    gpu = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
    device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
    trial = open_trial(run.path, device=device, folder=new_files(run))
    if not distributed.is_main():
        for name in names:
            module = metrics.load(name)
            if module.METRIC.shared:
                with collect_errors(errors):
                    torch.manual_seed(trial.config.train.seed)
                    trial.capability(module.METRIC.needs, name)
                    module.evaluate(trial)
        return
    if trial.step < trial.config.train.steps:
        print(f"{run.name}: is at step {trial.step} of {trial.config.train.steps}", file=sys.stderr)
    path = trial.weights[trial.step]
    weights = {"file": path.name, **describe(path)}
    results = record.reusable_record(run, weights, names)
    for name in names:
        with collect_errors(errors):
            print(f"{run.name}: {name}", file=sys.stderr, flush=True)
            shutil.rmtree(trial.folder, ignore_errors=True)  # files of a metric that failed or was killed
            trial.folder.mkdir()
            # Each metric draws the same random numbers, whichever others are computed.
            torch.manual_seed(trial.config.train.seed)
            started, module = time.monotonic(), metrics.load(name)
            trial.capability(module.METRIC.needs, name)
            result: record.Result = module.evaluate(trial)
            details: dict[str, Any] = {"device": device.type, "seconds": round(time.monotonic() - started, 2)}
            details["versions"] = {library: metadata.version(library) for library in LIBRARIES}
            if module.METRIC.recipe != metrics.Metric.recipe:
                details["recipe"] = module.METRIC.recipe
            if options := metrics.select_options(name, trial.config.eval.options()):
                details["options"] = options
            results = record.publish(
                run, trial.folder, record.merge(results, trial.step, weights, name, result, details)
            )
            values = "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items())
            print(f"{run.name}: {name}: {values or 'done'}", file=sys.stderr, flush=True)
