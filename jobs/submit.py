"""Submit a sweep: expand a YAML file into trials and start those that are missing or failed, on Slurm or this machine.

Rerunning the same command is safe: finished trials are skipped, queued and running ones are left alone, failed and
stopped ones resume. No trial is started twice, even by two commands at the same moment.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

import models
from eval import metrics
from eval.record import needs_evaluation
from jobs import snapshot
from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.backends.slurm import presets
from jobs.backends.slurm.backend import SlurmBackend
from jobs.backends.slurm.client import NO_CLUSTER
from jobs.command import Terminal, create_parser, discard_output, print_plain
from jobs.plan import (
    Submission,
    build_methods,
    cancel_unlisted,
    check_data,
    group_trials,
    keep_sweep_file,
    list_unbuilt,
    load_sweep,
    lock_sweep,
    plan_sweep,
    refuse_archived,
)
from jobs.stage import list_missing, stage_datasets, staging_command
from jobs.tracking.table import summarize_progress
from trainer.config.schema import Config
from trainer.config.search import load_search
from trainer.data.registry import DATASETS
from trainer.environment import use_utf8
from trainer.errors import ConfigError, DataError
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import create_run_directories

EXAMPLES = """examples:
  python jobs/submit.py sweeps/dann.yaml
  python jobs/submit.py sweeps/dann.yaml train.seed=[0,1,2,3,4] train.steps=5000
  python jobs/submit.py sweeps/dann.yaml --dry-run --cluster slurm
  python jobs/submit.py sweeps/dann.yaml --retry-failed
  python jobs/submit.py --list                    # methods and their hyperparameters, datasets, metrics"""
