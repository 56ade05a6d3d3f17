"""What the worker of this machine runs now: a file in the sweep's directory."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.runs.atomic import read_json, write_json

FILE = ".worker.json"
SAME_START = 2.0  # seconds; an adjusted clock moves the start of a process, but no second process gets its pid so soon


@dataclass(frozen=True)
class LocalWork:
    """A living worker and its tasks."""

    pid: int
    tasks: dict[int, tuple[str, str]]  # process id → stage and trial


def write_local_work(sweep: Path, tasks: dict[int, tuple[str, str]]) -> None:
    """Record what this process, the worker, runs: process id → stage and trial. Without tasks the file is removed."""
    if not tasks:
        (sweep / FILE).unlink(missing_ok=True)
        return
    this = {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": socket.gethostname()}
    record = this | {"tasks": {str(pid): list(task) for pid, task in tasks.items()}}
    if read_json(sweep / FILE) != record:
        write_json(sweep / FILE, record)


def read_local_work(sweep: Path) -> LocalWork | None:
    """Return what a worker of this machine runs of a sweep; None if there is none."""
    record = read_json(sweep / FILE)
    try:
        worker = psutil.Process(record["pid"])
        is_same = abs(worker.create_time() - record["created"]) < SAME_START
        alive = is_same and worker.status() != psutil.STATUS_ZOMBIE
    except (KeyError, psutil.Error):
        return None
    if not alive or record["host"] != socket.gethostname():
        return None
    return LocalWork(record["pid"], {int(pid): (stage, trial) for pid, (stage, trial) in record["tasks"].items()})
