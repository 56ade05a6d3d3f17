"""TensorBoard's events of an evaluation.

A file called tensorboard.py here would hide the package of that name from the commands of this room.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


def write_events(record: dict[str, Any], figures: Path, folder: Path) -> None:
    """Replace the events of a trial's evaluation in `folder`: scalars at their steps, and the PNGs in `figures`.

    `<name>_by_step.npz`, steps [n] and pictures uint8 [n, h, w, 3], gives a picture at each step under <name>;
    <name>.png, of the last step, is then <name>_last.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # A running TensorBoard has read the earlier events: purge_step makes it drop them.
    writer = SummaryWriter(str(folder), purge_step=0)
    scalars = {(row["step"], name): value for row in record["history"] for name, value in row["metrics"].items()}
    scalars |= {(record["step"], name): value for name, value in record["metrics"].items()}
    for (step, name), value in scalars.items():
        writer.add_scalar(name, value, step)
    by_step = {path.stem.removesuffix("_by_step"): path for path in sorted(figures.glob("*_by_step.npz"))}
    for name, path in by_step.items():
        with np.load(path) as file:
            for step, picture in zip(file["steps"], file["pictures"], strict=True):
                writer.add_image(name, picture, step, dataformats="HWC")
    for path in sorted(figures.glob("*.png")):
        name = f"{path.stem}_last" if path.stem in by_step else path.stem
        with Image.open(path) as image:
            writer.add_image(name, np.asarray(image.convert("RGB")), record["step"], dataformats="HWC")
    writer.close()
