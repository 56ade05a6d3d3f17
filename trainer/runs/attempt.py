"""Attempts: one execution of a trial by one job start."""

import socket
import time
from typing import Any

import psutil

HEARTBEAT_TIMEOUT = 120.0  # seconds without a heartbeat after which a trial counts as dead


class Attempt(str):
    """The name of an attempt, as markers and the heartbeat carry it.

    `<job>.<restart>` in a Slurm job, `local-<pid>` under jobs/submit.py on this machine, `direct` for a trainer that
    was started by hand.
    """

    __slots__ = ()

    @property
    def job(self) -> str:
        """The job of this attempt; empty outside Slurm."""
        return self.rpartition(".")[0]

    @property
    def restart(self) -> int:
        """How often the job was requeued before this attempt; 0 outside Slurm."""
        return int(self.rpartition(".")[2]) if self.job else 0

    @property
    def is_local(self) -> bool:
        """Whether it was started without Slurm."""
        return self == DIRECT or self.startswith("local-")

    def supersedes(self, other: "Attempt") -> bool:
        """Return whether this is a later attempt of the same job."""
        return bool(self.job) and self.job == other.job and self.restart > other.restart


DIRECT = Attempt("direct")  # shared by all attempts that were started by hand


def is_alive(status: dict[str, Any]) -> bool:
    """Return whether the process of a heartbeat may be running."""
    pid = status.get("pid")
    if status.get("host") == socket.gethostname() and not (isinstance(pid, int) and psutil.pid_exists(pid)):
        return False
    return time.time() - status.get("time", 0) < HEARTBEAT_TIMEOUT
