"""Disks that refuse to be written: why, and trying again for a while, because many recover within minutes."""

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

# Full, over quota, read-only, or a shared disk that does not answer: each may pass, or be repaired, within minutes.
PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN
}  # fmt: skip
DISK_CODE = os.EX_IOERR  # exit code of a training whose disk refuses to be written: its error record may be missing
TIMEOUT_VARIABLE = "TURNOUT_DISK_TIMEOUT"  # seconds for which a write is tried again
DEFAULT_TIMEOUT, RETRY_INTERVAL = 300.0, 2.0  # seconds


def disk_errno(error: BaseException | None) -> int:
    """Return the operating system's number of the error that made a write fail; 0 for an error of another cause.

    The writers of safetensors and torch wrap it: one leaves only its number in a text, the other raises an error of
    its own on the way out.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return int(number[1])
        error = error.__cause__ or error.__context__
    return 0


def disk_error(error: BaseException) -> str:
    """Return the operating system's reason why a file could not be written; empty for an error of another cause."""
    number = disk_errno(error)
    return os.strerror(number) if number else ""


def persist(write: Callable[[], T], subject: str) -> T:
    """Call `write` until the disk accepts it, for at most TURNOUT_DISK_TIMEOUT seconds; then its error is raised."""
    deadline, is_announced = time.monotonic() + float(os.environ.get(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT)), False
    while True:
        try:
            return write()
        except Exception as error:
            if disk_errno(error) not in PASSING or time.monotonic() >= deadline:
                raise
            if not is_announced:
                left = deadline - time.monotonic()
                say(f"{subject}: {disk_error(error)}; trying again for {left:.0f} s")
                is_announced = True
            time.sleep(RETRY_INTERVAL)


def say(line: str) -> None:
    """Print a line to stderr, unless that is a file on the same disk."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
