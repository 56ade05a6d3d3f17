"""Faults that can hit a trial on a cluster. Each function causes one at a random step and waits for its effect."""

import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.submitted import (
    STEPS,
    TIMEOUT,
    Submitted,
    agents,
    children,
    is_alive,
    losses,
    parent,
    restarts,
    send,
    workers,
)
from trainer.runs.directory import RunDirectory


@dataclass
class Trial:
    """The last trial of a sweep, and what a fault needs to know of it."""

    sweep: Submitted
    random: random.Random
    nodes: int
    processes: int  # on all nodes
    faults_left: int
    restarts: int = 0  # how often Slurm has requeued its job
    notes: list[str] = field(default_factory=list)  # printed with the test's result
    frozen: list[int] = field(default_factory=list)  # pids on a node that Slurm cannot reach any more
    siblings_before: dict[Path, dict[str, bytes]] = field(default_factory=dict)  # files of the other trials, when done
    crashed: list[str] = field(default_factory=list)  # attempts that may have taken steps after their last checkpoint

    def __post_init__(self) -> None:
        self.cluster = self.sweep.cluster
        *self.siblings, self.run = (run.path for run in self.sweep.runs())
        self.submit()

    def submit(self) -> None:
        """Start or resume the trial."""
        self.sweep.submit()
        self.job, self.restarts = self.sweep.jobs("train")[-1], 0

    @property
    def attempt(self) -> str:
        """The current attempt, as run directories name it."""
        return f"{self.job}.{self.restarts}"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause all processes of the trial at a random step, so that what happens inside happens at that step."""
        first = len(losses(self.run))
        step = first + self.random.randint(1, max(1, (STEPS - 100 - first) // self.faults_left))
        self.cluster.wait(lambda: len(losses(self.run)) >= step, TIMEOUT, f"step {step}")
        pids = workers(self.run)
        assert len(pids) == self.processes
        send(pids, signal.SIGSTOP)
        if self.siblings and not self.siblings_before:
            for job in self.sweep.jobs("train")[:-1]:
                self.sweep.wait_for(job, "COMPLETED")
            self.siblings_before = {run: read_files(run) for run in self.siblings}
        self.notes[-1] += f" at step {len(losses(self.run))}"
        yield
        send([pid for pid in pids if pid not in self.frozen], signal.SIGCONT)

    def wait_for_stop_request(self) -> None:
        """Wait until the launcher has passed on a request to stop."""
        pattern = f"stop*.{self.attempt}*"
        self.cluster.wait(lambda: any(self.run.glob(pattern)), TIMEOUT, f"a request to stop attempt {self.attempt}")

    def send_usr2(self) -> None:
        """Send the signal that Slurm sends before a time limit."""
        self.cluster.run("scancel", "--signal=USR2", self.job)

    def wait_for_requeue(self) -> None:
        """Wait until Slurm has requeued the job exactly once more."""
        self.restarts += 1
        self.cluster.wait(lambda: restarts(self.cluster, self.job) >= self.restarts, TIMEOUT, f"{self.attempt}")
        assert restarts(self.cluster, self.job) == self.restarts

    def wait_for_end(self, state: str) -> None:
        """Wait until the job is in a final state, without another requeue."""
        self.sweep.wait_for(self.job, state)
        self.cluster.wait(lambda: not self.cluster.run("squeue", "-h").stdout, TIMEOUT, "an empty queue")
        self.cluster.wait(lambda: not set(workers(self.run)) - set(self.frozen), TIMEOUT, "its processes to end")
        assert (self.sweep.state(self.job), restarts(self.cluster, self.job)) == (state, self.restarts)

    def launchers(self) -> list[int]:
        """Return the pids of the launchers on its nodes."""
        return [parent(pid) for pid in (agents(self.run) if self.processes > 1 else workers(self.run))]

    def choose_node(self) -> str:
        """Return one of the nodes on which it runs, at random."""
        nodelist = self.cluster.run("squeue", "-h", "-j", self.job, "-o", "%N").stdout.strip()
        node = self.random.choice(self.cluster.run("scontrol", "show", "hostnames", nodelist).stdout.split())
        self.notes[-1] += f" on {node}"
        return node

    def stops_and_resumes(self) -> tuple[list[int], list[int]]:
        """Return the steps at which it stopped, and those from which it resumed."""
        output = self.sweep.output(10**6)
        return (
            [int(step) for step in re.findall(r": stopped at step (\d+)", output)],
            [int(step) for step in re.findall(r": resuming from step (\d+)", output)],
        )


# Faults after which Slurm requeues the job


def preempt(trial: Trial) -> None:
    with trial.paused():
        high = trial.cluster.run(
            "sbatch", "--parsable", "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null",
            stdin="#!/bin/sh\n",
        ).stdout.strip()  # fmt: skip
        trial.wait_for_stop_request()
    trial.sweep.wait_for(high, "COMPLETED")


def preempt_without_grace(trial: Trial) -> None:
    """Slurm sends all of its signals at once, and SIGKILL after KillWait."""
    trial.cluster.run("scontrol", "update", "PartitionName=main", "GraceTime=0")
    preempt(trial)


def send_usr2(trial: Trial) -> None:
    with trial.paused():
        trial.send_usr2()
        trial.wait_for_stop_request()


def send_usr2_before_workers_exist(trial: Trial) -> None:
    trial.cluster.wait(lambda: agents(trial.run), TIMEOUT, "torchrun")
    assert not workers(trial.run)
    trial.send_usr2()


def send_usr2_while_torch_is_imported(trial: Trial) -> None:
    trial.cluster.wait(lambda: workers(trial.run), TIMEOUT, "a worker")
    assert not (trial.run / "lock").exists() or trial.attempt not in (trial.run / "lock").read_text()
    trial.send_usr2()


def requeue_by_hand(trial: Trial) -> None:
    with trial.paused():
        trial.cluster.run("scontrol", "requeue", trial.job)
        trial.wait_for_stop_request()


def reach_time_limit(trial: Trial) -> None:
    """Slurm checks time limits every 30 s."""
    with trial.paused():
        shorten_time_limit(trial)
        trial.wait_for_stop_request()
    trial.cluster.wait(lambda: restarts(trial.cluster, trial.job) > trial.restarts, TIMEOUT, "a requeue")
    trial.cluster.run("scontrol", "update", f"JobId={trial.job}", "TimeLimit=10")


def restart_slurmctld(trial: Trial) -> None:
    with trial.paused():
        trial.cluster.wait_until_saved(trial.job)
        trial.cluster.kill_daemon("slurmctld")
        trial.cluster.start_daemon("slurmctld")
        trial.sweep.wait_for(trial.job, "RUNNING")
        trial.send_usr2()
        trial.wait_for_stop_request()


def stop_without_slurmctld(trial: Trial) -> None:
    with trial.paused():
        trial.cluster.wait_until_saved(trial.job)
        trial.cluster.kill_daemon("slurmctld")
        send(trial.launchers(), signal.SIGUSR2)
        trial.wait_for_stop_request()
    # squeue alone retries for 20 s.
    trial.cluster.wait(lambda: "Slurm says nothing" in trial.sweep.output(), TIMEOUT, "squeue to give up")
    trial.cluster.start_daemon("slurmctld")


def kill_slurmd(trial: Trial) -> None:
    """Slurm declares the node down, and signals the processes on the other one."""
    with trial.paused():
        node = f"slurmd-{trial.choose_node()}"
        trial.cluster.kill_daemon(node)
        trial.wait_for_stop_request()
    trial.sweep.wait_for(trial.job, "PENDING")
    trial.cluster.start_daemon(node)


def lose_contact_with_only_node(trial: Trial) -> None:
    """Slurm declares the only node down and starts the job on another, while the first keeps training unsignalled."""
    with trial.paused():
        node, pids = f"slurmd-{trial.choose_node()}", workers(trial.run)
        trial.cluster.kill_daemon(node)
        trial.cluster.wait(lambda: len(workers(trial.run)) > len(pids), TIMEOUT, "the next attempt")
    trial.cluster.wait(lambda: not any(map(is_alive, pids)), TIMEOUT, "the superseded attempt to end")
    trial.cluster.start_daemon(node)


def send_usr2_without_slurmdbd(trial: Trial) -> None:
    """From then on there is no accounting."""
    with trial.paused():
        trial.cluster.kill_daemon("slurmdbd")
        trial.send_usr2()
        trial.wait_for_stop_request()
    assert trial.cluster.run("sacct", "-j", trial.job, check=False).returncode


def freeze_first_node(trial: Trial) -> None:
    """The processes on the first node, one of which holds the trial's lock, pause until the end of the trial."""
    with trial.paused():
        (agent,) = agents(trial.run, node=0)
        trial.frozen = [parent(agent), agent, *children(agent)]
        send(trial.frozen, signal.SIGSTOP)
        trial.cluster.kill_daemon("slurmd-n1")
        trial.wait_for_stop_request()


