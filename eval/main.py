"""Evaluate trained trials: writes eval/metrics.json, figures and arrays into each run directory, and TensorBoard."""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from eval import distributed, metrics
from eval.runner import collect_errors, update_evaluation
from trainer.environment import prepare_environment, run_program
from trainer.errors import ConfigError, check_known
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python eval/main.py logs/dann/dann,gamma=10,seed=0-1a2b3c4d
  python eval/main.py logs/dann                           # every finished trial; up-to-date ones are skipped
  python eval/main.py logs/dann/*gamma=10* --metrics accuracy
  torchrun --nproc-per-node 4 eval/main.py logs/dcgan     # several processes share in drawing samples for fid
  python eval/main.py logs/dcgan/dcgan,seed=0-1a2b3c4d --samples 1000 --out faces
  python eval/main.py logs/dcgan/dcgan,seed=0-1a2b3c4d --samples 1000 --metrics fid --against folder:val
  python eval/main.py logs/acgan/acgan,seed=0-1a2b3c4d --samples-per-class 100 --labels 0 1 --out pairs
  python eval/main.py logs/ddpm/*timesteps=400* --samples-per-class 100 --out digits --with steps=50 eta=0"""


def main(arguments: list[str] | None = None) -> int:
    """Evaluate the trials of the command line; return the exit code: 0, 1 if a metric crashed, 2 for bad input."""
    options = create_parser().parse_args(arguments)
    if options.against:
        return compare_samples(options)
    sampling = (options.out, options.samples, options.samples_per_class, options.labels, options.options)
    if any(sampling) or options.seed is not None or options.step is not None:
        return write_samples(options)
    try:
        prepare_environment()
    except ConfigError as error:
        for run in filter(RunDirectory.exists, map(RunDirectory, options.runs)):
            run.fail_evaluation(str(error))
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        requested = [check_known(name, metrics.names(), "metric") for name in options.metrics or []]
    except ValueError as error:
        print(f"error: --metrics: {error}", file=sys.stderr)
        return 2
    with distributed.process_group():
        runs = [run for path in options.runs for run in list_trained(path)] if distributed.is_main() else []
        runs = distributed.broadcast(runs)
        return max([update_evaluation(run, requested, options.force) for run in runs], default=0)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="eval/main.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="run directories, or a sweep's directory")
    parser.add_argument(
        "--metrics", nargs="+", help=f"instead of the trial's own eval.metrics; of: {', '.join(metrics.names())}"
    )
    parser.add_argument("--force", action="store_true", help="compute metrics again even if they are up to date")
    parser.add_argument(
        "--against",
        metavar="DATASET",
        help="print the distances (--metrics fid) of --samples N of one trial from all images of a dataset, such as "
        "folder:val; no file is written",
    )
    add = parser.add_argument_group("samples, instead of an evaluation: PNGs of one trial in a new folder").add_argument
    add("--out", type=Path, metavar="DIR", help="the folder, new or empty")
    add("--samples", type=positive_number, default=0, metavar="N", help="number of samples of any class: 0001.png …")
    add("--samples-per-class", type=positive_number, default=0, metavar="N", help="samples of each: <class>_001.png …")
    add("--labels", type=int, nargs="+", default=[], metavar="CLASS", help="only these classes")
    add("--seed", type=int, help="of the noise (default: the trial's, as in its evaluation)")
    add("--step", type=int, help="of the exported weights, if there are several (default: the last)")
    add(
        "--with",
        dest="options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="sampling options of the method; of ddpm: steps, eta, guidance, noise (a .npy or .pt file), batch, …",
    )
    return parser


def positive_number(text: str) -> int:
    """Parse a number of images; argparse reports the ValueError in its own words."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def write_samples(options: argparse.Namespace) -> int:
    """Write the samples that the command line asks for, in the main process only; return the exit code."""
    if not distributed.is_main():
        return 0
    errors: list[tuple[int, str]] = []
    with collect_errors(errors):
        if not options.out or bool(options.samples) == bool(options.samples_per_class):
            raise ConfigError("give --out DIR and one of --samples and --samples-per-class")
        if len(options.runs) != 1:
            raise ConfigError(f"{options.runs[1]}: samples are of one trial; give one run directory")
        if options.labels and not options.samples_per_class:
            raise ConfigError("--labels: only allowed with --samples-per-class")
        from eval.export import export_samples

        export_samples(
            options.runs[0],
            options.out,
            n=options.samples,
            per_class=options.samples_per_class,
            classes=options.labels,
            seed=options.seed,
            step=options.step,
            words=options.options,
        )
    return max((code for code, _ in errors), default=0)


def compare_samples(options: argparse.Namespace) -> int:
    """Print how far the samples of one trial are from the images that the command line names; return the exit code."""
    errors: list[tuple[int, str]] = []
    with distributed.process_group(), collect_errors(errors):
        prepare_environment()
        if len(options.runs) != 1:
            raise ConfigError(f"{options.runs[1]}: --against compares samples of one trial; give one run directory")
        for name, value in (("--out", options.out), ("--samples-per-class", options.samples_per_class)):
            if value:
                raise ConfigError(f"{name}: not allowed with --against")
        metrics.check_names(options.metrics or [], "--metrics")
        from eval.against import compare_with

        compare_with(options.runs[0], options.metrics or [], options.against, options.samples, options.step)
    return max((code for code, _ in errors), default=0)


def list_trained(path: Path) -> list[RunDirectory]:
    """Return the trial of a run directory, or the finished trials of a sweep's directory."""
    runs = find_runs(path)
    if not runs:
        return [RunDirectory(path)]
    done = [run for run in runs if run.state() == "done"]
    print(f"{path}: {len(done)} of {len(runs)} trials are done", file=sys.stderr)
    return done


if __name__ == "__main__":
    run_program(main)
