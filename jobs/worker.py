"""The worker: runs the trials of a job on one node in its slots, and starts and supervises their processes.

Slurm signals every process of a job step. The trainers ignore the signals; the worker turns them into stop files; the
trainers save at a step that all ranks agree on, and leave a marker. Only that marker, never an exit code, tells a stop
from a crash. After a stop the worker asks the backend for one requeue, whatever the number of its slots.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from jobs import processes
from jobs.backends.base import Allocation
from jobs.deaths import DISK_ERROR, DISK_REFUSED, KILLED, count_oom_kills, describe_death, exit_silently
from jobs.mps import share_gpu
from jobs.processes import Task
from jobs.rendezvous import RendezvousError, torchrun
from jobs.sources import Source, open_source
from jobs.tracking.local_work import write_local_work
from trainer.environment import use_utf8
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import DISK_CODE, PASSING, disk_errno, say
from trainer.runs.lock import competitor, is_superseded

# A node without a network waits long for one, so nothing that a job runs looks for a network unless told to.
OFFLINE = ("TURNOUT_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
PARENT = os.getppid()  # slurmstepd in a Slurm job; read at once, because it may be killed at any moment
# One stage of a trial: runs until its process has to be waited for, again and again.
Steps = Generator[None, None, bool]


class TrialFailed(RuntimeError):
    """A trial ended without having finished or saved; the message is its error."""


@dataclass
class Worker:
    """A job: runs tasks in slots. submitit pickles it and calls it on every node.

    A slot takes a task, runs it in processes of its own and takes the next one. What fails in one leaves the others
    alone. With several nodes there is one slot, so that all nodes run the same task.
    """

    tasks: list[Task]
    slots: int = 1
    devices: list[str] = field(default_factory=list)  # CUDA_VISIBLE_DEVICES of each slot; empty: those of the job
    own_logs: bool = False  # whether each stage of a trial writes its output to its run directory, not to the job's
    signal_delay: int = 0  # seconds before the time limit at which Slurm signals
    max_requeues: int = 0  # attempts that may end at the time limit and be followed by another one
    directory: str = ""  # the user's working directory, which relative paths start from
    container: list[str] = field(default_factory=list)  # command that starts a Python in a container; empty: none
    search: str = ""  # directory of a sweep whose study gives the tasks instead
    search_processes: int = 1  # per node, of its trainings
    mps: str = ""  # resources.mps of trials that share a GPU; empty: none do
    signals: list[int] = field(default_factory=list)  # received
    pids: dict[int, int] = field(default_factory=dict)  # slot → its process
    warm: bool = False  # whether single processes are forked from this one
    exit_code: int = 1  # if every task failed
    watch: Callable[[dict[int, Task]], None] | None = None  # is told which tasks run in which slots

    def __call__(self, allocation: Allocation) -> None:
        """Run all tasks. SystemExit if every one failed; does not return after a stop, or from a disk that refuses."""
        stage = self.tasks[0].stage if self.tasks else "search"
        say(f"{stage}: attempt {allocation.attempt} on {allocation.node_name()}")
        failures, unfinished = self.work(allocation)
        if unfinished:
            if not (reason := self.requeue(unfinished, allocation)):
                exit_silently()
            failures += [f"{run.name}: {reason}" for run in unfinished]
        if self.tasks and len(failures) == len(self.tasks):
            if self.exit_code == DISK_CODE:
                say(f"error: {'; '.join(failures)}")
                exit_silently(DISK_CODE)
            sys.exit(f"error: {'; '.join(failures)}")
        # Exit code 0, so that the other trials of this job are evaluated.
        say("\n".join(failures))
        if self.signals:
            exit_silently()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Only remember the signal."""
        self.signals.append(number)

    def work(self, allocation: Allocation) -> tuple[list[str], list[RunDirectory]]:
        """Run tasks until none is left, or all have stopped; return the failures, and what a stop left unfinished."""
        with contextlib.suppress(OSError):  # on a node without it, relative paths fail where they are used
            os.chdir(self.directory or ".")
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)  # Slurm sends it with every signal
        if self.slots > 1:  # threads that wait for each other spin, and are slow where cores are short
            most = max((task.processes for task in self.tasks), default=self.search_processes)
            threads = len(os.sched_getaffinity(0)) // (self.slots * most)
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        source = open_source(self.tasks, self.search, self.search_processes, allocation.attempt)
        running: dict[int, tuple[Task, Steps]] = {}
        self.warm = not self.container and processes.import_for(source.kinds())
        failures, unfinished = list[str](), list[RunDirectory]()
        gpu = share_gpu(self.mps, self.slots, "".join(self.devices[:1]), bool(self.container))
        with processes.adopt_orphans(), gpu as self.pids[-1]:
            # A job that is stopped before its first task starts it all the same: its processes then agree to stop.
            self.fill(source, running, allocation)
            while running:
                for slot, (task, steps) in [*running.items()]:
                    try:
                        next(steps)
                        continue
                    except StopIteration as end:
                        if not self.signals:
                            source.end(task, bool(end.value))
                        elif not end.value:
                            unfinished.append(task.run)
                    except (TrialFailed, RendezvousError, OSError) as error:
                        self.explain(task, allocation, error)
                        failures.append(f"{task.run.name}: {error}")
                        self.note(task, str(error))
                        source.fail(task, str(error))
                    del running[slot]
                    self.pids.pop(slot, None)
                if not self.signals:
                    self.fill(source, running, allocation)
                if self.watch:
                    self.watch({slot: task for slot, (task, _) in running.items()})
                time.sleep(0.05)
        return failures, [*dict.fromkeys([*unfinished, *source.rest()])]

    def fill(self, source: Source, running: dict[int, tuple[Task, Steps]], allocation: Allocation) -> None:
        """Give every free slot the next task."""
        for slot in range(self.slots):
            if slot not in running and (task := source.take()):
                running[slot] = task, self.run_task(task, slot, allocation)

    def run_task(self, task: Task, slot: int, allocation: Allocation) -> Steps:
        """Run one task; return whether it finished. TrialFailed."""
        if len(self.tasks) > 1:  # with one trial, a requeue means that Slurm or the user wants it tried again
            if task.run.has_failed(allocation.job):
                raise TrialFailed(task.run.error())
            if task.stage == "eval" and not task.run.is_done():
                raise TrialFailed("not evaluated: its training has not finished")
        stages = {"train": self.train, "report": self.report}
        return (yield from stages.get(task.stage, self.evaluate)(task, slot, allocation))

    def train(self, task: Task, slot: int, allocation: Allocation) -> Steps:
        """Train a trial with this node's share of processes; return whether it finished. TrialFailed with its error."""
        run, attempt = task.run, allocation.attempt
        if run.is_done():
            return True
        oom_kills = count_oom_kills()
        with torchrun(run, allocation, task.processes) as prefix:
            code = yield from self.supervise(task, slot, allocation, prefix, stop_file=run.stop_file(attempt))
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
        if code < 0:
            self.fail_killed(task, allocation, "torchrun" if prefix else "the training process", code, oom_kills)
        elif code == DISK_CODE and not failed:
            self.fail(task, allocation, DISK_REFUSED, DISK_ERROR)
        elif not failed:
            reason = f"its processes exited without an error record (exit code {code}); see the log"
            self.fail(task, allocation, reason, KILLED, consequence=True)
        raise TrialFailed(run.error() or DISK_REFUSED)

    def evaluate(self, task: Task, slot: int, allocation: Allocation) -> Steps:
        """Evaluate a trial; return whether that finished. TrialFailed."""
        start, oom_kills = time.time(), count_oom_kills()
        code = yield from self.supervise(task, slot, allocation)
        if code and not self.signals:
            if code < 0:
                self.fail_killed(task, allocation, "the evaluation", code, oom_kills)
            elif not task.run.evaluation_error(since=start):
                self.fail(task, allocation, f"exit code {code}; see the log", KILLED)
            raise TrialFailed(task.run.evaluation_error() or DISK_REFUSED)
        return code == 0

    def report(self, task: Task, slot: int, allocation: Allocation) -> Steps:
        """Write the report of a sweep; return whether that finished. TrialFailed."""
        allocation.record_statuses(task.run.path)
        code = yield from self.supervise(task, slot, allocation)
        if code and not self.signals:
            raise TrialFailed(f"the report was not written (exit code {code}); see the log")
        return code == 0

    def supervise(
        self,
        task: Task,
        slot: int,
        allocation: Allocation,
        prefix: Sequence[str] = (),
        stop_file: Path | None = None,
    ) -> Generator[None, None, int]:
        """Run the processes of a task to their end, passing on a request to stop.

        Return the exit code, negative for a signal. `prefix`: arguments of Python that start several processes; without
        them the process may be forked.
        """
        child = self.start(task, slot, allocation, [*prefix])
        self.pids[slot] = child.pid
        passed_on = False
        while child.poll() is None:
            if os.getppid() != PARENT and not allocation.attempt.is_local:
                child.kill()  # what Slurm supervises the job with is dead, so nothing else would end it
                child.wait()
                reason = f"slurmstepd, which supervises the job on {allocation.node_name()}, was killed"
                self.fail(task, allocation, reason, KILLED)
                raise TrialFailed(reason)
            if self.signals and not passed_on:
                with contextlib.suppress(OSError):  # the disk may be full for a moment
                    # A file stays: processes that have not started yet will see it, too.
                    stop_file.touch() if stop_file else child.kill()
                    passed_on = True
            yield
        processes.kill_orphans({pid for other, pid in self.pids.items() if other != slot})
        code: int = child.wait()
        return code if code <= 128 else 128 - code  # a shell or a container returns 128 + signal

    def start(self, task: Task, slot: int, allocation: Allocation, prefix: list[str]) -> processes.Child:
        """Start the process of a task, or torchrun for several of them."""
        variables = {"TURNOUT_ATTEMPT": str(allocation.attempt), "TURNOUT_NODE": allocation.node_name()}
        if allocation.offline:
            variables |= {name: os.environ.get(name, "1") for name in OFFLINE}
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
        sharing = self.devices.count(self.devices[slot]) if self.devices else self.slots
        if sharing > 1:
            variables["TURNOUT_GPU_SHARE"] = str(1 / sharing)
        log = task.run.log_file(task.stage) if self.own_logs else None
        if self.warm and not prefix:
            return processes.fork(task, variables, log)
        return processes.start(task, variables, log, prefix, self.container)

    def requeue(self, runs: Sequence[RunDirectory], allocation: Allocation) -> str:
        """Ask for another attempt at the rest of this job; return why there will be none, after marking its trials."""
        reason = allocation.requeue(runs, self.signal_delay, self.max_requeues)
        for run in runs if reason else ():
            self.fail(Task("train", str(run.path)), allocation, reason, "")
        return reason

    def explain(self, task: Task, allocation: Allocation, error: Exception) -> None:
        """Mark a task that failed by an error of this process itself; an OSError that no disk causes is raised."""
        if isinstance(error, OSError):
            if disk_errno(error) not in PASSING:
                raise error
            self.fail(task, allocation, str(error), DISK_ERROR)
        elif isinstance(error, RendezvousError):
            self.fail(task, allocation, str(error), KILLED, consequence=True)

    def fail_killed(self, task: Task, allocation: Allocation, process: str, code: int, oom_kills: int) -> None:
        """Leave the marker of a process that a signal ended; `oom_kills` is what the kernel had counted before."""
        reason, cause = describe_death(process, code, allocation.node_name(), count_oom_kills() - oom_kills)
        self.fail(task, allocation, reason, cause)

    def fail(self, task: Task, allocation: Allocation, reason: str, cause: str, consequence: bool = False) -> None:
        """Leave a failure marker; `consequence`: if another process knows a reason, that one is to be shown."""
        self.exit_code = DISK_CODE if cause == DISK_ERROR else 1
        with contextlib.suppress(OSError):  # on a full disk, the job's log and its exit code tell
            if task.stage == "train":
                task.run.fail_worker(allocation.attempt, allocation.node, reason, cause, consequence)
            elif task.stage != "report":
                task.run.fail_evaluation(reason)

    def note(self, task: Task, error: str) -> None:
        """Write why a task failed to the end of its own log, if it has one."""
        if self.own_logs:
            with contextlib.suppress(OSError), task.run.log_file(task.stage).open("a") as log:
                log.write(f"{task.run.name}: {error}\n")


def main() -> int:
    """Read a worker of this machine from stdin, as the local backend writes it, and run it; return the exit code."""
    document = json.load(sys.stdin)
    sweep = Path(document.pop("sweep"))
    worker = Worker(**document | {"tasks": [Task(**task) for task in document["tasks"]]}, own_logs=True)
    worker.watch = lambda running: write_local_work(
        sweep, {worker.pids[slot]: (task.stage, task.run.name) for slot, task in running.items() if slot in worker.pids}
    )
    failures, _ = worker.work(Allocation.local())
    print(*failures, sep="\n", flush=True)
    return 130 if worker.signals else 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
