"""What can happen to a trial on a cluster: each of these faults hits it at a random step, and waits until it has."""

import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.submitted import (
    PATIENCE,
    STEPS,
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
    processes: int  # on all of them
    left: int  # faults that are to come
    turn: int = 0  # how often Slurm has requeued it
    notes: list[str] = field(default_factory=list)  # printed with the test's outcome
    lost: list[int] = field(default_factory=list)  # pids on a node that Slurm does not reach any more
    untouched: dict[Path, dict[str, bytes]] = field(default_factory=dict)  # the trials beside it, which are done
    crashed: list[str] = field(default_factory=list)  # attempts that may have done more than they saved

    def __post_init__(self) -> None:
        self.cluster = self.sweep.cluster
        *self.siblings, self.run = (run.path for run in self.sweep.runs())
        self.submit()

    def submit(self) -> None:
        """Start it, or go on with it."""
        self.sweep.submit()
        self.job, self.turn = self.sweep.jobs("train")[-1], 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let it come to a random step and stand still there, so that what happens inside happens at that step."""
        begun = len(losses(self.run))
        reached = begun + self.random.randint(1, max(1, (STEPS - 100 - begun) // self.left))
        self.cluster.wait(lambda: len(losses(self.run)) >= reached, PATIENCE, f"step {reached}")
        held = workers(self.run)
        assert len(held) == self.processes
        send(held, signal.SIGSTOP)
        if not self.untouched:
            for job in self.sweep.jobs("train")[:-1]:
                self.sweep.wait_for(job, "COMPLETED")
            self.untouched = {run: content(run) for run in self.siblings}
        self.notes[-1] += f" at step {len(losses(self.run))}"
        yield
        send([pid for pid in held if pid not in self.lost], signal.SIGCONT)

    def wait_until_told(self) -> None:
        """Wait until its launcher has been told to stop."""
        told = f"stop*.{self.job}.{self.turn}*"
        self.cluster.wait(lambda: any(self.run.glob(told)), PATIENCE, f"turn {self.turn} to be told to stop")

    def warn(self) -> None:
        """Send the signal that comes before a time limit."""
        self.cluster.run("scancel", "--signal=USR2", self.job)

    def wait_for_next_turn(self) -> None:
        """Wait until Slurm has requeued it, once."""
        self.turn += 1
        self.cluster.wait(lambda: restarts(self.cluster, self.job) >= self.turn, PATIENCE, f"turn {self.turn}")
        assert restarts(self.cluster, self.job) == self.turn

    def wait_for_the_end(self, state: str) -> None:
        """Wait until it is in a state that is final, without another turn."""
        self.sweep.wait_for(self.job, state)
        self.cluster.wait(lambda: not self.cluster.run("squeue", "-h").stdout, PATIENCE, "an empty queue")
        self.cluster.wait(lambda: not set(workers(self.run)) - set(self.lost), PATIENCE, "the end of its processes")
        assert (self.sweep.state(self.job), restarts(self.cluster, self.job)) == (state, self.turn)

    def launchers(self) -> list[int]:
        """Pids of what Slurm has started on its nodes."""
        return [parent(pid) for pid in (agents(self.run) if self.processes > 1 else workers(self.run))]

    def node(self) -> str:
        """One of the nodes on which it runs, by chance."""
        said = self.cluster.run("squeue", "-h", "-j", self.job, "-o", "%N").stdout.strip()
        node = self.random.choice(self.cluster.run("scontrol", "show", "hostnames", said).stdout.split())
        self.notes[-1] += f" on {node}"
        return node

    def turns(self) -> tuple[list[int], list[int]]:
        """The steps at which it stopped, and those from which it went on."""
        said = self.sweep.output(10**6)
        return (
            [int(step) for step in re.findall(r": stopped at step (\d+)", said)],
            [int(step) for step in re.findall(r": goes on from step (\d+)", said)],
        )


# Faults after which it goes on by itself


def preempted(trial: Trial) -> None:
    with trial.held():
        high = trial.cluster.run(
            "sbatch", "--parsable", "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null",
            stdin="#!/bin/sh\n",
        ).stdout.strip()  # fmt: skip
        trial.wait_until_told()
    trial.sweep.wait_for(high, "COMPLETED")


def warned(trial: Trial) -> None:
    with trial.held():
        trial.warn()
        trial.wait_until_told()


def warned_before_the_workers_exist(trial: Trial) -> None:
    trial.cluster.wait(lambda: agents(trial.run), PATIENCE, "torchrun")
    assert not workers(trial.run)
    trial.warn()


def warned_while_torch_is_imported(trial: Trial) -> None:
    trial.cluster.wait(lambda: workers(trial.run), PATIENCE, "a worker")
    assert not (trial.run / "lock").exists() or f"{trial.job}.{trial.turn}" not in (trial.run / "lock").read_text()
    trial.warn()


def requeued_by_hand(trial: Trial) -> None:
    with trial.held():
        trial.cluster.run("scontrol", "requeue", trial.job)
        trial.wait_until_told()


def time_limit_comes(trial: Trial) -> None:
    """Slurm looks at time limits every 30 s."""
    with trial.held():
        shorten_time_limit(trial)
        trial.wait_until_told()
    trial.cluster.wait(lambda: restarts(trial.cluster, trial.job) > trial.turn, PATIENCE, "another turn")
    trial.cluster.run("scontrol", "update", f"JobId={trial.job}", "TimeLimit=10")


def slurmctld_restarts(trial: Trial) -> None:
    with trial.held():
        trial.cluster.wait_until_saved(trial.job)
        trial.cluster.kill_daemon("slurmctld")
        trial.cluster.start_daemon("slurmctld")
        trial.sweep.wait_for(trial.job, "RUNNING")
        trial.warn()
        trial.wait_until_told()


def slurmctld_is_away_while_it_stops(trial: Trial) -> None:
    with trial.held():
        trial.cluster.wait_until_saved(trial.job)
        trial.cluster.kill_daemon("slurmctld")
        send(trial.launchers(), signal.SIGUSR2)
        trial.wait_until_told()
    # Squeue alone would wait for 20 s.
    trial.cluster.wait(lambda: "Slurm says nothing" in trial.sweep.output(), PATIENCE, "squeue to give up")
    trial.cluster.start_daemon("slurmctld")


def slurmd_dies(trial: Trial) -> None:
    """Slurm takes the node for lost, and tells the other one."""
    with trial.held():
        node = f"slurmd-{trial.node()}"
        trial.cluster.kill_daemon(node)
        trial.wait_until_told()
    trial.sweep.wait_for(trial.job, "PENDING")
    trial.cluster.start_daemon(node)


def a_node_goes_on_unseen(trial: Trial) -> None:
    """Slurm takes its only node for lost and starts it on another; nobody has told it to stop."""
    with trial.held():
        node, held = f"slurmd-{trial.node()}", workers(trial.run)
        trial.cluster.kill_daemon(node)
        trial.cluster.wait(lambda: len(workers(trial.run)) > len(held), PATIENCE, "its successor")
    trial.cluster.wait(lambda: not any(map(is_alive, held)), PATIENCE, "the end of the one that is not seen")
    trial.cluster.start_daemon(node)


def warned_without_slurmdbd(trial: Trial) -> None:
    """There is no accounting from now on."""
    with trial.held():
        trial.cluster.kill_daemon("slurmdbd")
        trial.warn()
        trial.wait_until_told()
    assert trial.cluster.run("sacct", "-j", trial.job, check=False).returncode


def a_node_is_lost(trial: Trial) -> None:
    """The head node stands still, with all that runs there and the lock of the run, until the end of the trial."""
    with trial.held():
        (agent,) = agents(trial.run, node=0)
        trial.lost = [parent(agent), agent, *children(agent)]
        send(trial.lost, signal.SIGSTOP)
        trial.cluster.kill_daemon("slurmd-n1")
        trial.wait_until_told()


def wakes_up(trial: Trial) -> None:
    """What was lost finds that others have done its work, and leaves without a trace."""
    before = content(trial.run)
    send(trial.lost, signal.SIGCONT)
    trial.cluster.wait(lambda: not any(map(is_alive, trial.lost)), PATIENCE, "the end of what was lost")
    assert content(trial.run) == before
    assert restarts(trial.cluster, trial.job) == trial.turn


def content(run: Path) -> dict[str, bytes]:
    """All files, less those of TensorBoard, to which a writer may still add."""
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file() and "tfevents" not in file.name}


def shorten_time_limit(trial: Trial) -> None:
    """Leave it between 30 and 90 seconds."""
    began = trial.cluster.run("squeue", "-h", "-j", trial.job, "-o", "%M").stdout.strip().split(":")
    minutes = (int(began[-2]) * 60 + int(began[-1])) / 60
    trial.cluster.run("scontrol", "update", f"JobId={trial.job}", f"TimeLimit={int(minutes + 1.5)}")


# Faults after which it goes on when it is submitted again


def cancelled(trial: Trial) -> None:
    """It saves, and stays cancelled."""
    with trial.held():
        trial.cluster.run("scancel", trial.job)
        trial.wait_until_told()
    trial.wait_for_the_end("CANCELLED")
    assert RunDirectory(trial.run).state() == "stopped"


def time_limit_comes_too_often(trial: Trial) -> None:
    with trial.held():
        shorten_time_limit(trial)
        trial.wait_until_told()
    trial.wait_for_the_end("FAILED")
    assert "reached its time limit 2 times (resources.max_requeues: 1)" in failure(trial)
    assert RunDirectory(trial.run).status()["error"] == failure(trial)


def a_worker_is_killed(trial: Trial) -> None:
    with trial.held():
        send([trial.random.choice(workers(trial.run))], signal.SIGKILL)
    trial.wait_for_the_end("FAILED")
    failure(trial)


def a_torchrun_agent_is_killed(trial: Trial) -> None:
    """That of the last node."""
    with trial.held():
        send(agents(trial.run, node=trial.nodes - 1), signal.SIGKILL)
    trial.wait_for_the_end("FAILED")
    assert "killed by SIGKILL" in failure(trial)


def failure(trial: Trial) -> str:
    """Why it failed, as it says itself."""
    assert RunDirectory(trial.run).state() == "failed"
    assert RunDirectory(trial.run).error()
    return RunDirectory(trial.run).error()


Fault = Callable[[Trial], None]
# After these it may have gone further than it had saved, and is not told to stop.
CRASHES: list[Fault] = [a_worker_is_killed, a_torchrun_agent_is_killed, a_node_is_lost, a_node_goes_on_unseen]
FINAL: list[Fault] = [cancelled, time_limit_comes_too_often, a_worker_is_killed, a_torchrun_agent_is_killed]
