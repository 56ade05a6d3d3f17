"""Several trials side by side in a job: each as if it had the job for itself, whatever happens to the others."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.steps import check_ran_once
from tests.slurm.submitted import (
    DANN,
    STEPS,
    TIMEOUT,
    Submitted,
    command,
    is_alive,
    losses,
    restarts,
    send,
    weights,
)
from trainer.config.schema import Resources
from trainer.runs.directory import RunDirectory

SEED = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 10**6))
SLOTS = DANN | {
    "name": "slots",
    "train": DANN["train"] | {"checkpoint_every": 1000},
    "eval": {"metrics": ["accuracy"]},
    "grid": {"train.seed": [0, 1, 2, 3, 4]},
    "resources": DANN["resources"] | {"trials_per_gpu": 2, "mem_gb": 2, "signal_delay": 90},
}


def process(run: RunDirectory) -> int:
    """The process that trains a trial: a fork, which has the command line of its worker."""
    return int(run.status().get("pid", 0))


def test_trials_side_by_side_survive_what_happens_to_others(
    slurm: None, tmp_path: Path, data_root: str, alone: dict[int, Path]
) -> None:
    """The first job is requeued, in the second one trial is killed, and the third job has a free slot."""
    with Cluster(accounting=False, kill_wait=20, grace_seconds=20) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, SLOTS)
        sweep.environment["OMP_NUM_THREADS"] = "1"
        sweep.submit()
        (train, evaluation), runs = sweep.submissions()[-1]["arrays"], sweep.runs()
        assert [train["each"], evaluation["each"]] == [2, 2]
        jobs, evaluations = ([f"{array['id']}_{i}" for i in range(3)] for array in (train, evaluation))
        step = random.Random(SEED).randint(2, STEPS - 100)
        print(f"seed {SEED}: at step {step}")
        unpaused = list(runs)

        def pause_all() -> bool:
            for run in [run for run in unpaused if len(losses(run.path)) >= step]:
                send([process(run)], signal.SIGSTOP)
                unpaused.remove(run)
            return not unpaused

        cluster.wait(pause_all, TIMEOUT, f"step {step} of {unpaused}")
        pids = [process(run) for run in runs]
        assert len(set(pids)) == 5
        cluster.run("scancel", "--signal=USR2", jobs[0])
        send([pids[2]], signal.SIGKILL)
        for run in runs[:2]:
            cluster.wait(lambda run=run: any(run.path.glob(f"stop.{jobs[0]}.0")), TIMEOUT, "stop")  # type: ignore[misc]
        send(pids, signal.SIGCONT)
        for job in (*jobs, *evaluations):
            sweep.wait_for(job, "COMPLETED")
        assert [restarts(cluster, job) for job in jobs] == [1, 0, 0]
        sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
        assert not any(is_alive(pid) for pid in pids)
        assert [run.state() for run in runs] == ["done", "done", "failed", "done", "done"]
        assert "SIGKILL" in runs[2].error()
        assert "SIGKILL" in command(sweep, "status").stdout
        assert "done at step" in command(sweep, "logs", runs[3].name).stdout
        # Submitted again, only that trial is trained.
        sweep.submit()
        sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    page = (sweep.folder / "report" / "results.md").read_text()
    assert "5 done" in page
    for position, run in enumerate(runs):
        assert run.evaluation()["step"] == STEPS
        assert losses(run.path) == losses(alone[position])
        assert weights(run.path) == weights(alone[position])
        crashed = [f"{jobs[1]}.0"] if position == 2 else []
        starts = check_ran_once(sweep.steps / run.name, 1, STEPS, crashed)
        assert len(starts) == (2 if position < 3 else 1)


def test_max_parallel_counts_trials(cluster: Cluster, tmp_path: Path, data_root: str) -> None:
    content = SLOTS | {"resources": SLOTS["resources"] | {"max_parallel": 5}}
    sweep = Submitted(cluster, tmp_path, data_root, content)
    assert "--array=0-2%2" in sweep.submit("--dry-run")


def test_trials_of_several_processes_do_not_share_a_gpu() -> None:
    Resources(trials_per_gpu=4)
    for key in ("gpus_per_node", "nodes", "processes_per_node"):
        with pytest.raises(ValueError, match="trials_per_gpu: 4 is for trials of one process"):
            Resources.model_validate({"trials_per_gpu": 4, key: 2})
