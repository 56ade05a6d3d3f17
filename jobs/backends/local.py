"""A sweep on this machine: at most K trials at a time, evaluation beside them, a live table, and Ctrl-C that saves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from jobs.snapshot import ROOT, import_environment
from jobs.tracking.table import render_local, summarize_progress
from trainer.config.schema import Config
from trainer.runs.directory import RunDirectory

LINE_EVERY = 15.0  # seconds between two lines of progress where there is no terminal


@dataclass
class Task:
    """One process of the launcher, at work on a run."""

    stage: str  # train or eval
    run: RunDirectory
    process: subprocess.Popen[bytes]
    slot: int  # of `parallel`; which GPUs it uses


@dataclass
class Pool:
    """Trains what is to be trained and evaluates what has been, `parallel` trainings and one evaluation at a time."""

    to_train: list[RunDirectory]
    to_evaluate: list[RunDirectory]
    evaluates: Callable[[RunDirectory], bool]  # whether a trained run is to be evaluated
    processes: dict[str, int]  # run -> processes of its training
    parallel: int
    gpus: list[str]  # devices to share out; empty: none there
    code: Path = ROOT  # what the processes run
    tasks: list[Task] = field(default_factory=list)
    asked: int = 0  # how often Ctrl-C came
    told: int = 0  # how often it was passed on

    def run(self, everything: list[RunDirectory], console: Console) -> bool:
        """Work until nothing is left, or until Ctrl-C; return whether it was left to finish."""
        # A flag, not an exception: nothing may come between starting a process and remembering it.
        handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Live(console=console, refresh_per_second=2, transient=True) as live:
                said = 0.0
                while self.step():
                    if console.is_terminal:
                        live.update(render_local(everything))
                    elif time.monotonic() - said > LINE_EVERY:
                        console.print(summarize_progress(everything), highlight=False)
                        said = time.monotonic()
                    if self.asked > self.told:
                        self.stop(console)
                    time.sleep(0.2)
        finally:
            for task in self.tasks:  # left only by an error of this process itself
                task.process.terminate()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return not self.asked

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Only count the request to stop."""
        self.asked += 1

    def step(self) -> bool:
        """Reap what has ended and start what fits; whether anything goes on."""
        for task in [t for t in self.tasks if t.process.poll() is not None]:
            self.tasks.remove(task)
            if task.stage == "train" and task.run.state() == "done" and self.evaluates(task.run):
                self.to_evaluate.append(task.run)
        if not self.asked:
            while self.to_train and sum(t.stage == "train" for t in self.tasks) < self.parallel:
                self.start("train", self.to_train.pop(0))
            if self.to_evaluate and not any(t.stage == "eval" for t in self.tasks):
                self.start("eval", self.to_evaluate.pop(0))
        return bool(self.tasks)

    def start(self, stage: str, run: RunDirectory) -> None:
        """Start a launcher in a session of its own, so that Ctrl-C reaches this process alone."""
        variables = import_environment(self.code)
        taken = {task.slot for task in self.tasks if task.stage == "train"}
        # An evaluation is small: it goes beside a training, on a GPU that may be in use.
        slot = min(set(range(self.parallel)) - taken) if stage == "train" else 0
        count = self.processes[run.name] if stage == "train" else 1
        if self.gpus:
            first = slot * max(self.processes.values())
            chosen = [self.gpus[(first + i) % len(self.gpus)] for i in range(min(count, len(self.gpus)))]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        # Leave a core to the evaluation: threads that wait for each other spin, and crawl where cores are short.
        threads = (len(os.sched_getaffinity(0)) - 1) // (self.parallel * count) if stage == "train" else 1
        variables.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        command = [sys.executable, str(self.code / "jobs" / "worker.py"), stage, str(count), str(run.path)]
        with (run.path / f"{stage}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.tasks.append(Task(stage, run, process, slot))

    def stop(self, console: Console) -> None:
        """Tell every trial to save and leave at its next step; a second Ctrl-C ends them at once."""
        first, self.told = not self.told, self.asked
        console.print(
            "stopping: every trial saves at its next step" if first else "ending every trial now", highlight=False
        )
        for task in self.tasks:
            if first:
                task.process.terminate()
            else:
                kill(task.process.pid)


def kill(process: int) -> None:
    """End a process and all that it started, also what left its session, as torchrun's workers do."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    family = [process]
    for member in family:
        family += children.get(member, [])
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def launchers() -> dict[int, tuple[str, str]]:
    """Pid -> stage and absolute run directory of every launcher that a Pool of this machine has at work."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            words = file.read_bytes().decode(errors="replace").split("\0")[:-1]
            if len(words) == 5 and words[1].endswith("/jobs/worker.py"):  # of the checkout, or of a copy
                run = Path(f"/proc/{file.parent.name}/cwd").readlink() / words[4]
                found[int(file.parent.name)] = (words[2], str(run))
    return found


def visible_gpus() -> list[str]:
    """Devices that this process may use, as CUDA_VISIBLE_DEVICES names them, asked of the driver's own tool."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return [device for device in devices if device and not device.startswith("-")]  # -1: none
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(listing.stdout.count("GPU "))] if listing.returncode == 0 else []


def processes(config: Config, gpus: list[str]) -> int:
    """Processes of a training here: as many as asked for, but at most one per GPU, and such that they share a batch."""
    if config.resources.processes_per_node:
        return config.resources.processes_per_node
    most = max(1, min(config.resources.gpus_per_node, len(gpus)))
    return next(n for n in range(most, 0, -1) if config.train.batch_size % (n * config.train.micro_batches) == 0)
