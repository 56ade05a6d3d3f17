"""Evaluate trained runs: writes eval/metrics.json, figures and arrays into each run directory, and TensorBoard."""

import argparse
import fcntl
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module, metadata
from pathlib import Path

from eval import distributed, metrics, record
from trainer.config.resolve import load_config
from trainer.config.schema import Config
from trainer.errors import ConfigError, DataError, check_known
from trainer.runs.atomic import write_json
from trainer.runs.checkpoints import describe
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python eval/main.py logs/dann/dann,gamma=10,seed=0-1a2b3c4d
  python eval/main.py logs/dann                           # whatever is done; what is up to date is left alone
  python eval/main.py logs/dann/*gamma=10* --metrics accuracy
  torchrun --nproc-per-node 4 eval/main.py logs/dcgan     # several processes share in drawing samples for fid
  python eval/main.py logs/dcgan/dcgan,seed=0-1a2b3c4d --samples 1000 --out faces
  python eval/main.py logs/acgan/acgan,seed=0-1a2b3c4d --samples-per-class 100 --labels 0 1 --out pairs
  python eval/main.py logs/ddpm/*timesteps=400* --samples-per-class 100 --out digits --with steps=50 eta=0"""
LIBRARIES = ("torch", "numpy", "scikit-learn")


def main(arguments: list[str] | None = None) -> int:
    """Evaluate the runs of the command line; return the exit code: 0, 1 if an evaluation crashed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="eval/main.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="run directories, or a sweep's")
    parser.add_argument(
        "--metrics", nargs="+", help=f"instead of the run's own eval.metrics; of: {', '.join(metrics.names())}"
    )
    parser.add_argument("--force", action="store_true", help="evaluate again even if nothing has changed")
    pictures = parser.add_argument_group("samples, in place of an evaluation: PNGs of one run in a new folder")
    pictures.add_argument("--out", type=Path, metavar="DIR", help="the folder, which must not hold anything yet")
    pictures.add_argument("--samples", type=positive, default=0, metavar="N", help="how many, of any class: 0001.png …")
    pictures.add_argument(
        "--samples-per-class", type=positive, default=0, metavar="N", help="how many of each: <class>_001.png …"
    )
    pictures.add_argument("--labels", type=int, nargs="+", default=[], metavar="CLASS", help="of these classes only")
    pictures.add_argument("--seed", type=int, help="of the noise (default: the run's, as in its evaluation)")
    pictures.add_argument("--step", type=int, help="of the weights, where several were kept (default: the last)")
    pictures.add_argument(
        "--with",
        dest="options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="how, where a method leaves it open; of ddpm: steps, eta, guidance, noise (a .npy or .pt file), batch, …",
    )
    options = parser.parse_args(arguments)
    wishes = (options.out, options.samples, options.samples_per_class, options.labels, options.options)
    if any(wishes) or options.seed is not None or options.step is not None:
        return draw_samples(options)
    try:
        wanted = [check_known(name, metrics.names(), "metric") for name in options.metrics or []]
    except ValueError as error:
        print(f"error: --metrics: {error}", file=sys.stderr)
        return 2
    with distributed.joined():
        chosen = distributed.agree(
            [run for path in options.runs for run in trained(path)] if distributed.leads() else []
        )
        return max([bring_up_to_date(run, wanted, options.force) for run in chosen], default=0)


def positive(text: str) -> int:
    """A number of images; ValueError, which argparse turns into its own words."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def draw_samples(options: argparse.Namespace) -> int:
    """Write the samples that the command line asks for, in the first of several processes; return the exit code."""
    if not distributed.leads():
        return 0
    faults: list[tuple[int, str]] = []
    with noting(faults):
        if not options.out or bool(options.samples) == bool(options.samples_per_class):
            raise ConfigError("give --out DIR and one of --samples and --samples-per-class")
        if len(options.runs) != 1:
            raise ConfigError(f"{options.runs[1]}: samples are of one run; give one run directory")
        if options.labels and not options.samples_per_class:
            raise ConfigError("--labels: goes with --samples-per-class")
        from eval.export import export

        per_class, labels = options.samples_per_class, options.labels
        step, how = options.step, options.options
        export(RunDirectory(options.runs[0]), options.out, options.samples, per_class, labels, options.seed, step, how)
    return max((code for code, _ in faults), default=0)


def trained(path: Path) -> list[RunDirectory]:
    """The run of a directory or, of a sweep's, those that have been trained to their end."""
    found = find_runs(path)
    if not found:
        return [RunDirectory(path)]
    done = [run for run in found if run.state() == "done"]
    print(f"{path}: {len(done)} of {len(found)} trials are done", file=sys.stderr)
    return done


def bring_up_to_date(run: RunDirectory, wanted: list[str], force: bool) -> int:
    """Make every evaluation that is missing or out of date; return the exit code.

    What fails is said on stderr and in eval/failed.json; it keeps no other evaluation, and no other run, from its own.
    """
    faults: list[tuple[int, str]] = []  # exit code and what is wrong, in a line
    due: list[str] = []
    known = (run.path / "config.yaml").is_file()
    with ExitStack() as stack:
        if distributed.leads():
            with noting(faults):
                if not known:
                    raise ConfigError(
                        f"{run.path}: is no run directory: it has no config.yaml; give logs/<sweep>/<trial>"
                    )
                stack.enter_context(alone(run))
                due = find_due(run, wanted, force)
        due = distributed.agree(due)
        if due:
            with noting(faults):
                evaluate_run(run, configured(run), due, faults)
    if distributed.leads() and known:  # not where it was interrupted: a former failure still stands
        tell(run, faults)
    return max((code for code, _ in faults), default=0)


def configured(run: RunDirectory) -> Config:
    """The run's settings; ConfigError."""
    return load_config(run.path / "config.yaml")


def find_due(run: RunDirectory, wanted: list[str], force: bool) -> list[str]:
    """Which evaluations are to be made; ConfigError if none is named."""
    config = configured(run)
    metrics.check_names(config.eval.metrics, str(run.path / "config.yaml"))
    names = wanted or config.eval.metrics
    if not names:
        raise ConfigError(f"{run.path}: eval.metrics: names nothing; give --metrics, of: {', '.join(metrics.names())}")
    due = [name for name in names if force or not current(run, config, [name])]
    if not due:
        print(f"{run.name}: evaluated already", file=sys.stderr)
    return due


def tell(run: RunDirectory, faults: list[tuple[int, str]]) -> None:
    """Leave what failed in eval/failed.json, for the report."""
    failed = run.path / "eval" / "failed.json"
    if faults:
        failed.parent.mkdir(exist_ok=True)
        write_json(failed, {"error": "; ".join(line for _, line in faults), "time": time.time()})
    else:
        failed.unlink(missing_ok=True)


@contextmanager
def noting(faults: list[tuple[int, str]]) -> Iterator[None]:
    """Note what goes wrong inside and go on after it: bad input as it is, anything else with its traceback."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if distributed.leads():
            print(f"error: {error}", file=sys.stderr, flush=True)
        faults.append((2, " ".join(str(error).split())))
    except Exception as error:
        if not distributed.leads():
            raise  # the first one may be waiting for this one: the launcher ends it
        traceback.print_exc()
        faults.append((1, " ".join(f"{type(error).__name__}: {error}".split())))


@contextmanager
def alone(run: RunDirectory) -> Iterator[None]:
    """Have a run's eval/ to oneself, once whoever else evaluates it is through."""
    folder = run.path / "eval"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            shutil.rmtree(folder / ".new", ignore_errors=True)


def evaluate_run(run: RunDirectory, config: Config, names: list[str], faults: list[tuple[int, str]]) -> None:
    """Make the evaluations `names` of the newest weights, one by one, each kept as soon as it is there."""
    import torch

    from eval.trial import Subject, read_method

    weights = record.exported(run)
    if not weights:
        raise ConfigError(f"{run.path}: has no exported weights yet; train it first: python trainer/main.py {run.path}")
    step = max(weights)
    if step < config.train.steps:
        print(f"{run.name}: is at step {step} of {config.train.steps}", file=sys.stderr)
    # More than one process on a device only where there are too few.
    gpu = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
    device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
    method = read_method(config, weights[step], device)
    subject = Subject(run, config, weights, step, method, device, run.path / "eval" / ".new")
    if not distributed.leads():
        for name in names:
            module = import_module(f"eval.metrics.{name}")
            if getattr(module, "SHARED", False):
                with noting(faults):
                    torch.manual_seed(config.train.seed)
                    module.evaluate(subject)
        return
    file = {"file": weights[step].name, **describe(weights[step])}
    found = record.former(run, file, names)
    for name in names:
        with noting(faults):
            print(f"{run.name}: {name}", file=sys.stderr, flush=True)
            shutil.rmtree(subject.folder, ignore_errors=True)  # of an evaluation that failed or was killed
            subject.folder.mkdir()
            # Each evaluation draws the same numbers, whichever others are asked for.
            torch.manual_seed(config.train.seed)
            began = time.monotonic()
            result: record.Result = import_module(f"eval.metrics.{name}").evaluate(subject)
            how = {"device": device.type, "seconds": round(time.monotonic() - began, 2)}
            how["versions"] = {library: metadata.version(library) for library in LIBRARIES}
            found = record.keep(run, subject.folder, record.merge(found, step, file, name, result, how))
            told = "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items())
            print(f"{run.name}: {name}: {told or 'done'}", file=sys.stderr, flush=True)


def current(run: RunDirectory, config: Config, names: list[str]) -> bool:
    """Whether the newest evaluation is of the last step's weights, as they are, and answers all that is asked."""
    found = run.evaluation()
    if found.get("step") != config.train.steps:
        return False
    weights = record.exported(run).get(config.train.steps)
    # Weights may be thrown away once they are evaluated.
    made = weights.stat().st_mtime if weights else 0.0
    evaluated = (run.path / "eval" / "metrics.json").stat().st_mtime
    return made < evaluated and set(names) <= set(found.get("provenance", {}).get("evaluations", []))


if __name__ == "__main__":
    sys.exit(main())
