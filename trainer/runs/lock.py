"""Who may write into a run directory: one group of processes at a time and, of a job, only its newest attempt.

A lock alone is not enough. A node that Slurm has lost may go on training and hold the lock, while Slurm has already
given the job to other nodes. The newest attempt then takes the lock file's place, and the older one, which reads that
file again before it puts anything in place, leaves.
"""

import fcntl
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from trainer.runs.atomic import naming_file

LOOK = 0.5  # seconds between two looks while nothing is about to be written
PATROL = 5.0  # seconds between two looks of who may be waiting for processes that are gone


class Superseded(RuntimeError):
    """A newer attempt of this job has the run: leave, and touch nothing."""


class Lock:
    """Held until it is closed or the process ends. The file's content is the attempt that holds it."""

    def __init__(self, run: Path, attempt: str, file: IO[str]) -> None:
        self.run, self.attempt, self.file, self.looked = run, attempt, file, 0.0
        with naming_file(run / "lock"):
            file.truncate(0)
            file.write(attempt + "\n")
            file.flush()
            os.fsync(file.fileno())  # for readers on other nodes

    def check(self, pause: float = 0.0) -> None:
        """Raise Superseded if the run has been given to a newer attempt; looks again only after `pause` seconds."""
        if time.monotonic() - self.looked >= pause:
            self.looked = time.monotonic()
            if superseded(self.run, self.attempt):
                raise Superseded(f"{self.run.name}: {owner(self.run)} has taken over from {self.attempt}; left to it")

    def watch(self) -> None:
        """From now on leave when the run has been given to a newer attempt, also out of an exchange without end.

        Who wakes up on a node that was lost waits for the other processes of his attempt, which are long dead.
        """
        threading.Thread(target=self._patrol, daemon=True).start()

    def _patrol(self) -> None:
        over = False
        while not over:
            time.sleep(PATROL)
            with suppress(OSError):
                over = superseded(self.run, self.attempt)
        time.sleep(PATROL)  # the loop may be about to say so itself
        print(f"{self.run.name}: a newer attempt has taken over; {self.attempt} leaves", file=sys.stderr, flush=True)
        os._exit(1)

    def close(self) -> None:
        """Let others have the run."""
        self.file.close()


def take(run: Path, attempt: str) -> Lock | None:
    """Lock a run; None if it is held by anybody but an older attempt of the same job."""
    file = (run / "lock").open("a+")
    if locked(file):
        return Lock(run, attempt, file)
    file.close()
    if not newer(attempt, owner(run)):
        return None
    # Locks belong to files, not to names: a new file under the old name is free.
    fresh = run / f".lock.{attempt}"
    file = fresh.open("a+")
    if not locked(file):
        file.close()
        return None
    lock = Lock(run, attempt, file)
    os.replace(fresh, run / "lock")
    return lock


def locked(file: IO[str]) -> bool:
    """Try to lock an open file; whether that worked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def owner(run: Path) -> str:
    """The attempt that holds a run or held it last; empty before the first."""
    try:
        return (run / "lock").read_text().strip()
    except FileNotFoundError:
        return ""


def newer(attempt: str, than: str) -> bool:
    """Whether two attempts, `<job>.<number>`, are of the same job and the first is the later one."""
    (job, _, number), (other, _, before) = attempt.rpartition("."), than.rpartition(".")
    return bool(job) and job == other and int(number) > int(before)


def superseded(run: Path, attempt: str) -> bool:
    """Whether a newer attempt of the same job has taken the run."""
    return newer(owner(run), attempt)


def rival(run: Path, attempt: str) -> str:
    """The attempt of another job, or of a command, whose living process holds the run; empty if there is none."""
    found = owner(run)
    if not found or found.rpartition(".")[0] == attempt.rpartition(".")[0] != "":
        return ""
    with (run / "lock").open("a") as file:
        return "" if locked(file) else found
