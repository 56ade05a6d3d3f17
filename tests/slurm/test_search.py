"""A search on Slurm: jobs whose slots ask one study, one of which is requeued and one killed."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil

from jobs.search.submit import complete
from tests.jobs.test_search import METRIC, SPACE, check_accounts
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, TIMEOUT, Submitted, losses, restarts
from trainer.config.search import load_search
from trainer.runs.directory import RunDirectory, find_runs

SEARCH: dict[str, Any] = DANN | {
    "name": "searched",
    "train": {"steps": 300, "batch_size": 8, "log_every": 1, "checkpoint_every": 50},
    "eval": {"metrics": ["accuracy"]},
    "search": {"metric": METRIC, "trials": 5, "pruner": {"name": "asha", "first": 100}, "space": SPACE},
    "resources": DANN["resources"] | {"mem_gb": 2, "max_parallel": 2},
}


def trained_by(sweep: Submitted, job: str) -> list[RunDirectory]:
    """Return the trials whose newest attempt is of a job."""
    return [run for run in find_runs(sweep.folder) if str(run.status().get("attempt", "")).startswith(f"{job}.")]


def test_a_search_survives_a_requeue_and_kill_9(slurm: None, tmp_path: Path, data_root: str) -> None:
    """The requeued job goes on with its own trial; that of the killed one is resumed by the other job."""
    with Cluster(accounting=False, kill_wait=20, grace_seconds=20) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, SEARCH)
        assert "search  job" in sweep.submit()
        (array,) = sweep.submissions()[-1]["arrays"]
        requeued, killed = (f"{array['id']}_{i}" for i in range(2))
        for job in (requeued, killed):
            cluster.wait(lambda job=job: any(losses(r.path) for r in trained_by(sweep, job)), TIMEOUT, f"step of {job}")  # type: ignore[misc]
        (own,) = trained_by(sweep, requeued)[-1:]
        (orphan,) = trained_by(sweep, killed)[-1:]
        cluster.run("scancel", "--signal=USR2", requeued)
        worker = psutil.Process(int(orphan.status()["pid"])).parent()
        assert worker
        os.kill(worker.pid, signal.SIGKILL)
        assert "nothing to do" in sweep.submit("--max-parallel", "1")  # two commands start no slot twice
        sweep.wait_for(killed, "FAILED", "COMPLETED")
        sweep.wait_for(requeued, "COMPLETED")
        assert restarts(cluster, requeued) == 1
        sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
        search = load_search(sweep.file, [])
        assert search
        check_accounts(sweep.folder, complete(search), 5)
        assert own.state() in ("done", "pruned")
        assert orphan.state() in ("done", "pruned")
        assert sum(bool(run.evaluation()) for run in find_runs(sweep.folder)) == 1
        assert "nothing to do" in sweep.submit()
