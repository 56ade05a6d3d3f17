"""Cancel a sweep or some of its trials: queued jobs leave the queue, and running trials save first.

Rerun the command that submitted the sweep to resume it.
"""

import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from jobs.backends.base import ActiveJob, Backend
from jobs.backends.local import LocalBackend
from jobs.backends.slurm.backend import SlurmBackend
from jobs.command import create_parser
from jobs.logs import select_trials
from jobs.tracking.state import query_statuses
from trainer.environment import use_utf8
from trainer.errors import ConfigError
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python jobs/cancel.py logs/dann                             # the whole sweep, after a question
  python jobs/cancel.py logs/dann gamma=5,seed=0 1a2b3c4d     # two trials"""
END_TIMEOUT = 180.0  # seconds after which the command reports what has not ended
REPEAT_INTERVAL = 5.0  # seconds after which queued jobs are cancelled again: they may have been requeued meanwhile


def main(arguments: list[str] | None = None) -> int:
    """Cancel; return the exit code: 0, 1 if something still runs, 2 for bad input, 130 after Ctrl-C."""
    parser = create_parser("cancel", __doc__, EXAMPLES)
    parser.add_argument("sweep", type=Path, help="directory of a sweep, such as logs/dann")
    parser.add_argument("trials", nargs="*", help="names, or parts that identify one trial each; default: all trials")
    parser.add_argument("--yes", action="store_true", help="do not ask before cancelling a whole sweep")
    options = parser.parse_args(arguments)
    try:
        runs = select_trials(options.sweep, options.trials) if options.trials else find_runs(options.sweep)
        if not runs:
            raise ConfigError(f"{options.sweep}: no trials there; give a sweep's directory, such as logs/dann")
        return cancel(options.sweep, runs, whole=not options.trials, confirmed=options.yes)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print("interrupted; jobs that were cancelled end by themselves", file=sys.stderr)
        return 130


def cancel(sweep: Path, runs: list[RunDirectory], whole: bool, confirmed: bool) -> int:
    """Cancel the jobs of trials and wait for their end; return the exit code."""
    backends: tuple[Backend, ...] = (SlurmBackend(), LocalBackend())
    trials = {run.name for run in runs}
    jobs = [(backend, select_jobs(backend.active(sweep), trials, whole)) for backend in backends]
    active = [job for _, own in jobs for job in own]
    supervised = {trial for job in active if job.stage == "train" for trial in job.trials}
    training = [run for run in runs if run.state() == "running"]
    by_hand = [run for run in training if run.name not in supervised and attempt_of(run).is_local]
    if not active and not by_hand:
        print(f"{sweep}: nothing to cancel: no trial is queued or running")
        return 0
    stages = Counter([*(job.stage for job in active), *("train" for _ in by_hand)])
    summary = ", ".join(f"{count} {stage}" for stage, count in stages.items())
    if whole and not confirmed:
        confirm(f"{sweep}: cancel {summary}, of which {len(training)} are training now?")
    print(f"{sweep}: cancelling {summary}; running trials save first", flush=True)
    for run in by_hand:
        run.stop_file(attempt_of(run)).touch()
    remaining = wait_for_end(sweep, jobs, by_hand, whole)
    for run in training:
        print(f"{run.name}: {describe_outcome(run)}")
    for backend, own in jobs:
        if own:
            query_statuses(sweep, backend)  # for the report
    if remaining:
        print(f"error: {sweep}: still running after {END_TIMEOUT:.0f} s: {', '.join(remaining)}", file=sys.stderr)
        return 1
    print("cancelled; rerun the command that submitted the sweep to resume it")
    return 0


def select_jobs(jobs: list[ActiveJob], trials: set[str], whole: bool) -> list[ActiveJob]:
    """Return the jobs that carry one of the trials, or all jobs of a sweep."""
    return [job for job in jobs if whole or not trials.isdisjoint(job.trials)]


def attempt_of(run: RunDirectory) -> Attempt:
    """Return the newest attempt of a trial; empty before the first."""
    return Attempt(run.status().get("attempt", ""))


def wait_for_end(
    sweep: Path, jobs: list[tuple[Backend, list[ActiveJob]]], by_hand: list[RunDirectory], whole: bool
) -> list[str]:
    """Cancel jobs and wait until they and trials that were started by hand have ended; return those that have not."""
    start, cancelled_at = time.monotonic(), -REPEAT_INTERVAL
    pending = [(backend, {job.id for job in own}) for backend, own in jobs if own]
    remaining, local_signalled = jobs, False
    while True:
        with suppress(ConfigError):  # without an answer, ask again later
            remaining = [(backend, [job for job in backend.active(sweep) if job.id in ids]) for backend, ids in pending]
        names = [f"{backend.name} job {job.id}" for backend, own in remaining for job in own]
        names += [run.name for run in by_hand if run.state() == "running"]
        if not names or time.monotonic() - start > END_TIMEOUT:
            return names
        if time.monotonic() - cancelled_at > REPEAT_INTERVAL:
            for backend, own in remaining:
                # A second SIGTERM would end local workers before their trials have saved.
                if own and not (backend.name == "local" and local_signalled):
                    backend.cancel(own, whole)
            cancelled_at, local_signalled = time.monotonic(), True
        # Slurm needs no more than a second to tell that a job has ended, and every question costs all of its users.
        time.sleep(min(5.0, 0.5 + (time.monotonic() - start) / 10))


def describe_outcome(run: RunDirectory) -> str:
    """Return how far a trial that was running is saved."""
    if run.state() in ("done", "failed"):
        return run.state()
    step = run.latest_step()
    return f"saved at step {step}" if run.has_stopped() else f"not saved; will resume from step {step}"


def confirm(question: str) -> None:
    """Ask; ConfigError if the answer is no or nobody can answer."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Add --yes to confirm")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was cancelled")


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
