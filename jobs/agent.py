"""torchrun on one node, which also records whether a signal ended one of its processes.

The other processes only see that their connection to that one broke, and report that.
"""

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from jobs.deaths import count_oom_kills, describe_death
from trainer.runs.attempt import DIRECT, Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import DISK_CODE

SIMULTANEOUS = 5  # seconds within which processes fail at the same time; torchrun kills the others after 30 s


def main(arguments: list[str]) -> None:
    """Run torchrun with its own arguments, of which the last is a run directory; exit as its processes do."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    oom_kills = count_oom_kills()
    try:
        torchrun.main(arguments)
    except ChildFailedError as error:
        first = min(failure.timestamp for failure in error.failures.values())
        codes = {rank: f.exitcode for rank, f in error.failures.items() if f.timestamp - first < SIMULTANEOUS}
        if DISK_CODE in codes.values():
            sys.exit(DISK_CODE)
        run, attempt = RunDirectory(Path(arguments[-1])), Attempt(os.environ.get("TURNOUT_ATTEMPT", DIRECT))
        node = os.environ.get("TURNOUT_NODE", socket.gethostname())
        for rank, code in codes.items():
            # Slurm sends SIGTERM to all processes of a job whose first one has failed.
            if code < 0 and code != -signal.SIGTERM and not run.has_failed(attempt, rank):
                reason, cause = describe_death(f"process {rank}", code, node, count_oom_kills() - oom_kills)
                with suppress(OSError):  # on a full disk, the log has it
                    run.fail(attempt, reason, rank, cause)
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
