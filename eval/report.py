"""The report of a sweep: report/index.html, results.csv and results.md, rebuilt from the run directories alone."""

import argparse
import base64
import csv
import hashlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import jinja2
from PIL import Image

from eval.reporting.curves import LIMIT, Points, draw
from eval.reporting.domain_pairs import Scenario, mean, scenarios
from eval.reporting.formatting import cell, deviation, digits, duration, oracle, shown
from eval.reporting.results import Setting, Sweep, Trial, read_sweep
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text

PICTURE_WIDTH = 1200  # pixels; a wider picture is embedded smaller
PICTURES = 24  # embedded of one name; the page stays quick, the others are links


def write_report(sweep_dir: Path) -> Path:
    """Write the three files of `sweep_dir`/report, each as a whole; return the page. ConfigError without any trial."""
    sweep = read_sweep(sweep_dir)
    report = sweep_dir / "report"
    report.mkdir(exist_ok=True)
    pairs = scenarios(sweep, sweep_dir, report)
    for name, text in {
        "results.csv": table(sweep),
        "results.md": markdown(sweep, pairs),
        "index.html": page(sweep, sweep_dir, pairs),
    }.items():
        write_text(report / name, text.encode(errors="replace").decode())  # a file name may be no Unicode
    return report / "index.html"


def table(sweep: Sweep) -> str:
    """results.csv: a row per trial, numbers in full precision, an empty cell for what is absent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "state", "method", *sweep.swept, *sweep.metrics, "error"])
    for t in sweep.trials:
        values = [cell(t.config, key) for key in sweep.swept] + [cell(t.metrics, name) for name in sweep.metrics]
        writer.writerow([t.name, t.state, t.method, *values, t.error])
    return file.getvalue()


def markdown(sweep: Sweep, pairs: Sequence[Scenario]) -> str:
    """results.md: settings with mean ± std over seeds, source and target, trials, and what failed."""
    metrics = [f"{name} †" if oracle(name) else name for name in sweep.metrics]
    settings = []
    for s in sweep.settings:
        cells = [cell(s.trials[0].config, "method"), *(shown(s.trials[0].config, key) for key in sweep.keys)]
        settings.append([*cells, str(s.n), *(mean(s, name) for name in sweep.metrics)])
    trials = []
    for t in sweep.trials:
        cells = [t.name, t.state, t.method, *(shown(t.config, key) for key in sweep.swept)]
        trials.append([*cells, *(digits(t.metrics[name]) if name in t.metrics else "" for name in sweep.metrics)])
    parts = [
        f"# {_plain(sweep.name)}",
        ", ".join(f"{n} {state}" for state, n in sweep.counts.items()),
        "## Settings",
        "Mean ± sample standard deviation over the n seeds that have finished and are evaluated.",
        _table(["method", *sweep.keys, "n", *metrics], settings),
        "## Trials",
        _table(["trial", "state", "method", *sweep.swept, *metrics], trials),
        *(text for pair in pairs for text in _scenario(pair)),
    ]
    if any(oracle(name) for name in sweep.metrics):
        parts.append("† chosen with target labels: not to be had without them.")
    if failed := [t for t in sweep.trials if t.failed]:
        rows = [[t.name, ", ".join(t.logs), t.error] for t in failed]
        parts += ["## Failed", _table(["trial", "log", "error"], rows)]
    return "\n\n".join(parts) + "\n"


def page(sweep: Sweep, folder: Path, pairs: Sequence[Scenario]) -> str:
    """index.html: one file that asks for nothing over the network; everything in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digits": digits, "shown": shown, "cell": cell, "duration": duration, "oracle": oracle}
    environment.filters |= {"deviation": deviation, "url": _url, "sha256": _sha256}
    here = os.path.relpath(folder)
    provenance = [t.provenance for t in sweep.trials if t.provenance]
    same = {k: v for k, v in (provenance or [{}])[0].items() if all(k in p and p[k] == v for p in provenance)}
    return environment.get_template("report.html.jinja").render(
        sweep=sweep,
        written=datetime.now(timezone.utc),
        command=f"tensorboard --logdir {shlex.quote(sweep.name if here.startswith('..') else here)}",
        scenarios=[(pair, _embed(folder / "report" / pair.picture) if pair.picture else "") for pair in pairs],
        evaluations=_figures(sweep, lambda trial: trial.history, markers=True),
        curves=_figures(sweep, lambda trial: trial.curves, markers=False),
        pictures=_pictures(sweep, folder),
        same=same,
        differing=sorted({key for p in provenance for key in p} - set(same)),
        limit=LIMIT,
    )


