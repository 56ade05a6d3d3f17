"""What is known of a run: eval/metrics.json and the files beside it; no heavy import before something is written."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.run import Run, write_json


@dataclass
class Result:
    """What one evaluation found: names such as accuracy/target, values in the unit that its file states."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %
    provenance: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, float]] = field(default_factory=dict)  # step -> metrics, where milestones were kept


def exported(run: Run) -> dict[int, Path]:
    """Step -> exported weights, oldest first."""
    files = (run.path / "weights").glob("step-*.safetensors")
    return dict(sorted((int(p.stem.removeprefix("step-")), p) for p in files))


def former(run: Run, weights: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The record to add to: of the same weights (file, size, sha256), unless `names` makes all that it has anew."""
    found = run.evaluation()
    provenance = found.get("provenance", {})
    return found if provenance.get("weights") == weights and set(provenance["evaluations"]) - set(names) else {}


def merge(
    found: dict[str, Any], step: int, weights: dict[str, Any], name: str, result: Result, how: dict[str, Any]
) -> dict[str, Any]:
    """The record with one evaluation's result added, and how it was made: versions, device, seconds."""
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


def keep(run: Run, scratch: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Put an evaluation's files, TensorBoard and then metrics.json in place, each as a whole; return the record."""
    folder = run.path / "eval"
    if len(found["provenance"]["evaluations"]) == 1:  # no former result is kept: no file of one may stay
        for stale in (*folder.glob("*.png"), *folder.glob("*.npz")):
            stale.unlink()
    for file in sorted(scratch.iterdir()):
        os.replace(file, folder / file.name)
    to_tensorboard(found, sorted(folder.glob("*.png")), run.path / "tensorboard" / "eval")
    write_json(folder / "metrics.json", found)
    return found


def to_tensorboard(found: dict[str, Any], pictures: list[Path], folder: Path) -> None:
    """Replace what TensorBoard has of the run's evaluation: scalars at their steps, PNGs under their file names."""
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
    for path in pictures:
        with Image.open(path) as image:
            board.add_image(path.stem, np.asarray(image.convert("RGB")), found["step"], dataformats="HWC")
    board.close()