def unfreeze(trial: Trial) -> None:
    """Frozen processes notice that another attempt has done their work, and exit without changing a file."""
    before = read_files(trial.run)
    send(trial.frozen, signal.SIGCONT)
    trial.cluster.wait(lambda: not any(map(is_alive, trial.frozen)), TIMEOUT, "the frozen processes to end")
    assert read_files(trial.run) == before
    assert restarts(trial.cluster, trial.job) == trial.restarts


def read_files(run: Path) -> dict[str, bytes]:
    """Return path → bytes of all files, except TensorBoard's, to which a writer may still append."""
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file() and "tfevents" not in file.name}


def shorten_time_limit(trial: Trial) -> None:
    """Leave the job between 30 and 90 seconds."""
    elapsed = trial.cluster.run("squeue", "-h", "-j", trial.job, "-o", "%M").stdout.strip().split(":")
    minutes = (int(elapsed[-2]) * 60 + int(elapsed[-1])) / 60
    trial.cluster.run("scontrol", "update", f"JobId={trial.job}", f"TimeLimit={int(minutes + 1.5)}")


# Faults after which the trial resumes when it is submitted again


def cancel(trial: Trial) -> None:
    """The trial saves, and stays cancelled."""
    with trial.paused():
        trial.cluster.run("scancel", trial.job)
        trial.wait_for_stop_request()
    trial.wait_for_end("CANCELLED")
    assert RunDirectory(trial.run).state() == "stopped"


