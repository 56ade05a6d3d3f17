"""Train one trial: `accelerate launch trainer/main.py sweeps/dann.yaml model.gamma=5`. Every training job runs this.

The same command starts and resumes a trial: all state is in the run directory.
"""

import argparse
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from trainer.config.resolve import load_config
from trainer.config.schema import Config
from trainer.config.sweep import load_single_trial
from trainer.environment import prepare_environment, run_program
from trainer.errors import ConfigError
from trainer.failures import BAD_INPUT, explain
from trainer.launcher import Launch, check_launch, read_launch, start_processes
from trainer.runs.attempt import DIRECT, Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import DISK_CODE, PASSING, disk_errno
from trainer.runs.lock import is_superseded
from trainer.runs.placement import create_run_directories, locate_trials
from trainer.session import AlreadyTraining, train
from trainer.stop import StopRequest

PEER_WAIT = 10  # seconds for the first process of a node to print an error that all of them have
PARENT_INTERVAL = 2.0  # seconds between two looks at the parent process
EXAMPLES = """examples:
  accelerate launch trainer/main.py sweeps/dann.yaml model.gamma=5 train.steps=500
  accelerate launch --num_processes 2 trainer/main.py sweeps/dann.yaml train.precision=bf16
  python trainer/main.py logs/dann/dann,gamma=5,seed=0-1a2b3c4d      # start or resume that trial"""


def main(arguments: list[str] | None = None) -> int:
    """Train the trial of the command line; return the exit code.

    0: finished or stopped, 1: superseded, 2: bad input, 74: the disk refuses to be written.
    """
    stop = StopRequest()
    threading.excepthook = report_thread_error
    parser = argparse.ArgumentParser(
        prog="trainer/main.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a YAML (its own settings, without its axes) or a run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    # Not --logs: torchrun would take that for an abbreviation of one of its own options.
    parser.add_argument("--runs", type=Path, default=Path("logs"), help="parent of sweep directories (default: logs)")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop at this step, saved and with weights exported")
    options = parser.parse_intermixed_args(arguments)
    attempt = Attempt(os.environ.get("TURNOUT_ATTEMPT", DIRECT))
    try:
        prepare_environment()
        rank = int(os.environ.get("RANK", "0"))
        launch = read_launch() if attempt == DIRECT else Launch()
        run, config = find_trial(options.path, options.overrides, options.runs, launch, create=rank == 0)
        start_processes(launch, config)
    except BAD_INPUT as error:
        if attempt != DIRECT:
            with suppress(OSError):
                RunDirectory(options.path).fail(attempt, str(error), 0, "exception")
        return refuse(error, stop)
    if attempt != DIRECT:
        threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        train(run, config, stop, attempt, options.until)
    except AlreadyTraining as error:
        return refuse(error, stop)
    except Exception as error:
        if is_superseded(run, attempt):
            print(f"{run.name}: a newer attempt has taken over; {attempt} exits", file=sys.stderr)
            return 1  # as a failure, so that torchrun does not wait for the others
        failure = explain(error, int(os.environ.get("WORLD_SIZE", "1")))
        with suppress(OSError):  # a full disk may have no room for the marker; then the exit code tells
            run.fail(attempt, failure.reason, rank, failure.cause, failure.is_consequence)
        if not failure.is_expected:
            raise
        print(f"error: {failure.reason}", file=sys.stderr)
        return DISK_CODE if failure.cause == "disk error" else 2
    return 0


def refuse(error: Exception, stop: StopRequest) -> int:
    """Print an error; return the exit code. Of several processes, the first one prints what all of them have."""
    is_first, deadline = os.environ.get("LOCAL_RANK", "0") == "0", time.monotonic() + PEER_WAIT
    while not is_first and not stop.requested and time.monotonic() < deadline:  # torchrun ends this one after the first
        time.sleep(0.1)
    if is_first or not stop.requested:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return 2


def exit_with_parent(parent: int) -> None:
    """Exit when the worker or torchrun was killed: nobody else would ask this training to stop, or see its end."""
    while os.getppid() == parent:
        time.sleep(PARENT_INTERVAL)
    print("the process that started this training was killed; exiting", file=sys.stderr, flush=True)
    os._exit(1)


def report_thread_error(arguments: threading.ExceptHookArgs) -> None:
    """Print the error of a thread, unless the disk refused an event file: the training reports and repeats that."""
    if disk_errno(arguments.exc_value) not in PASSING:
        threading.__excepthook__(arguments)


def find_trial(
    path: Path, overrides: list[str], runs: Path, launch: Launch, create: bool
) -> tuple[RunDirectory, Config]:
    """Return run directory and config of the trial that the command line names; ConfigError."""
    run = RunDirectory(path.parent if path.name == "config.yaml" else path)
    if run.exists():
        if overrides:
            raise ConfigError(
                f"{run.path}: {overrides[0]}: a run directory keeps its config; give the sweep file to change a setting"
            )
        config = load_config(run.config_file)
        check_launch(launch, config, {}, run.config_file)
        return run, config
    trial = load_single_trial(path, overrides, launch.settings)
    check_launch(launch, trial.config, trial.settings, path)
    place = create_run_directories if create else locate_trials
    return RunDirectory(place(runs / trial.config.name, [trial])[0]), trial.config


if __name__ == "__main__":
    run_program(main)
