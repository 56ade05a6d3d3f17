"""Whatever happens to a trial on a real Slurm, it ends as if nothing had; a crash is said, not repeated.

"As if nothing had" is: each of its processes took every step once, by its own record (steps.py), and the exported
weights and every line of metrics.jsonl are, bit for bit, those of a trial that was never disturbed.

Each trial, one of two nodes or an element of an array, has a cluster of its own and suffers several faults one after
the other, each at a random step; the trials run at the same time. TURNOUT_TEST_SEED=… repeats the steps of an earlier
session.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.faults import (
    CRASHES,
    FINAL,
    Fault,
    Trial,
    a_node_goes_on_unseen,
    a_node_is_lost,
    a_torchrun_agent_is_killed,
    a_worker_is_killed,
    cancelled,
    content,
    preempted,
    requeued_by_hand,
    slurmctld_is_away_while_it_stops,
    slurmctld_restarts,
    slurmd_dies,
    time_limit_comes,
    time_limit_comes_too_often,
    wakes_up,
    warned,
    warned_before_the_workers_exist,
    warned_while_torch_is_imported,
    warned_without_slurmdbd,
)
from tests.slurm.steps import check_ran_once
from tests.slurm.submitted import (
    DANN,
    PATIENCE,
    STEPS,
    Submitted,
    evaluators,
    launchers,
    losses,
    restarts,
    send,
    undisturbed,
    weights,
    workers,
)
from trainer.runs.directory import RunDirectory

SEED = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 10**6))
# So that a shorter time limit is warned of at once.
RESOURCES = DANN["resources"] | {"signal_delay": 90, "max_requeues": 1}
TWO_NODES = DANN | {"name": "two", "resources": RESOURCES | {"nodes": 2}}
# The last element of an array, whose raw job id is that of the array; the other one is done when the faults begin.
ELEMENT = DANN | {"name": "element", "resources": RESOURCES, "zip": {"train.seed": [1, 0], "train.steps": [5, STEPS]}}
ELEMENT_OF_TWO = ELEMENT | {"resources": RESOURCES | {"processes_per_node": 2}}
KINDS = {"two_nodes": TWO_NODES, "element_of_two": ELEMENT_OF_TWO, "element": ELEMENT}

# Name -> knobs of its cluster, faults. Those after which it may have gone further than it had saved stand last.
LIVES: dict[str, tuple[dict[str, Any], list[Fault]]] = {
    "two_nodes_sigterm_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": False},
        [warned_before_the_workers_exist, warned_while_torch_is_imported, preempted, cancelled],
    ),
    "two_nodes_sigusr2_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": True, "slurmd_timeout": 5},
        [preempted, slurmctld_restarts, slurmd_dies, a_worker_is_killed],
    ),
    "two_nodes_sigterm_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": False},
        [preempted, slurmctld_is_away_while_it_stops, a_torchrun_agent_is_killed],
    ),
    "two_nodes_sigusr2_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": True},
        [preempted, warned, time_limit_comes, time_limit_comes_too_often],
    ),
    "two_nodes_of_three": ({"nodes": 3, "slurmd_timeout": 5, "kill_wait": 10}, [requeued_by_hand, a_node_is_lost]),
    "element_of_two_processes": (
        {"grace_seconds": 20, "preempt_user_signal": False},
        [
            warned_before_the_workers_exist,
            warned_while_torch_is_imported,
            preempted,
            cancelled,
            a_torchrun_agent_is_killed,
        ],
    ),
    "element_sigusr2_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": True, "slurmd_timeout": 5},
        [preempted, slurmctld_restarts, a_worker_is_killed, a_node_goes_on_unseen],
    ),
    "element_sigterm_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": False, "accounting": True},
        [warned_while_torch_is_imported, requeued_by_hand, warned_without_slurmdbd, preempted],
    ),
    "element_sigusr2_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": True},
        [preempted, slurmctld_is_away_while_it_stops, time_limit_comes, time_limit_comes_too_often],
    ),
}


def live(folder: Path, data_root: str, name: str) -> Trial:
    """Go through all that happens to a trial."""
    knobs, faults = LIVES[name]
    kind = next(kind for start, kind in KINDS.items() if name.startswith(start))
    nodes, each = (kind["resources"].get(key, 1) for key in ("nodes", "processes_per_node"))
    # Nobody is killed for being slow on a busy machine.
    with Cluster(**{"accounting": False, "kill_wait": 20, **knobs}) as cluster:
        sweep = Submitted(cluster, folder, data_root, kind)
        trial = Trial(sweep, random.Random(f"{SEED} {name}"), nodes, nodes * each, len(faults))
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
            assert {run: content(run) for run in trial.siblings} == trial.untouched
            if cluster.accounting:
                comes_to_account(trial)
        except Exception as error:
            told = "\n".join([f"seed {SEED}", *trial.notes, cluster.logs(), trial.sweep.output()])
            raise AssertionError(f"{name}: {error}\n{told}") from error
        trial.notes.append(f"done after {time.monotonic() - began:.0f} s")
    return trial


def comes_to_account(trial: Trial) -> None:
    """What happened without slurmdbd is in its books when it is back."""
    trial.cluster.start_daemon("slurmdbd")
    sacct = ("sacct", "-XnP", "-j", trial.job, "-o", "State")

    def booked() -> bool:
        return trial.cluster.run(*sacct, check=False).stdout == "COMPLETED\n"

    trial.cluster.wait(booked, PATIENCE, "slurmdbd to know")


@pytest.fixture(scope="module")
def lives(
    request: pytest.FixtureRequest, slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str
) -> Iterator[dict[str, "Future[Trial]"]]:
    """Every trial that is to be tested, under way."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    chosen = [name for name in LIVES if any(item.callspec.params.get("name") == name for item in items)]
    folder = tmp_path_factory.mktemp("faults")
    # At the same time: they wait for Slurm most of it.
    with ThreadPoolExecutor(len(LIVES)) as pool:
        yield {name: pool.submit(live, folder / name, data_root, name) for name in chosen}


