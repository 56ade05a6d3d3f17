"""Logs of a training: metrics.jsonl, TensorBoard, the heartbeat, and a progress bar or plain lines."""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from trainer.loop import LossTerms
from trainer.runs.atomic import name_file, write_text
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import disk_error, persist, say

HEARTBEAT_INTERVAL = 2.0  # seconds
# First part of the name of a monitored value → the section of TensorBoard that shows it.
SECTIONS = {
    "lr": "optim",
    "gradient_norm": "optim",
    "ramp": "optim",
    "steps_per_second": "speed",
    "memory_gib": "speed",
}
EVENT_FILE_INTERVAL = 10.0  # seconds between two attempts to start an event file on a disk that refuses it


class TrainingLog:
    """Write metrics, heartbeat and progress of a training; only the main process has one."""

    def __init__(
        self,
        run: RunDirectory,
        step: int,
        steps: int,
        attempt: Attempt,
        check: Callable[[], None],
        costs: Callable[[int], dict[str, Any]],
    ) -> None:
        """Start logging at `step` of `steps`; `check` is called before each write and may raise to prevent it.

        `costs(step)` returns what the training has cost up to a step, for the heartbeat.
        """
        self.run, self.first_step, self.steps, self.attempt, self.check = run, step, steps, attempt, check
        self.start_time, self.heartbeat_time, self.costs = time.monotonic(), 0.0, costs
        self.losses: LossTerms = {}  # of the last line
        self.monitored: dict[str, float] = {}  # newest values beside the losses
        self.monitored_lines: deque[dict[str, float]] = deque(maxlen=1000)  # for a new event file
        self.line_step, self.line_time = step, self.start_time
        # Lines after the checkpoint are of an attempt that died: their steps will be trained again.
        kept = "".join(json.dumps(line) + "\n" for line in run.metrics() if line["step"] <= step)
        persist(lambda: write_text(run.metrics_file, kept), f"{run.metrics_file}: not written")
        self.metrics_file = run.metrics_file.open("ab", buffering=0)
        self.unwritten = b""  # end of metrics.jsonl that the disk has not accepted yet
        self.tensorboard: SummaryWriter | None = None
        self.next_event_file = 0.0  # when one may be started, if there is none
        self.refused_since = 0.0  # when the disk refused to be written; 0: it does not
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
            say(text)

    @contextmanager
    def tolerate_refusals(self) -> Iterator[None]:
        """Continue although the disk refuses what only informs; report the first refusal, and the end of them."""
        try:
            yield
        except OSError as error:
            if not self.refused_since:
                self.print(f"{self.run.path}: {disk_error(error)}; training continues without writing its status")
                self.refused_since = time.monotonic()
        else:
            if self.refused_since and not self.unwritten:
                seconds = time.monotonic() - self.refused_since
                self.print(f"{self.run.path}: status is written again, after {seconds:.0f} s")
                self.refused_since = 0.0

    def write_line(self, step: int, terms_by_step: dict[int, LossTerms], monitored: dict[str, float]) -> None:
        """Log the mean of each loss term over the steps since the last line; `monitored` only informs."""
        names = {name: None for terms in terms_by_step.values() for name in terms}
        columns = {name: [terms[name] for terms in terms_by_step.values() if name in terms] for name in names}
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        now = time.monotonic()
        rate = (step - self.line_step) / max(now - self.line_time, 1e-9)
        self.line_step, self.line_time, self.losses = step, now, means
        line = {"step": step, "time": round(time.time(), 3), "rate": round(rate, 3), **means}
        self.unwritten += json.dumps(line).encode() + b"\n"
        with self.tolerate_refusals():
            self.write_metrics()
        monitored |= {"steps_per_second": rate, "memory_gib": measure_memory()}
        self.monitor(step, monitored)
        with self.tolerate_refusals():
            self.write_tensorboard(step, means | monitored)
        text = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.progress.update(self.task, completed=step, rate=f"{rate:.3g} steps/s", terms=text)
        if not self.console.is_terminal:
            left = (self.steps - step) / max(rate, 1e-9)
            self.print(f"step {step}/{self.steps}  {rate:.3g} steps/s  {left:.0f} s left  {text}")

    def monitor(self, step: int, values: dict[str, float]) -> None:
        """Keep values for status.json and TensorBoard."""
        self.monitored |= values
        self.monitored_lines.append({"step": step, **values})

    def write_preview(
        self, step: int, values: dict[str, float], picture: NDArray[np.uint8] | None, warning: str
    ) -> None:
        """Show validation metrics and a picture [h, w, 3] of samples in TensorBoard, and the metrics in status.json."""
        self.monitor(step, values)
        with self.tolerate_refusals():
            self.write_tensorboard(step, values)
            if self.tensorboard and picture is not None:
                self.tensorboard.add_image("samples", picture, step, dataformats="HWC")
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if text and not self.console.is_terminal:
            self.print(f"step {step}/{self.steps}  {text}")
        if warning:
            self.print(f"warning: {warning}")

    def write_metrics(self) -> None:
        """Append to metrics.jsonl what the disk has not accepted yet."""
        self.check()
        with name_file(self.run.metrics_file):
            while self.unwritten:
                # On a disk that is nearly full, only a part of it is written.
                self.unwritten = self.unwritten[self.metrics_file.write(self.unwritten) :]

    def flush(self) -> None:
        """Wait until metrics.jsonl is complete; OSError if the disk refuses it for too long."""
        persist(self.write_metrics, f"{self.run.metrics_file}: not written")

    def write_tensorboard(self, step: int, means: LossTerms) -> None:
        """Add the means of a line to TensorBoard."""
        if self.tensorboard is None:
            if time.monotonic() > self.next_event_file:
                self.restart_tensorboard()
            return
        try:
            self.add_scalars({"step": step, **means})
        except OSError:
            self.close_tensorboard()
            raise

    def restart_tensorboard(self) -> None:
        """Start an event file with all lines of this attempt: at first, and after the disk has refused the last one."""
        self.next_event_file = time.monotonic() + EVENT_FILE_INTERVAL
        try:
            with name_file(self.run.tensorboard):
                self.tensorboard = SummaryWriter(str(self.run.tensorboard), purge_step=self.first_step + 1)
            for line in (*self.run.metrics(), *self.monitored_lines):
                if line["step"] > self.first_step:
                    self.add_scalars(line)
        except OSError:
            self.close_tensorboard()
            raise

    def add_scalars(self, line: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl to TensorBoard."""
        assert self.tensorboard
        for name, value in line.items():
            if name not in ("step", "time", "rate"):
                section = SECTIONS.get(name.partition("/")[0])
                self.tensorboard.add_scalar(f"{section}/{name}" if section else name, value, line["step"])

    def close_tensorboard(self) -> None:
        """Close the event file, if there is one and whether or not the disk accepts its end."""
        if self.tensorboard:
            with suppress(OSError):
                self.tensorboard.close()
        self.tensorboard = None

    def heartbeat(self, step: int, state: str = "running", force: bool = False, **more: Any) -> None:
        """Replace status.json if it is older than HEARTBEAT_INTERVAL, or if forced."""
        now = time.monotonic()
        if now - self.heartbeat_time < HEARTBEAT_INTERVAL and not force:
            return
        self.heartbeat_time = now
        self.progress.update(self.task, completed=step)
        rate = (step - self.first_step) / max(now - self.start_time, 1e-9)
        status = {"state": state, "step": step, "steps": self.steps, "rate": round(rate, 3)}
        status |= {"eta": round((self.steps - step) / rate, 1) if rate else None, "time": round(time.time(), 3)}
        status |= {"host": socket.gethostname(), "pid": os.getpid(), "attempt": self.attempt, "losses": self.losses}
        status |= {"monitor": {name: float(f"{value:.6g}") for name, value in self.monitored.items()}}
        status |= {"costs": self.costs(step)}
        with self.tolerate_refusals():
            self.check()
            self.run.write_status(status | more)

    def close(self, step: int, state: str, **more: Any) -> None:
        """Write the last heartbeat and close the files."""
        self.heartbeat(step, state, force=True, **more)
        if self.console.is_terminal:
            self.progress.stop()
        if state != "failed":
            self.flush()
        self.metrics_file.close()
        if self.tensorboard is None:
            with suppress(OSError):
                self.restart_tensorboard()
        self.close_tensorboard()


def measure_memory() -> float:
    """Return the most memory that this process has had on its GPU, or has now without one, GiB."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss / 2**30)
