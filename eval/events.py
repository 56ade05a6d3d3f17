"""TensorBoard's events of an evaluation, in the same run as those of the training.

A file called tensorboard.py here would hide the package of that name from the commands of this room.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from trainer.config.document import flatten
from trainer.config.schema import is_in_identity
from trainer.runs.directory import RunDirectory

SUFFIX = ".eval"  # of the event file's name


def write_events(record: dict[str, Any], figures: Path, run: RunDirectory) -> None:
    """Replace the events of a trial's evaluation: scalars at their steps, the PNGs in `figures`, and hyperparameters.

    The tags of metrics begin with eval/. `<name>_by_step.npz`, steps [n] and pictures uint8 [n, h, w, 3], gives a
    picture at each step under <name>; <name>.png, of the last step, is then <name>_last. A running TensorBoard keeps
    the former values of an evaluation that is repeated until it is restarted.
    """
    shutil.rmtree(run.tensorboard / "eval", ignore_errors=True)  # of earlier versions, a run of its own
    for former in run.tensorboard.glob(f"events.*{SUFFIX}"):
        former.unlink()
    writer = SummaryWriter(str(run.tensorboard), filename_suffix=SUFFIX)
    _, start, end = hparams(select_hyperparameters(run), {})
    for summary in (start, end):  # without the first, of an experiment, TensorBoard joins those of all trials
        writer._get_file_writer().add_summary(summary)
    scalars = {(row["step"], name): value for row in record["history"] for name, value in row["metrics"].items()}
    scalars |= {(record["step"], name): value for name, value in record["metrics"].items()}
    for (step, name), value in scalars.items():
        writer.add_scalar(f"eval/{name}", value, step)
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


def select_hyperparameters(run: RunDirectory) -> dict[str, float | str]:
    """Return the method and the swept settings of a trial: those that the name of its directory tells."""
    words = set(re.findall(r"(?:^|,)([^,=]+)=", run.name))
    config = {key: value for key, value in flatten(run.config()).items() if is_in_identity(key)}
    swept = {key: value for key, value in config.items() if key == "method" or key.rpartition(".")[2] in words}
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in swept.items()}
