"""What is known of a run: eval/metrics.json and the files beside it; no heavy import before something is written."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.runs.atomic import write_text
from trainer.runs.directory import RunDirectory


@dataclass
class Result:
    """What one evaluation found: names such as accuracy/target, values in the unit that its file states."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %
    provenance: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, float]] = field(default_factory=dict)  # step -> metrics, where milestones were kept

    def choose(self, rule: str, name: str, criterion: str, best: Callable[..., int] = min) -> None:
        """Add `<rule>/<name>`, of the milestone with the best criterion, of equals the earliest, and its step."""
        step = best(self.history, key=lambda step: self.history[step][criterion])
        self.metrics[f"{rule}/{name}"] = self.history[step][name]
        self.provenance[f"{rule}/{name}"] = {"chosen at step": step, "chosen by": criterion}

    def numbers(self) -> list[tuple[str, float]]:
        """All that is to be finite, by name."""
        bounds = [(f"interval of {name}", bound) for name, pair in self.intervals.items() for bound in pair]
        rows = [(f"{name} at step {step}", v) for step, row in self.history.items() for name, v in row.items()]
        return [*self.metrics.items(), *bounds, *rows]


def exported(run: RunDirectory) -> dict[int, Path]:
    """Step -> exported weights, oldest first."""
    files = (run.path / "weights").glob("step-*.safetensors")
    return dict(sorted((int(p.stem.removeprefix("step-")), p) for p in files))


def former(run: RunDirectory, weights: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The record to add to: of the same weights (file, size, sha256), unless `names` makes all that it has anew."""
    found = run.evaluation()
    provenance = found.get("provenance", {})
    return found if provenance.get("weights") == weights and set(provenance["evaluations"]) - set(names) else {}


def merge(
    found: dict[str, Any], step: int, weights: dict[str, Any], name: str, result: Result, how: dict[str, Any]
) -> dict[str, Any]:
    """The record with one evaluation's result added, and how it was made: versions, device, seconds.

    ConfigError if a number is not finite, which JSON has no word for.
    """
    for key, value in result.numbers():
        if not isfinite(value):
            raise ConfigError(
                f"eval/metrics/{name}.py: {key}: is {value}, which JSON cannot hold; have it leave that out"
            )
    provenance = found.get("provenance", {})
    evaluations = provenance.get("evaluations", {}) | {name: how}
    history = {row["step"]: row["metrics"] for row in found.get("history", [])}
    for milestone, row in result.history.items():
        history[milestone] = history.get(milestone, {}) | row
    return {
        "step": step,
        "metrics": found.get("metrics", {}) | result.metrics,
        "intervals": found.get("intervals", {}) | result.intervals,
        "history": [{"step": milestone, "metrics": row} for milestone, row in sorted(history.items())],
        "provenance": {**provenance, **result.provenance, "weights": weights, "evaluations": evaluations},
    }


def keep(run: RunDirectory, scratch: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Put an evaluation's files, TensorBoard and then metrics.json in place, each as a whole; return the record."""
    folder, text = run.path / "eval", json.dumps(found, indent=1, allow_nan=False) + "\n"
    if len(found["provenance"]["evaluations"]) == 1:  # no former result is kept: no file of one may stay
        for stale in (*folder.glob("*.png"), *folder.glob("*.npz")):
            stale.unlink()
    for file in sorted(scratch.iterdir()):
        os.replace(file, folder / file.name)
    to_tensorboard(found, folder, run.path / "tensorboard" / "eval")
    write_text(folder / "metrics.json", text)
    return found


def to_tensorboard(found: dict[str, Any], kept: Path, folder: Path) -> None:
    """Replace what TensorBoard has of the run's evaluation: scalars at their steps, the PNGs kept under their names.

    Of `<name>_by_step.npz`, steps [n] and pictures uint8 [n, h, w, 3], each picture is at its step under <name>; what
    <name>.png shows of the last step is then <name>_last.
    """
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    # A TensorBoard that is open has seen the former events: purge_step has it forget them.
    board = SummaryWriter(str(folder), purge_step=0)
    scalars = {(row["step"], name): value for row in found["history"] for name, value in row["metrics"].items()}
    scalars |= {(found["step"], name): value for name, value in found["metrics"].items()}
    for (step, name), value in scalars.items():
        board.add_scalar(name, value, step)
    by_step = {path.stem.removesuffix("_by_step"): path for path in sorted(kept.glob("*_by_step.npz"))}
    for name, path in by_step.items():
        with np.load(path) as file:
            for step, picture in zip(file["steps"], file["pictures"], strict=True):
                board.add_image(name, picture, step, dataformats="HWC")
    for path in sorted(kept.glob("*.png")):
        name = f"{path.stem}_last" if path.stem in by_step else path.stem
        with Image.open(path) as image:
            board.add_image(name, np.asarray(image.convert("RGB")), found["step"], dataformats="HWC")
    board.close()
