"""Plan a submission: decide which trials of a sweep need training or evaluation, and lock the sweep while it starts."""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import models
from eval.metrics import check_names
from eval.record import needs_evaluation
from jobs.backends.base import Backend, Job, Plan
from jobs.backends.slurm.presets import BACKENDS
from jobs.snapshot import ROOT, Snapshot
from jobs.tracking.state import determine_status, is_failed
from trainer.config.document import Settings, find_place
from trainer.config.schema import Config
from trainer.config.sweep import Trial, load_trials
from trainer.data.cache import data_root
from trainer.data.provenance import describe_data, find_difference
from trainer.errors import ConfigError, DataError
from trainer.runs.archive import archive_file
from trainer.runs.atomic import hash_file, read_json, write_json, write_text
from trainer.runs.directory import RunDirectory, find_runs
from trainer.runs.placement import locate_trials

BUILT = ".built.json"  # below the data root: hash of models/ and torch -> settings that were built with them
LOCK_TIMEOUT = 600.0  # seconds to wait for another command that queues jobs of the same sweep


@dataclass
class Submission:
    """The trials of a sweep and which of them a command is about to start."""

    options: argparse.Namespace  # of jobs/submit.py
    sweep: Path  # its directory
    backend: Backend
    trials: list[Trial]
    runs: list[RunDirectory]  # of the trials, in their order
    states: list[str]  # likewise
    to_train: list[int]  # positions in `trials`
    to_evaluate: list[int]  # positions of trained trials whose evaluation is missing or outdated
    unlisted: set[str]  # trials that are queued or running but not in the file
    code: Snapshot | None = None  # what the jobs run; None if there is nothing to start

    def summary(self) -> str:
        """Return one line with the number of trials in each state and the number to start."""
        counts = ", ".join(f"{n} {state}" for state, n in Counter(self.states).items())
        todo = f"{len(self.to_train)} to train, {len(self.to_evaluate)} to evaluate"
        return f"{self.sweep}: {len(self.trials)} trials ({counts}); {todo}"

    def record(self) -> dict[str, Any]:
        """Return the entries of submissions.jsonl that do not depend on the backend."""
        name = self.options.cluster
        preset = {} if name is None or name in BACKENDS else {"preset": name}
        return {"overrides": self.options.overrides, **preset, **(self.code.record() if self.code else {})}


def load_sweep(file: Path, words: list[str], defaults: Settings | None = None) -> list[Trial]:
    """Return the trials of a sweep file as `load_trials`, and check that their metrics exist; ConfigError."""
    trials = load_trials(file, words, defaults)
    for trial in trials:
        check_names(trial.config.eval.metrics, find_place(trial.settings, "eval.metrics", str(file)))
    return trials


def plan_sweep(options: argparse.Namespace, trials: list[Trial], backend: Backend, reachable: bool) -> Submission:
    """Compare the trials of the file with run directories and, if `reachable`, the backend's queue; write nothing."""
    sweep = options.runs / trials[0].config.name
    runs = [RunDirectory(path) for path in locate_trials(sweep, trials)]
    active = backend.active(sweep) if reachable and sweep.is_dir() else []
    jobs: dict[str, list[Job]] = {trial: [job] for job in active if job.stage == "train" for trial in job.trials}
    evaluating = {trial for job in active if job.stage == "eval" for trial in job.trials}
    unlisted = (evaluating | jobs.keys()) - {run.name for run in runs}
    if options.retry_failed and reachable:  # only the backend knows of trials that failed before they wrote anything
        jobs = backend.jobs(sweep)[0] | jobs
    statuses = [determine_status(run, jobs.get(run.name, ())) for run in runs]
    states = [status.state for status in statuses]
    startable = ("failed",) if options.retry_failed else ("pending", "failed", "stopped", "pruned")
    done = [i for i, state in enumerate(states) if state == "done" and runs[i].name not in evaluating]
    to_evaluate = [i for i in done if needs_evaluation(trials[i].config, runs[i])]
    if options.retry_failed:
        to_evaluate = [i for i in to_evaluate if is_failed(statuses[i])]
    return Submission(
        options,
        sweep,
        backend,
        trials,
        runs,
        states,
        to_train=[i for i, state in enumerate(states) if state in startable],
        to_evaluate=to_evaluate,
        unlisted=unlisted,
    )


def refuse_archived(sweep: Path) -> None:
    """Refuse to train trials again that jobs/tidy.py has packed; ConfigError."""
    if archive_file(sweep).exists() and not find_runs(sweep):
        archive = archive_file(sweep)
        raise ConfigError(f"{sweep}: was packed into {archive}; unpack it by: tar -xf {archive} -C {sweep.parent}")


def list_unbuilt(submission: Submission) -> list[Config]:
    """Return the configurations to train of which no trial has started."""
    return [submission.trials[i].config for i in submission.to_train if not submission.runs[i].data()]


