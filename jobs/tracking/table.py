"""How rows are drawn: a line per trial in a pipe, and within the width and the height of a terminal."""

import shutil
import textwrap
from collections import Counter

from rich.text import Text

from jobs.tracking.state import Row

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "queued": "blue", "pending": "dim"}
URGENCY = ("running", "failed", "stopped", "queued", "pending", "done")
# Of a row, in their order, and what is left out first where the terminal is narrow.
COLUMNS = ("trial", "state", "job", "node", "step", "steps/s", "left")
SPARE = ("node", "steps/s", "job", "left")
RIGHT = ("step", "steps/s", "left")
LAST = 28  # characters that the last column, with metrics and reasons, has at least
NAME = 24  # characters to which a trial's name may shrink


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