def _figures(sweep: Sweep, source: Callable[[Trial], dict[str, Points]], markers: bool) -> dict[str, str]:
    """An inline SVG per name that `source` has of any trial."""
    drawn = {}
    for name in sorted({name for trial in sweep.trials for name in source(trial)}):
        lines = [(s.style, [source(t)[name] for t in s.trials if name in source(t)]) for s in sweep.settings]
        drawn[name] = draw(name, [(style, seeds) for style, seeds in lines if seeds], markers)
    return drawn


def _pictures(sweep: Sweep, folder: Path) -> dict[str, tuple[list[tuple[Setting, Trial, str]], list[Trial]]]:
    """Per picture name: the first seed of each setting with a data URI, and the trials whose picture is only linked."""
    figures: dict[str, tuple[list[tuple[Setting, Trial, str]], list[Trial]]] = {}
    for setting in sweep.settings:
        seen = set()
        for trial in setting.trials:
            for name in [file for file in trial.files if file.startswith("eval/") and file.endswith(".png")]:
                embedded, linked = figures.setdefault(name, ([], []))
                first = name not in seen and len(embedded) < PICTURES
                uri = _embed(folder / trial.name / name) if first else ""
                if uri:
                    seen.add(name)
                    embedded.append((setting, trial, uri))
                else:
                    linked.append(trial)
    return dict(sorted(figures.items()))


def _embed(path: Path) -> str:
    """A PNG as data URI, at most PICTURE_WIDTH wide; empty if it is no whole PNG yet."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            data = path.read_bytes()
            if image.width > PICTURE_WIDTH:
                size = PICTURE_WIDTH, max(1, round(image.height * PICTURE_WIDTH / image.width))
                file = io.BytesIO()
                image.convert("RGBA" if image.has_transparency_data else "RGB").resize(
                    size, Image.Resampling.LANCZOS
                ).save(file, "PNG")
                data = file.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _scenario(pair: Scenario) -> list[str]:
    """The rows of a source and a target, as markdown."""
    parts = [
        f"## {_plain(pair.source)} → {_plain(pair.target)}",
        "Accuracy on the target's test split, by how the weights are chosen; reported: lowest to highest in public "
        "reports, which are not runs of this project.",
        _table(
            ["setting", "n", *pair.columns, "reported"], [[r.label, str(r.n), *r.cells, r.reported] for r in pair.rows]
        ),
    ]
    if by_class := [row for row in pair.rows if row.classes]:
        head = ["share found of class", *map(str, range(max(len(row.classes) for row in by_class)))]
        parts.append(_table(head, [[row.label, *(f"{share:.3f}" for share in row.classes)] for row in by_class]))
    return parts


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table that lines up as plain text, too, unless its cells are very long."""
    lines = [[_plain(text) for text in row] for row in (head, *rows)]
    widths = [min(100, max(3, *map(len, column))) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _plain(text: str) -> str:
    """Text that markdown shows as it is."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def _url(path: str) -> str:
    return quote(os.fsencode(path))


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(
        description="Write report/index.html, results.csv and results.md of a sweep, at any time, also while it runs.",
        epilog="example: python eval/report.py logs/dann",
    )
    parser.add_argument("sweep", type=Path, help="the folder of a sweep: logs/<sweep>")
    try:
        path = write_report(parser.parse_args(arguments).sweep)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: cannot write the report: {error.strerror}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
