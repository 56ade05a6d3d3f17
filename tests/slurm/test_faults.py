"""Trials on a real Slurm end with the same result after any fault; a crash is reported and not retried.

The same result means: each process took every step once, by its own record (steps.py), and the exported weights and
every line of metrics.jsonl are bit-identical to those of an uninterrupted trial.

Each trial, on two nodes or as an element of an array, has its own cluster and suffers several faults in turn, each at a
random step; the trials run at the same time. TURNOUT_TEST_SEED=… repeats the steps of an earlier session; `make soak`
adds the scenarios of NIGHTLY, whose faults all occur in others, too.
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
    cancel,
    exceed_max_requeues,
    freeze_first_node,
    kill_slurmd,
    kill_torchrun_agent,
    kill_worker,
    lose_contact_with_only_node,
    preempt,
    preempt_without_grace,
    reach_time_limit,
    read_files,
    requeue_by_hand,
    restart_slurmctld,
    send_usr2,
    send_usr2_before_workers_exist,
    send_usr2_while_torch_is_imported,
    send_usr2_without_slurmdbd,
    stop_without_slurmctld,
    unfreeze,
)
from tests.slurm.steps import check_ran_once
from tests.slurm.submitted import (
    DANN,
    STEPS,
    TIMEOUT,
    Submitted,
    evaluators,
    launchers,
    losses,
    restarts,
    send,
    train_uninterrupted,
    weights,
    workers,
)
from trainer.runs.directory import RunDirectory

SEED = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 10**6))
# The delay exceeds 60 s, so that Slurm sends the signal at once when a test shortens the time limit.
RESOURCES = DANN["resources"] | {"signal_delay": 90, "max_requeues": 1}
TWO_NODES = DANN | {"name": "two", "resources": RESOURCES | {"nodes": 2}}
# The trial under test is the last element of an array, whose raw job id is the array's; the other is done before.
ELEMENT = DANN | {"name": "element", "resources": RESOURCES, "zip": {"train.seed": [1, 0], "train.steps": [5, STEPS]}}
ELEMENT_OF_TWO = ELEMENT | {"resources": RESOURCES | {"processes_per_node": 2}}
KINDS = {"two_nodes": TWO_NODES, "element_of_two": ELEMENT_OF_TWO, "element": ELEMENT}

# Name → knobs of its cluster, faults. Faults that may lose steps come last.
SCENARIOS: dict[str, tuple[dict[str, Any], list[Fault]]] = {
    "two_nodes_sigterm_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": False},
        [send_usr2_before_workers_exist, send_usr2_while_torch_is_imported, preempt, cancel],
    ),
    "two_nodes_sigusr2_with_grace": (
        {"grace_seconds": 20, "preempt_user_signal": True, "slurmd_timeout": 5},
        [preempt, restart_slurmctld, kill_slurmd, kill_worker],
    ),
    "two_nodes_sigterm_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": False},
        [preempt, stop_without_slurmctld, kill_torchrun_agent],
    ),
    "two_nodes_sigusr2_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": True},
        [preempt, send_usr2, reach_time_limit, exceed_max_requeues],
    ),
    "two_nodes_of_three": ({"nodes": 3, "slurmd_timeout": 5, "kill_wait": 10}, [requeue_by_hand, freeze_first_node]),
    "element_of_two_processes": (
        {"grace_seconds": 20, "preempt_user_signal": False},
        [
            send_usr2_before_workers_exist,
            send_usr2_while_torch_is_imported,
            preempt,
            cancel,
            kill_torchrun_agent,
        ],
    ),
    "element_sigusr2": (
        {"grace_seconds": 20, "preempt_user_signal": True, "slurmd_timeout": 5},
        [
            preempt,
            preempt_without_grace,
            restart_slurmctld,
            stop_without_slurmctld,
            send_usr2,
            reach_time_limit,
            exceed_max_requeues,
            kill_worker,
            lose_contact_with_only_node,
        ],
    ),
    "element_sigterm_without_grace": (
        {"grace_seconds": 0, "preempt_user_signal": False, "accounting": True},
        [send_usr2_while_torch_is_imported, requeue_by_hand, send_usr2_without_slurmdbd, preempt],
    ),
}


NIGHTLY = ("two_nodes_sigterm_with_grace", "two_nodes_sigterm_without_grace")
SELECTED = [name for name in SCENARIOS if "TURNOUT_RANDOM_TRIALS" in os.environ or name not in NIGHTLY]


def run_scenario(folder: Path, data_root: str, name: str) -> Trial:
    """Run a trial through all faults of a scenario."""
    knobs, faults = SCENARIOS[name]
    kind = next(kind for start, kind in KINDS.items() if name.startswith(start))
    nodes, each = (kind["resources"].get(key, 1) for key in ("nodes", "processes_per_node"))
    # The long kill_wait keeps Slurm from killing processes that are slow on a busy machine.
    with Cluster(**{"accounting": False, "kill_wait": 20, **knobs}) as cluster:
        sweep = Submitted(cluster, folder, data_root, kind)
        trial = Trial(sweep, random.Random(f"{SEED} {name}"), nodes, nodes * each, len(faults))
        start = time.monotonic()
        try:
            for fault in faults:
                if fault in CRASHES:
                    trial.crashed.append(trial.attempt)
                trial.notes.append(f"after {time.monotonic() - start:.0f} s {fault.__name__}")
                fault(trial)
                trial.faults_left -= 1
                if fault in FINAL:
                    trial.submit()
                else:
                    trial.wait_for_requeue()
            trial.wait_for_end("COMPLETED")
            unfreeze(trial)
            assert {run: read_files(run) for run in trial.siblings} == trial.siblings_before
            if cluster.accounting:
                check_accounting_catches_up(trial)
        except Exception as error:
            details = "\n".join([f"seed {SEED}", *trial.notes, cluster.logs(), trial.sweep.output()])
            raise AssertionError(f"{name}: {error}\n{details}") from error
        trial.notes.append(f"done after {time.monotonic() - start:.0f} s")
    return trial


def check_accounting_catches_up(trial: Trial) -> None:
    """Restart slurmdbd and wait until it knows what happened while it was down."""
    trial.cluster.start_daemon("slurmdbd")
    sacct = ("sacct", "-XnP", "-j", trial.job, "-o", "State")

    def is_known() -> bool:
        return trial.cluster.run(*sacct, check=False).stdout == "COMPLETED\n"

    trial.cluster.wait(is_known, TIMEOUT, f"slurmdbd to know that {trial.job} is completed")


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest, slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str
) -> Iterator[dict[str, "Future[Trial]"]]:
    """Start the scenarios of all selected tests at the same time."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    selected = [name for name in SELECTED if any(item.callspec.params.get("name") == name for item in items)]
    folder = tmp_path_factory.mktemp("faults")
    # They mostly wait for Slurm.
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {name: pool.submit(run_scenario, folder / name, data_root, name) for name in selected}


