"""Show the state of every trial of a sweep, from its run directories and, for Slurm jobs, from squeue and sacct."""

import json
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rich.live import Live

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from jobs.backends.base import Job
from jobs.backends.slurm.backend import SlurmBackend
from jobs.command import Terminal, create_parser, discard_output
from jobs.search.summary import follow, write_best
from jobs.tracking.state import determine_statuses, is_failed, query_statuses, record_statuses
from jobs.tracking.table import count_states, render, render_costs, render_fitted
from trainer.environment import use_utf8
from trainer.errors import ConfigError
from trainer.runs.directory import find_runs

EXAMPLES = """examples:
  python jobs/status.py logs/dann
  python jobs/status.py logs/dann --watch
  python jobs/status.py logs/dann --failed --json
  python jobs/status.py logs/dann --costs
  python jobs/status.py logs/search_dann --best sweeps/winner.yaml"""
REFRESH = 2.0  # seconds between two readings of the disk with --watch
QUERY_INTERVAL = 15.0  # seconds between two queries to Slurm, whose database all users share


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code: 0, or 2 if there is no sweep."""
    parser = create_parser("status", __doc__, EXAMPLES)
    parser.add_argument("sweep", type=Path, help="directory of a sweep, such as logs/dann")
    parser.add_argument("--failed", action="store_true", help="show only failed trials and why they failed")
    parser.add_argument("--watch", action="store_true", help="refresh every two seconds until Ctrl-C")
    parser.add_argument("--costs", action="store_true", help="show what the trainings have cost, and all together")
    parser.add_argument("--json", action="store_true", help="print one JSON object per trial")
    parser.add_argument("--best", type=Path, metavar="FILE", help="of a search: write its best setting as a sweep file")
    options = parser.parse_args(arguments)
    if not find_runs(options.sweep):
        sweeps = sorted({str(path.parent.parent) for path in options.sweep.glob("*/*/config.yaml")})
        remedy = f"give one of: {', '.join(sweeps)}" if sweeps else "give a sweep's directory, or run jobs/submit.py"
        print(f"error: {options.sweep}: no trials there; {remedy}", file=sys.stderr)
        return 2
    try:
        if options.best:
            write_best(options.sweep, options.best)
        elif options.watch:
            watch(options.sweep, options.failed)
        else:
            show(options.sweep, options.failed, options.json, options.costs)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return discard_output()
    return 0


def show(sweep: Path, only_failed: bool, as_json: bool, costs: bool) -> None:
    """Print the statuses once: as JSON, as a table that fits the terminal, or with one line per trial in a pipe.

    `costs`: print the table of costs instead.
    """
    statuses, notes = query_statuses(sweep, SlurmBackend())
    chosen = [status for status in statuses if is_failed(status) or not only_failed]
    if as_json:
        for status in chosen:
            print(json.dumps(asdict(status)))
    elif costs:
        print(render_costs(chosen, statuses))
    elif sys.stdout.isatty():
        Terminal().print(render(chosen, shutil.get_terminal_size().columns), soft_wrap=True)
    else:
        print(render(chosen))
    if not as_json:
        print(*[count_states(statuses), *follow(sweep)()], sep="\n")
    for note in notes:
        print(f"note: {note}", file=sys.stderr if as_json else sys.stdout)
    sys.stdout.flush()


def watch(sweep: Path, only_failed: bool) -> None:
    """Refresh the table until Ctrl-C; if it does not fit the terminal, the most urgent trials come first."""
    queried, jobs, notes, summarize = 0.0, dict[str, list[Job]](), list[str](), follow(sweep)
    with Live(auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            if is_due := time.monotonic() - queried > QUERY_INTERVAL:
                (jobs, notes), queried = SlurmBackend().jobs(sweep), time.monotonic()
            statuses = determine_statuses(sweep, jobs)
            if is_due and jobs:
                record_statuses(sweep, statuses)
            chosen = [status for status in statuses if is_failed(status) or not only_failed]
            live.update(render_fitted(chosen, statuses, [*summarize(), *notes]), refresh=True)
            time.sleep(REFRESH)


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
