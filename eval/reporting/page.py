"""Render the page of a report: one HTML file that loads nothing over the network and escapes all text."""

import base64
import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import jinja2

from eval.reporting import columns, formatting, parallel_figure, search_figure, tables
from eval.reporting.answer import Answer, order_settings
from eval.reporting.answer_figure import describe_figure, describe_form
from eval.reporting.curves import BINS, HEIGHT, WIDTH, Curve, Plot, draw_plot
from eval.reporting.domain_pairs import DomainPair
from eval.reporting.marks import describe_judges, describe_lost_sources
from eval.reporting.pictures import collect_pictures, embed_png, embed_svg
from eval.reporting.results import Sweep
from eval.reporting.trials import Trial
from trainer.runs.costs import OTHER, PHASES, sum_costs

SHOWN = ("source", "target", "dataset", "size", "steps", "batch_size", "lr", "precision")  # of the shared settings


def render_page(
    sweep: Sweep,
    pairs: Sequence[DomainPair],
    figures: Sequence[tuple[Answer, Mapping[str, bytes], Mapping[str, bytes]]],
    search: Mapping[str, bytes],
    report: Path,
) -> str:
    """Return index.html in the directory `report`.

    `figures` are the answers, each with its figure and its parallel coordinates by form, and `search` that of a search.
    """
    path = os.path.relpath(sweep.directory)
    settings = order_settings(sweep, [answer for answer, *_ in figures])
    provenance = [trial.provenance for trial in sweep.trials if trial.provenance]
    shared = {k: v for k, v in (provenance or [{}])[0].items() if all(k in p and p[k] == v for p in provenance)}
    return create_environment().get_template("report.html.jinja").render(
        sweep=sweep,
        now=datetime.now(timezone.utc),
        command=f"tensorboard --logdir {shlex.quote(sweep.name if path.startswith('..') else path)}",
        answers=[
            (a, describe_form(a, sweep.keys), describe_figure(a), embed_svg(forms), embed_svg(parallel))
            for a, forms, parallel in figures
        ],
        parallel_caption=parallel_figure.CAPTION,
        search=embed_svg(search),
        search_caption=search_figure.CAPTION,
        settings=settings,
        is_single=sweep.is_single,
        root=lambda trial: ".." if sweep.is_single else quote(os.path.relpath(trial.run.path.parent, report)),
        best={answer.ranked[0].label for answer, *_ in figures if len(answer.ranked) > 1},
        as_run=describe_run(sweep),
        pairs=[(pair, embed_png(pair.picture) if pair.picture else "") for pair in pairs],
        histories=_draw_plots(sweep, lambda trial: trial.history, markers=True),
        curves=_draw_plots(sweep, lambda trial: trial.curves, markers=False),
        pictures=collect_pictures(settings),
        judges=describe_judges(sweep.trials),
        lost_sources=describe_lost_sources(sweep.trials),
        spent=sum_costs(trial.costs for trial in sweep.trials),
        costs_shown=[name for name in sweep.cost_columns if not name.endswith("_share")],
        phases=[phase for phase in PHASES if phase != OTHER],
        one_seed=tables.ONE_SEED,
        intervals=tables.INTERVALS,
        shared=shared,
        differing=sorted({key for p in provenance for key in p} - set(shared)),
        bins=BINS,
        size=(WIDTH, HEIGHT),
    )  # fmt: skip


def create_environment() -> jinja2.Environment:
    """Return the templates of this directory, with the functions of formatting.py as filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= vars(formatting) | {
        "url": lambda path: quote(os.fsencode(path)),
        "rule": columns.describe_rule,
        "base": lambda name: columns.split_rule(name)[1],
        "sha256": lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
    }
    return environment


def describe_run(sweep: Sweep) -> list[str]:
    """Return what the sweep was run with: overrides of the command line, settings that its trials share, the commit."""
    submission, config = sweep.submission, sweep.trials[0].config
    shown = {key: key.partition(".")[2] for key in config if key.startswith(("train.", "model.", "data."))}
    shared = [
        f"{name} {formatting.format_setting(config, key)}"
        for key, name in shown.items()
        if name in SHOWN and config[key] is not None and all(t.config.get(key) == config[key] for t in sweep.trials)
    ]
    lines = ["the same in all trials: " + ", ".join(shared)] if shared else []
    if overrides := submission.get("overrides"):
        lines.insert(0, f"overrides of the command line: {' '.join(map(str, overrides))}")
    if commit := submission.get("commit"):
        lines.append(
            f"commit {str(commit)[:10]}" + ", with changes that are not committed" * bool(submission.get("dirty"))
        )
    return lines


def _draw_plots(sweep: Sweep, source: Callable[[Trial], dict[str, Curve]], markers: bool) -> dict[str, Plot]:
    """Draw a plot for each name that `source` returns for any trial."""
    plots = {}
    for name in sorted({name for trial in sweep.trials for name in source(trial)}):
        settings = [(s.style, [source(t)[name] for t in s.trials if name in source(t)]) for s in sweep.settings]
        plots[name] = draw_plot([(style, seeds) for style, seeds in settings if seeds], markers)
    return plots
