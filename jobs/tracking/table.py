"""Format trial statuses as a table: one line per trial in a pipe, fitted to width and height in a terminal."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from jobs.tracking.state import TrialStatus, determine_status
from trainer.runs.costs import sum_costs
from trainer.runs.directory import RunDirectory

COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "queued": "blue",
    "pruned": "dim",
    "pending": "dim",
}
URGENCY = ("running", "failed", "stopped", "queued", "pending", "pruned", "done")
COLUMNS = ("trial", "state", "job", "node", "step", "steps/s", "left")  # before the last one, "newest"
DROPPED_FIRST = ("node", "steps/s", "job", "left")  # in a narrow terminal, in this order
RIGHT_ALIGNED = ("step", "steps/s", "left")
LAST_WIDTH = 28  # minimum width of the last column, which holds reasons and metrics
NAME_WIDTH = 24  # minimum width of a shortened trial name
# Of the table of costs: heading -> key of TrialStatus.costs, format.
COSTS = {
    "device-hours": ("device_hours", ".4f"),
    "attempts": ("attempts", "d"),
    "start-up s": ("startup_seconds", ".1f"),
    "steps/s": ("steps_per_second", ".3g"),
    "data": ("data_share", ".1%"),
    "updates": ("updates_share", ".1%"),
    "checkpoints": ("checkpoints_share", ".1%"),
    "logging": ("logging_share", ".1%"),
    "memory GiB": ("memory_gib", ".2f"),
    "device GiB": ("device_memory_gib", ".2f"),
}


def render_local(runs: Sequence[RunDirectory]) -> Text:
    """Return the live table of a sweep on this machine."""
    statuses = [determine_status(run) for run in runs]
    return render_fitted(statuses, statuses, [])


def summarize_progress(runs: Sequence[RunDirectory]) -> str:
    """Return one line of progress for a log file."""
    statuses = [determine_status(run) for run in runs]
    running = [f"{status.trial} {status.step}/{status.steps}" for status in statuses if status.state == "running"]
    return "  ".join([count_states(statuses), *running])


def count_states(statuses: Sequence[TrialStatus]) -> str:
    """Return a summary such as `2 done  3 failed (2 out of memory, 1 exception)`."""
    parts = []
    for state, number in sorted(Counter(status.state for status in statuses).items()):
        causes = Counter(status.cause for status in statuses if status.state == state and status.cause).most_common()
        parts.append(f"{number} {state}" + f" ({', '.join(f'{n} {cause}' for cause, n in causes)})" * bool(causes))
    return "  ".join(parts)


def render_fitted(chosen: list[TrialStatus], statuses: list[TrialStatus], notes: list[str]) -> Text:
    """Return as much of the table of `chosen` as the terminal holds, most urgent first, the counts and the notes."""
    columns, lines = shutil.get_terminal_size()
    ordered = sorted(chosen, key=lambda s: URGENCY.index(s.state)) if len(chosen) > lines - 4 else chosen
    shown = render(ordered[: max(1, lines - 4)], columns).split("\n")[: max(2, lines - 3 - len(notes))]
    hidden = len(chosen) - sum(not line.plain.startswith(" ") for line in shown[1:])
    more = [Text(f"… and {hidden} more")] if hidden > 0 else []
    return Text("\n").join([*shown, *more, Text(count_states(statuses)), *map(Text, notes)])


def render(statuses: Sequence[TrialStatus], width: int = 0) -> Text:
    """Return the table: one line per trial, or lines wrapped in the last column for a terminal of `width` columns."""
    rows = [format_cells(status) for status in statuses]
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in COLUMNS}
    last = min(LAST_WIDTH, max([0, *(len(row["newest"]) for row in rows)]))
    widths = {name: size for name, size in widths.items() if name == "trial" or any(row[name] for row in rows)}
    for name in DROPPED_FIRST:
        if width and sum(widths.values()) + 2 * len(widths) + last > width:
            widths.pop(name, None)
    if width and (excess := sum(widths.values()) + 2 * len(widths) + last - width) > 0:
        widths["trial"] = max(NAME_WIDTH, widths["trial"] - excess)
    indent = sum(widths.values()) + 2 * len(widths)
    lines = [Text("  ".join(pad(name, name, size) for name, size in widths.items()) + "  newest", style="bold")]
    for status, row in zip(statuses, rows, strict=True):
        row["trial"] = shorten(row["trial"], widths["trial"])
        newest = textwrap.wrap(row["newest"], max(LAST_WIDTH, width - indent)) if width else [row["newest"]]
        line = Text()
        for name, size in widths.items():
            line.append(pad(name, row[name], size) + "  ", COLOURS[status.state] if name == "state" else "")
        line.append(newest[0] if newest else "")
        line.rstrip()
        lines += [line, *(Text(" " * indent + rest) for rest in newest[1:])]
    return Text("\n").join(lines)


def render_costs(chosen: Sequence[TrialStatus], statuses: Sequence[TrialStatus]) -> str:
    """Return what each chosen trial has cost, one per line, and the sums of all statuses; a dash: not measured."""
    rows = [("trial", *COSTS)]
    total = "all trials", sum_costs(status.costs for status in statuses)
    for name, costs in [*((status.trial, status.costs) for status in chosen), total]:
        rows.append((name, *(format(costs[key], form) if key in costs else "-" for key, form in COSTS.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def format_cells(status: TrialStatus) -> dict[str, str]:
    """Return column name -> text for a trial."""
    metrics = "  ".join(
        f"{name} {value:.4g}" for name, value in status.metrics.items() if not name.startswith("oracle")
    )
    newest = status.reason if status.state == "failed" else "  ".join(filter(None, (status.reason, metrics)))
    return {
        "trial": status.trial,
        "state": name_state(status),
        "job": status.job,
        "node": status.node,
        "step": f"{status.step}/{'?' if status.steps is None else status.steps}",
        "steps/s": f"{status.rate:.3g}" if status.rate else "",
        "left": format_duration(status.eta) if status.eta is not None else "",
        "newest": " ".join(newest.split("\n")),
    }


def name_state(status: TrialStatus) -> str:
    """Return the word for the state column: the cause where it says more than the state."""
    if status.state == "queued":
        return status.cause if status.cause == "preempted" else "requeued" if status.cause else "queued"
    has_telling_cause = status.state in ("failed", "stopped") and status.cause not in ("", "exception", "exit code")
    return status.cause if has_telling_cause else status.state


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, whichever is readable."""
    return next(
        f"{seconds / unit:.0f} {name}"
        for unit, name in ((1, "s"), (60, "min"), (3600, "h"))
        if seconds < 120 * unit or name == "h"
    )


def pad(column: str, text: str, size: int) -> str:
    """Align a cell with its column."""
    return text.rjust(size) if column in RIGHT_ALIGNED else text.ljust(size)


def shorten(name: str, size: int) -> str:
    """Cut the middle of a trial's name: it begins with the method and ends with the identity."""
    return name if len(name) <= size else f"{name[: size - 13]}…{name[-12:]}"
