"""Submit a sweep: fan a YAML out into trials and start those that are missing or failed, on Slurm or on this machine.

The same command converges: what is done is skipped, what runs or waits is left alone, what failed or stopped goes on.
No trial is started twice, even by two commands at the same moment.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import models
from jobs import snapshot, stage
from jobs.backends import local
from jobs.backends.slurm import arrays, presets
from jobs.plan import Submission, alone, group, plan, prune, wants_evaluation
from jobs.tracking import submissions
from jobs.tracking.table import summarize_progress
from trainer.config.document import parse_overrides
from trainer.config.schema import Config, metrics
from trainer.config.sweep import load_trials, origin
from trainer.data.registry import DATASETS
from trainer.errors import ConfigError, DataError
from trainer.runs.atomic import read_json
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import create_run_directories

EXAMPLES = """examples:
  python jobs/submit.py sweeps/dann.yaml
  python jobs/submit.py sweeps/dann.yaml train.seed=[0,1,2,3,4] train.steps=5000
  python jobs/submit.py sweeps/dann.yaml --dry-run --cluster slurm
  python jobs/submit.py sweeps/dann.yaml --retry-failed
  python jobs/submit.py --list                    # methods and their hyperparameters, datasets, metrics"""
ASK_ABOVE = 50  # trials that are started without a question


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0, 1 if a trial failed, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="jobs/submit.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, nargs="?", help="a YAML such as sweeps/dann.yaml; see sweeps/README.md")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the file's; a list is swept"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the trials, and on Slurm the sbatch scripts; start nothing"
    )
    parser.add_argument(
        "--cluster",
        metavar="NAME",
        help="local, slurm, or a preset: a file of sweeps/clusters/, or a path; "
        f"default: ${presets.VARIABLE}, else slurm where its controller answers, else local",
    )
    parser.add_argument(
        "--max-parallel", type=int, metavar="K", help="trials at the same time; here: GPUs, else half the cores"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="start only what failed; leave alone what is missing or stopped"
    )
    parser.add_argument(
        "--prune", action="store_true", help="cancel queued and running trials that are not in the file"
    )
    parser.add_argument("--yes", action="store_true", help=f"do not ask before starting more than {ASK_ABOVE} trials")
    parser.add_argument("--runs", type=Path, default=Path("logs"), help="where run directories lie (default: logs)")
    parser.add_argument("--list", action="store_true", help="show what may stand in a YAML, and leave")
    options = parser.parse_intermixed_args(arguments)
    console = Console()
    if options.list:
        return show_vocabulary(console)
    if options.sweep is None:
        parser.error("give a sweep file, such as sweeps/dann.yaml")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end: as with Ctrl-C
    try:
        return submit(options, console)
    except (ConfigError, DataError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, EOFError):
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def submit(options: argparse.Namespace, console: Console) -> int:
    """Plan and start; ConfigError or DataError before anything is queued or overwritten."""
    if options.max_parallel is not None and options.max_parallel < 1:
        raise ConfigError(f"command line: --max-parallel: {options.max_parallel}: must be at least 1")
    by = "command line: --cluster" if options.cluster else presets.VARIABLE
    options.cluster = options.cluster or os.environ.get(presets.VARIABLE) or None
    kind, options.preset = presets.choose(options.cluster)
    trials = load_trials(options.sweep, options.overrides, options.preset.defaults())
    reason = f"asked by {by.removeprefix('command line: ')}" if kind == "local" else submissions.unavailable()
    on_slurm = reason is None or (options.dry_run and kind == "slurm")
    if kind == "slurm" and not on_slurm:
        raise ConfigError(f"{by}: {options.cluster}: {reason}; use --cluster local to run here")
    if on_slurm:
        words = parse_overrides(options.overrides)
        for asked in {str(trial.config.resources.slurm): trial.config.resources.slurm for trial in trials}.values():
            presets.check_options(asked, lambda key: origin(options.sweep, "", words, [], key))
    submission = plan(options, trials, on_slurm, queue=reason is None)
    say(console, f"{submission.summary()} {'on Slurm' if on_slurm else f'here ({reason})'}")
    if options.dry_run:
        return show_plan(submission)
    confirm(len(submission.to_train), options.yes, console)
    to_start = [trials[i].config for i in (*submission.to_train, *submission.to_evaluate)]
    stage.stage_datasets(options.sweep, options.overrides, to_start, console, download=not on_slurm)
    with alone(submission):
        # Another command may have started some of it meanwhile.
        submission = plan(options, trials, on_slurm, queue=reason is None)
        if submission.to_train or submission.to_evaluate:
            submission.code = snapshot.take(submission.sweep)
        create_run_directories(submission.sweep, trials)
        if options.sweep.resolve() != (submission.sweep / "sweep.yaml").resolve():
            shutil.copyfile(options.sweep, submission.sweep / "sweep.yaml")
        if said := prune(submission):
            say(console, said)
        return to_slurm(submission, console) if on_slurm else here(submission, console)


