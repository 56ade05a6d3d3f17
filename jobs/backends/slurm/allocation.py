"""What a Slurm job knows of itself and asks of Slurm while it runs."""

import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.backends.base import Allocation
from jobs.backends.slurm.client import ask, parse_time_left
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import persist

REQUEUE_TIMEOUT = 600.0  # seconds that a job which has saved waits for a controller that does not answer
RETRY_INTERVAL, LONGEST_INTERVAL = 2.0, 30.0  # seconds between two requests, growing
# Refusals because the controller or the network is busy or down; any other one is final.
TRANSIENT = re.compile(
    r"no answer|contact|connect|timed out|communication|socket|standby|zero bytes|temporar|again", re.IGNORECASE
)
UNDECIDED = ("", "SIGNALING", "SUSPENDED", "STOPPED")  # states after which Slurm is asked again
EARLY_SIGNAL = 60  # seconds by which Slurm may signal too early


class SlurmAllocation(Allocation):
    """The nodes of a Slurm job, of which this process is a task."""

    @staticmethod
    def current() -> "SlurmAllocation":
        """Return the job of this process, from its environment."""
        env = os.environ
        array = env.get("SLURM_ARRAY_JOB_ID")
        # In an array the raw id of the last element would name the whole array.
        job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        return SlurmAllocation(
            job,
            Attempt(f"{job}.{env.get('SLURM_RESTART_COUNT', '0')}"),
            nodes=int(env.get("SLURM_NNODES", "1")),
            node=int(env.get("SLURM_NODEID", "0")),
            step=env.get("SLURM_STEP_ID", "0"),
            offline=True,
        )

    def node_name(self) -> str:
        """Return Slurm's name of this node, which is not always that of the machine."""
        return os.environ.get("SLURMD_NODENAME") or super().node_name()

    def first_address(self) -> str:
        """Return the name of the first node where that resolves, else the address that Slurm itself uses."""
        if self.nodes == 1:
            return super().first_address()
        name = ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"], in_job=True).output.split()[0]
        try:
            socket.getaddrinfo(name, None)
        except socket.gaierror:
            node = ask("scontrol", "show", "node", name, "-o", in_job=True).output
            return next(word.removeprefix("NodeAddr=") for word in node.split() if word.startswith("NodeAddr="))
        return name

    def record_statuses(self, sweep: Path) -> None:
        """Write what Slurm knows of a sweep's trials to its directory, for the report."""
        from jobs.backends.slurm.backend import SlurmBackend
        from jobs.tracking.state import query_statuses

        query_statuses(sweep, SlurmBackend())

    def requeue(self, runs: Sequence[RunDirectory], signal_delay: int, max_requeues: int) -> str:
        """Have Slurm requeue this job, unless it already decided otherwise, and record why the attempt ends.

        After scancel or scontrol requeue the job is COMPLETING: a requeue would revive what was cancelled.
        """
        if self.node:
            return ""
        deadline, interval = time.monotonic() + REQUEUE_TIMEOUT, RETRY_INTERVAL
        refusal = "its controller does not answer"
        while time.monotonic() < deadline:
            state, left = self.state()
            names = ", ".join(run.name for run in runs)
            print(f"{names}: saved, not finished; Slurm says {state or 'nothing'}, {left:.0f} s left", flush=True)
            if state == "RUNNING":
                if left < signal_delay + EARLY_SIGNAL:
                    count = max(
                        persist(partial(run.note_time_limit, self.attempt, self.job), str(run.path)) for run in runs
                    )
                    if count > max_requeues:
                        return (
                            f"reached its time limit {count} times (resources.max_requeues: {max_requeues}); raise "
                            "resources.time or max_requeues, and rerun the same command to resume from its checkpoint"
                        )
                elif self.is_preempted():
                    for run in runs:
                        persist(partial(run.note_preemption, self.attempt), str(run.path))
                earlier, refusal = refusal, ask("scontrol", "requeue", self.job, in_job=True).error
                # Asked twice, because a job that is ending meanwhile is refused as well, but has another state then.
                if not refusal or (refusal == earlier and not TRANSIENT.search(refusal)):
                    break
            elif state not in UNDECIDED:
                return ""
            time.sleep(interval)
            interval = min(2 * interval, LONGEST_INTERVAL)
        return refusal and f"saved, but Slurm does not requeue the job: {refusal}; submit again to resume"

    def state(self) -> tuple[str, float]:
        """Return Slurm's state of this job, such as RUNNING, and seconds to its time limit; '' without an answer."""
        output = ask("squeue", "-h", "-t", "all", "-j", self.job, "-o", "%T %L", in_job=True).output
        state, _, left = output.strip().partition(" ")
        return state, parse_time_left(left)

    def is_preempted(self) -> bool:
        """Return whether Slurm is about to give the nodes of this job to a job of higher priority."""
        words = ask("squeue", "-h", "-j", self.job, "-O", "PreemptTime:30", in_job=True).output.split()
        return bool(words) and words[0][:1].isdigit()  # else N/A


@dataclass
class SlurmWorker:
    """What submitit pickles and calls on every node: a worker on this job's allocation."""

    worker: Callable[[Allocation], None]

    def __call__(self) -> None:
        """Run the worker."""
        self.worker(SlurmAllocation.current())
