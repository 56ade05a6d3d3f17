"""Show where the trials of a sweep stand: its run directories, joined with what Slurm says where there is one."""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs import history
from jobs.history import Job
from jobs.standing import Row, stand
from trainer.run import Run, runs

EXAMPLES = """examples:
  python jobs/status.py logs/dann
  python jobs/status.py logs/dann --watch
  python jobs/status.py logs/dann --failed --json"""
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "queued": "blue", "pending": "dim"}
URGENCY = ("running", "failed", "stopped", "queued", "pending", "done")
# Of a row, in their order, and what is left out first where the terminal is narrow.
COLUMNS = ("trial", "state", "job", "node", "step", "steps/s", "left")
SPARE = ("node", "steps/s", "job", "left")
RIGHT = ("step", "steps/s", "left")
LAST = 28  # characters that the last column, with metrics and reasons, has at least
NAME = 24  # characters to which a trial's name may shrink
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
    if not runs(options.sweep):
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
    jobs, notes = history.read(sweep)
    rows = standings(runs(sweep), jobs)
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
                (jobs, notes), asked = history.read(sweep), time.monotonic()
            rows = standings(runs(sweep), jobs)
            live.update(fit(failed(rows) if only_failed else rows, rows, notes), refresh=True)
            time.sleep(RENEW)


def standings(trials: list[Run], jobs: Mapping[str, list[Job]]) -> list[Row]:
    """Where each of the trials stands; `jobs` as history.read finds them."""
    return [stand(run, jobs.get(run.name, ())) for run in trials]


def failed(rows: list[Row]) -> list[Row]:
    """Those that failed, or whose evaluation did."""
    return [row for row in rows if row.state == "failed" or row.cause == "evaluation"]


def describe(trials: list[Run], jobs: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per trial as a dictionary; `jobs` as submissions.queued finds them."""
    known = {name: [Job(job.split()[0], "train", job.split()[1])] for name, job in jobs.items()}
    return [asdict(row) for row in standings(trials, known)]


def table(trials: list[Run]) -> Text:
    """The live table of a sweep on this machine."""
    rows = standings(trials, {})
    return fit(rows, rows, [])


def summary(trials: list[Run]) -> str:
    """One line of progress for a log file."""
    rows = standings(trials, {})
    running = [f"{row.trial} {row.step}/{row.steps}" for row in rows if row.state == "running"]
    return "  ".join([count(rows), *running])


def count(rows: list[Row]) -> str:
    """`2 done  3 failed (2 out of memory, 1 exception)`"""
    parts = []
    for state, number in sorted(Counter(row.state for row in rows).items()):
        causes = Counter(row.cause for row in rows if row.state == state and row.cause).most_common()
        parts.append(f"{number} {state}" + f" ({', '.join(f'{n} {cause}' for cause, n in causes)})" * bool(causes))
    return "  ".join(parts)


def fit(chosen: list[Row], rows: list[Row], notes: list[str]) -> Text:
    """As much of a table as a terminal holds, and the counts."""
    columns, lines = shutil.get_terminal_size()
    urgent = sorted(chosen, key=lambda row: URGENCY.index(row.state)) if len(chosen) > lines - 4 else chosen
    shown = draw(urgent[: max(1, lines - 4)], columns).split("\n")[: max(2, lines - 3 - len(notes))]
    more = len(chosen) - sum(not line.plain.startswith(" ") for line in shown[1:])
    tail = [Text(f"… and {more} more")] if more > 0 else []
    return Text("\n").join([*shown, *tail, Text(count(rows)), *map(Text, notes)])


def draw(rows: list[Row], width: int = 0) -> Text:
    """The table: a line per trial or, in a terminal of `width` characters, as many as its last column needs."""
    cells = [cell(row) for row in rows]
    wide = {name: max([len(name), *(len(found[name]) for found in cells)]) for name in COLUMNS}
    last = min(LAST, max([0, *(len(found["newest"]) for found in cells)]))
    wide = {name: size for name, size in wide.items() if name == "trial" or any(found[name] for found in cells)}
    for name in SPARE:
        if width and sum(wide.values()) + 2 * len(wide) + last > width:
            wide.pop(name, None)
    if width and (over := sum(wide.values()) + 2 * len(wide) + last - width) > 0:
        wide["trial"] = max(NAME, wide["trial"] - over)
    indent = sum(wide.values()) + 2 * len(wide)
    lines = [Text("  ".join(pad(name, name, size) for name, size in wide.items()) + "  newest", style="bold")]
    for row, found in zip(rows, cells, strict=True):
        found["trial"] = shorten(found["trial"], wide["trial"])
        newest = textwrap.wrap(found["newest"], max(LAST, width - indent)) if width else [found["newest"]]
        line = Text()
        for name, size in wide.items():
            line.append(pad(name, found[name], size) + "  ", COLOURS[row.state] if name == "state" else "")
        line.append(newest[0] if newest else "")
        line.rstrip()
        lines += [line, *(Text(" " * indent + more) for more in newest[1:])]
    return Text("\n").join(lines)


def cell(row: Row) -> dict[str, str]:
    """What is written in each column."""
    metrics = "  ".join(f"{n} {value:.4g}" for n, value in row.metrics.items() if not n.startswith("oracle"))
    newest = row.reason if row.state == "failed" else "  ".join(part for part in (row.reason, metrics) if part)
    return {
        "trial": row.trial,
        "state": word(row),
        "job": row.job,
        "node": row.node,
        "step": f"{row.step}/{'?' if row.steps is None else row.steps}",
        "steps/s": f"{row.rate:.3g}" if row.rate else "",
        "left": clock(row.eta) if row.eta is not None else "",
        "newest": " ".join(newest.split("\n")),
    }


def word(row: Row) -> str:
    """A trial's state as it is shown: its cause where that says more."""
    if row.state == "queued":
        return row.cause if row.cause == "preempted" else "requeued" if row.cause else "queued"
    return (
        row.cause
        if row.state in ("failed", "stopped") and row.cause not in ("", "exception", "exit code")
        else row.state
    )


def clock(seconds: float) -> str:
    """A duration in the unit that suits it."""
    return next(
        f"{seconds / unit:.0f} {name}"
        for unit, name in ((1, "s"), (60, "min"), (3600, "h"))
        if seconds < 120 * unit or name == "h"
    )


def pad(column: str, text: str, size: int) -> str:
    return text.rjust(size) if column in RIGHT else text.ljust(size)


def shorten(name: str, size: int) -> str:
    """Leave out the middle: what begins a name says the method, what ends it is unique."""
    return name if len(name) <= size else f"{name[: size - 13]}…{name[-12:]}"


if __name__ == "__main__":
    sys.exit(main())
