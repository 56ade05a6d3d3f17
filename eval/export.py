"""Samples as PNG files, for graders, pytorch-fid's own command or a talk."""

import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, tensor

from eval.sampling import draw_samples
from eval.sampling_options import parse_options
from eval.trial import TrainedTrial, open_trial
from trainer.errors import ConfigError
from trainer.runs.atomic import temporary_path


def export_samples(
    run: Path,
    out: Path,
    n: int,
    per_class: int,
    classes: Sequence[int],
    seed: int | None,
    step: int | None,
    words: list[str],
) -> None:
    """Write `n` samples as 0001.png …, or `per_class` of each class (all, or `classes`) as <class>_001.png ….

    `seed` (default: the trial's, as in its evaluation), `step` (default: the last) and the sampling options `words`,
    such as steps=50, decide every byte, on one kind of device. The folder `out` appears as a whole or not at all.
    ConfigError if it is not empty, the step was not exported, an option is unknown, or the method is not conditional.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists and is not empty; give a new folder, nothing is overwritten")
    trial, labels = open_trial(run, step=step, folder=out), None
    if per_class:
        known = range(trial.classes)
        classes = list(dict.fromkeys(classes)) or list(known)
        unknown = [label for label in classes if label not in known]
        if unknown:
            raise ConfigError(f"--labels {unknown[0]}: classes are {known[0]} to {known[-1]}")
        if not trial.method.conditional:
            raise ConfigError(f"{run}: {trial.config.method} learns from no labels; give --samples instead")
        labels = tensor(classes).repeat_interleave(per_class)
        width = max(3, len(str(per_class)))
        words_of = [re.sub(r"[^\w.+-]+", "_", name) for name in trial.class_names]
        names = [f"{words_of[label]}_{i:0{width}d}.png" for label in classes for i in range(1, per_class + 1)]
    else:
        names = [f"{i:0{max(3, len(str(n)))}d}.png" for i in range(1, n + 1)]
    options = parse_options(trial.config.method, trial.capability("sample", "--samples"), words)
    write_images(trial, names, trial.config.train.seed if seed is None else seed, labels, options)


def write_images(
    trial: TrainedTrial, names: list[str], seed: int, labels: Tensor | None, options: dict[str, Any]
) -> None:
    """Write a sample as PNG, grey or RGB, under each name into the trial's new folder."""
    out, started, remaining = trial.folder, time.monotonic(), iter(names)
    temporary = temporary_path(out)
    try:
        temporary.mkdir(parents=True)
        for chunk in draw_samples(trial, len(names), seed, "--samples", labels, options):
            for image in chunk.cpu().numpy():
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                Image.fromarray(pixels).save(temporary / next(remaining))
        os.rename(temporary, out)  # replaces an empty folder
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    rate = len(names) / (time.monotonic() - started)
    print(f"{out}: {len(names)} images of step {trial.step}, seed {seed}, {rate:.0f} images/s", file=sys.stderr)
