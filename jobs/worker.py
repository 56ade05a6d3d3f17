"""The launcher: runs the trials of a job on one node, one after the other, and starts and supervises their processes.

Slurm signals every process of a job step. The trainers ignore the signals; the launcher turns them into a stop file;
the trainers save at a step that all ranks agree on, and leave a marker. Only that marker, never an exit code, tells a
stop from a crash. After a stop the launcher asks the backend for a requeue.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from jobs.backends.base import IGNORE_SIGNALS, Allocation, ignore_signals
from jobs.rendezvous import RendezvousError, torchrun
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import competitor, is_superseded

ROOT = Path(__file__).resolve().parents[1]
# A node without a network waits long for one, so nothing that a job runs looks for a network unless told to.
OFFLINE = ("TURNOUT_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl: signal when the parent dies; adopt orphans instead of init


class TrialFailed(RuntimeError):
    """A trial ended without having finished or saved; the message is its error."""


@dataclass
class Launcher:
    """A job: trains, evaluates or reports a list of run directories. submitit pickles it and calls it on every node."""

    stage: str  # train, eval or report
    runs: list[str]  # run directories; for a report, the sweep's
    processes: int = 1  # per node
    signal_delay: int = 0  # seconds before the time limit at which Slurm signals
    max_requeues: int = 0  # attempts that may end at the time limit and be followed by another one
    directory: str = ""  # the user's working directory, which relative paths start from
    container: list[str] = field(default_factory=list)  # command that starts a Python in a container; empty: none
    signals: list[int] = field(default_factory=list)  # received
    end_time: float = 0.0  # when the last command ended

    def __call__(self, allocation: Allocation) -> None:
        """Run all trials. SystemExit with the reasons if every one failed; does not return after a stop."""
        with contextlib.suppress(OSError):  # on a node without it, relative paths fail where they are used
            os.chdir(self.directory or ".")
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)  # Slurm sends it with every signal
        failures: list[str] = []
        for position, run in enumerate(RunDirectory(Path(path)) for path in self.runs):
            try:
                # A job that is stopped before its first trial starts it all the same: its processes then agree to stop.
                finished = not (self.signals and position) and self.run_stage(run, allocation)
                if self.signals and not finished:
                    self.requeue(run, allocation)
                    exit_silently()
            except (TrialFailed, RendezvousError) as error:
                failures.append(f"{run.name}: {error}")
        if len(failures) == len(self.runs):
            sys.exit(f"error: {'; '.join(failures)}")
        # Exit code 0, so that the other trials of this job are evaluated.
        print(*failures, sep="\n", flush=True)
        if self.signals:
            exit_silently()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Only remember the signal."""
        self.signals.append(number)

    def run_stage(self, run: RunDirectory, allocation: Allocation) -> bool:
        """Run the stage of one trial; return whether it finished. TrialFailed."""
        if len(self.runs) > 1:  # with one trial, a requeue means that Slurm or the user wants it tried again
            if run.has_failed(allocation.job):
                raise TrialFailed(run.error())
            if self.stage == "eval" and not run.is_done():
                raise TrialFailed("not evaluated: its training has not finished")
        stages = {"train": self.train, "eval": self.evaluate, "report": self.report}
        return stages[self.stage](run, allocation)

    def train(self, run: RunDirectory, allocation: Allocation) -> bool:
        """Train a trial with this node's share of processes; return whether it finished. TrialFailed with its error."""
        if run.is_done():
            return True
        attempt = allocation.attempt
        with torchrun(run, allocation, self.processes) as prefix:
            command = [*prefix, str(ROOT / "trainer" / "main.py"), str(run.path)]
            code = self.supervise(command, allocation, stop_file=run.stop_file(attempt))
        if is_superseded(run, attempt):
            exit_silently()  # Slurm had lost this node, and the job continues elsewhere
        failed = run.has_failed(attempt)
        ended = run.is_done() or run.has_stopped(attempt)
        if allocation.node:  # markers of the first node may reach this one late
            ended = code == 0
        if ended and not failed:
            return run.is_done()
        if not failed and (other := competitor(run, attempt)):
            raise TrialFailed(f"already being trained by {other}")
        if not failed or code < 0:
            cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            # Dated back to the end of the process: peers that lost it may have reported their own errors since.
            error = f"its processes exited without an error record ({cause}); see the log"
            self.fail(run, allocation, error, self.end_time)
        raise TrialFailed(run.error())

    def evaluate(self, run: RunDirectory, allocation: Allocation) -> bool:
        """Evaluate a trial; return whether that finished. TrialFailed."""
        code = self.supervise([str(ROOT / "eval" / "main.py"), str(run.path)], allocation)
        if code and not self.signals:
            raise TrialFailed(run.evaluation_error() or f"exit code {code}; see the log")
        return code == 0

    def report(self, sweep: RunDirectory, allocation: Allocation) -> bool:
        """Write the report of a sweep; return whether that finished. TrialFailed."""
        allocation.record_statuses(sweep.path)
        code = self.supervise([str(ROOT / "eval" / "report.py"), str(sweep.path)], allocation)
        if code and not self.signals:
            raise TrialFailed(f"the report was not written (exit code {code}); see the log")
        return code == 0

    def supervise(self, command: list[str], allocation: Allocation, stop_file: Path | None = None) -> int:
        """Run a Python command to its end, passing on a request to stop; return its exit code."""
        variables, python = {"TURNOUT_ATTEMPT": str(allocation.attempt)}, [sys.executable]
        if allocation.offline:
            variables |= {name: os.environ.get(name, "1") for name in OFFLINE}
        if self.container:
            # The container's own start-up may restore signal handlers, and drop the environment or PYTHONPATH.
            inside = [f"{name}={value}" for name, value in (variables | {"PYTHONPATH": str(ROOT)}).items()]
            python = [*self.container[:-1], *IGNORE_SIGNALS, *inside, self.container[-1]]
        with end_orphans():
            child = subprocess.Popen([*python, *command], env=os.environ | variables, preexec_fn=tie_to_parent)
            passed_on, parent = False, os.getppid()
            while child.poll() is None:
                if os.getppid() != parent and not allocation.attempt.is_local:
                    child.kill()  # what Slurm supervises the job with is dead, so nothing else would end it
                    child.wait()
                    raise TrialFailed("slurmstepd, which supervises the job on this node, was killed")
                if self.signals and not passed_on:
                    with contextlib.suppress(OSError):  # the disk may be full for a moment
                        # A file stays: workers that have not started yet will see it, too.
                        stop_file.touch() if stop_file else child.kill()
                        passed_on = True
                time.sleep(0.05)
            self.end_time = time.time()
        return child.returncode

    def requeue(self, run: RunDirectory, allocation: Allocation) -> None:
        """Ask for another attempt at the rest of this job; TrialFailed if there will be none."""
        if reason := allocation.requeue(run, self.signal_delay, self.max_requeues):
            self.fail(run, allocation, reason)
            raise TrialFailed(reason)

    def fail(self, run: RunDirectory, allocation: Allocation, error: str, since: float | None = None) -> None:
        """Leave a failure marker, dated now or back to an earlier time."""
        with contextlib.suppress(OSError):  # on a full disk the error still reaches Slurm's log
            run.fail_launcher(allocation.attempt, allocation.node, error, since)


def tie_to_parent() -> None:
    """Prepare a child before exec: it ignores signals to stop, and is killed when the launcher is."""
    ignore_signals()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def end_orphans() -> Iterator[None]:
    """Kill what processes that were started inside leave behind: workers of a killed torchrun would continue training.

    Orphans become children of this process, which starts no others meanwhile.
    """
    if sys.platform != "linux":
        yield
        return
    this, prctl = psutil.Process(), ctypes.CDLL(None).prctl
    before = {child.pid for child in this.children()}
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
        while orphans := {child.pid for child in this.children()} - before:
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)  # whatever it saved is complete
                os.waitpid(pid, 0)
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def exit_silently() -> NoReturn:
    """Exit without result and exception: submitit would take either for the end of the job."""
    sys.stdout.flush()
    os._exit(0)


def main(arguments: list[str]) -> None:
    """`worker.py train|eval PROCESSES RUN…`: how the local backend starts what Slurm would start elsewhere."""
    stage, processes, *runs = arguments
    Launcher(stage, runs, int(processes))(Allocation.local())


if __name__ == "__main__":
    main(sys.argv[1:])
