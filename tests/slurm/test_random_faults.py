"""Random events hit trials at random moments; each trial ends with the weights of an undisturbed one, and says why.

8 trials, or TURNOUT_RANDOM_TRIALS of them (`make soak`: 40). They share a cluster, so an event of a node hits all that
run there. TURNOUT_TEST_SEED=… repeats the events and steps of an earlier session.
"""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.disks import fill, small_disk
from tests.slurm.cluster import Cluster, members
from tests.slurm.steps import check_ran_once, recorded
from tests.slurm.submitted import (
    DANN,
    Submitted,
    agents,
    command,
    launchers,
    losses,
    parent,
    send,
    sruns,
    train_uninterrupted,
    weights,
    workers,
)

SEED = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 10**6))
TRIALS = int(os.environ.get("TURNOUT_RANDOM_TRIALS", "8"))
SIDE_BY_SIDE = 4
STEPS, TIMEOUT = 120, 300.0
CONTENT: dict[str, Any] = DANN | {"train": DANN["train"] | {"steps": STEPS, "checkpoint_every": 25}}
# Nodes and processes per node.
SHAPES = ((2, 1), (1, 2), (1, 1))
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
# What an event of another trial on the same node may add.
# Slurm's kill of an attempt whose node went down can hit srun of the next one, since both have the same job id.
ANY_TIME = (
    r"cancelled( by \w+)?|preempted|requeued|node failure(; node n\d went down)?|.* went down|"
    "srun, which runs the job's tasks, was killed by SIGKILL"
)


@dataclass
class Victim:
    """A trial that events hit."""

    sweep: Submitted
    random: random.Random
    shape: tuple[int, int]
    node_lock: threading.Lock  # one node is down at a time
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # patterns of the reasons that its events may lead to
    disk: Path | None = None  # its run directory, if that is on a small disk
    result: tuple[list[dict[str, Any]], dict[str, bytes]] = field(default_factory=lambda: ([], {}))

    def __post_init__(self) -> None:
        self.cluster = self.sweep.cluster
        (self.run,) = self.sweep.runs()

    @property
    def job(self) -> str:
        return self.sweep.jobs("train")[-1]

    def srun(self) -> list[int]:
        """Return the pid of the srun that the batch script has started."""
        return sruns(self.sweep.folder)

    def has_ended(self) -> bool:
        return self.sweep.state(self.job) in ENDED

    def kill(self, find: Callable[[], list[int]], number: signal.Signals, reason: str) -> None:
        """Signal one of the processes that `find` returns, as soon as there is one."""
        while not (pids := find()):
            if self.has_ended():
                return
            time.sleep(0.05)
        self.reasons.append(reason)
        send([self.random.choice(pids)], number)

    def parents(self, find: Callable[[], list[int]]) -> Callable[[], list[int]]:
        def search() -> list[int]:
            with suppress(psutil.NoSuchProcess):
                return [parent(pid) for pid in find()]
            return []

        return search

    def nodes(self) -> list[str]:
        """Return the nodes on which it runs, once it runs."""
        while not self.has_ended():
            nodelist = self.cluster.run(
                "squeue", "-h", "-t", "R", "-j", self.job, "-o", "%N", check=False
            ).stdout.strip()
            if nodelist:
                return self.cluster.run("scontrol", "show", "hostnames", nodelist).stdout.split()
            time.sleep(0.2)
        return []


# Events


def kill_rank(victim: Victim) -> None:
    reason = r"(process \d|the training process) was killed by SIGKILL on n\d"
    victim.kill(lambda: workers(victim.run.path), signal.SIGKILL, reason)


def kill_torchrun(victim: Victim) -> None:
    if victim.shape == (1, 1):
        kill_rank(victim)
    else:
        victim.kill(lambda: agents(victim.run.path), signal.SIGKILL, r"torchrun was killed by SIGKILL on n\d")


def kill_worker(victim: Victim) -> None:
    reason = r"the worker on n\d was killed by SIGKILL"
    victim.kill(lambda: launchers(victim.sweep.folder), signal.SIGKILL, reason)


def kill_slurmstepd(victim: Victim) -> None:
    reason = r"slurmstepd, which supervises the job on n\d, was killed"
    victim.kill(victim.parents(lambda: launchers(victim.sweep.folder)), signal.SIGKILL, reason)


def kill_srun(victim: Victim) -> None:
    victim.kill(victim.srun, signal.SIGKILL, "srun, which runs the job's tasks, was killed by SIGKILL")


