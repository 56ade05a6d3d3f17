"""Find and read the log files of a trial, on Slurm and on this machine."""

import os
from pathlib import Path

from jobs.backends.slurm.job_logs import list_log_files
from trainer.runs import submissions
from trainer.runs.directory import RunDirectory

TAIL_BYTES = 1 << 16  # size of the end of a file that is searched for its last lines


def newest_log_files(sweep: Path, trial: str, stage: str) -> list[Path]:
    """Return the log files of a trial's newest job in a stage (train or eval), stderr last; [] before the first."""
    arrays = [array for line in submissions.read(sweep) for array in line.get("arrays", []) if array["stage"] == stage]
    jobs = {
        job: array for array in arrays for job, trials in submissions.trials_by_job(array).items() if trial in trials
    }
    local_log = RunDirectory(sweep / trial).log_file(stage)
    newest = next((job for job in reversed(jobs) if list_log_files(sweep, job)), "")
    # Where trials run side by side, the job's own log holds only what their worker says.
    if newest and jobs[newest].get("slots", 1) > 1 and local_log.exists():
        return [local_log]
    job_logs = list_log_files(sweep, newest) if newest else []
    if local_log.exists() and (not job_logs or max(map(modified_at, job_logs)) < modified_at(local_log)):
        return [local_log]
    return job_logs


def modified_at(file: Path) -> float:
    """Return the modification time of a file; 0 if it does not exist."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def read_tail(file: Path) -> tuple[str, int]:
    """Return the last TAIL_BYTES of a file as text, and its size; ('', 0) if it does not exist."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - TAIL_BYTES))
            return opened.read(size - opened.tell()).decode(errors="replace"), size
    except OSError:
        return "", 0
