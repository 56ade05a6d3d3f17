"""Show what a trial printed last: standard output and error of the newest job, on Slurm or on this machine."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jobs.backends.local import launchers
from jobs.tracking import submissions
from jobs.tracking.log_files import end, newest
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python jobs/logs.py logs/dann gamma=5,seed=0          # any part of the name that no other trial has
  python jobs/logs.py logs/dann 1a2b3c4d -f             # go on until the trial ends, also over a requeue
  python jobs/logs.py logs/dann 1a2b3c4d --stage eval -n 100"""
PAUSE = 1.0  # seconds between two looks at a log that is followed
ASK = 15.0  # seconds between two questions to Slurm


def main(arguments: list[str] | None = None) -> int:
    """Print the lines; return the exit code: 0, 1 if there are none yet, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="jobs/logs.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, help="a sweep's directory, such as logs/dann")
    parser.add_argument("trial", help="its name, or a part of it that no other trial has")
    parser.add_argument("-f", "--follow", action="store_true", help="print what is added, until the trial ends")
    parser.add_argument("--stage", choices=["train", "eval"], default="train", help="default: train")
    parser.add_argument("-n", "--lines", type=int, default=20, help="lines of each file (default: 20)")
    options = parser.parse_args(arguments)
    try:
        (run,) = choose(options.sweep, [options.trial])
        seen = {file: Tail(file, options.lines) for file in newest(options.sweep, run.name, options.stage)}
        show(list(seen.values()))
        if options.follow:
            return follow(options.sweep, run, options.stage, seen)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    if not seen:
        print(f"{run.name}: has printed nothing yet ({run.state()})", file=sys.stderr)
    return 0 if seen else 1


def choose(sweep: Path, parts: Sequence[str]) -> list[RunDirectory]:
    """The trials of a sweep that are named, each by its whole name or by a part that no other has; ConfigError lists
    the candidates where there are none or several."""
    everything = find_runs(sweep)
    if not everything:
        raise ConfigError(f"{sweep}: no trials there; give a sweep's directory, such as logs/dann")
    chosen = []
    for part in parts:
        name = Path(part).name  # a path, as the shell completes it
        found = [run for run in everything if name == run.name] or [run for run in everything if name in run.name]
        if len(found) != 1:
            several = "\n".join(f"  {run.name}" for run in (found or everything)[:20])
            more = f"\n  … and {len(found or everything) - 20} more" if len(found or everything) > 20 else ""
            what = f"is part of {len(found)} names" if found else "is part of no trial's name"
            raise ConfigError(f"{sweep}: {part!r} {what}; give one of\n{several}{more}")
        chosen += found
    return chosen


class Tail:
    """A file of which the end has been read, and what is added to it since."""

    def __init__(self, file: Path, lines: int) -> None:
        self.file = file
        text, self.position = end(file)
        kept = text.splitlines(keepends=True)
        self.text = "".join(kept[max(0, len(kept) - lines) :])

    def read(self) -> None:
        """Take up what was added; all of it where the file was begun anew."""
        with suppress(FileNotFoundError), self.file.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self.position:
                self.position = 0
            file.seek(self.position)
            added = file.read()
            self.position += len(added)
            self.text += added.decode(errors="replace")


def show(tails: list[Tail], last: list[Path] | None = None) -> None:
    """Print what has been read and not yet been printed; a file's name where it is not that of the line before."""
    last = [] if last is None else last
    for tail in tails:
        if tail.text:
            if last != [tail.file]:
                print(f"==> {tail.file} <==")
                last[:] = [tail.file]
            sys.stdout.write(tail.text)
            tail.text = ""
    sys.stdout.flush()


def follow(sweep: Path, run: RunDirectory, stage: str, seen: dict[Path, Tail]) -> int:
    """Print what is added by this job and by those that follow it, until the stage has ended; return the exit code."""
    last = list(seen)[-1:]
    asked, job, said = 0.0, "", ""
    while True:
        if time.monotonic() - asked > ASK:
            with suppress(ConfigError):  # no answer: as it was
                job = queued(sweep, run, stage)
            asked = time.monotonic()
        over = ended(run, stage, job)
        for file in newest(sweep, run.name, stage):
            seen.setdefault(file, Tail(file, 10**6))
        for tail in seen.values():
            tail.read()
        show(list(seen.values()), last)
        if over:
            print(f"{run.name}: {over}", file=sys.stderr)
            return 0
        if job and job != said and not job.endswith("RUNNING"):
            print(f"{run.name}: {job}", file=sys.stderr)
        said = job
        time.sleep(PAUSE)


def queued(sweep: Path, run: RunDirectory, stage: str) -> str:
    """A trial's job in Slurm's queue, `<id> <state>`, or 'here' if a process of this machine is at work on it; else ''.

    ConfigError where the queue does not answer.
    """
    if any(at == (stage, str(run.path.absolute())) for at in launchers().values()):
        return "here RUNNING"
    if not any(line.get("arrays") for line in submissions.lines(sweep)):
        return ""
    if reason := submissions.unavailable():
        raise ConfigError(reason)
    return submissions.queued(sweep, stage).get(run.name, "")


def ended(run: RunDirectory, stage: str, job: str) -> str:
    """How a stage of a trial has ended; '' if it goes on. `job`: as `queued` says."""
    state = run.state()
    if stage == "train":
        return state if state == "done" or (state != "running" and not job) else ""
    return "" if job else f"evaluation {'done' if run.evaluation() else 'not done'}"


if __name__ == "__main__":
    sys.exit(main())
