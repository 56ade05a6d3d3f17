"""Compare asha+tpe with random settings and with a grid, both trained to the end: best objective against device-time.

    python tests/benchmarks/search.py                       # 5 studies of each
    python tests/benchmarks/search.py --studies 1 --steps 90

DANN from mnist5k to mnistm5k over learning rate and γ, by the information in the predictions of the target's validation
images; 24 settings by asha+tpe, 12 by the others. Everything runs in this process, one trial at a time, so that seconds
are those of training and measuring, without the start of processes. Steps do not depend on the load of the machine.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from eval import objective  # noqa: E402
from jobs.search.source import StudySource  # noqa: E402
from jobs.search.study import Study  # noqa: E402
from jobs.search.submit import begin, complete  # noqa: E402
from trainer import main as training  # noqa: E402
from trainer.config.search import load_search  # noqa: E402
from trainer.runs.attempt import Attempt  # noqa: E402

SPACE = {"model.lr": {"loguniform": [1e-4, 0.1]}, "model.gamma": {"uniform": [1, 20]}}
GRID = [{"model.lr": lr, "model.gamma": gamma} for lr in (1e-4, 1e-3, 1e-2, 1e-1) for gamma in (1, 10, 20)]
Curve = list[tuple[float, float, float]]  # steps, seconds and the best value so far, after each setting


def describe(name: str, number: int, steps: int) -> dict[str, Any]:
    """Return the sweep of one study."""
    options: dict[str, Any] = {"sampler": "random", "pruner": "none", "trials": len(GRID)}
    if name == "asha+tpe":
        options = {"sampler": "tpe", "pruner": {"name": "asha", "first": steps // 9, "factor": 3}, "trials": 24}
    if name == "grid":
        options["enqueue"] = GRID
    return {
        "name": f"{name}{number}",
        "method": "dann",
        "data": {"source": "mnist5k", "target": "mnistm5k"},
        "model": {"net": "slim"},
        "train": {"steps": steps, "batch_size": 32, "seed": number, "log_every": steps, "checkpoint_every": steps},
        "search": {"metric": "validation/information/target", "seed": number, "space": SPACE, **options},
    }


def search(folder: Path, name: str, number: int, steps: int) -> Curve:
    """Run one study to its end."""
    file = folder / f"{name}{number}.yaml"
    file.write_text(yaml.safe_dump(describe(name, number, steps)))
    loaded = load_search(file, [])
    assert loaded
    sweep = folder / f"{name}{number}"
    sweep.mkdir()
    study = begin(sweep, complete(loaded))
    source = StudySource(sweep, Attempt(f"local-{os.getpid()}"))
    programs = {"train": training.main, "objective": objective.main}
    seconds: dict[int, float] = {}
    while (task := source.take()) and task.stage != "eval":
        (claim,), began = source.claims.values(), time.monotonic()
        with (folder / "log").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
            assert programs[task.stage]([task.path, *task.arguments]) == 0
        seconds[claim.number] = seconds.get(claim.number, 0.0) + time.monotonic() - began
        source.end(task, task.run.is_done())
    return trace(study, seconds)


def trace(study: Study, each: dict[int, float]) -> Curve:
    """Return the curve of a study, whose settings were tried one after the other and took `each` some seconds."""
    curve: Curve = []
    steps, seconds, best = 0.0, 0.0, float("-inf")
    for trial in study.trials():
        steps += trial.last_step or study.rungs[-1]
        seconds += each[trial.number]
        if trial.state.name == "COMPLETE":
            best = max(best, trial.value or 0.0)
        curve.append((steps, seconds, best))
    return curve


def reach(curves: Sequence[Curve], column: int, value: float) -> float:
    """Return the time (0: steps, 1: seconds) at which the mean over studies of the best so far reaches a value."""
    for moment in sorted({point[column] for curve in curves for point in curve}):
        bests = [max((p[2] for p in curve if p[column] <= moment), default=float("-inf")) for curve in curves]
        if statistics.mean(bests) >= value:
            return moment
    return float("inf")


def report(curves: dict[str, list[Curve]]) -> None:
    """Print what the studies have come to."""
    goal = statistics.mean(curve[-1][2] for curve in curves["random"])
    for name, own in curves.items():
        bests = [curve[-1][2] for curve in own]
        steps, seconds = (statistics.mean(curve[-1][column] for curve in own) for column in (0, 1))
        print(f"{name:9} {statistics.mean(bests):.3f} nats after {steps:.0f} steps, {seconds:.0f} s", end="")
        print("  of each study:", *(f"{best:.3f}" for best in bests))
    for name, own in curves.items():
        times = [reach(own, column, goal) / reach(curves["random"], column, goal) for column in (0, 1)]
        print(f"{name:9} reaches {goal:.3f} in {times[0]:.2f} of random's steps, {times[1]:.2f} of its seconds")


def main() -> None:
    """Measure and print, after each round of studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=5)
    parser.add_argument("--steps", type=int, default=270, help="of a setting that is trained to the end")
    options = parser.parse_args()
    os.environ["TURNOUT_ATTEMPT"] = f"local-{os.getpid()}"
    curves: dict[str, list[Curve]] = {"random": [], "asha+tpe": [], "grid": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.studies):
            for name, own in curves.items():
                own.append(search(Path(folder), name, number, options.steps))
            print(f"after {number + 1} studies of each, load {os.getloadavg()[0]:.0f}:")
            report(curves)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