CONFIRM_ABOVE = 50  # trials that are started without confirmation


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0, 1 if a trial failed, 2 for bad input, 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    console = Terminal()
    if options.list:
        return print_vocabulary(console)
    for number in (signal.SIGTERM, signal.SIGHUP):  # treated like Ctrl-C, but nohup's SIGHUP stays ignored
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        return submit(options, console)
    except (ConfigError, DataError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return discard_output()
    except (KeyboardInterrupt, EOFError):
        print("stopped; rerun the same command to resume", file=sys.stderr)
        return 130


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit if it is wrong."""
    parser = create_parser("submit", __doc__, EXAMPLES)
    add = parser.add_argument
    add("sweep", type=Path, nargs="?", help="YAML file such as sweeps/dann.yaml; see sweeps/README.md")
    add("overrides", nargs="*", metavar="key=value", help="settings that override the file's; a list is swept")
    add("--dry-run", action="store_true", help="show the trials and, on Slurm, the sbatch scripts; start nothing")
    add(
        "--cluster",
        metavar="NAME",
        help="local, slurm, or a preset: a name in sweeps/clusters/ or a path; "
        f"default: ${presets.VARIABLE}, else the Slurm cluster of this machine, else local",
    )
    add(
        "--after", action="append", default=[], metavar="JOB", help="start after this Slurm job, or all of logs/<sweep>"
    )
    add("--max-parallel", type=int, metavar="K", help="trials at a time; default on this machine: its GPUs, or cores")
    add("--retry-failed", action="store_true", help="start only failed trials, not missing or stopped ones")
    add("--prune", action="store_true", help="cancel queued and running trials that are not in the file")
    add("--yes", action="store_true", help=f"do not ask for confirmation above {CONFIRM_ABOVE} trials")
    add("--runs", type=Path, default=Path("logs"), help="parent of the sweep's directory (default: logs)")
    add("--list", action="store_true", help="show the methods, datasets and metrics that a YAML can use, and exit")
    options = parser.parse_intermixed_args(arguments)
    if options.sweep is None and not options.list:
        parser.error("give a sweep file, such as sweeps/dann.yaml")
    return options


def submit(options: argparse.Namespace, console: Console) -> int:
    """Plan and start the trials; ConfigError or DataError before anything is queued or overwritten."""
    if options.max_parallel is not None and options.max_parallel < 1:
        raise ConfigError(f"command line: --max-parallel: {options.max_parallel}: must be at least 1")
    option = "--cluster" if options.cluster else presets.VARIABLE
    options.cluster = options.cluster or os.environ.get(presets.VARIABLE) or None
    preset = presets.load_preset(options.cluster)
    trials = load_sweep(options.sweep, options.overrides, preset.defaults())
    slurm = SlurmBackend(preset)
    reason = f"requested by {option}" if options.cluster == "local" else slurm.unavailable()
    required = options.cluster not in (None, "local")
    on_slurm = reason is None or (options.dry_run and required)
    if options.cluster is None and reason not in (None, *NO_CLUSTER) and not options.dry_run:
        raise ConfigError(f"Slurm: {reason}; try again later, or use --cluster local to train on this machine")
    if required and not on_slurm:
        source = f"command line: {option}" if option == "--cluster" else option
        raise ConfigError(f"{source}: {options.cluster}: {reason}; use --cluster local to run on this machine")
    for word in options.after:
        if not on_slurm:
            raise ConfigError(
                f"command line: --after {word}: needs Slurm, and {reason}; run it when the other has ended"
            )
        slurm = slurm.wait_for(word)
    backend: Backend = slurm if on_slurm else LocalBackend(options.max_parallel, console)
    refuse_archived(options.runs / trials[0].config.name)
    for trial in {str(trial.config.resources): trial for trial in trials}.values():
        backend.check(trial.settings, trial.config)
    if search := load_search(options.sweep, options.overrides, preset.defaults()):
        if not options.dry_run:
            confirm(search.options.trials or 0, options.yes, console)
        try:
            from jobs.search.submit import submit_search  # imports Optuna

            return submit_search(options, search, backend, console)
        except ImportError as error:
            raise ConfigError(
                f"{options.sweep}: search: {error}; Optuna and its samplers: pip install -e '.[search]'"
            ) from None
    submission = plan_sweep(options, trials, backend, reachable=on_slurm and reason is None)
    print_plain(console, f"{submission.summary()} {'on Slurm' if on_slurm else f'on this machine ({reason})'}")
    if options.dry_run:
        missing = [d.name for d in list_missing(trial.config for trial in trials) if not d.is_bundled()]
        return print_plan(submission, missing, staging_command(options.sweep, options.overrides))
    confirm(len(submission.to_train), options.yes, console)
    configs = [trials[i].config for i in (*submission.to_train, *submission.to_evaluate)]
    stage_datasets(options.sweep, options.overrides, configs, console, download=not on_slurm)
    check_data(submission)
    if on_slurm:  # here, the first trial fails at once; there, every trial would wait in the queue to fail
        build_methods(list_unbuilt(submission), options.sweep)
    with lock_sweep(submission.sweep, "queues" if on_slurm else "trains"):
        # Plan again: another command may have started some of the trials since.
        submission = plan_sweep(options, trials, backend, reachable=on_slurm and reason is None)
        if submission.to_train or submission.to_evaluate:
            submission.code = snapshot.take(submission.sweep)
        create_run_directories(submission.sweep, trials)
        keep_sweep_file(options, submission.sweep)
        if message := cancel_unlisted(submission):
            print_plain(console, message)
        return queue_jobs(submission, console) if on_slurm else run_locally(submission, console)


def run_locally(submission: Submission, console: Console) -> int:
    """Train and evaluate on this machine, then write the report and print its answer; return the exit code."""
    sweep, runs = submission.sweep, submission.runs
    started, completed, code = time.monotonic(), True, snapshot.ROOT
    if submission.code:
        code = submission.code.folder
        plans = group_trials(submission)
        completed = submission.backend.submit(sweep, plans, code, submission.record())["completed"]
    report_code, answer = snapshot.write_report(code, sweep)
    if not completed:
        print_plain(console, summarize_progress(runs))
        print_plain(console, "stopped; rerun the same command to resume from the checkpoints")
        return 130
    if report_code:
        return 1
    print_plain(console, f"{time.monotonic() - started:.0f} s; curves: tensorboard --logdir {sweep}")
    print(answer, end="")
    problems = {run: describe_problem(t.config, run) for run, t in zip(runs, submission.trials, strict=True)}
    for run, problem in problems.items():
        if problem:
            print(f"error: {run.path}: {problem}", file=sys.stderr)
    return 1 if any(problems.values()) else 0


def describe_problem(config: Config, run: RunDirectory) -> str:
    """Return why a trial is not trained and evaluated; '' if it is, or if another command is running it."""
    state, log = run.state(), run.log_file("train")
    if state == "failed":
        return f"{run.error()}; see {log}"
    if state in ("pending", "stopped"):
        return f"did not finish; see {log}; rerun the same command to resume"
    if state == "done" and needs_evaluation(config, run):
        error = run.evaluation_error() or "exited without an error record"
        return f"evaluation failed: {error}; see {run.log_file('eval')}"
    return ""


def queue_jobs(submission: Submission, console: Console) -> int:
    """Queue the jobs on Slurm and print how to watch them; return the exit code."""
    plans = group_trials(submission)
    if not plans or not submission.code:
        print_plain(console, "nothing to do")
        return 0
    record = submission.backend.submit(submission.sweep, plans, submission.code.folder, submission.record())
    for array in record["arrays"]:
        packed = f", up to {array['each']} in each job" if array["each"] > 1 else ""
        waits = f", after job {', '.join(array['after'])}: max_parallel" if "after" in array else ""
        print_plain(console, f"{array['stage']:>6}  job {array['id']}  {len(array['trials'])} trials{packed}{waits}")
    print_plain(console, f"report  job {record['report']}")
    print_plain(console, f"watch:  python jobs/status.py {submission.sweep} --watch")
    ids = [*(array["id"] for array in record["arrays"]), record["report"]]
    print_plain(console, f"        squeue -j {','.join(ids)}")
    return 0


def confirm(count: int, yes: bool, console: Console) -> None:
    """Ask before a large submission; ConfigError if the answer is no, or if there is no terminal."""
    if count <= CONFIRM_ABOVE or yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"command line: this starts {count} trials; add --yes to confirm")
    if console.input(f"start {count} trials? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError(f"command line: {count} trials not started; nothing was queued")


def print_plan(submission: Submission, missing: list[str], command: str) -> int:
    """Print every trial with its state and, for Slurm, the sbatch scripts; return the exit code.

    `missing`: datasets that are not staged; `command` stages them.
    """
    if missing:
        print(f"not staged yet: {', '.join(missing)}; this downloads and decodes them: {command}")
    for run, state in zip(submission.runs, submission.states, strict=True):
        print(f"{state:>8}  {run.name}")
    code = snapshot.take(submission.sweep, write=False).folder
    for script in submission.backend.scripts(submission.sweep, group_trials(submission), code):
        print(f"\n{script}")
    return 0


def print_vocabulary(console: Console) -> int:
    """Print methods with their hyperparameters, datasets and metrics; return the exit code."""
    for name in models.names():
        signature = models.signature(name)
        console.print(f"[bold]{name}[/bold]  {escape(signature.summary)}", highlight=False, soft_wrap=True)
        for parameter in signature.hyperparameters:
            default = "required" if parameter.default is ... else repr(parameter.default)
            print_plain(console, f"    model.{parameter.name} = {default}  {parameter.comment}".rstrip())
    console.print("\n[bold]datasets[/bold]", highlight=False)
    for dataset in DATASETS.values():
        size = f"{dataset.size or 'any'} px, {dataset.channels} channels"
        print_plain(console, f"    {dataset.name}: {size}, {dataset.origin}")
    console.print(f"\n[bold]eval.metrics[/bold]  {', '.join(metrics.names())}", highlight=False)
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
