"""The run directory of a trial: its files, the state they tell, and the markers that attempts leave."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.runs.atomic import read_json, replace_file, write_json
from trainer.runs.attempt import Attempt, is_alive

PRUNED = "pruned"
TIME_LIMITS, PREEMPTIONS = ".time_limits.json", ".preemptions.json"


@dataclass(frozen=True)
class RunDirectory:
    """The only owner of the names of files in a run directory.

    Readers never fail on a trial that is running: what is missing or half-written reads as empty.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the trial."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """The trial's settings, all of them resolved."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """A JSON line for each line of the training log."""
        return self.path / "metrics.jsonl"

    @property
    def data_file(self) -> Path:
        """What the trial is trained on: see trainer.data.provenance."""
        return self.path / "data.json"

    @property
    def lock_file(self) -> Path:
        """Held by the attempt that trains; its content names the attempt."""
        return self.path / "lock"

    @property
    def tensorboard(self) -> Path:
        """Event files of the training; those of the evaluation are in `eval/` below."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Resumable states, one directory each."""
        return self.path / "checkpoints"

    @property
    def latest_file(self) -> Path:
        """Names the newest checkpoint."""
        return self.path / "latest"

    @property
    def evaluation_directory(self) -> Path:
        """Metrics, figures and arrays of the evaluation."""
        return self.path / "eval"

    @property
    def objective_file(self) -> Path:
        """What a search has measured: see trainer.runs.objective."""
        return self.path / "objective.json"

    @property
    def evaluation_file(self) -> Path:
        """The metrics of the newest evaluation with their provenance."""
        return self.evaluation_directory / "metrics.json"

    def log_file(self, stage: str) -> Path:
        """Return the output of a stage, train or eval, that ran on this machine without Slurm."""
        return self.path / f"{stage}.log"

    def rendezvous_file(self, attempt: Attempt, step_id: str) -> Path:
        """Return where the first node of an attempt publishes the address that its processes meet at."""
        return self.path / f".rendezvous.{attempt}.{step_id}.json"

    def exists(self) -> bool:
        """Return whether this is a run directory."""
        return self.config_file.is_file()

    def config(self) -> dict[str, Any]:
        """Return the resolved settings; {} where there are none yet or none that can be read."""
        try:
            config = yaml.load(self.config_file.read_text(), Loader=yaml.CSafeLoader)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return config if isinstance(config, dict) else {}

    def state(self) -> str:
        """Return done, failed, pruned, stopped, running or pending, from the disk alone."""
        if self.is_done():
            return "done"
        status = self.status()
        if status.get("state") == "running" and is_alive(status):
            return "running"
        if any(self._failure_markers()):
            return "failed"
        if self.is_pruned():
            return "pruned"
        # A trial that died without a marker can resume from its checkpoint, so it counts as stopped.
        return "stopped" if status or self.has_stopped() else "pending"

    def status(self) -> dict[str, Any]:
        """Return the newest heartbeat: step, steps, rate (steps/s), eta (s), losses, host, pid, attempt; else {}."""
        return read_json(self.path / "status.json")

    def failure(self) -> dict[str, Any]:
        """Return the newest attempt's earliest failure marker that is no consequence of another one, or {}.

        It has error, attempt, time and cause. An attempt that never held the lock leaves those of earlier attempts.
        """
        markers = sorted(map(read_json, self._failure_markers()), key=lambda marker: marker.get("time", 0))
        newest = [marker for marker in markers if marker.get("attempt") == markers[-1].get("attempt")]
        return min(newest, key=lambda marker: marker.get("consequence", False), default={})

    def error(self) -> str:
        """Return in one line why the trial failed, from the earliest failure marker; empty unless it failed."""
        return str(self.failure().get("error", ""))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl in order, without those that are half-written."""
        try:
            text = self.metrics_file.read_text(errors="replace")
        except FileNotFoundError:
            return []
        lines = []
        for line in text.split("\n")[:-1]:
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return lines

    def data(self) -> dict[str, Any]:
        """Return the record of the data that the trial is trained on; {} if it is not known."""
        return read_json(self.data_file)

    def latest_step(self) -> int:
        """Return the step of the newest checkpoint; 0 before the first."""
        try:
            return int(self.latest_file.read_text().rpartition("-")[2])
        except (OSError, ValueError):
            return 0

    def exported_weights(self) -> dict[int, Path]:
        """Return step → exported weights, oldest first."""
        files = (self.path / "weights").glob("step-*.safetensors")
        steps = {file: re.fullmatch(r"step-(\d+)\.safetensors", file.name) for file in files}
        return dict(sorted((int(match[1]), file) for file, match in steps.items() if match))  # not backup copies

    def evaluation(self) -> dict[str, Any]:
        """Return the newest evaluation: step, metrics, intervals, provenance, history; {} before the first."""
        return read_json(self.evaluation_file)

    def evaluation_error(self, since: float = 0.0) -> str:
        """Return why the newest evaluation failed, at the time `since` or later; empty if it did not."""
        marker = read_json(self.evaluation_directory / "failed.json")
        return str(marker.get("error", "")) if marker.get("time", 0.0) >= since else ""

    def is_done(self) -> bool:
        """Return whether training has reached its last step."""
        return (self.path / "done").exists()

    def is_pruned(self) -> bool:
        """Return whether a search gave up the trial before its last step."""
        return (self.path / PRUNED).exists()

    def has_stopped(self, attempt: str = "*") -> bool:
        """Return whether an attempt, or any, was asked to stop and has saved."""
        return any(self.path.glob(f"stopped.{attempt}.json"))

    def has_failed(self, attempt: str, rank: int | None = None) -> bool:
        """Return whether an attempt, or one process of it, left a failure marker.

        `<job>` instead of an attempt means any of that job.
        """
        if rank is not None:
            return self._failure_marker(attempt, rank).exists()
        return any(self._failure_markers(f"{attempt}."))

    def _failure_marker(self, attempt: str, rank: int) -> Path:
        return self.path / f"failed.{attempt}{f'.rank{rank}' if rank else ''}.json"

    def _failure_markers(self, prefix: str = "") -> Iterator[Path]:
        return self.path.glob(f"failed.{prefix}*")

    def start(self, attempt: Attempt) -> None:
        """Remove the markers and temporary files of earlier attempts; requires the lock."""
        for pattern in ("failed.*", "stopped.*", "stop.*", ".rendezvous.*", PRUNED):
            for marker in self.path.glob(pattern):
                if marker != self.stop_file(attempt):
                    marker.unlink(missing_ok=True)
        for temporary in self.checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(temporary, ignore_errors=True)
        for temporary in (self.path / "weights").glob(".step-*.tmp"):
            temporary.unlink(missing_ok=True)

    def write_data(self, record: dict[str, Any]) -> None:
        """Record the data that the trial is trained on."""
        write_json(self.data_file, record)

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace the heartbeat."""
        write_json(self.path / "status.json", status)

    def stop_file(self, attempt: Attempt) -> Path:
        """Return the file whose existence asks an attempt to stop."""
        return self.path / f"stop.{attempt}"

    def stop(self, attempt: Attempt, step: int) -> None:
        """Mark that an attempt was asked to stop and has saved."""
        self._mark(f"stopped.{attempt}.json", attempt, step)

    def finish(self, attempt: Attempt, step: int) -> None:
        """Mark that training has reached its last step."""
        self._mark("done", attempt, step)

    def prune(self, attempt: Attempt, step: int) -> None:
        """Mark that a search gave up the trial at a step."""
        self._mark(PRUNED, attempt, step)

    def _mark(self, name: str, attempt: Attempt, step: int) -> None:
        write_json(self.path / name, {"step": step, "attempt": attempt, "time": time.time()})
        self.stop_file(attempt).unlink(missing_ok=True)

    def fail(self, attempt: Attempt, error: str, rank: int, cause: str, consequence: bool = False) -> None:
        """Mark that one process of an attempt failed; `consequence`: because another one did."""
        content = {"error": error, "attempt": attempt, "rank": rank, "cause": cause, "time": time.time()}
        write_json(self._failure_marker(attempt, rank), content | {"consequence": consequence})

    def fail_worker(self, attempt: Attempt, node: int, error: str, cause: str, consequence: bool = False) -> None:
        """Mark that an attempt failed as its worker on a node saw it; `consequence`: without knowing why."""
        content = {"error": error, "attempt": attempt, "cause": cause, "time": time.time()}
        write_json(self.path / f"failed.{attempt}.node{node}.json", content | {"consequence": consequence})
        if status := self.status():
            self.write_status(status | {"state": "failed", "error": self.error()})

    def write_weights(self, step: int, write: Callable[[Path], None], check: Callable[[], None]) -> Path:
        """Put exported weights in place, written by `write(file)`, after a last `check`; return their path."""
        file = self.path / "weights" / f"step-{step:06d}.safetensors"
        file.parent.mkdir(exist_ok=True)
        with replace_file(file, check) as temporary:
            write(temporary)
        return file

    def fail_evaluation(self, error: str) -> None:
        """Mark that the evaluation failed; an empty error removes the mark."""
        marker = self.evaluation_directory / "failed.json"
        if error:
            marker.parent.mkdir(exist_ok=True)
            write_json(marker, {"error": error, "time": time.time()})
        else:
            marker.unlink(missing_ok=True)

    def note_preemption(self, attempt: Attempt) -> None:
        """Record that an attempt ends because Slurm preempts it: Slurm itself will only know of a requeue."""
        attempts = read_json(self.path / PREEMPTIONS).get("attempts", [])
        write_json(self.path / PREEMPTIONS, {"attempts": [*attempts, attempt]})

    def note_time_limit(self, attempt: Attempt, job: str) -> int:
        """Record that an attempt ends at its time limit; return how many attempts of the job did."""
        record = read_json(self.path / TIME_LIMITS)
        earlier = record["attempts"] if record.get("job") == job else []
        attempts = [*(name for name in earlier if name != attempt), attempt]
        write_json(self.path / TIME_LIMITS, {"job": job, "attempts": attempts})
        return len(attempts)

    def interrupted_attempts(self) -> dict[str, str]:
        """Return attempt → preempted or time limit, as workers recorded it."""
        causes: dict[str, str] = {}
        for name, cause in ((PREEMPTIONS, "preempted"), (TIME_LIMITS, "time limit")):
            causes |= dict.fromkeys(read_json(self.path / name).get("attempts", ()), cause)
        return causes


def find_runs(sweep: Path) -> list[RunDirectory]:
    """Return the run directories of a sweep, by name, without copies such as `<name> (copy)` or `<name>.bak`."""
    names = sorted(path.parent.name for path in sweep.glob("*/config.yaml"))
    trials = {name[-8:]: name for name in sorted(names, key=len, reverse=True) if re.search("-[0-9a-f]{8}$", name)}

    def is_copy(name: str) -> bool:
        originals = [trials[digits] for digits in re.findall("[0-9a-f]{8}", name) if digits in trials]
        return any(original != name and original in name for original in originals)

    return [RunDirectory(sweep / name) for name in names if not is_copy(name)]
