"""Print the end of a trial's log: stdout and stderr of its newest job, on Slurm or on this machine."""

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.backends.slurm.backend import SlurmBackend
from jobs.command import create_parser, discard_output
from jobs.tracking.log_files import newest_log_files, read_tail
from trainer.environment import use_utf8
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python jobs/logs.py logs/dann gamma=5,seed=0          # any part of the name that identifies one trial
  python jobs/logs.py logs/dann 1a2b3c4d -f             # follow until the trial ends, across requeues
  python jobs/logs.py logs/dann 1a2b3c4d --stage eval -n 100"""
POLL_INTERVAL = 1.0  # seconds between two readings of a followed log
QUERY_INTERVAL = 15.0  # seconds between two queries to Slurm


def main(arguments: list[str] | None = None) -> int:
    """Print the lines; return the exit code: 0, 1 if there are none yet, 2 for bad input, 130 after Ctrl-C."""
    parser = create_parser("logs", __doc__, EXAMPLES)
    parser.add_argument("sweep", type=Path, help="directory of a sweep, such as logs/dann")
    parser.add_argument("trial", help="name of the trial, or a part of it that identifies one trial")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines until the trial ends")
    parser.add_argument("--stage", choices=["train", "eval"], default="train", help="default: train")
    parser.add_argument("-n", "--lines", type=int, default=20, help="lines of each file (default: 20)")
    options = parser.parse_args(arguments)
    try:
        (run,) = select_trials(options.sweep, [options.trial])
        files = newest_log_files(options.sweep, run.name, options.stage)
        tails = {file: Tail(file, options.lines) for file in files}
        print_unseen(list(tails.values()))
        if options.follow:
            return follow(options.sweep, run, options.stage, tails)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return discard_output()
    except KeyboardInterrupt:
        return 130
    if not tails:
        print(f"{run.name}: has printed nothing yet ({run.state()})", file=sys.stderr)
    return 0 if tails else 1


def select_trials(sweep: Path, parts: Sequence[str]) -> list[RunDirectory]:
    """Return the trials of a sweep that match `parts`: each a name, or a part of exactly one name.

    ConfigError lists the candidates if there are none or several.
    """
    runs = find_runs(sweep)
    if not runs:
        raise ConfigError(f"{sweep}: no trials there; give a sweep's directory, such as logs/dann")
    selected = []
    for part in parts:
        name = Path(part).name  # a path, if completed by the shell
        whole = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w.])")  # gamma=1, but not gamma=10
        matches = [run for run in runs if run.name == name] or [run for run in runs if whole.search(run.name)]
        matches = matches or [run for run in runs if name in run.name]
        if len(matches) != 1:
            candidates = matches or runs
            names = "\n".join(f"  {run.name}" for run in candidates[:20])
            more = f"\n  … and {len(candidates) - 20} more" if len(candidates) > 20 else ""
            problem = f"is part of {len(matches)} names" if matches else "is part of no trial's name"
            raise ConfigError(f"{sweep}: {part!r} {problem}; give one of\n{names}{more}")
        selected += matches
    return selected


class Tail:
    """The end of a log file, and what is appended to it later."""

    def __init__(self, file: Path, lines: int) -> None:
        self.file = file
        text, self.position = read_tail(file)
        kept = text.splitlines(keepends=True)
        self.unseen = "".join(kept[max(0, len(kept) - lines) :])

    def read(self) -> None:
        """Read what was appended; if the file is shorter than before, it was replaced and is read from its start."""
        with suppress(FileNotFoundError), self.file.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self.position:
                self.position = 0
            file.seek(self.position)
            added = file.read()
            self.position += len(added)
            self.unseen += added.decode(errors="replace")


def print_unseen(tails: list[Tail], last_file: Path | None = None) -> Path | None:
    """Print the unseen text of each file, headed by its name unless it is `last_file`; return the file printed last."""
    for tail in tails:
        if tail.unseen:
            if tail.file != last_file:
                print(f"==> {tail.file} <==")
                last_file = tail.file
            sys.stdout.write(tail.unseen)
            tail.unseen = ""
    sys.stdout.flush()
    return last_file


def follow(sweep: Path, run: RunDirectory, stage: str, tails: dict[Path, Tail]) -> int:
    """Print what this job and its successors append until the stage has ended; return the exit code."""
    last_file = next(reversed(tails), None)
    queried, job, printed_job = 0.0, "", ""
    while True:
        if time.monotonic() - queried > QUERY_INTERVAL:
            with suppress(ConfigError):  # Without an answer, keep the last known state.
                job = find_active_job(sweep, run, stage)
            queried = time.monotonic()
        end = describe_end(run, stage, job)
        for file in newest_log_files(sweep, run.name, stage):
            tails.setdefault(file, Tail(file, 10**6))
        for tail in tails.values():
            tail.read()
        last_file = print_unseen(list(tails.values()), last_file)
        if end:
            print(f"{run.name}: {end}", file=sys.stderr)
            return 0
        if job and job != printed_job and not job.endswith("RUNNING"):
            print(f"{run.name}: {job}", file=sys.stderr)
        printed_job = job
        time.sleep(POLL_INTERVAL)


def find_active_job(sweep: Path, run: RunDirectory, stage: str) -> str:
    """Return `<backend> <id> <state>` of a trial's queued or running job; '' if there is none.

    ConfigError if a backend that should have jobs does not answer.
    """
    backends: tuple[Backend, ...] = (LocalBackend(), SlurmBackend())
    for backend in backends:
        for job in backend.active(sweep):
            if job.stage == stage and run.name in job.trials:
                return f"{backend.name} {job.id} {job.state}"
    return ""


def describe_end(run: RunDirectory, stage: str, job: str) -> str:
    """Return how a stage of a trial ended, '' if it has not; `job` is the result of `find_active_job`."""
    state = run.state()
    if stage == "train":
        return state if state == "done" or (state != "running" and not job) else ""
    return "" if job else f"evaluation {'done' if run.evaluation() else 'not done'}"


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