def kill_batch_script(victim: Victim) -> None:
    number = victim.random.choice([signal.SIGKILL, signal.SIGTERM])
    victim.kill(victim.parents(victim.srun), number, f"the batch script was killed by {number.name}")


def kill_slurmstepd_of_batch_script(victim: Victim) -> None:
    victim.kill(victim.parents(victim.parents(victim.srun)), signal.SIGKILL, "node failure")


def send_usr2(victim: Victim) -> None:
    victim.nodes()
    victim.cluster.run("scancel", "--signal=USR2", victim.job, check=False)


def send_term_before_handlers(victim: Victim) -> None:
    victim.nodes()
    victim.cluster.run("scancel", "--signal=TERM", victim.job, check=False)


def requeue(victim: Victim) -> None:
    victim.cluster.run("scontrol", "requeue", victim.job, check=False)


def cancel(victim: Victim) -> None:
    victim.cluster.run("scancel", victim.job, check=False)


def suspend(victim: Victim) -> None:
    victim.nodes()
    victim.cluster.run("scontrol", "suspend", victim.job, check=False)
    with suppress(TimeoutError):
        victim.cluster.wait(lambda: victim.sweep.state(victim.job) == "SUSPENDED", 2, "suspension")
    victim.cluster.run("scontrol", "resume", victim.job, check=False)


def preempt(victim: Victim) -> None:
    for node in victim.nodes()[:1]:
        options = ("--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null")
        high = victim.cluster.run("sbatch", "--parsable", *options, stdin="#!/bin/sh\n").stdout.strip()
        victim.sweep.wait_for(high, "COMPLETED")


def lose_node(victim: Victim) -> None:
    cluster = victim.cluster
    with victim.node_lock:
        if nodes := victim.nodes():
            jobs = cluster.run("squeue", "-h", "-t", "R,CG", "-w", nodes[0], "-o", "%A").stdout.split()
            cluster.run("scontrol", "update", f"NodeName={nodes[0]}", "State=DOWN", "Reason=test")
            # A node that returns while it still runs a job that was requeued is drained, and the job is held.
            cluster.wait(lambda: not steps_of(cluster, jobs), TIMEOUT, f"jobs {jobs} to end")
            cluster.run("scontrol", "update", f"NodeName={nodes[0]}", "State=RESUME")


def steps_of(cluster: Cluster, jobs: list[str]) -> list[str]:
    """Return what is left of jobs, such as `slurmstepd: [5.batch]`."""
    titles = []
    for pid in members(cluster.root):
        with suppress(psutil.Error):
            titles.append(" ".join(psutil.Process(pid).cmdline()))
    return [title for title in titles if any(title.startswith(f"slurmstepd: [{job}.") for job in jobs)]


def fill_disk(victim: Victim) -> None:
    """Fill the disk of the run directory for some seconds."""
    assert victim.disk
    filler = fill(victim.disk, 0)
    time.sleep(victim.random.uniform(0.5, 5.0))
    filler.unlink()


Event = Callable[[Victim], None]
EVENTS: list[Event] = [
    kill_rank, kill_torchrun, kill_worker, kill_slurmstepd, kill_srun, kill_batch_script,
    kill_slurmstepd_of_batch_script, send_usr2, send_term_before_handlers, requeue, cancel, suspend, preempt, lose_node,
    fill_disk,
]  # fmt: skip


def run_trial(folder: Path, data_root: str, cluster: Cluster, number: int, node_lock: threading.Lock) -> Victim:
    """Train a trial to its end through one or two random events, submitting it again whenever it has failed."""
    draw = random.Random(f"{SEED} {number}")
    shape = draw.choice(SHAPES)
    events = draw.choices(EVENTS, k=draw.choice([1, 2]))
    resources = CONTENT["resources"] | {"nodes": shape[0], "processes_per_node": shape[1], "signal_delay": 90}
    sweep = Submitted(cluster, folder, data_root, CONTENT | {"name": f"random{number}", "resources": resources})
    victim = Victim(sweep, draw, shape, node_lock)
    with ExitStack() as stack:
        if fill_disk in events:
            victim.disk = victim.run.path
            stack.enter_context(small_disk(victim.disk, 64))
        try:
            sweep.submit()
            for event in events:
                hit(victim, event)
            while not is_finished(victim):
                sweep.submit()
            check(victim)
            victim.result = (losses(victim.run.path), weights(victim.run.path, STEPS))
        except Exception as error:
            queue = cluster.run("squeue", "-t", "all", "-o", "%i %j %T %r %S %N", check=False).stdout
            nodes = cluster.run("scontrol", "show", "nodes", "-o", check=False).stdout
            details = "\n".join([*victim.notes, queue, nodes, sweep.output(3000)])
            raise AssertionError(f"seed {SEED}, trial {number} {shape}: {error}\n{details}") from error
    return victim


