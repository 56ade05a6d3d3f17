"""A disk is full when a trial saves: the trial fails with that reason, keeps its last checkpoint, and resumes later."""

import json
import random
import signal
from pathlib import Path

import pytest

from tests.disks import fill, small_disk
from tests.slurm.cluster import Cluster
from tests.slurm.steps import check_ran_once
from tests.slurm.submitted import DANN, STEPS, TIMEOUT, Submitted, command, losses, restarts, send, weights, workers
from tests.slurm.test_faults import SEED
from trainer.runs import checkpoints
from trainer.runs.directory import RunDirectory


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("full", ["checkpoints", "all of the run"])
def test_a_trial_fails_on_a_full_disk_and_keeps_its_last_checkpoint(
    full: str, cluster: Cluster, tmp_path: Path, data_root: str, whole: Path
) -> None:
    resources = DANN["resources"] | {"nodes": 2}
    sweep = Submitted(cluster, tmp_path, data_root, DANN | {"name": "full", "resources": resources})
    sweep.environment["TURNOUT_DISK_TIMEOUT"] = "3"
    (run,) = (run.path for run in sweep.runs())
    disk = run / "checkpoints" if full == "checkpoints" else run
    with small_disk(disk, 32):
        sweep.submit()
        (job,) = sweep.jobs("train")
        cluster.wait(lambda: len(losses(run)) > 50, TIMEOUT, "the first checkpoint")
        pids = workers(run)
        send(pids, signal.SIGSTOP)
        (saved,) = checkpoints.steps(RunDirectory(run))
        before = content(saved)
        size = sum(map(len, before.values()))
        # The disk becomes full in the middle of the next checkpoint, or with the next write of any file.
        room = random.Random(SEED).randrange(size) if full == "checkpoints" else 0
        filler = fill(disk, room)
        send(pids, signal.SIGCONT)
        sweep.wait_for(job, "FAILED")
        print(f"seed {SEED}: {room} of {size} bytes free; {RunDirectory(run).error()}")
        assert restarts(cluster, job) == 0
        cluster.wait(lambda: not workers(run), TIMEOUT, "its processes to end")
        message = RunDirectory(run).error() if full == "checkpoints" else sweep.output(10**6)
        prefix = f"{run}/checkpoints/step-000100: checkpoint not written: " if full == "checkpoints" else ""
        assert f"{prefix}No space left on device" in message
        assert str(run) in message
        shown = json.loads(command(sweep, "status", "--json").stdout)
        assert (shown["state"], shown["cause"]) == ("failed", "disk error"), shown
        assert ("No space left" if full == "checkpoints" else "the disk of the run directory refuses") in shown[
            "reason"
        ]
        # The complete checkpoint is unchanged, and the incomplete one is removed.
        assert checkpoints.steps(RunDirectory(run)) == [saved]
        assert (content(saved), checkpoints.damage(saved)) == (before, "")
        assert not list(run.rglob("*.tmp"))
        # While the disk is full it fails again, and still keeps the checkpoint.
        if full == "all of the run":
            sweep.submit()
            sweep.wait_for(sweep.jobs("train")[-1], "FAILED")
            assert (content(saved), checkpoints.damage(saved)) == (before, "")
        filler.unlink()
        sweep.submit()
        last = sweep.jobs("train")[-1]
        sweep.wait_for(last, "COMPLETED")
        assert RunDirectory(run).state() == "done"
        assert losses(run) == losses(whole)
        assert weights(run) == weights(whole)
        starts = check_ran_once(sweep.steps / run.name, 2, STEPS, crashed=[f"{job}.0"])
        assert starts == [0, 50]
        cluster.cancel_jobs()
