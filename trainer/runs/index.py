"""The index of a sweep: what its finished trials hold for jobs/status.py, in one file instead of several per trial.

The run directories decide: an entry counts only while the files that it was read from are the same, and what is missing
or outdated is read again. So the file may be removed at any time.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.runs.atomic import read_json, write_json
from trainer.runs.directory import RunDirectory, find_runs

FILE = ".index.json"  # in the sweep's directory
VERSION = 1  # of the entries
SOURCES = ("done", "status.json", "eval/metrics.json", "eval/failed.json")  # the first one marks a finished trial


@dataclass(frozen=True)
class IndexedRun(RunDirectory):
    """The run directory of a finished trial, read from the index."""

    entry: dict[str, Any] = field(compare=False)

    def is_done(self) -> bool:
        """Return True: only finished trials are in the index."""
        return True

    def status(self) -> dict[str, Any]:
        """Return the last heartbeat."""
        return dict(self.entry["status"])

    def evaluation(self) -> dict[str, Any]:
        """Return the metrics of the newest evaluation, without its provenance and history."""
        return dict(self.entry["evaluation"])

    def evaluation_error(self, since: float = 0.0) -> str:
        """Return why the newest evaluation failed; empty if it did not. `since` does not matter to a reader."""
        return str(self.entry["error"])

    def interrupted_attempts(self) -> dict[str, str]:
        """Return nothing: they do not matter any more."""
        return {}


def find_indexed_runs(sweep: Path) -> list[RunDirectory]:
    """Return the run directories of a sweep as `find_runs`, finished ones from its index, which is brought up to date.

    A failing write of the index is ignored: the next look reads more files.
    """
    index = read_json(sweep / FILE)
    known = index.get("trials", {}) if index.get("version") == VERSION else {}
    runs, entries = list[RunDirectory](), dict[str, Any]()
    for run in find_runs(sweep):
        signature = sign(run)
        entry = known.get(run.name, {})
        if signature and entry.get("signature") != signature:
            entry = read_entry(run, signature)
        if signature:
            entries[run.name] = entry
        runs.append(IndexedRun(run.path, entry) if signature else run)
    if entries != known:
        with suppress(OSError):
            write_json(sweep / FILE, {"version": VERSION, "trials": entries})
    return runs


def sign(run: RunDirectory) -> list[list[int]]:
    """Return inode, size and modification time of each file that an entry is read from; [] for an unfinished trial."""
    signature: list[list[int]] = []
    for name in SOURCES:
        try:
            stat = (run.path / name).stat()
            signature.append([stat.st_ino, stat.st_size, stat.st_mtime_ns])
        except OSError:
            if not signature:
                return []
            signature.append([])
    return signature


def read_entry(run: RunDirectory, signature: list[list[int]]) -> dict[str, Any]:
    """Return the entry of a finished trial."""
    evaluation, status = run.evaluation(), run.status()
    return {
        "signature": signature,
        "status": {key: status[key] for key in ("step", "steps", "attempt", "host", "losses") if key in status},
        "evaluation": {"metrics": evaluation.get("metrics") or {}} if evaluation else {},
        "error": run.evaluation_error(),
    }
