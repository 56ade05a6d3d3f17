"""The index of a sweep: what its trials hold for jobs/status.py, in one file instead of several per trial.

The run directories decide: an entry counts only while the files that it was read from are the same, and what is missing
or outdated is read again. So the file may be removed at any time.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from trainer.runs.atomic import read_json, write_text
from trainer.runs.directory import PRUNED, RunDirectory, find_runs

FILE = ".index.json"  # in the sweep's directory
VERSION = 2  # of the entries
# What an entry is read from. A marker appears or goes with a change of the directory; other files are replaced.
SOURCES = ("", "config.yaml", "status.json", "eval", "eval/metrics.json", "eval/failed.json")
SETTLED = 2.0  # seconds without a change: within the clock's tick of the disk, a second change would not be seen
STEPS = re.compile(r"^train:\n(?: .*\n)*?  steps: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class IndexedRun(RunDirectory):
    """A run directory that was read at one moment; its state still depends on whether its process lives."""

    entry: dict[str, Any] = field(compare=False)

    def is_done(self) -> bool:
        """Return whether training has reached its last step."""
        return "done" in self.entry["markers"]

    def is_pruned(self) -> bool:
        """Return whether a search gave the trial up before its last step."""
        return PRUNED in self.entry["markers"]

    def status(self) -> dict[str, Any]:
        """Return the newest heartbeat, or {}."""
        return dict(self.entry["status"])

    def failure(self) -> dict[str, Any]:
        """Return the earliest failure marker that is no consequence of another one, or {}."""
        return dict(self.entry["failure"])

    def _failure_markers(self, prefix: str = "") -> Iterator[Path]:
        return (self.path / name for name in self.entry["markers"] if name.startswith(f"failed.{prefix}"))

    def has_stopped(self, attempt: str = "*") -> bool:
        """Return whether an attempt, or any, was asked to stop and has saved."""
        return any(fnmatch(name, f"stopped.{attempt}.json") for name in self.entry["markers"])

    def evaluation(self) -> dict[str, Any]:
        """Return the metrics of the newest evaluation, without its provenance and history."""
        return dict(self.entry["evaluation"])

    def evaluation_error(self, since: float = 0.0) -> str:
        """Return why the newest evaluation failed; empty if it did not. `since` does not matter to a reader."""
        return str(self.entry["error"])

    def interrupted_attempts(self) -> dict[str, str]:
        """Return attempt → preempted or time limit, as workers recorded it."""
        return dict(self.entry["interrupted"])


def find_indexed_runs(sweep: Path) -> list[RunDirectory]:
    """Return the run directories of a sweep as `find_runs`, those that have not changed from its index.

    The index is brought up to date; if that fails, the next look reads more files.
    """
    index = read_json(sweep / FILE)
    known = index.get("trials", {}) if index.get("version") == VERSION else {}
    runs, entries = list[RunDirectory](), dict[str, Any]()
    for run in find_runs(sweep):
        if not (signature := sign(run))[0]:  # removed meanwhile
            continue
        entry = known.get(run.name, {})
        if entry.get("signature") != signature:
            entry = read_entry(run) | {"signature": signature}
        runs.append(IndexedRun(run.path, entry))
        if max(stat[2] for stat in signature if stat) < time.time_ns() - SETTLED * 1e9:
            entries[run.name] = entry
    if entries != known:
        with suppress(OSError):
            write_text(sweep / FILE, json.dumps({"version": VERSION, "trials": entries}, separators=(",", ":")))
    return runs


def sign(run: RunDirectory) -> list[list[int]]:
    """Return inode, size and modification time of each of SOURCES; [] for one that does not exist."""
    signature: list[list[int]] = []
    for name in SOURCES:
        try:
            stat = (run.path / name).stat()
            signature.append([stat.st_ino, stat.st_size, stat.st_mtime_ns])
        except OSError:
            signature.append([])
    return signature


def read_entry(run: RunDirectory) -> dict[str, Any]:
    """Return what the index holds of a trial, from as few files as possible."""
    names = os.listdir(run.path)
    markers = [name for name in names if name in ("done", PRUNED) or name.startswith(("failed.", "stopped."))]
    status, is_done = run.status(), "done" in markers
    evaluation = run.evaluation() if "eval" in names else {}
    return {
        "markers": markers,
        "status": status,
        "failure": run.failure() if any(name.startswith("failed.") for name in markers) else {},
        "evaluation": {"metrics": evaluation.get("metrics") or {}} if evaluation else {},
        "error": run.evaluation_error() if "eval" in names else "",
        # Of a finished trial they do not matter any more.
        "interrupted": run.interrupted_attempts() if not is_done and any(n[0] == "." for n in names) else {},
        "steps": None if status.get("steps") else read_steps(run),
    }


def read_steps(run: RunDirectory) -> int | None:
    """Return train.steps of a config.yaml, found by a regular expression: parsing YAML would take a millisecond."""
    if isinstance(run, IndexedRun):
        steps: int | None = run.entry["steps"]
        return steps
    try:
        match = STEPS.search(run.config_file.read_text())
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None
