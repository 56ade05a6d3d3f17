"""What runs on a node: takes trials one after the other, starts their processes, owns the signals, asks for a requeue.

One instance per node. Slurm signals every process of a job step: the trainers behind torchrun ignore the signals that
this process turns into a stop file, save at a step boundary that all ranks agree on, and leave a marker. Only that
marker, never an exit code, tells a stop from a crash.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jobs.backends.slurm.allocation import DEAF, Allocation, ignore_signals, parent
from trainer.runs.atomic import read_json, write_json, write_text
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import rival, superseded

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED_WITHIN = 300.0  # seconds that a node waits for the head node to publish the rendezvous
PATIENCE = 600.0  # seconds that a job which has saved waits for a controller that does not answer
# A node that reaches no network waits long before it says so: nothing that a job runs looks for one, unless told to.
OFFLINE = ("TURNOUT_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
SUBREAPER = 36  # of Linux' prctl: whose parent dies becomes a child of this process, not of init
UNDECIDED = ("", "SIGNALING", "SUSPENDED", "STOPPED")  # states after which squeue is asked again


class TrialFailed(RuntimeError):
    """A trial ended without having finished or saved; the message is its error."""


@dataclass
class Launch:
    """A job: trains (or evaluates) a list of runs. Picklable, called by submitit on every node, or by `main`."""

    stage: str  # train, eval or report
    runs: list[str]  # run directories; for a report, the sweep's
    processes: int = 1  # per node
    signal_delay: int = 0  # seconds before the time limit at which Slurm warns
    max_requeues: int = 0  # turns that may end at the time limit and be followed by another one
    directory: str = ""  # where the user was, which relative paths start from
    container: list[str] = field(default_factory=list)  # what starts a Python in a container; empty: none is used
    asked: list[int] = field(default_factory=list)  # signals that have come
    ended: float = 0.0  # when the last command that was followed did

    def __call__(self, allocation: Allocation | None = None) -> None:
        """Work through the list. SystemExit with the reasons if a run failed; no return where it was told to stop."""
        allocation = allocation or Allocation.here()
        with contextlib.suppress(OSError):  # a node may lack it; then what is relative is missed where it is needed
            os.chdir(self.directory or ".")
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)  # comes with every signal of Slurm
        work = {"train": self.train, "eval": self.evaluate, "report": self.report}[self.stage]
        failures: list[str] = []
        for position, run in enumerate(map(Path, self.runs)):
            try:
                # Told to stop while it does not run yet, the first one is started all the same: its processes agree.
                finished = not (self.asked and position) and (self.given_up(run, allocation) or work(run, allocation))
                if self.asked and not finished:
                    self.ask_for_another_turn(run, allocation)
                    leave()
            except TrialFailed as error:
                failures.append(f"{run.name}: {error}")
        if len(failures) == len(self.runs):
            sys.exit(f"error: {'; '.join(failures)}")
        # The trials of this job that did not fail are to be evaluated: so it is none that has failed.
        print(*failures, sep="\n", flush=True)
        if self.asked:
            leave()

    def given_up(self, run: Path, allocation: Allocation) -> bool:
        """Whether there is nothing to do for a run; TrialFailed if it failed in an earlier turn of this job of many."""
        if len(self.runs) == 1:
            return False  # another turn means that Slurm, or somebody, wants it tried again
        if any(run.glob(f"failed.{allocation.job}.*")):
            raise TrialFailed(RunDirectory(run).error())
        if self.stage == "eval" and not (run / "done").exists():
            raise TrialFailed("not evaluated: its training has not finished")
        return False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Only remember the signal."""
        self.asked.append(number)

    def train(self, run: Path, allocation: Allocation) -> bool:
        """Train one run on this node's share of processes; whether it is finished. TrialFailed with the run's error."""
        if (run / "done").exists():
            return True
        command = [str(ROOT / "trainer" / "main.py"), str(run)]
        with torchrun(run, allocation, self.processes) as prefix:
            code = self.follow([*prefix, *command], allocation, stop_file=run / f"stop.{allocation.attempt}")
        if superseded(run, allocation.attempt):
            leave()  # Slurm had lost this node, and the job goes on elsewhere
        failed = any(run.glob(f"failed.{allocation.attempt}.*"))
        ended = (run / "done").exists() or (run / f"stopped.{allocation.attempt}.json").exists()
        if allocation.node:  # the head node's markers may reach this one late
            ended = code == 0
        if ended and not failed:
            return (run / "done").exists()
        if not failed and (other := rival(run, allocation.attempt)):
            raise TrialFailed(f"{other} trains it already")
        if not failed or code < 0:
            cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            # The first to fail, even if others speak first: they lost a process that has been ended after that.
            fail(run, allocation, f"its processes ended without a word ({cause}); see the log", self.ended)
        raise TrialFailed(RunDirectory(run).error())  # that of the first to fail

    def evaluate(self, run: Path, allocation: Allocation) -> bool:
        """Evaluate one run; whether that is finished. TrialFailed if it did not work."""
        code = self.follow([str(ROOT / "eval" / "main.py"), str(run)], allocation, None)
        if code and not self.asked:
            said = read_json(run / "eval" / "failed.json").get("error", f"exit code {code}; see the log")
            raise TrialFailed(str(said))
        return code == 0

    def report(self, sweep: Path, allocation: Allocation) -> bool:
        """Write a sweep's report; whether it was written."""
        code = self.follow([str(ROOT / "eval" / "report.py"), str(sweep)], allocation, None)
        if code and not self.asked:
            raise TrialFailed(f"the report was not written (exit code {code}); see the log")
        return code == 0

    def follow(self, command: list[str], allocation: Allocation, stop_file: Path | None) -> int:
        """Run a Python command to its end, handing on a request to stop; return its exit code."""
        own, python = {"TURNOUT_ATTEMPT": allocation.attempt}, [sys.executable]
        if allocation.slurm:
            own |= {name: os.environ.get(name, "1") for name in OFFLINE}
        if self.container:
            # What starts a container may listen to signals again, and leave the environment or PYTHONPATH behind.
            inside = [f"{name}={value}" for name, value in (own | {"PYTHONPATH": str(ROOT)}).items()]
            python = [*self.container[:-1], *DEAF, *inside, self.container[-1]]
        with leaving_nothing():
            child = subprocess.Popen([*python, *command], env=os.environ | own, preexec_fn=ignore_signals)
            told = False
            while child.poll() is None:
                if self.asked and not told:
                    with contextlib.suppress(OSError):  # the disk may be full for a moment
                        # Sticky: also workers that are not up yet will see the file.
                        stop_file.touch() if stop_file else child.kill()
                        told = True
                time.sleep(0.05)
            self.ended = time.time()
        return child.returncode

    def ask_for_another_turn(self, run: Path, allocation: Allocation) -> None:
        """Have Slurm requeue this job, unless somebody has decided otherwise; TrialFailed where it may not or cannot.

        After scancel or scontrol requeue the job is COMPLETING: a requeue would revive what was cancelled.
        """
        if not allocation.slurm or allocation.node:
            return
        give_up, refused = time.monotonic() + PATIENCE, "its controller does not answer"
        while time.monotonic() < give_up:
            state, left = allocation.state()
            print(f"{run.name}: saved, with work left; Slurm says {state or 'nothing'}, {left:.0f} s left", flush=True)
            if state == "RUNNING":
                if left < self.signal_delay + 60:  # Slurm may warn up to a minute early
                    self.count_time_limit(run, allocation)
                elif allocation.preempted():
                    note_preemption(run, allocation)
                if not (refused := allocation.requeue()):
                    return
            elif state not in UNDECIDED:
                return
            time.sleep(2)
        raise TrialFailed(fail(run, allocation, f"saved, but Slurm gives it no other turn: {refused}"))

    def count_time_limit(self, run: Path, allocation: Allocation) -> None:
        """Note that this turn ended at the time limit; TrialFailed if it was one too many."""
        file = run / ".time_limits.json"
        reached = read_json(file)
        attempts = reached["attempts"] if reached.get("job") == allocation.job else []
        attempts = [*(a for a in attempts if a != allocation.attempt), allocation.attempt]
        write_json(file, {"job": allocation.job, "attempts": attempts})
        if len(attempts) > self.max_requeues:
            error = f"reached its time limit {len(attempts)} times (resources.max_requeues: {self.max_requeues}); "
            error += "raise resources.time or max_requeues; the same command goes on from its checkpoint"
            raise TrialFailed(fail(run, allocation, error))


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """End what those that were started inside leave behind: the workers of a torchrun that was killed would train on.

    Such orphans become children of this process, which starts no others meanwhile.
    """
    if sys.platform != "linux":
        yield
        return
    before, adopt = children(), ctypes.CDLL(None).prctl
    adopt(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
        while orphans := children() - before:
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)  # what it has saved is whole
                os.waitpid(pid, 0)
    finally:
        adopt(SUBREAPER, 0, 0, 0, 0)


