"""A sweep on this machine: at most K trials at a time, evaluation beside them, a live table, and Ctrl-C that saves."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live

from jobs.launch import ROOT
from jobs.status import summary, table
from trainer.run import Run

LINE_EVERY = 15.0  # seconds between two lines of progress where there is no terminal


@dataclass
class Task:
    """One process of the launcher, at work on a list of runs."""

    stage: str  # train or eval
    runs: list[Run]
    process: subprocess.Popen[bytes]
    slot: int  # of `parallel`; which GPUs it uses


@dataclass
class Pool:
    """Trains what is to be trained and evaluates what has been, `parallel` trainings and one evaluation at a time."""

    to_train: list[Run]
    to_evaluate: list[Run]
    evaluates: Callable[[Run], bool]  # whether a trained run is to be evaluated
    processes: int  # of each training
    parallel: int
    gpus: list[str]  # devices to share out; empty: none there
    tasks: list[Task] = field(default_factory=list)
    stopping: bool = False

    def run(self, everything: list[Run], console: Console) -> bool:
        """Work until nothing is left, or until Ctrl-C; return whether it was left to finish."""
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            said = 0.0
            while self.step():
                try:
                    if console.is_terminal:
                        live.update(table(everything))
                    elif time.monotonic() - said > LINE_EVERY:
                        console.print(summary(everything), highlight=False)
                        said = time.monotonic()
                    time.sleep(0.2)
                except KeyboardInterrupt:
                    self.stop(console)
        return not self.stopping

    def step(self) -> bool:
        """Reap what has ended and start what fits; whether anything goes on."""
        for task in [t for t in self.tasks if t.process.poll() is not None]:
            self.tasks.remove(task)
            if task.stage == "train":
                self.to_evaluate += [r for r in task.runs if r.state() == "done" and self.evaluates(r)]
        if not self.stopping:
            while self.to_train and sum(t.stage == "train" for t in self.tasks) < self.parallel:
                self.start("train", [self.to_train.pop(0)])
            if self.to_evaluate and not any(t.stage == "eval" for t in self.tasks):
                runs, self.to_evaluate = self.to_evaluate, []
                self.start("eval", runs)
        return bool(self.tasks)

    def start(self, stage: str, runs: list[Run]) -> None:
        """Start a launcher in a session of its own, so that Ctrl-C reaches this process alone."""
        environment = dict(os.environ)
        taken = {task.slot for task in self.tasks if task.stage == "train"}
        # An evaluation is small: it goes beside a training, on a GPU that may be in use.
        slot = min(set(range(self.parallel)) - taken) if stage == "train" else 0
        if self.gpus:
            first, count = slot * self.processes, min(self.processes, len(self.gpus))
            chosen = [self.gpus[(first + i) % len(self.gpus)] for i in range(count)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // (self.parallel * self.processes)) if stage == "train" else 1
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        # Threads that spin while they wait take the cores from each other as soon as anything else runs here.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        command = [
            sys.executable,
            str(ROOT / "jobs" / "launch.py"),
            stage,
            str(self.processes),
            *(str(r.path) for r in runs),
        ]
        with (runs[0].path / f"{stage}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.tasks.append(Task(stage, runs, process, slot))

    def stop(self, console: Console) -> None:
        """Tell every trial to save and leave at its next step; a second Ctrl-C ends them at once."""
        first, self.stopping = not self.stopping, True
        console.print(
            "stopping: every trial saves at its next step" if first else "ending every trial now", highlight=False
        )
        for task in self.tasks:
            if first:
                task.process.terminate()
            else:
                os.killpg(task.process.pid, 9)


def visible_gpus() -> list[str]:
    """Devices that this process may use, as CUDA_VISIBLE_DEVICES names them, asked of the driver's own tool."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(listing.stdout.count("GPU "))] if listing.returncode == 0 else []
