"""Whatever happens to a trial of two nodes on a real Slurm, it ends as if nothing had; a crash is said, not repeated.

"As if nothing had" is: the exported weights and every line of metrics.jsonl are, bit for bit, those of a trial that was
never disturbed. A step that one rank skipped or took twice would change both, and so would a batch or a draw of random
numbers that came twice.

Each trial has a cluster of its own and suffers several faults one after the other, each at a random step; the trials
run at the same time. TURNOUT_TEST_SEED=… repeats the steps of an earlier session.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.steps import check_ran_once
from tests.slurm.submitted import (
    DANN,
    STEPS,
    Submitted,
    agents,
    children,
    evaluators,
    is_alive,
    launchers,
    losses,
    parent,
    restarts,
    send,
    undisturbed,
    weights,
    workers,
)
from trainer.run import Run

SEED = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 10**6))
# So that a shorter time limit is warned of at once.
RESOURCES = {"nodes": 2, "signal_delay": 90, "max_requeues": 1}


@dataclass
class Trial:
    """A trial of two nodes with one process each, and what a fault needs to know of it."""

    sweep: Submitted
    random: random.Random
    left: int  # faults that are to come
    turn: int = 0  # how often Slurm has requeued it
    notes: list[str] = field(default_factory=list)  # printed with the test's outcome
    lost: list[int] = field(default_factory=list)  # pids on a node that Slurm does not reach any more
    crashed: list[str] = field(default_factory=list)  # attempts that may have done more than they saved

    def __post_init__(self) -> None:
        self.cluster = self.sweep.cluster
        (self.run,) = (run.path for run in self.sweep.runs())
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
        self.cluster.wait(lambda: len(losses(self.run)) >= reached, 120, f"step {reached}")
        held = workers(self.run)
        assert len(held) == 2
        send(held, signal.SIGSTOP)
        self.notes[-1] += f" at step {len(losses(self.run))}"
        yield
        send([pid for pid in held if pid not in self.lost], signal.SIGCONT)

    def wait_until_told(self) -> None:
        """Wait until its launcher has been told to stop."""
        told = f"stop*.{self.job}.{self.turn}*"
        self.cluster.wait(lambda: any(self.run.glob(told)), 90, f"turn {self.turn} to be told to stop")

    def warn(self) -> None:
        """Send the signal that comes before a time limit."""
        self.cluster.run("scancel", "--signal=USR2", self.job)

    def wait_for_next_turn(self) -> None:
        """Wait until Slurm has requeued it, once."""
        self.turn += 1
        self.cluster.wait(lambda: restarts(self.cluster, self.job) >= self.turn, 90, f"turn {self.turn}")
        assert restarts(self.cluster, self.job) == self.turn

    def wait_for_the_end(self, state: str) -> None:
        """Wait until it is in a state that is final, without another turn."""
        self.sweep.wait_for(self.job, state)
        self.cluster.wait(lambda: not self.cluster.run("squeue", "-h").stdout, 60, "an empty queue")
        self.cluster.wait(lambda: not set(workers(self.run)) - set(self.lost), 60, "the end of its processes")
        assert (self.sweep.state(self.job), restarts(self.cluster, self.job)) == (state, self.turn)

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
    trial.cluster.wait(lambda: agents(trial.run), 60, "torchrun")
    assert not workers(trial.run)
    trial.warn()


def warned_while_torch_is_imported(trial: Trial) -> None:
    trial.cluster.wait(lambda: workers(trial.run), 60, "a worker")
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
    trial.cluster.wait(lambda: restarts(trial.cluster, trial.job) > trial.turn, 90, "another turn")
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
        send([parent(agent) for agent in agents(trial.run)], signal.SIGUSR2)
        trial.wait_until_told()
    # Squeue alone would wait for 20 s.
    trial.cluster.wait(lambda: "Slurm says nothing" in trial.sweep.output(), 60, "squeue to give up")
    trial.cluster.start_daemon("slurmctld")


def slurmd_dies(trial: Trial) -> None:
    node = f"slurmd-n{trial.random.randint(1, 2)}"
    trial.notes[-1] += f" ({node})"
    with trial.held():
        trial.cluster.kill_daemon(node)
        trial.wait_until_told()
    trial.sweep.wait_for(trial.job, "PENDING")
    trial.cluster.start_daemon(node)


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
    trial.cluster.wait(lambda: not any(map(is_alive, trial.lost)), 60, "the end of what was lost")
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
    assert Run(trial.run).state() == "stopped"


def time_limit_comes_too_often(trial: Trial) -> None:
    with trial.held():
        shorten_time_limit(trial)
        trial.wait_until_told()
    trial.wait_for_the_end("FAILED")
    assert "reached its time limit 2 times (resources.max_requeues: 1)" in failure(trial)
    assert Run(trial.run).status()["error"] == failure(trial)


def a_worker_is_killed(trial: Trial) -> None:
    with trial.held():
        send([trial.random.choice(workers(trial.run))], signal.SIGKILL)
    trial.wait_for_the_end("FAILED")
    failure(trial)


def a_torchrun_agent_is_killed(trial: Trial) -> None:
    """That of the second node: its worker lives on, and lets itself be stopped as if all were well."""
    with trial.held():
        send(agents(trial.run, node=1), signal.SIGKILL)
    trial.wait_for_the_end("FAILED")
    assert "killed by SIGKILL" in failure(trial)


def failure(trial: Trial) -> str:
    """Why it failed, as it says itself."""
    assert Run(trial.run).state() == "failed"
    assert Run(trial.run).error()
    return Run(trial.run).error()


Fault = Callable[[Trial], None]
CRASHES: list[Fault] = [a_worker_is_killed, a_torchrun_agent_is_killed, a_node_is_lost]
FINAL: list[Fault] = [cancelled, time_limit_comes_too_often, a_worker_is_killed, a_torchrun_agent_is_killed]
# Name -> knobs of its cluster, faults. Those after which it must be submitted again stand last.
LIVES: dict[str, tuple[dict[str, Any], list[Fault]]] = {
    "sigterm_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": False},
        [warned_before_the_workers_exist, warned_while_torch_is_imported, preempted, cancelled],
    ),
    "sigusr2_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": True, "slurmd_timeout": 5},
        [preempted, slurmctld_restarts, slurmd_dies, a_worker_is_killed],
    ),
    "sigterm_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": False},
        [preempted, slurmctld_is_away_while_it_stops, a_torchrun_agent_is_killed],
    ),
    "sigusr2_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": True},
        [preempted, warned, time_limit_comes, time_limit_comes_too_often],
    ),
    "with_a_third_node": ({"nodes": 3, "slurmd_timeout": 5, "kill_wait": 10}, [requeued_by_hand, a_node_is_lost]),
}


def live(folder: Path, data_root: str, name: str) -> Trial:
    """Go through all that happens to a trial."""
    knobs, faults = LIVES[name]
    content = DANN | {"name": "trial", "resources": DANN["resources"] | RESOURCES}
    # Nobody is killed for being slow on a busy machine.
    with Cluster(accounting=False, **{"kill_wait": 20, **knobs}) as cluster:
        trial = Trial(Submitted(cluster, folder, data_root, content), random.Random(f"{SEED} {name}"), len(faults))
        began = time.monotonic()
        try:
            for happen in faults:
                if happen in CRASHES:
                    trial.crashed.append(f"{trial.job}.{trial.turn}")
                trial.notes.append(f"after {time.monotonic() - began:.0f} s {happen.__name__}")
                happen(trial)
                trial.left -= 1
                if happen in FINAL:
                    trial.submit()
                else:
                    trial.wait_for_next_turn()
            trial.wait_for_the_end("COMPLETED")
            wakes_up(trial)
        except Exception as error:
            told = "\n".join([f"seed {SEED}", *trial.notes, cluster.logs(), trial.sweep.output()])
            raise AssertionError(f"{name}: {error}\n{told}") from error
        trial.notes.append(f"done after {time.monotonic() - began:.0f} s")
    return trial


@pytest.fixture(scope="module")
def lives(
    request: pytest.FixtureRequest, slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str
) -> Iterator[dict[str, "Future[Trial]"]]:
    """Every trial that is to be tested, under way."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    chosen = [name for name in LIVES if any(item.callspec.params.get("name") == name for item in items)]
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor(len(LIVES)) as pool:
        yield {name: pool.submit(live, folder / name, data_root, name) for name in chosen}