@pytest.mark.parametrize("name", LIVES)
def test_a_trial_ends_as_if_undisturbed(
    name: str, lives: dict[str, "Future[Trial]"], whole: Path, single: Path
) -> None:
    trial, (_, faults) = lives[name].result(), LIVES[name]
    stopped, resumed = trial.turns()
    print(f"seed {SEED}", *trial.notes, f"stopped at {stopped}, went on from {resumed}", sep="\n")
    reference = single if trial.processes == 1 else whole
    assert losses(trial.run) == losses(reference)
    assert weights(trial.run) == weights(reference)
    # Told to stop, it goes on from the very step at which it stopped; only after a crash it goes back.
    assert check_ran_once(trial.sweep.steps / trial.run.name, trial.processes, STEPS, trial.crashed) == [0, *resumed]
    assert resumed[: len(stopped)] == stopped
    assert len(faults) - len(trial.crashed) <= len(stopped) <= len(faults)
    for sibling in trial.siblings:
        assert check_ran_once(trial.sweep.steps / sibling.name, trial.processes, 5) == [0]


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

        cluster.wait(all_are_held, PATIENCE, f"step {step} of {free}")
        assert all(len(workers(run)) == 1 for run in runs)
        for job in (jobs[0], jobs[5]):
            cluster.run("scancel", "--signal=USR2", job)
        cluster.run("scontrol", "requeue", jobs[1])
        send(workers(runs[2]), signal.SIGKILL)
        cluster.run("scancel", jobs[3])
        for position in (0, 1, 3, 5):
            told = f"stop*.{jobs[position]}.0*"
            cluster.wait(lambda run=runs[position], told=told: any(run.glob(told)), PATIENCE, "stop")  # type: ignore[misc]
        for run in runs:
            send(workers(run), signal.SIGCONT)
        # An evaluation loses its job as well, and gets another turn.
        evaluation = sweep.jobs("eval")[4]
        cluster.wait(lambda: evaluators(runs[4]), PATIENCE, "the evaluation of the one that was left alone")
        cluster.run("scancel", "--signal=USR2", evaluation)
        expected = ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "COMPLETED", "COMPLETED"]
        followed = [state if state == "COMPLETED" else "CANCELLED" for state in expected]
        cluster.wait(lambda: [sweep.state(job) for job in sweep.jobs("eval")] == followed, PATIENCE, f"{followed}")
        assert [sweep.state(job) for job in jobs] == expected
        assert [restarts(cluster, job) for job in (*jobs, evaluation)] == [1, 1, 0, 0, 0, 1, 1]
        sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    assert [RunDirectory(run).state() for run in runs] == ["done", "done", "failed", "stopped", "done", "done"]
    page = (sweep.folder / "report" / "results.md").read_text()
    assert RunDirectory(runs[2]).error().partition(";")[0] in page
    for position in (0, 1, 4, 5):
        assert (runs[position] / "eval" / "metrics.json").exists()
        alone = undisturbed(tmp_path / str(position), data_root, ARRAY, 1, f"train.seed={position}")
        assert losses(runs[position]) == losses(alone)
        assert weights(runs[position]) == weights(alone)
        attempts = len(check_ran_once(sweep.steps / runs[position].name, 1, STEPS))
        assert attempts == (1 if position == 4 else 2)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_before_the_launcher_listens_does_no_harm(
    number: signal.Signals, cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    """It may be lost or heard. An element of an array, or a lone job."""
    content = DANN | {"name": "early", "train": DANN["train"] | {"steps": 5}}
    if number == signal.SIGTERM:
        content |= {"grid": {"train.seed": [0, 1]}}
    sweep = Submitted(cluster, tmp_path, data_root, content)
    sweep.submit()
    send(cluster.wait(lambda: launchers(sweep.folder), PATIENCE, "the launcher"), number)
    for job, run in zip(sweep.jobs("train"), sweep.runs(), strict=True):
        sweep.wait_for(job, "COMPLETED")
        assert run.state() == "done"
        check_ran_once(sweep.steps / run.name, 1, 5)
    cluster.cancel_jobs()
