"""Evaluate trained runs: writes eval/metrics.json, figures and arrays into each run directory, and TensorBoard."""

import argparse
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from trainer.checkpoint import describe
from trainer.config import Config, ConfigError, metrics, nearest, resolve
from trainer.data.registry import DataError
from trainer.document import read
from trainer.run import Run, read_json, write_json

EXAMPLES = """examples:
  python eval/main.py logs/dann/dann,gamma=10,seed=0-1a2b3c4d
  python eval/main.py logs/dann/*/ --metrics accuracy     # whatever is trained; what is up to date is left alone"""


def main(arguments: list[str] | None = None) -> int:
    """Evaluate the runs of the command line; return the exit code: 0, 1 if an evaluation failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="eval/main.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="run directories")
    parser.add_argument(
        "--metrics", nargs="+", help=f"instead of the run's own eval.metrics; of: {', '.join(metrics())}"
    )
    parser.add_argument("--force", action="store_true", help="evaluate again even if nothing has changed")
    options = parser.parse_args(arguments)
    code = 0
    for path in options.runs:
        try:
            bring_up_to_date(Run(path), options.metrics, options.force)
        except (ConfigError, DataError) as error:
            print(f"error: {error}", file=sys.stderr)
            if (path / "eval").is_dir():
                write_json(path / "eval" / "failed.json", {"error": str(error), "time": time.time()})
            code = 2
    return code


def bring_up_to_date(run: Run, wanted: list[str] | None, force: bool) -> None:
    """Bring a run's evaluation up to date; ConfigError or DataError say what is missing."""
    if not (run.path / "config.yaml").exists():
        raise ConfigError(f"{run.path}: is no run directory: it has no config.yaml; give logs/<sweep>/<trial>")
    config = resolve(read(run.path / "config.yaml"), str(run.path / "config.yaml"))
    try:
        names = [nearest(name, metrics(), "metric") for name in wanted or config.eval.metrics]
    except ValueError as error:
        raise ConfigError(f"--metrics: {error}") from None
    if not names:
        raise ConfigError(f"{run.path}: eval.metrics: names nothing; give --metrics, of: {', '.join(metrics())}")
    if not force and current(run, config, names):
        print(f"{run.name}: evaluated already", file=sys.stderr)
        return

    import torch

    from eval import figures
    from eval.subject import Result, Subject, weights

    exported = weights(run)
    if not exported:
        raise ConfigError(f"{run.path}: has no exported weights yet; train it first: python trainer/main.py {run.path}")
    began, step = time.time(), max(exported)
    torch.manual_seed(config.train.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = Subject(run, config, step, device)
    subject.folder.mkdir(exist_ok=True)
    total = Result({})
    for name in names:
        print(f"{run.name}: {name}", file=sys.stderr, flush=True)
        result: Result = import_module(f"eval.{name}").evaluate(subject)
        total.metrics |= result.metrics
        total.intervals |= result.intervals
        total.provenance |= result.provenance
        total.figures += result.figures
        for milestone, row in result.history.items():
            total.history.setdefault(milestone, {}).update(row)
    figures.to_tensorboard(total.figures, step, run.path / "tensorboard" / "eval", total.metrics)
    total.provenance |= provenance(exported[step], names, device.type, time.time() - began)
    write_json(
        subject.folder / "metrics.json",
        {
            "step": step,
            "metrics": total.metrics,
            "intervals": total.intervals,
            "history": [{"step": milestone, "metrics": row} for milestone, row in sorted(total.history.items())],
            "provenance": total.provenance,
        },
    )
    (subject.folder / "failed.json").unlink(missing_ok=True)
    found = "  ".join(f"{key} {value:.4f}" for key, value in total.metrics.items())
    print(f"{run.name}: {found}", file=sys.stderr, flush=True)


def current(run: Run, config: Config, names: list[str]) -> bool:
    """Whether the newest evaluation is of the last step and answers all that is asked."""
    found = read_json(run.path / "eval" / "metrics.json")
    return found.get("step") == config.train.steps and set(names) <= set(
        found.get("provenance", {}).get("evaluations", [])
    )


def provenance(weights: Path, names: list[str], device: str, seconds: float) -> dict[str, Any]:
    """Whence a result comes: weights, evaluations, versions, device, cost."""
    return {
        "evaluations": names,
        "weights": {"file": weights.name, **describe(weights)},
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
        "device": device,
        "seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
