"""The report of a sweep: report/index.html, results.csv and results.md, rebuilt from the run directories alone."""

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import jinja2
import numpy as np
import yaml
from PIL import Image

from eval.curves import LIMIT, Points, Style, draw, points, styles
from trainer.config import ConfigError
from trainer.document import leaves
from trainer.run import Run, read_json, runs, write_text

STATES = ("done", "running", "stopped", "pending", "failed")
SEED = "train.seed"
PICTURE_WIDTH = 1200  # pixels; a wider picture is embedded smaller
PICTURES = 24  # embedded of one name; the page stays quick, the others are links
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What one run directory says; what is missing or half-written is empty."""

    name: str
    state: str
    config: dict[str, Any]  # dotted keys
    step: int
    steps: int
    eta: float  # seconds; 0 where nobody knows
    error: str  # of training or evaluation; empty unless failed
    curves: dict[str, Points]
    history: dict[str, Points]  # metrics of the evaluation against the step of the weights
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    provenance: dict[str, Any]
    files: tuple[str, ...]  # relative to the run directory, sorted

    @property
    def method(self) -> str:
        return cell(self.config, "method")

    @property
    def seed(self) -> str:
        return cell(self.config, SEED)

    @property
    def logs(self) -> list[str]:
        """The files that say what it printed and why it failed, relative to the sweep."""
        found = [file for file in self.files if file.endswith((".log", ".out", ".err")) or file.startswith("failed.")]
        return [os.path.normpath(os.path.join(self.name, file)) for file in found]

    @property
    def failed(self) -> bool:
        """Whether its training failed, or its evaluation."""
        return self.state == "failed" or bool(self.error)


@dataclass(frozen=True)
class Setting:
    """Trials that differ in nothing but the seed."""

    label: str
    style: Style
    trials: list[Trial]  # by seed

    @property
    def n(self) -> int:
        """How many trials the means are taken over, at most."""
        return sum(trial.state == "done" and bool(trial.metrics) for trial in self.trials)

    def summary(self, metric: str) -> tuple[float, float | None, int] | None:
        """Mean, sample standard deviation (None for n = 1) and n over finished trials; None without any."""
        values = [t.metrics[metric] for t in self.trials if t.state == "done" and metric in t.metrics]
        if not values:
            return None
        with np.errstate(invalid="ignore"):  # an infinite metric has no deviation
            return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values)


@dataclass(frozen=True)
class Sweep:
    """The trials of a folder, ordered by setting and seed."""

    name: str
    trials: list[Trial]
    swept: list[str]
    settings: list[Setting]
    metrics: list[str]
    abstract: str  # the comment that the sweep's file opens with

    @property
    def keys(self) -> list[str]:
        """What makes a setting beside the method."""
        return [key for key in self.swept if key != SEED]

    @property
    def counts(self) -> dict[str, int]:
        count = Counter(trial.state for trial in self.trials)
        return {state: count[state] for state in STATES if count[state]}


def write_report(sweep_dir: Path) -> Path:
    """Write the three files of `sweep_dir`/report, each as a whole; return the page. ConfigError without any trial."""
    sweep = read_sweep(sweep_dir)
    report = sweep_dir / "report"
    report.mkdir(exist_ok=True)
    for name, text in {
        "results.csv": table(sweep),
        "results.md": markdown(sweep),
        "index.html": page(sweep, sweep_dir),
    }.items():
        write_text(report / name, text.encode(errors="replace").decode())  # a file name may be no Unicode
    return report / "index.html"


def read_sweep(folder: Path) -> Sweep:
    """Read every run directory of `folder`; ConfigError without any."""
    jobs: dict[str, list[str]] = _attempt(partial(slurm_jobs, folder), dict)
    trials = [read_trial(run, jobs.get(run.name, [])) for run in runs(folder)]
    if not trials:
        raise ConfigError(
            f"{folder}: no trial here (a subfolder with a config.yaml); name the folder of a sweep: logs/<sweep>"
        )
    swept = swept_keys(trials)
    keys = ["method", *(key for key in swept if key != SEED)]
    trials.sort(key=lambda trial: ([_order(trial.config, key) for key in [*keys, SEED]], trial.name))
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(cell(trial.config, key) for key in keys), []).append(trial)
    looks = styles([group[0].method for group in groups.values()])
    settings = [Setting(_label(g[0], keys), look, g) for g, look in zip(groups.values(), looks, strict=True)]
    text = _attempt(lambda: (folder / "sweep.yaml").read_text(errors="replace"), str)
    abstract = re.match(r"(#.*\n)*", text + "\n")
    return Sweep(
        name=folder.resolve().name,
        trials=trials,
        swept=swept,
        settings=settings,
        metrics=sorted({name for trial in trials for name in trial.metrics}),
        abstract=re.sub(r"(?m)^# ?", "", abstract[0]) if abstract else "",
    )


def slurm_jobs(folder: Path) -> dict[str, list[str]]:
    """Per trial the ids of its newest jobs, of training and of evaluation, as submissions.jsonl tells them."""
    newest: dict[str, dict[str, str]] = {}
    for line in (folder / "submissions.jsonl").read_text().splitlines():
        for array in json.loads(line).get("arrays", []):
            for index, trial in enumerate(array["trials"]):
                job = f"{array['id']}_{index}" if len(array["trials"]) > 1 else array["id"]
                newest.setdefault(trial, {})[array["stage"]] = job
    return {trial: list(stages.values()) for trial, stages in newest.items()}


def read_trial(run: Run, jobs: Sequence[str] = ()) -> Trial:
    """Read a run directory, which may change meanwhile: what cannot be read is empty."""
    config: dict[str, Any] = _attempt(lambda: dict(leaves(run.config())), dict)
    status: dict[str, Any] = _attempt(run.status, dict)
    evaluation: dict[str, Any] = _attempt(run.evaluation, dict)
    history = [{"step": h.get("step"), **h.get("metrics", {})} for h in evaluation.get("history") or []]
    intervals = evaluation.get("intervals") or {}
    state = _attempt(run.state, lambda: "pending")
    steps = int(_number(status.get("steps")) or _number(config.get("train.steps")))
    error = _attempt(run.error, str) if state == "failed" else ""
    unevaluated: dict[str, Any] = _attempt(partial(read_json, run.path / "eval" / "failed.json"), dict)
    if state == "done" and unevaluated:
        error = f"evaluation: {unevaluated.get('error', 'no reason given')}"
    logs = [f"../slurm/{job}" for job in jobs] if error or state == "failed" else []
    files = [f for folder in ("", "eval", *logs) for f in _inside(run.path, folder)]
    return Trial(
        name=run.name,
        state=state,
        config=config,
        step=steps if state == "done" else int(_number(status.get("step"))),
        steps=steps,
        eta=_number(status.get("eta")) if state == "running" else 0.0,
        error=error.replace(f"{run.path.resolve().parent}/", ""),
        curves=points(_attempt(run.metrics, list)),
        history=points(history) if len(history) > 1 else {},
        metrics={k: v for k, v in (evaluation.get("metrics") or {}).items() if type(v) in (int, float)},
        intervals={k: (_number(v[0]), _number(v[1])) for k, v in intervals.items() if len(v) == 2},
        provenance=dict(leaves(evaluation.get("provenance") or {})),
        files=tuple(sorted(files)),
    )


def swept_keys(trials: Sequence[Trial]) -> list[str]:
    """The dotted keys in which the trials differ, without those that only follow from the method.

    A key of `model` that some methods do not have follows from the method unless it varies within one of them.
    """
    swept = []
    for key in sorted({key for trial in trials for key in trial.config}):
        if key == "method" or key.partition(".")[0] in ("resources", "eval"):
            continue
        values: dict[str, set[str | None]] = {}
        for trial in trials:
            values.setdefault(trial.method, set()).add(cell(trial.config, key) if key in trial.config else None)
        varies = any(len(of_method) > 1 for of_method in values.values())
        everywhere = not any(None in of_method for of_method in values.values())
        differs = len(set().union(*values.values())) > 1
        if varies or (differs and (everywhere or not key.startswith("model."))):
            swept.append(key)
    return swept


def table(sweep: Sweep) -> str:
    """results.csv: a row per trial, numbers in full precision, an empty cell for what is absent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "state", "method", *sweep.swept, *sweep.metrics, "error"])
    for t in sweep.trials:
        values = [cell(t.config, key) for key in sweep.swept] + [cell(t.metrics, name) for name in sweep.metrics]
        writer.writerow([t.name, t.state, t.method, *values, t.error])
    return file.getvalue()


