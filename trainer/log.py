"""What a run says while it runs: metrics.jsonl, TensorBoard, the heartbeat, and a progress bar or plain lines."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from trainer.loop import Row
from trainer.runs.atomic import naming_file, write_json, write_text
from trainer.runs.directory import RunDirectory

BEAT = 2.0  # seconds between heartbeats


class Log:
    """The voice of a run; only the main process has one."""

    def __init__(self, run: Path, step: int, steps: int, attempt: str, check: Callable[[], None]) -> None:
        self.check = check  # raises where a newer attempt has the run: nothing may be written then
        self.run, self.start, self.steps, self.attempt = run, step, steps, attempt
        self.began, self.beaten, self.last = time.monotonic(), 0.0, {}  # type: float, float, Row
        self.lined = (step, self.began)  # step and time of the last line
        # Drop what a run that died wrote after its checkpoint: these steps come again.
        kept = [line for line in RunDirectory(run).metrics() if line["step"] <= step]
        write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self.lines = (run / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[terms]}"), console=self.console, transient=False,
        )  # fmt: skip
        self.task = self.bar.add_task(run.name, total=steps, completed=step, rate="", terms="")
        if self.console.is_terminal:
            self.bar.start()
        self.beat(step, force=True)

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.console.is_terminal:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self, step: int, rows: dict[int, Row]) -> None:
        """Log the mean of each term over the iterations since the last line."""
        self.check()
        names = {name: None for row in rows.values() for name in row}
        means = {n: sum(v := [row[n] for row in rows.values() if n in row]) / len(v) for n in names}
        now = time.monotonic()
        rate = (step - self.lined[0]) / max(now - self.lined[1], 1e-9)
        self.lined, self.last = (step, now), means
        with naming_file(self.run / "metrics.jsonl"):
            self.lines.write(
                json.dumps({"step": step, "time": round(time.time(), 3), "rate": round(rate, 3), **means}) + "\n"
            )
        with naming_file(self.run / "tensorboard"):
            for name, value in means.items():
                self.board.add_scalar(name, value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.bar.update(self.task, completed=step, rate=f"{rate:.3g} steps/s", terms=text)
        if not self.console.is_terminal:
            left = (self.steps - step) / max(rate, 1e-9)
            print(
                f"step {step}/{self.steps}  {rate:.3g} steps/s  {left:.0f} s left  {text}", file=sys.stderr, flush=True
            )

    def beat(self, step: int, state: str = "running", force: bool = False, **more: Any) -> None:
        """Renew status.json if it is older than BEAT seconds."""
        now = time.monotonic()
        if now - self.beaten < BEAT and not force:
            return
        self.check()
        self.beaten = now
        self.bar.update(self.task, completed=step)
        rate = (step - self.start) / max(now - self.began, 1e-9)
        status = {"state": state, "step": step, "steps": self.steps, "rate": round(rate, 3)}
        status |= {"eta": round((self.steps - step) / rate, 1) if rate else None, "time": round(time.time(), 3)}
        status |= {"host": socket.gethostname(), "pid": os.getpid(), "attempt": self.attempt, "losses": self.last}
        write_json(self.run / "status.json", status | more)

    def close(self, step: int, state: str, **more: Any) -> None:
        """Say the last word and release the files."""
        self.beat(step, state, force=True, **more)
        if self.console.is_terminal:
            self.bar.stop()
        self.lines.close()
        self.board.close()
