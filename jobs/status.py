"""Show where the trials of a sweep stand: its run directories, joined with Slurm's queue where there is one."""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs import submissions
from trainer.config import ConfigError
from trainer.run import Run, runs

EXAMPLES = """examples:
  python jobs/status.py logs/dann
  python jobs/status.py logs/dann --watch
  python jobs/status.py logs/dann --failed --json"""
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "queued": "blue", "pending": "dim"}
ROWS = 40  # of a live table: more would scroll off the screen


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

    def chosen() -> list[dict[str, Any]]:
        rows = describe(runs(options.sweep), queued(options.sweep))
        return [row for row in rows if row["state"] == "failed" or not options.failed]

    console = Console()
    try:
        if options.json:
            for row in chosen():
                print(json.dumps(row))
        elif options.watch:
            with Live(console=console, refresh_per_second=1) as live, suppress(KeyboardInterrupt):
                while True:
                    live.update(draw(chosen()))
                    time.sleep(2)
        else:
            rows = chosen()
            console.print(draw(rows, len(rows)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def queued(sweep: Path) -> dict[str, str]:
    """Trial -> its job in Slurm's queue; {} where there is no Slurm."""
    return submissions.queued(sweep, "train") if submissions.unavailable() is None else {}


def describe(trials: list[Run], jobs: dict[str, str]) -> list[dict[str, Any]]:
    """A row per trial: trial, state, job, step, steps, rate in steps/s, eta in s, newest metrics, error."""
    rows = []
    for run in trials:
        status, state = run.status(), run.state()
        if run.name in jobs and state in ("pending", "stopped", "failed"):
            state = "queued"
        found: dict[str, float] = run.evaluation().get("metrics") or status.get("losses") or {}
        row = {"trial": run.name, "state": state, "job": jobs.get(run.name, ""), "step": status.get("step", 0)}
        row |= {"steps": status.get("steps") or run.config().get("train", {}).get("steps")}
        row |= {"rate": status.get("rate"), "eta": status.get("eta") if state == "running" else None}
        rows.append(row | {"metrics": found, "error": run.error() if state == "failed" else ""})
    return rows


def table(trials: list[Run]) -> Table:
    """The live table of a sweep on this machine."""
    return draw(describe(trials, {}))


def draw(rows: list[dict[str, Any]], most: int = ROWS) -> Table:
    """Draw rows of `describe`, those that run first where there are too many."""
    order = {"running": 0, "failed": 1, "stopped": 2, "queued": 3, "pending": 4, "done": 5}
    shown = rows if len(rows) <= most else sorted(rows, key=lambda row: order[row["state"]])[:most]
    counts = Counter(row["state"] for row in rows)
    caption = "  ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    result = Table(box=None, caption=caption, caption_justify="left", pad_edge=False)
    for name, justify in (
        ("trial", "left"),
        ("state", "left"),
        ("job", "left"),
        ("step", "right"),
        ("steps/s", "right"),
        ("left", "right"),
    ):
        result.add_column(name, justify=justify, no_wrap=name != "trial")  # type: ignore[arg-type]
    result.add_column("newest")
    for row in shown:
        newest = row["error"] or "  ".join(
            f"{name} {value:.4g}"
            for name, value in row["metrics"].items()
            if "/" not in name or not name.startswith("oracle")
        )
        state = Text(row["state"], style=COLOURS[row["state"]])
        rate = f"{row['rate']:.3g}" if row["rate"] else ""
        left = f"{row['eta']:.0f} s" if row["eta"] is not None else ""
        result.add_row(Text(row["trial"]), state, row["job"], f"{row['step']}/{row['steps']}", rate, left, Text(newest))
    return result


def summary(trials: list[Run]) -> str:
    """One line of progress for a log file."""
    rows = describe(trials, {})
    counts = Counter(row["state"] for row in rows)
    running = [f"{row['trial']} {row['step']}/{row['steps']}" for row in rows if row["state"] == "running"]
    return "  ".join([*(f"{count} {state}" for state, count in sorted(counts.items())), *running])


if __name__ == "__main__":
    sys.exit(main())
