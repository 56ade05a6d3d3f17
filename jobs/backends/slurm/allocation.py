"""What a job knows of itself and asks of Slurm while it runs."""

import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

# What starts a program as deaf as ignore_signals leaves one.
DEAF = ("env", "--ignore-signal=USR2", "--ignore-signal=TERM")


@dataclass(frozen=True)
class Allocation:
    """Where this process stands: in a Slurm job, or on a machine of its own."""

    job: str  # <array>_<index> in an array: the raw id of its last element would name the whole array
    attempt: str  # <job>.<number>: grows with every requeue, and fences its markers
    nodes: int = 1
    node: int = 0
    slurm: bool = False

    @staticmethod
    def local() -> "Allocation":
        """This machine alone, even inside somebody's Slurm job."""
        return Allocation("local", f"local-{os.getpid()}")

    @staticmethod
    def here() -> "Allocation":
        """The Slurm job that this process is a task of."""
        env = os.environ
        array = env.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        attempt = f"{job}.{env.get('SLURM_RESTART_COUNT', '0')}"
        return Allocation(job, attempt, int(env.get("SLURM_NNODES", "1")), int(env.get("SLURM_NODEID", "0")), True)

    def head(self) -> str:
        """Address of the first node: its name where that resolves, else the address that Slurm itself uses."""
        if self.nodes == 1:
            return "127.0.0.1"
        name = ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).stdout.split()[0]
        try:
            socket.getaddrinfo(name, None)
        except socket.gaierror:
            node = ask("scontrol", "show", "node", name, "-o").stdout
            return next(word.removeprefix("NodeAddr=") for word in node.split() if word.startswith("NodeAddr="))
        return name

    def state(self) -> tuple[str, float]:
        """What Slurm says of this job, such as RUNNING, and its seconds to the time limit; '' without an answer."""
        state, _, left = ask("squeue", "-h", "-t", "all", "-j", self.job, "-o", "%T %L").stdout.strip().partition(" ")
        return state, seconds(left)

    def preempted(self) -> bool:
        """Whether Slurm is about to take this job's nodes for a job of higher priority."""
        when = ask("squeue", "-h", "-j", self.job, "-O", "PreemptTime:30").stdout.split()
        return bool(when) and when[0][:1].isdigit()  # else N/A

    def requeue(self) -> str:
        """Ask for another turn; return why Slurm refuses, or '' where it does not.

        Accepting, Slurm signals this job, and scontrol with it: it is deaf to that, so that the answer arrives.
        """
        asked = ask("scontrol", "requeue", self.job)
        return " ".join(asked.stderr.split()) or f"exit code {asked.returncode}" if asked.returncode else ""


def ask(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run one of Slurm's commands to its end, whatever signals come."""
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=ignore_signals)


def ignore_signals() -> None:
    """Before exec: the child starts deaf, so that a warning during its start-up does not kill it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def parent(process: int) -> int:
    """The pid of a process's parent; OSError if it has ended."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def seconds(clock: str) -> float:
    """A time as squeue prints it, [days-][hours:]minutes:seconds; infinite where it is none, as UNLIMITED."""
    days, _, rest = clock.rpartition("-")
    parts = [days or "0", *rest.split(":")]
    if not all(part.isdigit() for part in parts):
        return float("inf")
    return int(parts[0]) * 86400 + sum(int(part) * 60**place for place, part in enumerate(reversed(parts[1:])))
