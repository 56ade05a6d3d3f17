"""Find the log files of Slurm jobs, and read from them what ended a job, as Slurm, the kernel and the shell tell it."""

import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs.deaths import DISK_ERROR, DISK_REFUSED
from trainer.runs.disk import DISK_CODE

SLURM_MESSAGE = re.compile(r"srun: |slurmstepd\S*: |submitit ")  # follows the error that ended a job
NEW_ATTEMPT = re.compile(r"\w+: attempt (\S+) on \S+$")  # attempts of a job append to the same files
NAMES = {signal.strsignal(number): number.name for number in signal.Signals}  # Killed: SIGKILL
SIGNAL = "|".join(re.escape(name) for name in NAMES if name)
# Only a worker whose disk refuses ends so, before or after a peer that Slurm kills.
DISK_END = rf"srun: error: \S+: tasks? [\d,-]+: Exited with exit code {DISK_CODE}$"
# What a line of a log says of the end of a job, as cause and reason; the first entry that matches any line wins.
EVIDENCE = [
    (r"error: (setup line failed: .*)", "exit code", "{0}"),
    # Messages of Slurm or Linux when they kill a process that uses too much memory.
    (r"(?i)oom.?kill|exceeded (job |step )?memory limit|out.of.memory handler|: Out Of Memory", "out of memory", ""),
    (r"srun: error: Node failure on (\S+)", "node failure", "node {0} went down"),
    (r"\*\*\* \w+ \S+ ON (\S+) CANCELLED AT \S+ DUE TO NODE FAILURE", "node failure", "a node went down"),
    (r"\*\*\* \w+ \S+ ON \S+ CANCELLED AT \S+ DUE TO TIME LIMIT", "time limit", ""),
    (rf"\S+: line \d+: +\d+ ({SIGNAL})\b.*\bsrun\b", "killed", "srun, which runs the job's tasks, was killed by {0}"),
    (DISK_END, DISK_ERROR, DISK_REFUSED),
    (rf"srun: error: (\S+): tasks? [\d,-]+: ({SIGNAL})\b", "killed", "the worker on {0} was killed by {1}"),
]
TASK_END = re.compile(r"srun: error: \S+: tasks? ")
STEP_END = re.compile(r"CANCELLED AT|\*\*\* STEP \S+ ON \S+ FAILED ")
# Errors of srun itself, such as that it cannot create a step, but not those that only pass on a task's end.
SRUN_ERROR = re.compile(r"srun: (?:error|fatal): (?!\S+: tasks? |Timed out|Step aborted)(.*)")


def list_log_files(sweep: Path, job: str) -> list[Path]:
    """Return the log files of a job: its first task last, and for each task stderr last."""
    files = (sweep / "slurm" / job).glob(f"{job}_*_log.*")
    return sorted(files, key=lambda file: (-int(file.name.split("_")[-2]), file.suffix == ".err"))


def newest_attempt(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines of a log file that the newest attempt of its job wrote, or all of them.

    Its batch script names it first, then its worker; between the two, Slurm may already tell of its end.
    """
    names = [match[1] if (match := NEW_ATTEMPT.match(line)) else "" for line in lines]
    newest = next((name for name in reversed(names) if name), "")
    return lines[names.index(newest) :] if newest else lines


def explain_lines(lines: Sequence[str]) -> tuple[str, str]:
    """Return cause and reason of the end of a job from the lines of its log; empty if they do not tell."""
    # After the end of one task or of the batch script, or a cancellation, Slurm ends the other tasks.
    ends = [line for line in lines if TASK_END.match(line) or STEP_END.search(line)]
    lines = [line for line in lines if not TASK_END.match(line) or line == ends[0] or re.match(DISK_END, line)]
    for pattern, cause, reason in EVIDENCE:
        for line in lines:
            if match := re.search(pattern, line):
                return cause, reason.format(*(NAMES.get(word, word) for word in match.groups()))
    return "", ""


def list_job_scripts(sweep: Path) -> list[Path]:
    """Return the files of a sweep that its jobs were started with or left for submitit, without their logs."""
    return [path for path in sorted((sweep / "slurm").glob("*/*")) if path.suffix in (".sh", ".pkl")]


def last_message(lines: Iterable[str]) -> str:
    """Return the last line of a log that is not empty and not from Slurm, else srun's first error; '' if none."""
    lines = [*lines]

    def is_own(line: str) -> bool:
        return bool(line.strip()) and not SLURM_MESSAGE.match(line) and not NEW_ATTEMPT.match(line)

    own = next((line.strip() for line in reversed(lines) if is_own(line)), "")
    return own or next((match[0].strip() for line in lines if (match := SRUN_ERROR.match(line))), "")
