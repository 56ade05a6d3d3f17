"""The one place that runs Slurm's commands."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.backends.base import ignore_signals
from trainer.errors import ConfigError

TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Answer:
    """What a command printed."""

    output: str
    error: str  # why it failed, in one line; empty if it did not
    stderr: str = ""


def ask(*command: str, in_job: bool = False, timeout: float = TIMEOUT) -> Answer:
    """Run one of Slurm's commands. In a job it ignores the signals that Slurm sends to all processes of the job."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
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
    """Return why Slurm cannot take jobs here; None if it can."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch here"
    ping = ask("scontrol", "ping", timeout=20)
    if " UP" in ping.output:
        return None
    lines = ping.output.strip().splitlines()
    return f"no controller answers: {ping.error or (lines[-1] if lines else 'scontrol ping prints nothing')}"


def queue() -> dict[str, str]:
    """Return job id → state of everything that waits or runs on the cluster; ConfigError if squeue does not answer."""
    answer = ask("squeue", "-h", "-r", "-o", "%i %T")
    if answer.error:
        raise ConfigError(f"{unavailable() or f'squeue does not answer: {answer.error}'}")
    return dict(line.split()[:2] for line in answer.output.splitlines())


def cancel(jobs: Sequence[str]) -> str:
    """Cancel jobs, whether they wait or run; return why one may not be cancelled, else ''.

    It is no error that a job has ended meanwhile.
    """
    for first in range(0, len(jobs), 1000):
        answer = ask("scancel", *jobs[first : first + 1000])
        if "denied" in answer.error:
            return answer.error
    return ""


def parse_time_left(clock: str) -> float:
    """Return seconds of a time as squeue prints it, [days-][hours:]minutes:seconds; infinite for UNLIMITED and such."""
    days, _, rest = clock.rpartition("-")
    parts = [days or "0", *rest.split(":")]
    if not all(part.isdigit() for part in parts):
        return float("inf")
    return int(parts[0]) * 86400 + sum(int(part) * 60**place for place, part in enumerate(reversed(parts[1:])))
