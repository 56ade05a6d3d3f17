"""What losing its job costs a trial, on the private Slurm of tests/slurm: how long it takes to save when it is told to
stop, and how long until it trains when its job starts. Needs what tests/slurm/README.md names.

python tests/benchmarks/slurm.py --rounds 5
"""

import argparse
import random
import re
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.steps import recorded
from tests.slurm.submitted import DANN, Submitted, restarts
from trainer.data.cache import data_root, stage
from trainer.data.dataset import Form

SHAPES = {"1 process": {}, "2 nodes × 1 process": {"nodes": 2}}


def first_step(sweep: Submitted, attempt: str) -> float:
    """When every process of an attempt had taken its first step, in seconds since the epoch; 0.0 before that."""
    (run,) = sweep.runs()
    ranks = recorded(sweep.steps / run.name).get(attempt, {})
    return (
        max(lines[0]["time"] for lines in ranks.values()) if len(ranks) == run.config()["resources"]["nodes"] else 0.0
    )


def last_byte(run: Path, attempt: str) -> float:
    """When the checkpoint and the marker of an attempt that was told to stop were complete; 0.0 before that."""
    marker = run / f"stopped.{attempt}.json"
    if not marker.exists():
        return 0.0
    (newest, *_) = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    return max(file.stat().st_mtime for file in (marker, run / "latest", *newest.iterdir()))


def measure(sweep: Submitted, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from a job's start to the first step, and from the signal to the last byte saved, of each round."""
    cluster, (run,) = sweep.cluster, sweep.runs()
    sweep.submit()
    (job,) = sweep.jobs("train")
    starts, stops = [], []
    for turn in range(rounds):
        attempt = f"{job}.{turn}"
        stepped = cluster.wait(lambda attempt=attempt: first_step(sweep, attempt), 120, f"{attempt}")  # type: ignore[misc]
        said = cluster.run("scontrol", "show", "job", job, "-o").stdout
        started = datetime.fromisoformat(re.findall(r" StartTime=(\S+)", said)[0]).timestamp()
        starts.append(stepped - started)
        time.sleep(random.uniform(0.5, 1.5))
        submitted_at = time.time()
        cluster.run("scancel", "--signal=USR2", job)
        stops.append(cluster.wait(lambda attempt=attempt: last_byte(run.path, attempt), 60, "marker") - submitted_at)  # type: ignore[misc]
        cluster.wait(lambda turn=turn: restarts(cluster, job) > turn, 60, "another turn")  # type: ignore[misc]
    cluster.cancel_jobs()
    return starts, stops


def main() -> None:
    """Print the median and the worst of both, for one process and for two nodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in ("mnist5k", "mnistm5k"):
        stage(name, data_root(None), Form(28, 3))
    train = DANN["train"] | {"steps": 100_000, "batch_size": 64, "log_every": 50, "checkpoint_every": 100_000}
    print(f"{'':>20}  {'job start to first step':>26}  {'signal to last byte saved':>26}")
    with tempfile.TemporaryDirectory() as folder, Cluster(accounting=False, kill_wait=30) as cluster:
        for name, shape in SHAPES.items():
            content = DANN | {"name": "timed", "train": train, "resources": DANN["resources"] | shape}
            place = Path(folder) / str(len(shape))
            measurements = measure(Submitted(cluster, place, str(data_root(None)), content), options.rounds)
            columns = [f"{statistics.median(v):6.2f} s (worst {max(v):6.2f} s)" for v in measurements]
            print(f"{name:>20}  {columns[0]:>26}  {columns[1]:>26}", flush=True)
    print(f"{options.rounds} rounds each; median. Slurm's StartTime counts whole seconds: up to one too many.")


if __name__ == "__main__":
    main()
