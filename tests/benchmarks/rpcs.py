"""Count what the commands ask of slurmctld: its RPCs per command, from sdiag, on a private Slurm.

    python tests/benchmarks/rpcs.py                        # a sweep of 50 trials with evaluations
    python tests/benchmarks/rpcs.py --trials 1000

The trials are held, so that nothing but the command itself sends RPCs; at last one trial runs for a while.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.slurm.cluster import Cluster  # noqa: E402
from tests.slurm.submitted import DANN, Submitted, command  # noqa: E402
from trainer.data.cache import data_root  # noqa: E402

OWN = ("NODE_REGISTRATION", "REQUEST_STATS_INFO", "REQUEST_STATS_RESET", "COMPOSITE")  # of Slurm, and of sdiag itself


def count(cluster: Cluster) -> Counter[str]:
    """Return kind of RPC → how many slurmctld has had since the last reset."""
    text = cluster.run("sdiag").stdout.partition("by message type")[2].partition("by user")[0]
    rows = re.findall(r"^\s*(\w+)\s*\(\s*\d+\)\s*count:(\d+)", text, re.MULTILINE)
    return Counter({kind: int(number) for kind, number in rows if not any(own in kind for own in OWN)})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60, help="how long a running job is watched")
    options = parser.parse_args()
    held = {
        "name": "held",
        "grid": {"train.seed": [*range(options.trials)]},
        "eval": {"metrics": ["accuracy"]},
        "resources": DANN["resources"] | {"slurm": {"hold": True}},
    }
    running = {"name": "running", "train": {"steps": 10**6, "batch_size": 8, "log_every": 100}}
    with tempfile.TemporaryDirectory() as folder, Cluster(max_array_size=options.trials + 1) as cluster:
        sweep = Submitted(cluster, Path(folder), str(data_root()), DANN | held)

        def measure(name: str, *argv: str) -> None:
            cluster.run("sdiag", "-r")
            result = subprocess.run(argv, cwd=ROOT, env=sweep.environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
            report(name, count(cluster))

        submit = [sys.executable, "jobs/submit.py", "--cluster", "slurm", "--yes", "--runs", str(sweep.logs)]
        print(f"{options.trials} trials, each with an evaluation")
        measure("submit", *submit, str(sweep.file))
        measure("submit again", *submit, str(sweep.file))
        measure("status", sys.executable, "jobs/status.py", str(sweep.folder))
        measure("cancel", sys.executable, "jobs/cancel.py", str(sweep.folder), "--yes")
        one = Submitted(cluster, Path(folder), str(data_root()), DANN | running)
        one.submit()
        cluster.wait(lambda: one.runs()[0].status().get("step"), 300, "the first steps")
        cluster.run("sdiag", "-r")
        time.sleep(options.seconds)
        report(f"{options.seconds} s of a running trial", count(cluster))
        command(one, "cancel", "--yes")


def report(name: str, rpcs: Counter[str]) -> None:
    """Print the number of RPCs and their kinds."""
    kinds = ", ".join(f"{number} {kind.removeprefix('REQUEST_').lower()}" for kind, number in rpcs.most_common())
    print(f"{name}: {rpcs.total()} ({kinds})", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