@pytest.mark.parametrize("name", LIVES)
def test_a_trial_of_two_nodes_ends_as_if_undisturbed(name: str, lives: dict[str, "Future[Trial]"], whole: Path) -> None:
    trial, (_, faults) = lives[name].result(), LIVES[name]
    stopped, resumed = trial.turns()
    print(f"seed {SEED}", *trial.notes, f"stopped at {stopped}, went on from {resumed}", sep="\n")
    assert losses(trial.run) == losses(whole)
    assert weights(trial.run) == weights(whole)
    # Told to stop, it goes on from the very step at which it stopped; only after a crash it goes back.
    assert check_ran_once(trial.sweep.steps / trial.run.name, 2, STEPS, trial.crashed) == [0, *resumed]
    assert resumed[: len(stopped)] == stopped
    assert len(faults) - len(trial.crashed) <= len(stopped) <= len(faults)


ARRAY = DANN | {
    "name": "array",
    "train": DANN["train"] | {"checkpoint_every": 1000},
    "eval": {"metrics": ["accuracy"]},
    "grid": {"train.seed": [0, 1, 2, 3, 4, 5]},
}


def test_each_element_of_an_array_goes_its_own_way(slurm: None, tmp_path: Path, data_root: str) -> None:
    """Warned, requeued, killed, cancelled, left alone and, the last, whose raw id is that of the array, warned."""
    with Cluster(accounting=False, kill_wait=20, grace_seconds=20) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, ARRAY)
        sweep.submit()
        jobs, runs = sweep.jobs("train"), [run.path for run in sweep.runs()]
        step = random.Random(SEED).randint(2, STEPS - 100)
        print(f"seed {SEED}: at step {step}")
        free = list(runs)

        def all_are_held() -> bool:
            for run in [run for run in free if len(losses(run)) >= step]:
                send(workers(run), signal.SIGSTOP)
                free.remove(run)
            return not free

        cluster.wait(all_are_held, 120, f"step {step} of {free}")
        assert all(len(workers(run)) == 1 for run in runs)
        for job in (jobs[0], jobs[5]):
            cluster.run("scancel", "--signal=USR2", job)
        cluster.run("scontrol", "requeue", jobs[1])
        send(workers(runs[2]), signal.SIGKILL)
        cluster.run("scancel", jobs[3])
        for position in (0, 1, 3, 5):
            told = f"stop*.{jobs[position]}.0*"
            cluster.wait(lambda run=runs[position], told=told: any(run.glob(told)), 60, "stop")  # type: ignore[misc]
        for run in runs:
            send(workers(run), signal.SIGCONT)
        # An evaluation loses its job as well, and gets another turn.
        evaluation = sweep.jobs("eval")[4]
        cluster.wait(lambda: evaluators(runs[4]), 120, "the evaluation of the one that was left alone")
        cluster.run("scancel", "--signal=USR2", evaluation)
        expected = ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "COMPLETED", "COMPLETED"]
        followed = [state if state == "COMPLETED" else "CANCELLED" for state in expected]
        cluster.wait(lambda: [sweep.state(job) for job in sweep.jobs("eval")] == followed, 120, f"{followed}")
        assert [sweep.state(job) for job in jobs] == expected
        assert [restarts(cluster, job) for job in (*jobs, evaluation)] == [1, 1, 0, 0, 0, 1, 1]
        sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    assert [Run(run).state() for run in runs] == ["done", "done", "failed", "stopped", "done", "done"]
    page = (sweep.folder / "report" / "results.md").read_text()
    assert Run(runs[2]).error().partition(";")[0] in page
    for position in (0, 1, 5):
        assert (runs[position] / "eval" / "metrics.json").exists()
        alone = undisturbed(tmp_path / str(position), data_root, ARRAY, 1, f"train.seed={position}")
        assert losses(runs[position]) == losses(alone)
        assert weights(runs[position]) == weights(alone)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_before_the_launcher_listens_does_no_harm(
    number: signal.Signals, cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    """It may be lost or heard."""
    content = DANN | {"name": "early", "train": DANN["train"] | {"steps": 5}}
    sweep = Submitted(cluster, tmp_path, data_root, content)
    sweep.submit()
    (job,), (run,) = sweep.jobs("train"), sweep.runs()
    send(cluster.wait(lambda: launchers(sweep.folder), 60, "the launcher"), number)
    sweep.wait_for(job, "COMPLETED")
    assert run.state() == "done"
    cluster.cancel_jobs()
