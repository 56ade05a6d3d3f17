"""A run directory, read: what a trial is, how far it came and what it is worth."""

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.runs.atomic import read_json

HEARTBEAT = 120.0  # seconds without a sign of life after which a run is taken to have died


@dataclass(frozen=True)
class RunDirectory:
    """One trial's directory. Everything may be missing or half-written: a reader never fails on a live run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def config(self) -> dict[str, Any]:
        """The resolved configuration, {} where there is none yet or none that can be read."""
        try:
            found = yaml.load((self.path / "config.yaml").read_text(), Loader=yaml.CSafeLoader)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    def state(self) -> str:
        """One of done, failed, stopped, running, pending; read from disk alone."""
        if (self.path / "done").exists():
            return "done"
        status = self.status()
        if status.get("state") == "running" and self._alive(status):
            return "running"
        if any(self.path.glob("failed.*")):
            return "failed"
        # A run that died without a word can go on from its checkpoint: so it counts as stopped.
        return "stopped" if status or any(self.path.glob("stopped.*")) else "pending"

    def status(self) -> dict[str, Any]:
        """The newest heartbeat: step, steps, rate (steps/s), eta (s), losses, host, pid, attempt; {} before it."""
        return read_json(self.path / "status.json")

    def error(self) -> str:
        """Why it failed, in one line: the first of its processes to fail knows; empty unless it failed."""
        markers = [read_json(path) for path in self.path.glob("failed.*")]
        return str(min(markers, key=lambda m: m.get("time", 0)).get("error", "")) if markers else ""

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in order; one that is half-written is left out."""
        try:
            text = (self.path / "metrics.jsonl").read_text(errors="replace")
        except FileNotFoundError:
            return []
        lines = []
        for line in text.split("\n")[:-1]:
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return lines

    def evaluation(self) -> dict[str, Any]:
        """What the newest evaluation wrote: step, metrics, intervals, provenance, history; {} before the first."""
        return read_json(self.path / "eval" / "metrics.json")

    @staticmethod
    def _alive(status: dict[str, Any]) -> bool:
        if status.get("host") == socket.gethostname() and not Path(f"/proc/{status.get('pid')}").exists():
            return False
        return time.time() - status.get("time", 0) < HEARTBEAT


def find_runs(folder: Path) -> list[RunDirectory]:
    """All trials of a sweep, by name."""
    return [RunDirectory(p.parent) for p in sorted(folder.glob("*/config.yaml"))]
