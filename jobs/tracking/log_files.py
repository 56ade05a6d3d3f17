"""Where the jobs of a trial print, on Slurm and on this machine."""

import os
from pathlib import Path

from jobs.tracking import submissions

TAIL = 1 << 16  # bytes at the end of a file in which its last lines are looked for


def newest(sweep: Path, trial: str, stage: str) -> list[Path]:
    """The files into which the newest job of a trial's stage printed, errors last; [] before the first."""
    arrays = [array for line in submissions.lines(sweep) for array in line.get("arrays", []) if array["stage"] == stage]
    jobs = [job for array in arrays for job, trials in submissions.elements(array).items() if trial in trials]
    here = sweep / trial / f"{stage}.log"
    found = next((files for job in reversed(jobs) if (files := printed(sweep, job))), [])
    if here.exists() and (not found or max(map(modified, found)) < modified(here)):
        return [here]
    return found


def printed(sweep: Path, job: str) -> list[Path]:
    """The logs of a job on Slurm, those of the first task last, and of each task its errors last."""
    files = (sweep / "slurm" / job).glob(f"{job}_*_log.*")
    return sorted(files, key=lambda file: (-int(file.name.split("_")[-2]), file.suffix == ".err"))


def modified(file: Path) -> float:
    """When a file was written last; 0 where it is gone."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def end(file: Path) -> tuple[str, int]:
    """The last TAIL bytes of a file as text, and its size; ('', 0) where it is missing."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - TAIL))
            return opened.read(size - opened.tell()).decode(errors="replace"), size
    except OSError:
        return "", 0
