"""A disk that is full when a trial saves: it fails and says so, what was saved stays good, and it goes on later."""

import errno
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.steps import check_ran_once
from tests.slurm.submitted import DANN, PATIENCE, STEPS, Submitted, losses, restarts, send, weights, workers
from tests.slurm.test_faults import SEED
from trainer.runs import checkpoints
from trainer.runs.directory import RunDirectory


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own under `folder`, which the kernel itself keeps from growing."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int) -> Path:
    """Fill a disk up to `room` bytes; return the file that does it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(0, file.tell() - room))
    return filler


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("full", ["checkpoints", "all of the run"])
def test_a_full_disk_fails_a_trial_and_costs_nothing_that_was_saved(
    full: str, cluster: Cluster, tmp_path: Path, data_root: str, whole: Path
) -> None:
    resources = DANN["resources"] | {"nodes": 2}
    sweep = Submitted(cluster, tmp_path, data_root, DANN | {"name": "full", "resources": resources})
    (run,) = (run.path for run in sweep.runs())
    disk = run / "checkpoints" if full == "checkpoints" else run
    with small_disk(disk, 32):
        sweep.submit()
        (job,) = sweep.jobs("train")
        cluster.wait(lambda: len(losses(run)) > 50, PATIENCE, "the first checkpoint")
        held = workers(run)
        send(held, signal.SIGSTOP)
        (saved,) = checkpoints.steps(run)
        before = content(saved)
        size = sum(map(len, before.values()))
        # Somewhere in the middle of the next checkpoint, or at once, whatever is written.
        room = random.Random(SEED).randrange(size) if full == "checkpoints" else 0
        filler = fill(disk, room)
        send(held, signal.SIGCONT)
        sweep.wait_for(job, "FAILED")
        print(f"seed {SEED}: {room} of {size} bytes free; {RunDirectory(run).error()}")
        assert restarts(cluster, job) == 0
        cluster.wait(lambda: not workers(run), PATIENCE, "the end of its processes")
        said = RunDirectory(run).error() if full == "checkpoints" else sweep.output(10**6)
        place = f"{run}/checkpoints/step-000100: checkpoint not written: " if full == "checkpoints" else ""
        assert f"{place}No space left on device" in said
        assert str(run) in said
        # What was good is untouched, and what was begun is gone.
        assert checkpoints.steps(run) == [saved]
        assert (content(saved), checkpoints.damage(saved)) == (before, "")
        assert not list(run.rglob("*.tmp"))
        # Without room it fails again, and still does no harm.
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