def test_every_fault_occurs_by_day() -> None:
    assert {fault for name in SCENARIOS if name not in NIGHTLY for fault in SCENARIOS[name][1]} == {
        fault for _, faults in SCENARIOS.values() for fault in faults
    }


@pytest.mark.parametrize("name", SELECTED)
def test_a_trial_has_the_same_result_after_faults(
    name: str, scenarios: dict[str, "Future[Trial]"], whole: Path, single: Path
) -> None:
    trial, (_, faults) = scenarios[name].result(), SCENARIOS[name]
    stopped, resumed = trial.stops_and_resumes()
    print(f"seed {SEED}", *trial.notes, f"stopped at {stopped}, resumed from {resumed}", sep="\n")
    reference = single if trial.processes == 1 else whole
    assert losses(trial.run) == losses(reference)
    assert weights(trial.run) == weights(reference)
    # After a stop it resumes from the step at which it stopped; only after a crash it repeats steps.
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


def test_faults_of_array_elements_do_not_affect_other_elements(slurm: None, tmp_path: Path, data_root: str) -> None:
    """The elements get USR2, a requeue, a kill, scancel, nothing and, the last (whose raw id is the array's), USR2."""
    with Cluster(accounting=False, kill_wait=20, grace_seconds=20) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, ARRAY)
        sweep.submit()
        jobs, runs = sweep.jobs("train"), [run.path for run in sweep.runs()]
        step = random.Random(SEED).randint(2, STEPS - 100)
        print(f"seed {SEED}: at step {step}")
        unpaused = list(runs)

        def pause_all() -> bool:
            for run in [run for run in unpaused if len(losses(run)) >= step]:
                send(workers(run), signal.SIGSTOP)
                unpaused.remove(run)
            return not unpaused

        cluster.wait(pause_all, TIMEOUT, f"step {step} of {unpaused}")
        assert all(len(workers(run)) == 1 for run in runs)
        for job in (jobs[0], jobs[5]):
            cluster.run("scancel", "--signal=USR2", job)
        cluster.run("scontrol", "requeue", jobs[1])
        send(workers(runs[2]), signal.SIGKILL)
        cluster.run("scancel", jobs[3])
        for position in (0, 1, 3, 5):
            glob = f"stop*.{jobs[position]}.0*"
            cluster.wait(lambda run=runs[position], glob=glob: any(run.glob(glob)), TIMEOUT, "stop")  # type: ignore[misc]
        for run in runs:
            send(workers(run), signal.SIGCONT)
        # An evaluation is stopped and requeued, too.
        evaluation = sweep.jobs("eval")[4]
        cluster.wait(lambda: evaluators(runs[4]), TIMEOUT, "the evaluation of the trial without a fault")
        cluster.run("scancel", "--signal=USR2", evaluation)
        expected = ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "COMPLETED", "COMPLETED"]
        evaluated = [state if state == "COMPLETED" else "CANCELLED" for state in expected]
        cluster.wait(lambda: [sweep.state(job) for job in sweep.jobs("eval")] == evaluated, TIMEOUT, f"{evaluated}")
        assert [sweep.state(job) for job in jobs] == expected
        assert [restarts(cluster, job) for job in (*jobs, evaluation)] == [1, 1, 0, 0, 0, 1, 1]
        sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    assert [RunDirectory(run).state() for run in runs] == ["done", "done", "failed", "stopped", "done", "done"]
    page = (sweep.folder / "report" / "results.md").read_text()
    assert RunDirectory(runs[2]).error().partition(";")[0] in page
    for position in (0, 1, 4, 5):
        assert (runs[position] / "eval" / "metrics.json").exists()
        alone = train_uninterrupted(tmp_path / str(position), data_root, ARRAY, 1, f"train.seed={position}")
        assert losses(runs[position]) == losses(alone)
        assert weights(runs[position]) == weights(alone)
        attempts = len(check_ran_once(sweep.steps / runs[position].name, 1, STEPS))
        assert attempts == (1 if position == 4 else 2)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_before_the_launcher_has_handlers_does_not_kill_the_job(
    number: signal.Signals, cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    """The signal may be lost or take effect; both for an element of an array and for a single job."""
    content = DANN | {"name": "early", "train": DANN["train"] | {"steps": 5}}
    if number == signal.SIGTERM:
        content |= {"grid": {"train.seed": [0, 1]}}
    sweep = Submitted(cluster, tmp_path, data_root, content)
    sweep.submit()
    send(cluster.wait(lambda: launchers(sweep.folder), TIMEOUT, "the launcher"), number)
    for job, run in zip(sweep.jobs("train"), sweep.runs(), strict=True):
        sweep.wait_for(job, "COMPLETED")
        assert run.state() == "done"
        check_ran_once(sweep.steps / run.name, 1, 5)
    cluster.cancel_jobs()
