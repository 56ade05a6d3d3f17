"""Cancel a sweep or some of its trials: what waits leaves the queue, and what runs saves first.

On Slurm by a plain scancel. That sends SIGTERM to every process of a job, upon which a trial saves at its next step and
leaves, and SIGKILL only after KillWait (30 seconds unless a site has set it); a job that is being cancelled never asks
for another turn. To stop a trial by a milder signal first would have it ask for one. What takes longer to save than
KillWait goes on from its last checkpoint. On this machine the trials are told as by Ctrl-C.

The command that submitted the sweep goes on with it.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.backends.local import launchers
from jobs.backends.slurm.allocation import parent
from jobs.logs import select_trials
from jobs.tracking import submissions
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python jobs/cancel.py logs/dann                             # all of it, after a question
  python jobs/cancel.py logs/dann gamma=5,seed=0 1a2b3c4d     # two trials"""
PATIENCE = 180.0  # seconds until it is said what has not ended
AGAIN = 5.0  # seconds after which what is still queued is cancelled again: a requeue may have come between


def main(arguments: list[str] | None = None) -> int:
    """Cancel; return the exit code: 0, 1 if something goes on, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="jobs/cancel.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, help="a sweep's directory, such as logs/dann")
    parser.add_argument("trials", nargs="*", help="names, or parts of them that no other trial has; default: all")
    parser.add_argument("--yes", action="store_true", help="do not ask before cancelling a whole sweep")
    options = parser.parse_args(arguments)
    try:
        chosen = select_trials(options.sweep, options.trials) if options.trials else find_runs(options.sweep)
        if not chosen:
            raise ConfigError(f"{options.sweep}: no trials there; give a sweep's directory, such as logs/dann")
        return cancel(options.sweep, chosen, whole=not options.trials, yes=options.yes)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print("left; what has been cancelled ends by itself", file=sys.stderr)
        return 130


def cancel(sweep: Path, chosen: list[RunDirectory], whole: bool, yes: bool) -> int:
    """Cancel the jobs and processes of the chosen trials, and wait for their end; return the exit code."""
    jobs = on_slurm(sweep, {run.name for run in chosen}, whole)
    here = on_this_machine(chosen)
    told = {run for stage, run in here.values() if stage == "train"}
    at_work = [run for run in chosen if run.state() == "running"]
    by_hand = {run: file for run in at_work if str(run.path.absolute()) not in told and (file := stop_file(run))}
    if not jobs and not here and not by_hand:
        print(f"{sweep}: nothing to cancel: nothing of it waits or runs")
        return 0
    stages = Counter([*jobs.values(), *(stage for stage, _ in here.values()), *("train" for _ in by_hand)])
    what = ", ".join(f"{count} {stage}" for stage, count in stages.items())
    if whole and not yes:
        confirm(f"{sweep}: cancel {what}, of which {len(at_work)} train now?")
    print(f"{sweep}: cancelling {what}; what trains saves first", flush=True)
    for file in by_hand.values():
        file.touch()
    for process in {submitter(process) for process in here} if whole else here:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)

    def alive() -> list[str]:
        processes = [f"process {process}" for process in here if process in launchers()]
        return processes + [run.name for run in by_hand if run.state() == "running"]

    left = wait(sweep, jobs, alive)
    for run in at_work:
        print(f"{run.name}: {outcome(run)}")
    if left:
        print(f"error: {sweep}: not ended after {PATIENCE:.0f} s: {', '.join(left)}", file=sys.stderr)
        return 1
    print("cancelled; the command that submitted it goes on with it")
    return 0


def on_slurm(sweep: Path, trials: set[str], whole: bool) -> dict[str, str]:
    """Job id -> stage of what waits or runs on Slurm for the trials; of a whole sweep also its reports.

    ConfigError where there should be jobs and Slurm does not answer.
    """
    stages: dict[str, str] = {}
    for line in submissions.read(sweep):
        for array in line.get("arrays", []):
            elements = submissions.trials_by_job(array).items()
            stages |= {job: array["stage"] for job, names in elements if not trials.isdisjoint(names)}
        if whole and line.get("report"):
            stages[line["report"]] = "report"
    if not stages:
        return {}
    if reason := submissions.unavailable():
        raise ConfigError(f"{sweep}: has jobs on Slurm, but {reason}; try again where and when it answers")
    return {job: stages[job] for job in submissions.queue(sweep) if job in stages}


def on_this_machine(chosen: list[RunDirectory]) -> dict[int, tuple[str, str]]:
    """Pid -> stage and run directory of the launchers of this machine that are at work on these trials."""
    paths = {str(run.path.absolute()) for run in chosen}
    return {process: what for process, what in launchers().items() if what[1] in paths}


def submitter(launcher: int) -> int:
    """The jobs/submit.py that started a launcher and would start the next; the launcher itself where there is none."""
    with suppress(OSError):
        process = parent(launcher)
        if b"submit.py" in Path(f"/proc/{process}/cmdline").read_bytes():
            return process
    return launcher


def stop_file(run: RunDirectory) -> Path | None:
    """What stops a trial that was started without Slurm, perhaps by hand or on another machine; None for others."""
    attempt = str(run.status().get("attempt", ""))
    return run.path / f"stop.{attempt}" if attempt == "direct" or attempt.startswith("local-") else None


def wait(sweep: Path, jobs: dict[str, str], processes: Callable[[], list[str]]) -> list[str]:
    """Cancel jobs, and wait until they and some processes have ended; return what is left when patience is."""
    began, said = time.monotonic(), -AGAIN
    while left := [job for job in (submissions.queue(sweep) if jobs else ()) if job in jobs] + processes():
        if time.monotonic() - began > PATIENCE:
            return left
        if time.monotonic() - said > AGAIN:
            # The report first, which would otherwise start as soon as nothing is left to wait for.
            for stage in ("report", "eval", "train"):
                scancel(sweep, [job for job in left if jobs.get(job) == stage])
            said = time.monotonic()
        time.sleep(0.5)
    return []


def scancel(sweep: Path, jobs: list[str]) -> None:
    """Cancel jobs; ConfigError if one may not be cancelled. It does not matter if one has just ended."""
    for first in range(0, len(jobs), 1000):
        done = subprocess.run(["scancel", *jobs[first : first + 1000]], capture_output=True, text=True, check=False)
        if "denied" in done.stderr:
            raise ConfigError(f"{sweep}: {' '.join(done.stderr.split())[:400]}")


def outcome(run: RunDirectory) -> str:
    """How far a trial is kept that was running."""
    if run.state() in ("done", "failed"):
        return run.state()
    step = int((run.path / "latest").read_text().rpartition("-")[2]) if (run.path / "latest").exists() else 0
    return f"saved at step {step}" if any(run.path.glob("stopped.*")) else f"not saved; goes on from step {step}"


def confirm(question: str) -> None:
    """ConfigError where the answer is no or cannot be had."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} add --yes if that is meant")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was cancelled")


if __name__ == "__main__":
    sys.exit(main())