def markdown(sweep: Sweep) -> str:
    """results.md: settings with mean ± std over seeds, trials, and what failed."""
    metrics = [f"{name} (oracle †)" if oracle(name) else name for name in sweep.metrics]
    settings = []
    for s in sweep.settings:
        cells = [cell(s.trials[0].config, "method"), *(shown(s.trials[0].config, key) for key in sweep.keys)]
        settings.append([*cells, str(s.n), *(_mean(s, name) for name in sweep.metrics)])
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
    ]
    if any(oracle(name) for name in sweep.metrics):
        parts.append("† chosen with target labels: not to be had without them.")
    if failed := [t for t in sweep.trials if t.failed]:
        rows = [[t.name, t.error, ", ".join(t.logs)] for t in failed]
        parts += ["## Failed", _table(["trial", "error", "log"], rows)]
    return "\n\n".join(parts) + "\n"


def page(sweep: Sweep, folder: Path) -> str:
    """index.html: one file that asks for nothing over the network; everything in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digits": digits, "shown": shown, "cell": cell, "duration": duration, "oracle": oracle}
    environment.filters |= {"url": _url, "sha256": _sha256}
    here = os.path.relpath(folder)
    provenance = [t.provenance for t in sweep.trials if t.provenance]
    same = {k: v for k, v in (provenance or [{}])[0].items() if all(k in p and p[k] == v for p in provenance)}
    return environment.get_template("report.html.jinja").render(
        sweep=sweep,
        written=datetime.now(timezone.utc),
        command=f"tensorboard --logdir {shlex.quote(sweep.name if here.startswith('..') else here)}",
        evaluations=_figures(sweep, lambda trial: trial.history, markers=True),
        curves=_figures(sweep, lambda trial: trial.curves, markers=False),
        pictures=_pictures(sweep, folder),
        same=same,
        differing=sorted({key for p in provenance for key in p} - set(same)),
        limit=LIMIT,
    )


def digits(value: float) -> str:
    """Four significant digits, without an exponent where one can read it without."""
    if type(value) is int:
        return str(value)
    rounded = f"{value:.3e}"
    if not np.isfinite(value) or value == 0:
        return f"{value:g}"
    exponent = int(rounded.partition("e")[2])
    return f"{float(rounded):.{max(0, 3 - exponent)}f}" if -5 < exponent < 7 else rounded


def cell(values: dict[str, Any], key: str) -> str:
    """A value exactly: text as it is, everything else as JSON; empty where it is absent."""
    value = values.get(key, "")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def shown(values: dict[str, Any], key: str) -> str:
    """A hyperparameter for the eye: as `cell`, but four significant digits are enough."""
    return f"{values[key]:.4g}" if type(values.get(key)) is float else cell(values, key)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever says it in few digits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def oracle(metric: str) -> bool:
    """Whether the metric was chosen with target labels, which its name then says."""
    return "oracle" in metric.lower()


def _figures(sweep: Sweep, source: Callable[[Trial], dict[str, Points]], markers: bool) -> dict[str, str]:
    """An inline SVG per name that `source` has of any trial."""
    drawn = {}
    for name in sorted({name for trial in sweep.trials for name in source(trial)}):
        lines = [(s.style, [source(t)[name] for t in s.trials if name in source(t)]) for s in sweep.settings]
        drawn[name] = draw(name, [(style, seeds) for style, seeds in lines if seeds], markers)
    return drawn


def _pictures(sweep: Sweep, folder: Path) -> dict[str, tuple[list[tuple[Setting, Trial, str]], list[Trial]]]:
    """Per picture name: the first seed of each setting with a data URI, and the trials whose picture is only linked."""
    found: dict[str, tuple[list[tuple[Setting, Trial, str]], list[Trial]]] = {}
    for setting in sweep.settings:
        seen = set()
        for trial in setting.trials:
            for name in [file for file in trial.files if file.startswith("eval/") and file.endswith(".png")]:
                embedded, linked = found.setdefault(name, ([], []))
                first = name not in seen and len(embedded) < PICTURES
                uri = _embed(folder / trial.name / name) if first else ""
                if uri:
                    seen.add(name)
                    embedded.append((setting, trial, uri))
                else:
                    linked.append(trial)
    return dict(sorted(found.items()))


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


def _label(trial: Trial, keys: Sequence[str]) -> str:
    last = Counter(key.rpartition(".")[2] for key in keys)
    values = [key for key in keys if key != "method" and key in trial.config]
    names = [short if last[short := key.rpartition(".")[2]] == 1 else key for key in values]
    return " · ".join(
        [trial.method or "?", *(f"{n} {shown(trial.config, k)}" for n, k in zip(names, values, strict=True))]
    )


def _order(config: dict[str, Any], key: str) -> tuple[int, float, str]:
    """Sorts absent before numbers before text."""
    value = config.get(key)
    if isinstance(value, int | float):
        return 1, value, ""
    return (2, 0.0, cell(config, key)) if key in config else (0, 0.0, "")


def _mean(setting: Setting, metric: str) -> str:
    if not (summary := setting.summary(metric)):
        return ""
    mean, std, n = summary
    text = digits(mean) if std is None else f"{digits(mean)} ± {digits(std)}"
    return text if n == setting.n else f"{text} (n = {n})"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text that markdown shows as it is."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def _url(path: str) -> str:
    return quote(os.fsencode(path))


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _inside(path: Path, folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(path / folder)]
    except OSError:
        return []


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


def _attempt(read: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Read what another process may be writing: a file that is missing, torn or odd is as good as none."""
    try:
        return read()
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return otherwise()


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
