"""How a process ended: by which signal, and whether the kernel ended it because memory was short."""

import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn

OUT_OF_MEMORY, KILLED, DISK_ERROR = "out of memory", "killed", "disk error"  # causes of a failure
DISK_REFUSED = "the disk of the run directory refuses to be written (full, over quota, read-only or unreachable)"


def describe_death(process: str, code: int, node: str, oom_kills: int) -> tuple[str, str]:
    """Return reason and cause of the end of a process on a node by a signal; `code` is its negative number.

    `oom_kills` is how often the kernel has killed a process of this job for lack of memory meanwhile.
    """
    number = signal.Signals(-code)
    if oom_kills and number == signal.SIGKILL:
        return f"out of memory: the kernel killed {process} on {node}; raise resources.mem_gb", OUT_OF_MEMORY
    return f"{process} was killed by {number.name} on {node}", KILLED


def count_oom_kills(system: Path = Path("/")) -> int:
    """Return how many processes of this job the kernel has killed for lack of memory; 0 where it does not tell.

    Without a cgroup of its own it is counted for the whole machine.
    """
    try:
        groups = dict(line.split(":", 2)[1:] for line in (system / "proc/self/cgroup").read_text().splitlines())
    except OSError:
        return 0
    files = [
        system / "sys/fs/cgroup" / groups.get("", "").lstrip("/") / "memory.events",
        system / "sys/fs/cgroup/memory" / groups.get("memory", "").lstrip("/") / "memory.oom_control",
        system / "proc/vmstat",
    ]
    for file in files:
        try:
            if count := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                return int(count[1])
        except OSError:
            continue
    return 0


def exit_silently(code: int = 0) -> NoReturn:
    """Exit without result and exception: submitit would take either for the end of the job."""
    with contextlib.suppress(OSError):  # the disk of the log may be full
        sys.stdout.flush()
    os._exit(code)
