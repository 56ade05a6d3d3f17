"""Write the results of a sweep as tables: CSV for programs, markdown for readers."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from eval.reporting.answer import Answer, order_settings
from eval.reporting.domain_pairs import DomainPair
from eval.reporting.formatting import format_exactly, format_interval, format_number, format_setting, is_oracle
from eval.reporting.marks import describe_judges
from eval.reporting.results import Sweep

ONE_SEED = "One seed says nothing about the spread over seeds."
INTERVALS = (
    "Over training seeds: Student's t-interval of the mean, very wide for two seeds. Over test images: the "
    "uncertainty of one trained model's value, bounds averaged over the seeds."
)


def format_csv(sweep: Sweep) -> str:
    """Return results.csv: a row per trial, numbers in full precision, an empty cell for an absent value.

    `seeds` is the number of finished and evaluated trials of the trial's configuration. What the trainings have cost
    stands at the end, where it was measured.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    tuned = ["tuned"] if any(t.is_tuned for t in sweep.trials) else []
    head = ["trial", "state", "method", *tuned, "seeds", *sweep.swept, *sweep.metrics, "error", *sweep.cost_columns]
    writer.writerow(head)
    seeds = {id(t): s.n for s in sweep.settings for t in s.trials}
    for t in sweep.trials:
        values = [format_exactly(t.config, key) for key in sweep.swept]
        metrics = [format_exactly(t.metrics, name) for name in sweep.metrics]
        marks = [str(t.is_tuned).lower() for _ in tuned]
        spent = [format_exactly(t.costs, name) for name in sweep.cost_columns]
        writer.writerow([t.name, t.state, t.method, *marks, seeds[id(t)], *values, *metrics, t.error, *spent])
    return file.getvalue()


def format_long_csv(sweep: Sweep) -> str:
    """Return results_long.csv: a row per trial and metric, with the bounds of its interval over test images."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "state", "method", *sweep.swept, "metric", "value", "low", "high"])
    for t in sweep.trials:
        values = [format_exactly(t.config, key) for key in sweep.swept]
        for name in (name for name in sweep.metrics if name in t.metrics):
            bounds = t.intervals.get(name, ("", ""))
            writer.writerow([t.name, t.state, t.method, *values, name, format_exactly(t.metrics, name), *bounds])
    return file.getvalue()


def format_markdown(sweep: Sweep, pairs: Sequence[DomainPair], answers: Sequence[Answer]) -> str:
    """Return results.md: the answer, configurations with mean ± std and intervals, trials, domain pairs, failures."""
    metrics = [f"{name} †" if is_oracle(name) else name for name in sweep.columns]
    configurations, trials = [], []
    for s in order_settings(sweep, answers):
        values = [format_setting(s.trials[0].config, key) for key in sweep.keys]
        configurations.append(
            [s.trials[0].marked_method, *values, str(s.n), *(s.describe(name) for name in sweep.columns)]
        )
    for t in sweep.trials:
        values = [format_setting(t.config, key) for key in sweep.swept]
        numbers = [format_number(t.metrics[name]) if name in t.metrics else "" for name in sweep.columns]
        trials.append([t.name, t.state, t.marked_method, *values, *numbers])
    parts = [
        f"# {_escape(sweep.name)}",
        ", ".join(f"{n} {state}" for state, n in sweep.counts.items()),
        *(f"{answer.task}: {text}" if answer.task else text for answer in answers for text in answer.sentences),
        "## Results by configuration",
        f"Mean ± sample standard deviation over n finished and evaluated seeds. {ONE_SEED}",
        _table(["method", *sweep.keys, "n", *metrics], configurations),
        *describe_judges(sweep.trials),
        *_format_intervals(sweep),
        "## Trials",
        _table(["trial", "state", "method", *sweep.swept, *metrics], trials),
        *(text for pair in pairs for text in _format_pair(pair)),
    ]
    if sweep.has_oracle:
        parts.append("† oracle: selected with target labels, unavailable in practice.")
    if any(t.is_tuned for t in sweep.trials):
        parts.append("‡ tuned: settings chosen with target labels in sight.")
    if sweep.failures:
        rows = [[t.name, ", ".join(t.logs), t.error] for t in sweep.failures]
        parts += ["## Failures", _table(["trial", "log", "error"], rows)]
    return "\n\n".join(parts) + "\n"


def _format_intervals(sweep: Sweep) -> list[str]:
    """Return heading and table of the intervals over training seeds and over test images, if there are any."""
    rows = []
    for s in sweep.settings:
        summaries = [s.summarize(name) for name in sweep.columns]
        over = {
            "training seeds": [format_interval(summary and summary.over_seeds) for summary in summaries],
            "test images": [format_interval(summary and summary.over_images) for summary in summaries],
        }
        rows += [[s.label, name, *cells] for name, cells in over.items() if any(cells)]
    head = ["configuration", "over", *sweep.columns]
    columns = [0, 1, *(i for i in range(2, len(head)) if any(row[i] for row in rows))]
    shown = [[row[i] for i in columns] for row in (head, *rows)]
    return ["## 95 % intervals", INTERVALS, _table(shown[0], shown[1:])] if rows else []


def _format_pair(pair: DomainPair) -> list[str]:
    """Return heading, accuracies and, if they are known, recalls of a domain pair."""
    head = ["configuration", "n", *pair.columns, "reported"]
    parts = [
        f"## {_escape(pair.source)} → {_escape(pair.target)}",
        "Accuracy on the target's test split, by selection of the weights. Last: final checkpoint, no selection. "
        "Reported: range of published results, not measured with this code.",
        _table(head, [[row.label, str(row.n), *row.cells, row.reported] for row in pair.rows]),
    ]
    if rows := [row for row in pair.rows if row.recalls]:
        head = ["recall of class", *pair.classes[: max(len(row.recalls) for row in rows)]]
        parts.append(_table(head, [[row.label, *(f"{recall:.3f}" for recall in row.recalls)] for row in rows]))
    return parts


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a markdown table whose columns align as plain text unless its cells are very long."""
    lines = [[_escape(text) for text in row] for row in (head, *rows)]
    widths = [min(100, max(3, *map(len, column))) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _escape(text: str) -> str:
    """Escape text for markdown, on one line."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
