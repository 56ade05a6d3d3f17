"""Compare methods on each pair of domains: rows from the lower to the upper bound, published results, recall, t-SNE."""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import figures
from eval.reporting.results import Sweep
from eval.reporting.seeds import Setting
from eval.reporting.trials import Trial

ORDER = {"lower_bound": 0, "": 1, "upper_bound": 2}  # of rows, by the role that a method declares
# Column → metric: accuracies on the target's test split that differ in the selection of weights, and a distance.
COLUMNS = {
    "last": "accuracy/target",
    "selected on source validation": "best/accuracy/target",
    "selected without labels": "infomax/accuracy/target",
    "oracle †": "oracle/accuracy/target",
    "proxy A-distance": "proxy_a_distance",
}
EMBEDDING = ("points", "labels", "domains")


@dataclass(frozen=True)
class Row:
    """A setting on a pair of domains."""

    label: str
    n: int  # finished and evaluated seeds
    cells: list[str]  # mean ± std of each column of the pair
    reported: str  # range of published accuracies, from the sweep's file
    recalls: list[float]  # of each class of the target with the last weights, mean over seeds; empty if unknown


@dataclass(frozen=True)
class DomainPair:
    """A source and a target domain."""

    source: str
    target: str
    columns: list[str]
    rows: list[Row]
    picture: Path | None  # t-SNE; None if no trial has one
    classes: list[str]  # their names, in the order of the recalls


def compare_methods(sweep: Sweep, report: Path) -> list[DomainPair]:
    """Return every pair of domains of a sweep, in its order; write their t-SNE pictures to the directory `report`."""
    pairs: dict[tuple[str, str], list[Setting]] = {}
    for setting in sweep.settings:
        config = setting.trials[0].config
        source, target = config.get("data.source"), config.get("data.target")
        if isinstance(source, str) and isinstance(target, str):
            pairs.setdefault((source, target), []).append(setting)
    return [_compare(source, target, settings, report) for (source, target), settings in pairs.items()]


def _compare(source: str, target: str, settings: list[Setting], report: Path) -> DomainPair:
    settings = sorted(settings, key=lambda setting: ORDER.get(setting.role, 1))
    columns = [name for name, metric in COLUMNS.items() if any(setting.summarize(metric) for setting in settings)]
    rows = [_row(setting, columns) for setting in settings]
    trials = [trial for setting in settings for trial in setting.trials]
    names = next((trial.class_names for trial in trials if trial.class_names), [])
    count = max(len(row.recalls) for row in rows)
    names = names if len(names) >= count else [str(number) for number in range(count)]
    return DomainPair(source, target, columns, rows, _draw_embeddings(source, target, trials, names, report), names)


def _row(setting: Setting, columns: Sequence[str]) -> Row:
    trial = setting.trials[0]
    reported: Any = trial.config.get(f"eval.reference.{trial.method}")
    is_range = isinstance(reported, list) and len(reported) == 2
    done = [t for t in setting.trials if t.state == "done"]
    confusions = [arrays["counts"] for t in done if (arrays := _load(t, "confusion_target.npz", ("counts",)))]
    recalls = [counts.diagonal() / np.maximum(counts.sum(1), 1) for counts in confusions]
    same_classes = len({len(seed) for seed in recalls}) == 1
    return Row(
        label=setting.label,
        n=setting.n,
        cells=[setting.describe(COLUMNS[name]) for name in columns],
        reported=f"{reported[0]:g} to {reported[1]:g}" if is_range else "",
        recalls=np.mean(recalls, axis=0).tolist() if same_classes else [],
    )


def _draw_embeddings(source: str, target: str, trials: list[Trial], classes: list[str], report: Path) -> Path | None:
    """Draw the first t-SNE of each method; return the file, None if no method has one."""
    embeddings: dict[str, dict[str, NDArray[Any]]] = {}
    for trial in trials:
        if trial.method not in embeddings and (arrays := _load(trial, "tsne.npz", EMBEDDING)):
            embeddings[trial.method] = arrays
    if not embeddings:
        return None
    # The name of a dataset may be a path.
    file = report / "figures" / (re.sub(r"[^A-Za-z0-9._-]+", "-", f"tsne_{source}_{target}")[:200] + ".png")
    file.parent.mkdir(exist_ok=True)
    rows = [(method, a["points"], a["labels"], a["domains"]) for method, a in embeddings.items()]
    figures.save(figures.embeddings(rows, {"source": source, "target": target}, classes), file)
    return file


def _load(trial: Trial, name: str, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return arrays of an evaluation; {} if they are missing or malformed."""
    try:
        with (trial.run.evaluation_directory / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {field: arrays[field] for field in fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
