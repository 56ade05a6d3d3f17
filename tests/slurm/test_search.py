"""A search on Slurm: jobs whose slots ask one study, and which are requeued, preempted and killed."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.search.submit import complete
from tests.jobs.test_search import METRIC, SPACE, check_accounts
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, TIMEOUT, Submitted, launchers, losses, restarts, send
from trainer.config.search import load_search
from trainer.runs.directory import RunDirectory, find_runs

SEARCH: dict[str, Any] = DANN | {
    "name": "searched",
    "train": {"steps": 300, "batch_size": 8, "log_every": 1, "checkpoint_every": 50},
    "eval": {"metrics": ["accuracy"]},
    "search": {"metric": METRIC, "trials": 5, "pruner": {"name": "asha", "first": 100}, "space": SPACE},
    "resources": DANN["resources"] | {"mem_gb": 2, "max_parallel": 2},
}

SEED = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 10**6))
EVENTS = ("requeue", "usr2", "preempt", "kill", "slurmctld")
HITS = 15


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


def hit(sweep: Submitted, event: str, draw: random.Random) -> None:
    """Let an event happen to one of the running slots, or to all of them."""
    cluster = sweep.cluster
    running = [job for job in sweep.jobs("train") if sweep.state(job) == "RUNNING"]
    if event == "kill":
        send(draw.sample(pids, 1) if (pids := launchers(sweep.folder)) else [], signal.SIGKILL)
    elif event == "preempt":
        options = ("--partition=high", "--exclusive", "--nodelist=n1", "--output=/dev/null")
        high = cluster.run("sbatch", "--parsable", *options, stdin="#!/bin/sh\n").stdout.strip()
        sweep.wait_for(high, "COMPLETED")
    elif running and event == "slurmctld":
        cluster.wait_until_saved(running[0])
        cluster.kill_daemon("slurmctld")
        cluster.start_daemon("slurmctld")
    elif running:
        words = ("scontrol", "requeue") if event == "requeue" else ("scancel", "--signal=USR2")
        cluster.run(*words, draw.choice(running), check=False)


@pytest.mark.skipif("TURNOUT_TEST_LONG" not in os.environ, reason="takes minutes; set TURNOUT_TEST_LONG=1")
def test_a_search_of_24_settings_survives_random_events(slurm: None, tmp_path: Path, data_root: str) -> None:
    """Slots are preempted, requeued and killed, and slurmctld is; submitted again, no setting is lost or told twice."""
    draw = random.Random(SEED)
    options = SEARCH["search"] | {"trials": 24, "pruner": {"name": "asha", "first": 30, "factor": 3}}
    resources = SEARCH["resources"] | {"mem_gb": 1, "max_parallel": 4}
    train = SEARCH["train"] | {"steps": 120, "checkpoint_every": 20}
    content = SEARCH | {"name": "events", "train": train, "search": options, "resources": resources}
    with Cluster(nodes=1, kill_wait=20, grace_seconds=20) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, content)
        notes = [f"seed {SEED}"]
        try:
            while "nothing to do" not in sweep.submit():
                while cluster.run("squeue", "-h").stdout:
                    time.sleep(draw.uniform(4, 12))
                    if len(notes) <= HITS:
                        notes.append(draw.choice(EVENTS))
                        hit(sweep, notes[-1], draw)
            search = load_search(sweep.file, [])
            assert search
            check_accounts(sweep.folder, complete(search), 24, may_fail=True)  # a kill may hit a trial's process
        except Exception as error:
            queue = cluster.run("squeue", "-t", "all", "-o", "%i %j %T %r %S %N", check=False).stdout
            raise AssertionError(f"{error}\n{chr(10).join(notes)}\n{queue}\n{sweep.output(3000)}") from error
    print(*notes, f"{len(sweep.submissions())} submissions", sep="\n")
    assert len(notes) > 1  # a fast machine ends the search before all events