def exceed_max_requeues(trial: Trial) -> None:
    with trial.paused():
        shorten_time_limit(trial)
        trial.wait_for_stop_request()
    trial.wait_for_end("FAILED")
    assert "reached its time limit 2 times (resources.max_requeues: 1)" in read_error(trial)
    assert RunDirectory(trial.run).status()["error"] == read_error(trial)


def kill_worker(trial: Trial) -> None:
    with trial.paused():
        send([trial.random.choice(workers(trial.run))], signal.SIGKILL)
    trial.wait_for_end("FAILED")
    read_error(trial)


def kill_torchrun_agent(trial: Trial) -> None:
    """Kill the agent of the last node."""
    with trial.paused():
        send(agents(trial.run, node=trial.nodes - 1), signal.SIGKILL)
    trial.wait_for_end("FAILED")
    assert "killed by SIGKILL" in read_error(trial)


def read_error(trial: Trial) -> str:
    """Return the error of a failed trial, which must have one."""
    assert RunDirectory(trial.run).state() == "failed"
    assert RunDirectory(trial.run).error()
    return RunDirectory(trial.run).error()


Fault = Callable[[Trial], None]
# Faults that do not ask the trial to stop, so that it may have taken steps after its last checkpoint.
CRASHES: list[Fault] = [kill_worker, kill_torchrun_agent, freeze_first_node, lose_contact_with_only_node]
FINAL: list[Fault] = [cancel, exceed_max_requeues, kill_worker, kill_torchrun_agent]