def build_methods(configs: Iterable[Config], file: Path) -> None:
    """Build the method of each new setting once, in a process with torch; ConfigError if a constructor refuses one.

    What was built is remembered beside the data, for as long as models/ and torch stay the same.
    """
    documents: dict[str, dict[str, Any]] = {}
    for config in configs:
        key = json.dumps([config.method, config.model_arguments(), config.data.shape()], default=str)
        documents.setdefault(key, config.model_dump(mode="json"))
    if not documents:
        return
    memory = data_root(next(iter(documents.values()))["data"]["root"]) / BUILT
    built = read_json(memory).get(code := hash_methods(), [])
    if not (new := sorted(documents.keys() - built)):
        return
    command = [sys.executable, "-m", "trainer.construct"]
    text = json.dumps([documents[key] for key in new])
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["exited without an error"]
        raise ConfigError(f"{file}: {lines[-1]}; correct model: or data:, nothing was queued")
    with suppress(OSError):  # nothing is lost: the next command builds them again
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {code: [*built, *new]})


def hash_methods() -> str:
    """Return a hash of the files of models/ and of the version of torch."""
    digest = hashlib.sha256(version("torch").encode())
    for path in sorted(models.FOLDER.rglob("*.py")):
        digest.update(f"{path.relative_to(models.FOLDER)} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def keep_sweep_file(options: argparse.Namespace, sweep: Path) -> None:
    """Copy the file that was submitted to the sweep's directory, unless it is that copy."""
    if options.sweep.resolve() != (sweep / "sweep.yaml").resolve():
        shutil.copyfile(options.sweep, sweep / "sweep.yaml")


def check_data(submission: Submission) -> None:
    """Refuse to continue a sweep some of whose trials were trained on other data; ConfigError."""
    current: dict[str, dict[str, Any]] = {}
    for trial, run in zip(submission.trials, submission.runs, strict=True):
        if not (earlier := run.data()):
            continue
        key = str(trial.config.data)
        if key not in current:
            try:
                current[key] = describe_data(trial.config.data)
            except DataError:  # it is not staged, so nothing is trained on it now
                continue
        if (run.latest_step() or run.is_done()) and (difference := find_difference(earlier, current[key])):
            raise ConfigError(
                f"{run.path}: {difference} since this trial was trained, so its results cannot stand beside new ones; "
                "restore the data, remove the run directory to train it again, or set another name:"
            )


def group_trials(submission: Submission) -> list[Plan]:
    """Return one plan for each set of trials with equal resources, which share arrays of jobs."""
    plans: dict[str, Plan] = {}
    for i in [*submission.to_train, *submission.to_evaluate]:
        run, config = submission.runs[i], submission.trials[i].config
        resources, evaluation = config.resources, config.evaluation_resources()
        if submission.options.max_parallel:
            limit = {"max_parallel": submission.options.max_parallel}
            resources, evaluation = resources.model_copy(update=limit), evaluation.model_copy(update=limit)
        has_metrics = bool(config.eval.metrics)
        plan = plans.setdefault(f"{resources} {evaluation} {has_metrics}", Plan(resources, [], [], [], evaluation))
        if i in submission.to_evaluate:
            plan.evaluate_now.append(run)
        else:
            plan.train.append(run)
            plan.evaluate_after.extend([run] if has_metrics else [])
    return list(plans.values())


def cancel_unlisted(submission: Submission) -> str:
    """Cancel the jobs of trials that are not in the file, if --prune was given; return a message, '' if there are none.

    A job that also runs a trial of the file is not cancelled. No run directory is touched.
    """
    unlisted = submission.unlisted
    if not unlisted:
        return ""
    if not submission.options.prune:
        return f"{len(unlisted)} queued trials are not in the file, such as {min(unlisted)}; --prune cancels them"
    active = submission.backend.active(submission.sweep)
    jobs = [job for job in active if job.trials and unlisted.issuperset(job.trials)]
    submission.backend.cancel(jobs, whole=False)
    return f"cancelled {len(jobs)} jobs of {len(unlisted)} trials that are not in the file"


@contextmanager
def lock_sweep(sweep: Path, activity: str) -> Iterator[None]:
    """Hold the lock that lets only one command start trials of a sweep or tidy it.

    `activity`: trains, queues or tidies. Wait while another command queues jobs or tidies. ConfigError if another one
    trains, on this or another machine, or does not finish in LOCK_TIMEOUT.
    """
    lock, holder = FileLock(sweep / ".submitting"), sweep / ".submitting.by"
    deadline = time.monotonic() + LOCK_TIMEOUT
    try:
        sweep.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                name = holder.read_text().strip() if holder.exists() else "unknown process"
                if name.endswith("trains") or time.monotonic() > deadline:
                    raise ConfigError(
                        f"{sweep}: another command is at work on it ({name}); wait for it or stop it"
                    ) from None
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()} {activity}\n")
    except OSError as error:
        raise ConfigError(f"{sweep}: cannot write there: {error.strerror}; give another --runs") from None
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