def hit(victim: Victim, event: Event) -> None:
    """Let an event happen at a random step of the trial or moment of its start; submit again what has failed."""
    if victim.has_ended() and is_finished(victim):
        return
    if victim.has_ended():
        victim.sweep.submit()
    if victim.random.random() < 0.25:
        time.sleep(victim.random.uniform(0, 6))
        moment = "while it starts"
    else:
        step = victim.random.randint(1, STEPS - 20)
        victim.cluster.wait(
            lambda: len(losses(victim.run.path)) >= step or victim.has_ended(), TIMEOUT, f"step {step} of {victim.run}"
        )
        moment = f"at step {len(losses(victim.run.path))}"
    victim.notes.append(f"{event.__name__} {moment}")
    event(victim)
    row = status(victim)
    assert row["state"] != "pending", f"invisible after {event.__name__}: {row}"


def status(victim: Victim) -> dict[str, Any]:
    done = command(victim.sweep, "status", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    return dict(row)


def is_finished(victim: Victim) -> bool:
    """Wait for the end of the newest job; return whether the trial is done, and check the reason if it is not."""
    victim.cluster.wait(victim.has_ended, TIMEOUT, f"the end of job {victim.job}")
    wait_for_processes(victim)
    if victim.run.is_done():
        return True
    expected = "|".join([*victim.reasons, ANY_TIME])

    def is_true() -> bool:
        row = status(victim)
        parts = [part for part in row["reason"].split("; ") if part != "saved"]
        victim.notes.append(f"{row['state']}: {row['reason']}")
        return row["state"] in ("failed", "stopped") and bool(parts) and bool(re.fullmatch(expected, parts[-1]))

    victim.cluster.wait(is_true, 30, f"a reason like {expected}")  # accounting lags by seconds
    return False


def wait_for_processes(victim: Victim) -> None:
    """Wait until nothing that belongs to the trial is left of a job that has ended."""

    def left() -> list[int]:
        return [*workers(victim.run.path), *agents(victim.run.path), *launchers(victim.sweep.folder)]

    victim.cluster.wait(lambda: not left(), 60, "all processes of the trial to end")


def check(victim: Victim) -> None:
    """Check that each process took each step once, but for those after the last checkpoint before a crash."""
    assert [line["step"] for line in losses(victim.run.path)] == list(range(1, STEPS + 1))
    folder = victim.sweep.steps / victim.run.name
    check_ran_once(folder, victim.shape[0] * victim.shape[1], STEPS, crashed=recorded(folder))
    row = status(victim)
    assert row["state"] == "done", row


@pytest.fixture(scope="module")
def trials(
    request: pytest.FixtureRequest, slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str
) -> Iterator[dict[int, "Future[Victim]"]]:
    """Start the selected trials, some at a time."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    numbers = [n for n in range(TRIALS) if any(item.callspec.params.get("number") == n for item in items)]
    folder, node_lock = tmp_path_factory.mktemp("random"), threading.Lock()
    with (
        # A node that is down stays down until the event is over.
        Cluster(nodes=3, cpus=16, memory=32000, kill_wait=20, settings={"ReturnToService": 0}) as cluster,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        yield {n: pool.submit(run_trial, folder / str(n), data_root, cluster, n, node_lock) for n in numbers}


@pytest.fixture(scope="module")
def undisturbed(
    slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str
) -> dict[int, tuple[list[dict[str, Any]], dict[str, bytes]]]:
    """Return number of processes → losses and weights of a trial that nothing interrupted."""
    results = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"undisturbed{processes}")
        run = train_uninterrupted(folder, data_root, CONTENT | {"name": "undisturbed"}, processes)
        results[processes] = losses(run), weights(run, STEPS)
    return results


@pytest.mark.parametrize("number", range(TRIALS))
def test_a_trial_survives_random_events(
    number: int,
    trials: dict[int, "Future[Victim]"],
    undisturbed: dict[int, tuple[list[dict[str, Any]], dict[str, bytes]]],
) -> None:
    victim = trials[number].result()
    print(f"seed {SEED}, trial {number} {victim.shape}", *victim.notes, sep="\n")
    assert victim.result == undisturbed[victim.shape[0] * victim.shape[1]]