def children() -> set[int]:
    """The pids of this process's children."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if parent(int(folder.name)) == os.getpid():
                found.add(int(folder.name))
    return found


@contextlib.contextmanager
def torchrun(run: Path, allocation: Allocation, processes: int) -> Iterator[list[str]]:
    """What starts this node's share of processes. Static rendezvous: no store of its own to lose, rank order = node
    order. Nothing for a single process."""
    if allocation.nodes * processes == 1:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="turnout-") as logs, rendezvous(run, allocation) as (address, port):
        yield [
            *("-m", "torch.distributed.run", "--nnodes", str(allocation.nodes), "--node-rank", str(allocation.node)),
            *("--nproc-per-node", str(processes), "--rdzv-backend", "static", "--rdzv-id", allocation.attempt),
            *("--master-addr", address, "--master-port", str(port), "--log-dir", logs),
            # The agent must survive Slurm's signals: it would kill its workers before they have saved.
            *("--signals-to-handle", "SIGINT"),
        ]


@contextlib.contextmanager
def rendezvous(run: Path, allocation: Allocation) -> Iterator[tuple[str, int]]:
    """Address and port of the head node, which picks a free port and publishes it in the run directory."""
    file = run / f".rendezvous.{allocation.attempt}.{os.environ.get('SLURM_STEP_ID', '0')}.json"
    with socket.socket() as held:
        if allocation.node == 0:
            # As long as it is held so, nobody is given this port but who asks for it by its number.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", 0))
            write_text(file, json.dumps([allocation.head(), held.getsockname()[1]]))
        deadline = time.monotonic() + PUBLISHED_WITHIN
        while not file.exists():
            if time.monotonic() > deadline:
                raise TrialFailed(
                    f"the head node published no rendezvous in {PUBLISHED_WITHIN:.0f} s; is {run} on a shared disk?"
                )
            time.sleep(0.1)
        address, port = json.loads(file.read_text())
        yield address, port


def fail(run: Path, allocation: Allocation, error: str, since: float | None = None) -> str:
    """Leave a failed marker of now, or of an earlier time, and the reason in status.json; return it."""
    marker = run / f"failed.{allocation.attempt}.node{allocation.node}.json"
    with contextlib.suppress(OSError):  # what is raised with it reaches Slurm's log even where the disk is full
        write_json(marker, {"error": error, "attempt": allocation.attempt, "time": since or time.time()})
        if status := RunDirectory(run).status():
            write_json(run / "status.json", status | {"state": "failed", "error": error})
    return error


def note_preemption(run: Path, allocation: Allocation) -> None:
    """Remember why this turn ends: Slurm itself will only know that the job asked for a requeue."""
    file = run / ".preemptions.json"
    write_json(file, {"attempts": [*read_json(file).get("attempts", []), allocation.attempt]})


def leave() -> NoReturn:
    """End without a result and without an exception: submitit would take either for the end of the job."""
    sys.stdout.flush()
    os._exit(0)


def main(arguments: list[str]) -> None:
    """`worker.py train|eval PROCESSES RUN…`: how jobs/backends/local.py starts what Slurm would start elsewhere."""
    stage, processes, *runs = arguments
    Launch(stage, runs, int(processes))(Allocation.local())


if __name__ == "__main__":
    main(sys.argv[1:])
