"""What a checkpoint costs: how long a training waits for it, written at once or in a thread, and how long to load it.

    python tests/benchmarks/checkpoints.py
    python tests/benchmarks/checkpoints.py dann ddpm --rounds 9

For each method, at the size of its sweep file: milliseconds that a step waits for a checkpoint, as a median, with
`train.async_checkpoints` off and on; milliseconds to verify and load it; its size.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.steps import Setting, find_configs  # noqa: E402
from trainer.runs import checkpoints  # noqa: E402
from trainer.runs.directory import RunDirectory  # noqa: E402


def time_median(work: Callable[[], object], rounds: int) -> float:
    """Return the median milliseconds of some calls."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def measure(setting: Setting, rounds: int) -> str:
    """Return the line of a method."""
    trainer = setting.trainer(precision="no")
    next(trainer.fit(setting.batches()))  # creates the state of the optimizers
    trainer.settle()

    def verify_and_load(path: Path) -> None:
        assert not checkpoints.damage(path)
        trainer.load(path)

    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk, which /tmp may not be
        run = RunDirectory(Path(folder))
        at_once = time_median(lambda: checkpoints.save(run, 1, "identity", trainer.save), rounds)
        copied = time_median(trainer.copy_save, rounds)
        (path,) = checkpoints.intact(run)
        loaded = time_median(lambda: verify_and_load(path), rounds)
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    return f"wait {at_once:7.1f} ms, with a thread {copied:6.1f} ms  load {loaded:6.1f} ms  {size:6.1f} MB"


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="default: all that have a sweep file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, config in find_configs(options.methods).items():
        print(f"{name:<20}", measure(Setting(config, device), options.rounds), flush=True)


if __name__ == "__main__":
    main()
