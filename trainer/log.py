"""Logs of a training: metrics.jsonl, TensorBoard, the heartbeat, and a progress bar or plain lines."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from trainer.loop import LossTerms
from trainer.runs.atomic import name_file, write_text
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory

HEARTBEAT_INTERVAL = 2.0  # seconds


class TrainingLog:
    """Write metrics, heartbeat and progress of a training; only the main process has one."""

    def __init__(self, run: RunDirectory, step: int, steps: int, attempt: Attempt, check: Callable[[], None]) -> None:
        """Start logging at `step` of `steps`; `check` is called before each write and may raise to prevent it."""
        self.run, self.first_step, self.steps, self.attempt, self.check = run, step, steps, attempt, check
        self.start_time, self.heartbeat_time = time.monotonic(), 0.0
        self.losses: LossTerms = {}  # of the last line
        self.line_step, self.line_time = step, self.start_time
        # Lines after the checkpoint are of an attempt that died: their steps will be trained again.
        kept = [line for line in run.metrics() if line["step"] <= step]
        write_text(run.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))
        self.metrics_file = run.metrics_file.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[terms]}"), console=self.console, transient=False,
        )  # fmt: skip
        self.task = self.progress.add_task(run.name, total=steps, completed=step, rate="", terms="")
        if self.console.is_terminal:
            self.progress.start()
        self.heartbeat(step, force=True)

    def print(self, text: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self.console.is_terminal:
            self.progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def write_line(self, step: int, terms_by_step: dict[int, LossTerms]) -> None:
        """Log the mean of each loss term over the steps since the last line."""
        self.check()
        names = {name: None for terms in terms_by_step.values() for name in terms}
        columns = {name: [terms[name] for terms in terms_by_step.values() if name in terms] for name in names}
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        now = time.monotonic()
        rate = (step - self.line_step) / max(now - self.line_time, 1e-9)
        self.line_step, self.line_time, self.losses = step, now, means
        with name_file(self.run.metrics_file):
            line = {"step": step, "time": round(time.time(), 3), "rate": round(rate, 3), **means}
            self.metrics_file.write(json.dumps(line) + "\n")
        with name_file(self.run.tensorboard):
            for name, value in means.items():
                self.tensorboard.add_scalar(name, value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.progress.update(self.task, completed=step, rate=f"{rate:.3g} steps/s", terms=text)
        if not self.console.is_terminal:
            left = (self.steps - step) / max(rate, 1e-9)
            self.print(f"step {step}/{self.steps}  {rate:.3g} steps/s  {left:.0f} s left  {text}")

    def heartbeat(self, step: int, state: str = "running", force: bool = False, **more: Any) -> None:
        """Replace status.json if it is older than HEARTBEAT_INTERVAL, or if forced."""
        now = time.monotonic()
        if now - self.heartbeat_time < HEARTBEAT_INTERVAL and not force:
            return
        self.check()
        self.heartbeat_time = now
        self.progress.update(self.task, completed=step)
        rate = (step - self.first_step) / max(now - self.start_time, 1e-9)
        status = {"state": state, "step": step, "steps": self.steps, "rate": round(rate, 3)}
        status |= {"eta": round((self.steps - step) / rate, 1) if rate else None, "time": round(time.time(), 3)}
        status |= {"host": socket.gethostname(), "pid": os.getpid(), "attempt": self.attempt, "losses": self.losses}
        self.run.write_status(status | more)

    def close(self, step: int, state: str, **more: Any) -> None:
        """Write the last heartbeat and close the files."""
        self.heartbeat(step, state, force=True, **more)
        if self.console.is_terminal:
            self.progress.stop()
        self.metrics_file.close()
        self.tensorboard.close()
