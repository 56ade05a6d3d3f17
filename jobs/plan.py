"""What a submission is to start: what the file asks for, less what is done, runs or waits in the queue."""

import argparse
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.main import current
from jobs.backends.slurm.accounting import Job
from jobs.backends.slurm.arrays import Plan
from jobs.backends.slurm.presets import KINDS
from jobs.snapshot import Snapshot
from jobs.tracking import submissions
from jobs.tracking.state import determine_status
from trainer.config.schema import Config
from trainer.config.sweep import Trial
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import locked
from trainer.runs.placement import locate_trials

PATIENCE = 600.0  # seconds that a command waits for another one to have queued its jobs


@dataclass
class Submission:
    """What a command is about to start."""

    options: argparse.Namespace  # of jobs/submit.py
    sweep: Path  # its directory
    on_slurm: bool
    trials: list[Trial]
    runs: list[RunDirectory]  # of the trials, in their order
    states: list[str]  # likewise
    to_train: list[int]  # positions in `trials`
    to_evaluate: list[int]  # trained before
    unnamed: dict[str, str]  # trial that the file does not name -> its job in the queue
    code: Snapshot | None = None  # what the jobs run, where there is anything to start

    def summary(self) -> str:
        """How much is there and how much is to be done, in a line."""
        counts = ", ".join(f"{n} {state}" for state, n in Counter(self.states).items())
        todo = f"{len(self.to_train)} to train, {len(self.to_evaluate)} to evaluate"
        return f"{self.sweep}: {len(self.trials)} trials ({counts}); {todo}"

    def notes(self) -> dict[str, Any]:
        """What submissions.jsonl keeps of it, wherever it goes."""
        name = self.options.cluster
        preset = {} if name is None or name in KINDS else {"preset": name}
        return {"overrides": self.options.overrides, **preset, **(self.code.record() if self.code else {})}


def plan(options: argparse.Namespace, trials: list[Trial], on_slurm: bool, queue: bool) -> Submission:
    """Compare what is wanted with what is there, on disk and (`queue`) in Slurm's queue. Writes nothing."""
    sweep = options.runs / trials[0].config.name
    runs = [RunDirectory(path) for path in locate_trials(sweep, trials)]
    training, evaluating = ({}, {})
    if queue and sweep.is_dir():
        training, evaluating = submissions.queued(sweep, "train"), submissions.queued(sweep, "eval")
    named = {run.name for run in runs}
    known = {name: [Job(job.split()[0], "train", job.split()[1])] for name, job in training.items()}
    states = [determine_status(run, known.get(run.name, ())).state for run in runs]
    start = ("failed",) if options.retry_failed else ("pending", "failed", "stopped")
    evaluate = [
        i
        for i, (state, run) in enumerate(zip(states, runs, strict=True))
        if state == "done" and run.name not in evaluating and wants_evaluation(trials[i].config, run)
    ]
    if options.retry_failed:
        evaluate = [i for i in evaluate if (runs[i].path / "eval" / "failed.json").exists()]
    return Submission(
        options,
        sweep,
        on_slurm,
        trials,
        runs,
        states,
        to_train=[i for i, state in enumerate(states) if state in start],
        to_evaluate=evaluate,
        unnamed={name: job for name, job in (evaluating | training).items() if name not in named},
    )


def wants_evaluation(config: Config, run: RunDirectory) -> bool:
    """Whether a trained run's evaluation is missing, or does not answer what the file asks for."""
    return bool(config.eval.metrics) and not current(run, config, config.eval.metrics)


def group(submission: Submission) -> list[Plan]:
    """Trials with the same resources go into the same arrays."""
    plans: dict[str, Plan] = {}
    for i in [*submission.to_train, *submission.to_evaluate]:
        run, config = submission.runs[i], submission.trials[i].config
        resources = config.resources
        if submission.options.max_parallel:
            resources = resources.model_copy(update={"max_parallel": submission.options.max_parallel})
        evaluated = bool(config.eval.metrics)
        plan = plans.setdefault(f"{resources} {evaluated}", Plan(resources, [], [], []))
        if i in submission.to_evaluate:
            plan.evaluate_now.append(run)
        else:
            plan.train.append(run)
            plan.evaluate_after.extend([run] if evaluated else [])
    return list(plans.values())


def prune(submission: Submission) -> str:
    """Cancel the jobs of trials that the file does not name (anymore), if that is asked for; return what to say.

    A job that also carries a trial of the file is left alone, and so is every run directory.
    """
    names = submission.unnamed
    if not names:
        return ""
    if not submission.options.prune:
        return f"{len(names)} queued trials are not in the file, such as {min(names)}; --prune cancels them"
    stages = [submissions.queued(submission.sweep, stage) for stage in ("train", "eval")]
    kept = {job for queued in stages for name, job in queued.items() if name not in names}
    ids = {job.split()[0] for queued in stages for name, job in queued.items() if name in names and job not in kept}
    done = subprocess.run(["scancel", *sorted(ids)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{submission.sweep}: scancel: {done.stderr.strip()}; nothing was queued")
    return f"cancelled {len(ids)} jobs of {len(names)} trials that are not in the file"


@contextmanager
def alone(submission: Submission) -> Iterator[None]:
    """Be the only command that starts trials of a sweep: wait while another one queues jobs, not while it trains.

    ConfigError where another one trains on this machine or another, or does not come to an end.
    """
    sweep = submission.sweep
    try:
        sweep.mkdir(parents=True, exist_ok=True)
        file = (sweep / ".submitting").open("a+")
    except OSError as error:
        raise ConfigError(f"{sweep}: cannot write there: {error.strerror}; give another --runs") from None
    with file:
        give_up = time.monotonic() + PATIENCE
        while not locked(file):
            file.seek(0)
            owner = file.read().strip()
            if owner.endswith("trains") or time.monotonic() > give_up:
                raise ConfigError(f"{sweep}: another jobs/submit.py is at work on it ({owner}); wait for it or stop it")
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} {'queues' if submission.on_slurm else 'trains'}\n")
        file.flush()
        yield
