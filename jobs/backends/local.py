"""This machine as a backend: some trials at a time, one evaluation beside them, a live table, and Ctrl-C that saves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live

from jobs.backends.base import ActiveJob, Job, Plan
from jobs.snapshot import ROOT, import_environment
from jobs.tracking.table import render_local, summarize_progress
from trainer.config.document import Settings
from trainer.config.resolve import load_config
from trainer.config.schema import Config
from trainer.runs import submissions
from trainer.runs.directory import RunDirectory

SUMMARY_INTERVAL = 15.0  # seconds between two lines of progress without a terminal


@dataclass(frozen=True)
class LocalBackend:
    """This machine alone. Its jobs are the launchers that a pool has started."""

    parallel: int | None = None  # trainings at a time; default: one per GPU, or per two cores
    console: Console = field(default_factory=Console)
    shown: tuple[RunDirectory, ...] = ()  # trials in the live table
    name: str = "local"

    def unavailable(self) -> str | None:
        """Return None: this machine is always there."""
        return None

    def check(self, settings: Settings) -> None:
        """Accept all resources: a trial uses what there is."""

    def scripts(self, sweep: Path, plans: Sequence[Plan], code: Path) -> Iterator[str]:
        """Return no scripts."""
        return iter(())

    def submit(self, sweep: Path, plans: Sequence[Plan], code: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Train and evaluate to the end, or until Ctrl-C; return the record with whether it `completed`."""
        to_train = [run for plan in plans for run in plan.train]
        to_evaluate = [run for plan in plans for run in plan.evaluate_now]
        record = {"trials": [run.name for run in to_train], "evaluate": [run.name for run in to_evaluate]}
        submissions.append(sweep, {"cluster": self.name, **record, **notes})
        gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
        processes = {run.name: count_processes(load_config(run.config_file), gpus) for run in to_train}
        pool = Pool(
            to_train=to_train,
            to_evaluate=to_evaluate,
            evaluate_after={run.name for plan in plans for run in plan.evaluate_after},
            processes=processes,
            parallel=self.parallel or max(1, (len(gpus) or cores // 2) // max(processes.values(), default=1)),
            gpus=gpus,
            code=code,
        )
        return {**record, "completed": pool.run(list(self.shown), self.console)}

    def jobs(self, sweep: Path) -> tuple[dict[str, list[Job]], list[str]]:
        """Return nothing: the run directories tell all of trials on this machine."""
        return {}, []

    def active(self, sweep: Path) -> list[ActiveJob]:
        """Return the launchers at work on trials of a sweep; their ids are process ids."""
        folder = sweep.absolute()
        return [
            ActiveJob(str(pid), stage, "RUNNING", (run.name,))
            for pid, (stage, run) in find_launchers().items()
            if run.parent == folder
        ]

    def cancel(self, jobs: Sequence[ActiveJob], whole: bool) -> None:
        """Send launchers SIGTERM, upon which trials save; with `whole` instead the jobs/submit.py that started them."""
        pids = {int(job.id) for job in jobs}
        for pid in {find_submitter(pid) for pid in pids} if whole else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


@dataclass
class Task:
    """A running launcher."""

    stage: str  # train or eval
    run: RunDirectory
    process: subprocess.Popen[bytes]
    slot: int  # of `parallel`; decides which GPUs it uses


@dataclass
class Pool:
    """Run trainings, `parallel` at a time, and evaluations, one at a time, through launchers."""

    to_train: list[RunDirectory]
    to_evaluate: list[RunDirectory]
    evaluate_after: set[str]  # names of trials to evaluate once they are trained
    processes: dict[str, int]  # trial → processes of its training
    parallel: int
    gpus: list[str]  # devices to share; empty if there are none
    code: Path = ROOT  # the checkout or code copy that the processes run
    tasks: list[Task] = field(default_factory=list)
    interrupts: int = 0  # Ctrl-C received
    handled_interrupts: int = 0

    def run(self, shown: list[RunDirectory], console: Console) -> bool:
        """Work until nothing is left, or until Ctrl-C; return whether nothing was interrupted."""
        # A counter, not an exception: nothing may interrupt between starting a process and remembering it.
        handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Live(console=console, refresh_per_second=2, transient=True) as live:
                printed = 0.0
                while self.step():
                    if console.is_terminal:
                        live.update(render_local(shown))
                    elif time.monotonic() - printed > SUMMARY_INTERVAL:
                        console.print(summarize_progress(shown), highlight=False)
                        printed = time.monotonic()
                    if self.interrupts > self.handled_interrupts:
                        self.stop(console)
                    time.sleep(0.2)
        finally:
            for task in self.tasks:  # some are left only after an error in this process itself
                task.process.terminate()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return not self.interrupts

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Only count the signal."""
        self.interrupts += 1

    def step(self) -> bool:
        """Remove tasks that ended and start what fits; return whether anything runs."""
        for task in [task for task in self.tasks if task.process.poll() is not None]:
            self.tasks.remove(task)
            if task.stage == "train" and task.run.is_done() and task.run.name in self.evaluate_after:
                self.to_evaluate.append(task.run)
        if not self.interrupts:
            while self.to_train and sum(task.stage == "train" for task in self.tasks) < self.parallel:
                self.start("train", self.to_train.pop(0))
            if self.to_evaluate and not any(task.stage == "eval" for task in self.tasks):
                self.start("eval", self.to_evaluate.pop(0))
        return bool(self.tasks)

    def start(self, stage: str, run: RunDirectory) -> None:
        """Start a launcher in a session of its own, so that Ctrl-C reaches only this process."""
        variables = import_environment(self.code)
        taken = {task.slot for task in self.tasks if task.stage == "train"}
        # An evaluation is small: it shares the GPU of a training.
        slot = min(set(range(self.parallel)) - taken) if stage == "train" else 0
        count = self.processes[run.name] if stage == "train" else 1
        if self.gpus:
            first = slot * max(self.processes.values(), default=1)
            devices = [self.gpus[(first + i) % len(self.gpus)] for i in range(min(count, len(self.gpus)))]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        # One core is left to the evaluation: threads that wait for each other spin, and are slow where cores are short.
        threads = (len(os.sched_getaffinity(0)) - 1) // (self.parallel * count) if stage == "train" else 1
        variables.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        command = [sys.executable, str(self.code / "jobs" / "worker.py"), stage, str(count), str(run.path)]
        with run.log_file(stage).open("ab") as log:
            process = subprocess.Popen(
                command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.tasks.append(Task(stage, run, process, slot))

    def stop(self, console: Console) -> None:
        """Let every trial save and exit at its next step; after a second Ctrl-C kill them at once."""
        first, self.handled_interrupts = not self.handled_interrupts, self.interrupts
        message = "stopping: every trial saves at its next step" if first else "killing every trial now"
        console.print(message, highlight=False)
        for task in self.tasks:
            if first:
                task.process.terminate()
            else:
                kill_tree(task.process.pid)


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, also those that left its session, as torchrun's workers do."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                member.kill()


def find_launchers() -> dict[int, tuple[str, Path]]:
    """Return process id → stage and absolute run directory of every launcher that a pool of this machine runs."""
    launchers = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended, or belongs to another user
            words = process.cmdline()
            if len(words) == 5 and words[1].endswith("/jobs/worker.py"):  # of the checkout, or of a code copy
                launchers[process.pid] = words[2], Path(process.cwd()) / words[4]
    return launchers


def find_submitter(launcher: int) -> int:
    """Return the process id of the jobs/submit.py that started a launcher; the launcher's own if there is none."""
    with suppress(psutil.Error):
        parent = psutil.Process(launcher).parent()
        if parent and any("submit.py" in word for word in parent.cmdline()):
            return parent.pid
    return launcher


def visible_gpus() -> list[str]:
    """Return the devices that this process may use, as CUDA_VISIBLE_DEVICES names them, by asking nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return [device for device in devices if device and not device.startswith("-")]  # -1: none
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(listing.stdout.count("GPU "))] if listing.returncode == 0 else []


def count_processes(config: Config, gpus: list[str]) -> int:
    """Return the processes of a training: as configured, but at most one per GPU, and a divisor of the batch."""
    if config.resources.processes_per_node:
        return config.resources.processes_per_node
    most = max(1, min(config.resources.gpus_per_node, len(gpus)))
    return next(n for n in range(most, 0, -1) if config.train.batch_size % (n * config.train.micro_batches) == 0)