def here(submission: Submission, console: Console) -> int:
    """Train and evaluate on this machine, then write the report and print its tables."""
    sweep, runs = submission.sweep, submission.runs
    gpus, cores = local.visible_gpus(), len(os.sched_getaffinity(0))
    configs = {run.name: trial.config for run, trial in zip(runs, submission.trials, strict=True)}
    processes = {name: local.processes(config, gpus) for name, config in configs.items()}
    pool = local.Pool(
        to_train=[runs[i] for i in submission.to_train],
        to_evaluate=[runs[i] for i in submission.to_evaluate],
        evaluates=lambda run: wants_evaluation(configs[run.name], run),
        processes=processes,
        parallel=submission.options.max_parallel or max(1, (len(gpus) or cores // 2) // max(processes.values())),
        gpus=gpus,
    )
    line = {"trials": [run.name for run in pool.to_train], "evaluate": [run.name for run in pool.to_evaluate]}
    if submission.code:
        pool.code = submission.code.folder
        submissions.append(sweep, {"cluster": "local", **line, **submission.notes()})
    began = time.monotonic()
    finished = pool.run(runs, console)
    page = sweep / "report" / "index.html"
    report = [sys.executable, str(pool.code / "eval" / "report.py"), str(sweep)]
    written = subprocess.run(report, env=snapshot.import_environment(pool.code), stdout=subprocess.DEVNULL, check=False)
    if not finished:
        say(console, summarize_progress(runs))
        say(console, "stopped; the same command goes on from the checkpoints")
        return 130
    if written.returncode:
        return 1
    print((page.parent / "results.md").read_text())
    say(console, f"{time.monotonic() - began:.0f} s; report: {page}; curves: tensorboard --logdir {sweep}")
    problems = {run: shortfall(configs[run.name], run) for run in runs}
    for run, problem in problems.items():
        if problem:
            print(f"error: {run.path}: {problem}", file=sys.stderr)
    return 1 if any(problems.values()) else 0


def shortfall(config: Config, run: RunDirectory) -> str:
    """Why a trial is not yet what was asked for; empty if it is, or if another command is at it."""
    state, log = run.state(), run.path / "train.log"
    if state == "failed":
        return f"{run.error()}; see {log}"
    if state in ("pending", "stopped"):
        return f"did not finish; see {log}; the same command goes on"
    if state == "done" and wants_evaluation(config, run):
        error = read_json(run.path / "eval" / "failed.json").get("error", "it ended without a word")
        return f"evaluation failed: {error}; see {run.path / 'eval.log'}"
    return ""


def to_slurm(submission: Submission, console: Console) -> int:
    """Queue the jobs and return at once, saying how to watch them."""
    plans = group(submission)
    if not plans or not submission.code:
        say(console, "nothing to do")
        return 0
    site = presets.Site(submission.options.preset, submission.code.folder)
    record = arrays.submit(submission.sweep, plans, site, submission.notes())
    for array in record["arrays"]:
        packed = f", up to {array['each']} in each job" if array["each"] > 1 else ""
        say(console, f"{array['stage']:>6}  job {array['id']}  {len(array['trials'])} trials{packed}")
    say(console, f"report  job {record['report']}")
    say(console, f"watch:  python jobs/status.py {submission.sweep} --watch")
    say(console, f"        squeue -j {','.join(array['id'] for array in record['arrays'])}")
    return 0


def confirm(count: int, yes: bool, console: Console) -> None:
    """Ask before a large submission; ConfigError where the answer is no or cannot be had."""
    if count <= ASK_ABOVE or yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"command line: this starts {count} trials; add --yes if that is meant")
    if console.input(f"start {count} trials? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError(f"command line: {count} trials not started; nothing was queued")


def show_plan(submission: Submission) -> int:
    """Print every trial with its state, and the sbatch scripts if they are meant for Slurm."""
    for run, state in zip(submission.runs, submission.states, strict=True):
        print(f"{state:>8}  {run.name}")
    if submission.on_slurm:
        code = snapshot.take(submission.sweep, write=False).folder
        site = presets.Site(submission.options.preset, code)
        for script in arrays.scripts(submission.sweep, group(submission), site):
            print(f"\n{script}")
        if site.container():
            print(f"\n# Inside, trainings, evaluations and reports are started by: {shlex.join(site.container())}")
    return 0


def say(console: Console, text: str) -> None:
    """Print a plain line, not wrapped: it may be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_vocabulary(console: Console) -> int:
    """Print methods with their hyperparameters, datasets and metrics."""
    for name in models.names():
        signature = models.signature(name)
        console.print(f"[bold]{name}[/bold]  {escape(signature.summary)}", highlight=False, soft_wrap=True)
        for h in signature.hyperparameters:
            default = "required" if h.default is ... else repr(h.default)
            console.print(
                f"    model.{h.name} = {escape(default)}  {escape(h.comment)}", highlight=False, soft_wrap=True
            )
    console.print("\n[bold]datasets[/bold]", highlight=False)
    for dataset in DATASETS.values():
        say(console, f"    {dataset.name}: {dataset.size or 'any'} px, {dataset.channels} channels, {dataset.origin}")
    console.print(f"\n[bold]eval.metrics[/bold]  {', '.join(metrics())}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
