"""The one place that runs Slurm's commands."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.backends.base import ignore_signals
from trainer.errors import ConfigError

TIMEOUT = 60.0  # seconds
NO_CLUSTER = ("there is no sbatch here", "sbatch is installed here, but no cluster is configured")
MAX_IDS = 5000  # on a command line: the kernel takes 128 KiB
# Variables that options of Slurm's commands are read from. Those of a job in which the user works would reach the jobs
# that are submitted there, and a user's own would silently win over a sweep file.
OPTION_VARIABLE = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SCANCEL|SQUEUE|SACCT|SINFO|SCONTROL)_")
CONNECTION_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # how a command finds its controller


@dataclass(frozen=True)
class Answer:
    """What a command printed."""

    output: str
    error: str  # why it failed, in one line; empty if it did not
    stderr: str = ""


def command_environment() -> dict[str, str]:
    """Return the environment for Slurm's commands: without variables that would act as options."""
    return {k: v for k, v in os.environ.items() if k in CONNECTION_VARIABLES or not OPTION_VARIABLE.match(k)}


@contextmanager
def clean_environment() -> Iterator[None]:
    """Give this process `command_environment`, for a library that runs Slurm's commands itself."""
    before = dict(os.environ)
    try:
        for name in before.keys() - command_environment().keys():
            del os.environ[name]
        yield
    finally:
        os.environ.update(before)


def ask(*command: str, in_job: bool = False, timeout: float | None = None) -> Answer:
    """Run one of Slurm's commands, for at most `timeout` or TIMEOUT seconds.

    In a job it ignores the signals that Slurm sends to all processes of the job.
    """
    timeout = timeout or TIMEOUT
    try:
        done = subprocess.run(
            command,
            env=command_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
            preexec_fn=ignore_signals if in_job else None,
        )
    except FileNotFoundError:
        return Answer("", "is not installed here")
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"no answer within {timeout:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return Answer("", reason)
    if done.returncode == 0:
        return Answer(done.stdout, "")
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return Answer(done.stdout, lines[-1].removeprefix(f"{command[0]}: error: "), done.stderr)


def unavailable() -> str | None:
    """Return why Slurm cannot take jobs here, one of NO_CLUSTER if this machine belongs to none; None if it can."""
    if shutil.which("sbatch") is None:
        return NO_CLUSTER[0]
    ping = ask("scontrol", "ping", timeout=20)
    if " UP" in ping.output:
        return None
    if re.search("configuration (source|file)", ping.stderr):
        return NO_CLUSTER[1]
    # scontrol frames its answer with asterisks.
    lines = [line.strip(" *") for line in ping.output.splitlines() if line.strip(" *")]
    return f"no controller answers: {lines[0] if lines else ping.error or 'scontrol ping prints nothing'}"


def queue(jobs: Sequence[str]) -> dict[str, str]:
    """Return job id → state of those of `jobs` that wait or run; ConfigError if squeue does not answer.

    The id of an array stands for its elements.
    """
    states: dict[str, str] = {}
    for first in range(0, len(jobs), MAX_IDS):
        answer = ask("squeue", "-h", "-r", "-j", ",".join(jobs[first : first + MAX_IDS]), "-o", "%i %T")
        if answer.error and "Invalid job id" not in answer.error:  # squeue forgets jobs that ended
            raise ConfigError(f"{unavailable() or f'squeue does not answer: {answer.error}'}")
        states |= dict(line.split()[:2] for line in answer.output.splitlines())
    return states


def jobs_of_script(folder: Path, name: str) -> list[str]:
    """Return the ids of waiting or running jobs of a name whose batch script is in a folder, oldest first."""
    rows = ask("squeue", "-h", "-n", name, "-o", "%F %o").output.splitlines()
    ids = {job for job, _, script in (row.partition(" ") for row in rows) if Path(script).parent == folder}
    return sorted(ids, key=int)


def cancel(jobs: Sequence[str]) -> str:
    """Cancel jobs, whether they wait or run; return why one may not be cancelled, else ''.

    It is no error that a job has ended meanwhile. The elements of an array are one request to the controller.
    """
    words = compress(jobs)
    for first in range(0, len(words), 1000):
        answer = ask("scancel", *words[first : first + 1000])
        if "denied" in answer.error:
            return answer.error
    return ""


def release(job: str) -> None:
    """Let a held job, or all elements of an array, start; ConfigError if Slurm refuses."""
    if error := ask("scontrol", "release", job).error:
        raise ConfigError(f"scontrol release {job}: {error}")


def compress(jobs: Iterable[str]) -> list[str]:
    """Return job ids with the elements of an array in one word, such as 7_[0-3,5]."""
    arrays: dict[str, list[int]] = {}
    for job in jobs:
        array, _, index = job.partition("_")
        arrays.setdefault(array, []).extend([int(index)] if index else [])
    return [f"{array}_[{list_ranges(sorted(indices))}]" if indices else array for array, indices in arrays.items()]


def list_ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges: 0-3,5."""
    starts = [n for i, n in enumerate(numbers) if not i or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i + 1 == len(numbers) or numbers[i + 1] != n + 1]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def parse_time_left(clock: str) -> float:
    """Return seconds of a time as squeue prints it, [days-][hours:]minutes:seconds; infinite for UNLIMITED and such."""
    days, _, rest = clock.rpartition("-")
    parts = [days or "0", *rest.split(":")]
    if not all(part.isdigit() for part in parts):
        return float("inf")
    return int(parts[0]) * 86400 + sum(int(part) * 60**place for place, part in enumerate(reversed(parts[1:])))
