"""Compare a sweep of small trials, trained and evaluated cold, one process each, with a worker's slots.

    python tests/benchmarks/slots.py                  # 8 trials of 200 steps, 1 and 2 slots
    python tests/benchmarks/slots.py --trials 4 --steps 20 --slots 1 2 4

Prints CPU seconds and seconds of each way, and their ratio to the cold one. Every process has one thread. That all ways
give the same weights is checked, too.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trainer.config.sweep import load_trials  # noqa: E402
from trainer.runs.directory import RunDirectory  # noqa: E402
from trainer.runs.placement import create_run_directories  # noqa: E402

SWEEP = """
method: dann
data: {{source: mnist5k, target: mnistm5k}}
train: {{steps: {steps}}}
eval: {{metrics: [accuracy]}}
grid: {{train.seed: [{seeds}]}}
"""


def create(folder: Path, name: str, trials: int, steps: int) -> list[RunDirectory]:
    """Return new run directories of the sweep."""
    file = folder / f"{name}.yaml"
    file.write_text(SWEEP.format(steps=steps, seeds=", ".join(map(str, range(trials)))))
    return [RunDirectory(path) for path in create_run_directories(folder / name, load_trials(file, []))]


def run(*words: str, text: str = "") -> None:
    """Run a program of the checkout to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, *words], input=text, text=True, cwd=ROOT, env=environment, check=True, capture_output=True
    )


def run_cold(runs: list[RunDirectory]) -> None:
    """Train and evaluate one after the other."""
    for trial in runs:
        run("trainer/main.py", str(trial.path))
        run("eval/main.py", str(trial.path))


def run_worker(runs: list[RunDirectory], slots: int) -> None:
    """Train and evaluate in the slots of a worker."""
    tasks = [{"stage": "train", "path": str(trial.path), "evaluate": True} for trial in runs]
    run("jobs/worker.py", text=json.dumps({"sweep": str(runs[0].path.parent), "tasks": tasks, "slots": slots}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    weights, cold = set(), (0.0, 0.0)
    print(f"{options.trials} trials of {options.steps} steps, {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as folder:
        for slots in (0, *options.slots):
            name = f"{slots} slots" if slots else "cold"
            runs = create(Path(folder), name.replace(" ", "_"), options.trials, options.steps)
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            run_worker(runs, slots) if slots else run_cold(runs)
            after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            cold = cold if slots else (cpu, seconds)
            print(
                f"{name:8} {cpu:6.1f} s CPU ({cpu / cold[0]:.2f})  {seconds:6.1f} s ({seconds / cold[1]:.2f})",
                flush=True,
            )
            assert all(trial.evaluation() for trial in runs)
            files = [trial.exported_weights()[options.steps] for trial in runs]
            weights.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    print("same weights" if len(weights) == 1 else "different weights")


if __name__ == "__main__":
    main()
