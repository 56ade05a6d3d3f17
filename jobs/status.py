"""Show where the trials of a sweep stand: its run directories, joined with what Slurm says where there is one."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.backends.slurm import accounting
from jobs.backends.slurm.accounting import Job
from jobs.tracking.state import Row, stand
from jobs.tracking.table import count, draw, fit
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python jobs/status.py logs/dann
  python jobs/status.py logs/dann --watch
  python jobs/status.py logs/dann --failed --json"""
RENEW = 2.0  # seconds between two looks at the disk, of --watch
ASK = 15.0  # seconds between two questions to Slurm, whose database is everybody's


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code: 2 where there is no sweep."""
    parser = argparse.ArgumentParser(
        prog="jobs/status.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, help="a sweep's directory, such as logs/dann")
    parser.add_argument("--failed", action="store_true", help="only what failed, and why")
    parser.add_argument("--watch", action="store_true", help="renew every two seconds until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="a JSON object per trial")
    options = parser.parse_args(arguments)
    if not find_runs(options.sweep):
        beside = sorted({str(path.parent.parent) for path in options.sweep.glob("*/*/config.yaml")})
        remedy = (
            f"give one of: {', '.join(beside)}"
            if beside
            else "give a sweep's directory, or start one with jobs/submit.py"
        )
        print(f"error: {options.sweep}: no trials there; {remedy}", file=sys.stderr)
        return 2
    try:
        if options.watch:
            watch(options.sweep, options.failed)
        else:
            show(options.sweep, options.failed, options.json)
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def show(sweep: Path, only_failed: bool, as_json: bool) -> None:
    """Print all rows once, each on a line of its own where nobody looks at a terminal."""
    jobs, notes = accounting.read(sweep)
    rows = standings(find_runs(sweep), jobs)
    chosen = failed(rows) if only_failed else rows
    if as_json:
        for row in chosen:
            print(json.dumps(asdict(row)))
    elif sys.stdout.isatty():
        Console().print(draw(chosen, shutil.get_terminal_size().columns), soft_wrap=True)
    else:
        print(draw(chosen))
    if not as_json:
        print(count(rows))
    for note in notes:
        print(f"note: {note}", file=sys.stderr if as_json else sys.stdout)
    sys.stdout.flush()


def watch(sweep: Path, only_failed: bool) -> None:
    """Renew the table until Ctrl-C; what is most urgent comes first where it does not fit."""
    asked, jobs, notes = 0.0, dict[str, list[Job]](), list[str]()
    with Live(auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            if time.monotonic() - asked > ASK:
                (jobs, notes), asked = accounting.read(sweep), time.monotonic()
            rows = standings(find_runs(sweep), jobs)
            live.update(fit(failed(rows) if only_failed else rows, rows, notes), refresh=True)
            time.sleep(RENEW)


def standings(trials: list[RunDirectory], jobs: Mapping[str, list[Job]]) -> list[Row]:
    """Where each of the trials stands; `jobs` as history.read finds them."""
    return [stand(run, jobs.get(run.name, ())) for run in trials]


def failed(rows: list[Row]) -> list[Row]:
    """Those that failed, or whose evaluation did."""
    return [row for row in rows if row.state == "failed" or row.cause == "evaluation"]


def describe(trials: list[RunDirectory], jobs: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per trial as a dictionary; `jobs` as submissions.queued finds them."""
    known = {name: [Job(job.split()[0], "train", job.split()[1])] for name, job in jobs.items()}
    return [asdict(row) for row in standings(trials, known)]


def table(trials: list[RunDirectory]) -> Text:
    """The live table of a sweep on this machine."""
    rows = standings(trials, {})
    return fit(rows, rows, [])


def summary(trials: list[RunDirectory]) -> str:
    """One line of progress for a log file."""
    rows = standings(trials, {})
    running = [f"{row.trial} {row.step}/{row.steps}" for row in rows if row.state == "running"]
    return "  ".join([count(rows), *running])


if __name__ == "__main__":
    sys.exit(main())
