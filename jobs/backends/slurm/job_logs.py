"""Find the log files of Slurm jobs and tell Slurm's own messages from those of a trial."""

import re
from collections.abc import Iterable
from pathlib import Path

# Messages of Slurm or Linux when they kill a process that uses too much memory.
OUT_OF_MEMORY = re.compile(r"oom.?kill|exceeded (job |step )?memory limit|out.of.memory handler", re.IGNORECASE)
SLURM_MESSAGE = re.compile(r"srun: |slurmstepd\S*: |submitit ")  # follows the error that ended a job


def list_log_files(sweep: Path, job: str) -> list[Path]:
    """Return the log files of a job: its first task last, and for each task stderr last."""
    files = (sweep / "slurm" / job).glob(f"{job}_*_log.*")
    return sorted(files, key=lambda file: (-int(file.name.split("_")[-2]), file.suffix == ".err"))


def is_out_of_memory(lines: Iterable[str]) -> bool:
    """Return whether lines of a log say that a process was killed because it used too much memory."""
    return any(OUT_OF_MEMORY.search(line) for line in lines)


def last_message(lines: Iterable[str]) -> str:
    """Return the last line of a log that is not empty and not from Slurm; '' if there is none."""
    return next((line.strip() for line in reversed([*lines]) if line.strip() and not SLURM_MESSAGE.match(line)), "")
