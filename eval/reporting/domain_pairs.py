"""What a sweep says of each pair of domains: source, adapted and target rows beside public reports, and their t-SNE."""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.reporting.formatting import deviation, digits
from eval.reporting.results import Setting, Sweep, Trial

BOUNDS = ("source_only", "target_only")  # the first and the last row
# Column -> metric: accuracies on the target's test split that differ in the choice of weights, and a distance.
COLUMNS = {
    "last weights": "accuracy/target",
    "chosen by source labels": "best/accuracy/target",
    "chosen by information": "infomax/accuracy/target",
    "chosen by target labels (oracle)": "oracle/accuracy/target",
    "proxy A-distance": "proxy_a_distance",
}
FIELDS = ("points", "labels", "domains")


@dataclass(frozen=True)
class Row:
    """A setting: mean ± sample standard deviation over its n finished seeds, as text, empty where there is none."""

    label: str
    n: int
    cells: list[str]  # as Scenario.columns
    reported: str  # lowest to highest accuracy in public reports, that the sweep's file cites
    classes: list[float]  # share of each class of the target that the last weights find, mean over seeds; or empty


@dataclass(frozen=True)
class Scenario:
    """A source and a target."""

    source: str
    target: str
    columns: list[str]
    rows: list[Row]
    picture: str  # file name in report/, empty where no trial has a t-SNE


def scenarios(sweep: Sweep, folder: Path, report: Path) -> list[Scenario]:
    """Every pair of domains of the sweep in `folder`, in its order; draws their pictures into `report`."""
    pairs: dict[tuple[str, str], list[Setting]] = {}
    for setting in sweep.settings:
        config = setting.trials[0].config
        source, target = config.get("data.source"), config.get("data.target")
        if isinstance(source, str) and isinstance(target, str):
            pairs.setdefault((source, target), []).append(setting)
    return [_scenario(source, target, trials, folder, report) for (source, target), trials in pairs.items()]


def _scenario(source: str, target: str, settings: list[Setting], folder: Path, report: Path) -> Scenario:
    ranks = {BOUNDS[0]: 0, BOUNDS[1]: 2}
    ordered = sorted(settings, key=lambda setting: ranks.get(setting.trials[0].method, 1))
    columns = [name for name, metric in COLUMNS.items() if any(setting.summary(metric) for setting in ordered)]
    rows = [_row(setting, columns, folder) for setting in ordered]
    return Scenario(source, target, columns, rows, _draw(source, target, ordered, folder, report))


def _row(setting: Setting, columns: Sequence[str], folder: Path) -> Row:
    trial = setting.trials[0]
    low_high = trial.config.get(f"eval.reference.{trial.method}")
    confusions = [_arrays(folder, t, "confusion_target.npz", ("counts",)) for t in setting.trials if t.state == "done"]
    shares = [c["counts"].diagonal() / np.maximum(c["counts"].sum(1), 1) for c in confusions if c]
    return Row(
        label=setting.label,
        n=setting.n,
        cells=[mean(setting, COLUMNS[name]) for name in columns],
        reported=f"{low_high[0]:g} to {low_high[1]:g}" if isinstance(low_high, list) and len(low_high) == 2 else "",
        classes=np.mean(shares, axis=0).tolist() if len({len(s) for s in shares}) == 1 else [],
    )


def mean(setting: Setting, metric: str) -> str:
    """Mean ± sample standard deviation over the seeds, and over how many where these are not all; empty without any."""
    if not (summary := setting.summary(metric)):
        return ""
    value, std, n = summary
    text = digits(value) if std is None else f"{digits(value)} ± {deviation(value, std)}"
    return text if n == setting.n else f"{text} (n = {n})"


def _draw(source: str, target: str, settings: list[Setting], folder: Path, report: Path) -> str:
    """Draw the t-SNE of the first setting of each method, of its first seed that has one; the name of the file."""
    embeddings: dict[str, dict[str, NDArray[Any]]] = {}
    for setting in settings:
        for trial in setting.trials:
            if trial.method not in embeddings and (arrays := _arrays(folder, trial, "tsne.npz", FIELDS)):
                embeddings[trial.method] = arrays
    if not embeddings:
        return ""
    from eval import figures

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"tsne_{source}_{target}")[:200] + ".png"  # a set may be named by a path
    rows = [(method, a["points"], a["labels"], a["domains"]) for method, a in embeddings.items()]
    figures.save(figures.embeddings(rows, {"source": source, "target": target}), report / name)
    return name


def _arrays(folder: Path, trial: Trial, name: str, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays that an evaluation has kept; empty where they are missing, or no such arrays."""
    try:
        with (folder / trial.name / "eval" / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {field: arrays[field] for field in fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
