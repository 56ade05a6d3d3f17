"""The fencing lock: one group of processes trains a trial at a time and, of one job, only its newest attempt.

A file lock alone is not enough. A node that Slurm has lost may continue training and hold the lock, while Slurm has
already given the job to other nodes. The newest attempt then replaces the lock file, and the older attempt, which
reads that file again before it puts anything in place, exits.
"""

import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trainer.errors import ConfigError
from trainer.runs.atomic import name_file
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory

CHECK_INTERVAL = 0.5  # seconds between two checks of the lock file while nothing is about to be written
WATCH_INTERVAL = 5.0  # seconds between two checks by the thread that guards against a stuck collective


class Superseded(RuntimeError):
    """A newer attempt of this job trains the trial: exit and write nothing."""


class ClaimedRun(RunDirectory):
    """A run directory as a search gives it to a worker: locked from its first step to the last, also in between."""

    @property
    def lock_file(self) -> Path:
        """Held by the worker that runs the trial for a search."""
        return self.path / ".claim"


class Lock:
    """Held until it is closed or the process ends. The file's content is the attempt that holds it."""

    def __init__(self, run: RunDirectory, attempt: Attempt, file: IO[str]) -> None:
        self.run, self.attempt, self.file, self.last_check = run, attempt, file, 0.0
        with name_file(run.lock_file):
            file.truncate(0)
            file.write(attempt + "\n")
            file.flush()
            os.fsync(file.fileno())  # for readers on other nodes

    def check(self, interval: float = 0.0) -> None:
        """Raise Superseded if a newer attempt holds the lock; reads the file only every `interval` seconds."""
        if time.monotonic() - self.last_check >= interval:
            self.last_check = time.monotonic()
            if is_superseded(self.run, self.attempt):
                raise Superseded(f"{self.run.name}: {owner(self.run)} has taken over from {self.attempt}; exiting")

    def watch(self) -> None:
        """Exit from now on, even out of a stuck collective, when a newer attempt holds the lock.

        A process on a lost node may block forever on peers that no longer exist, so a thread watches the lock.
        """
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        over = False
        while not over:
            time.sleep(WATCH_INTERVAL)
            with suppress(OSError):
                over = is_superseded(self.run, self.attempt)
        time.sleep(WATCH_INTERVAL)  # the training loop may be about to exit by itself
        print(f"{self.run.name}: a newer attempt has taken over; {self.attempt} exits", file=sys.stderr, flush=True)
        os._exit(1)

    def close(self) -> None:
        """Release the lock."""
        self.file.close()


def take(run: RunDirectory, attempt: Attempt) -> Lock | None:
    """Lock a run directory; None if anything but an older attempt of the same job holds it."""
    file = run.lock_file.open("a+")
    if try_lock(file):
        return Lock(run, attempt, file)
    file.close()
    if not attempt.supersedes(owner(run)):
        return None
    # Locks belong to files, not to names: a new file under the old name is free.
    replacement = run.path / f".lock.{attempt}"
    file = replacement.open("a+")
    if not try_lock(file):
        file.close()
        return None
    lock = Lock(run, attempt, file)
    os.replace(replacement, run.lock_file)
    return lock


def try_lock(file: IO[str]) -> bool:
    """Try to lock an open file; return whether that worked. ConfigError if the file system has no locks."""
    try:
        with explain_missing_locks(file.name):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except ConfigError:
        file.close()
        raise
    return True


@contextmanager
def explain_missing_locks(path: str | Path) -> Iterator[None]:
    """Turn the refusal of a file system to lock a file into a ConfigError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        raise ConfigError(
            f"{path}: this file system has no file locks ({error.strerror}); mount it with them (Lustre: -o flock), or "
            "use another one: --runs, data.root"
        ) from None


def owner(run: RunDirectory) -> Attempt:
    """Return the attempt that holds the lock or held it last; empty before the first."""
    try:
        return Attempt(run.lock_file.read_text().strip())
    except FileNotFoundError:
        return Attempt()


def is_superseded(run: RunDirectory, attempt: Attempt) -> bool:
    """Return whether a newer attempt of the same job holds the lock."""
    return owner(run).supersedes(attempt)


def competitor(run: RunDirectory, attempt: Attempt) -> Attempt:
    """Return the attempt of another job or command whose living process holds the lock; empty if there is none."""
    holder = owner(run)
    if not holder or holder.job == attempt.job != "":
        return Attempt()
    with run.lock_file.open("a") as file:
        return Attempt() if try_lock(file) else holder
