"""Samples as files for whoever wants them: graders, pytorch-fid's own command, a talk."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval import record
from eval.sampling import conditional, draw
from eval.sampling_options import read_options
from eval.trial import Subject, read_method
from trainer.config.resolve import load_config
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory


def export(
    run: RunDirectory,
    out: Path,
    n: int,
    per_class: int,
    classes: Sequence[int],
    seed: int | None,
    step: int | None,
    options: list[str],
) -> None:
    """Write `n` samples as 0001.png …, or `per_class` of each class (all of them, or `classes`) as <class>_001.png ….

    `seed` (default: the run's, with which it is evaluated), `step` (default: the last) and `options`, such as steps=50
    for a method that samples in steps, decide every byte, on one kind of device. The folder `out` is there as a whole
    or not at all. ConfigError if it holds anything already, the step was not kept, an option is none of the method's,
    or the method cannot be asked for classes.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there and not empty; give a new folder, nothing is overwritten")
    if not (run.path / "config.yaml").is_file():
        raise ConfigError(f"{run.path}: is no run directory: it has no config.yaml; give logs/<sweep>/<trial>")
    config = load_config(run.path / "config.yaml")
    weights = record.exported(run)
    step = max(weights, default=0) if step is None else step
    if step not in weights:
        kept = f"--step: has one of {', '.join(map(str, weights))}" if weights else "train it first"
        raise ConfigError(f"{run.path}: has no weights of step {step}; {kept}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = Subject(run, config, weights, step, read_method(config, weights[step], device), device, out)
    labels = None
    if per_class:
        known = range(config.data.shape()[2])
        classes = list(dict.fromkeys(classes)) or list(known)
        wrong = [c for c in classes if c not in known]
        if wrong:
            raise ConfigError(f"--labels {wrong[0]}: classes are {known[0]} to {known[-1]}")
        if not conditional(subject):
            raise ConfigError(f"{run.path}: {config.method} learns from no labels; give --samples instead")
        labels = torch.tensor(classes).repeat_interleave(per_class)
        n, width = len(labels), max(3, len(str(per_class)))
        names = [f"{c}_{i:0{width}d}.png" for c in classes for i in range(1, per_class + 1)]
    else:
        names = [f"{i:0{max(3, len(str(n)))}d}.png" for i in range(1, n + 1)]
    how = read_options(config.method, subject.capability("sample", "--samples"), options)
    write(subject, out, names, config.train.seed if seed is None else seed, labels, how)


def write(
    subject: Subject, out: Path, names: list[str], seed: int, labels: torch.Tensor | None, options: dict[str, Any]
) -> None:
    """Draw as many samples as there are names and write each as a PNG, grey or RGB, into the new folder `out`."""
    scratch, began, left = out.with_name(f".{out.name}.{os.getpid()}"), time.monotonic(), iter(names)
    try:
        scratch.mkdir(parents=True)
        for chunk in draw(subject, len(names), seed, "--samples", labels, options):
            for image in chunk.cpu().numpy():
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                Image.fromarray(pixels).save(scratch / next(left))
        os.rename(scratch, out)  # takes the place of an empty folder
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - began
    rate = f"{len(names) / seconds:.0f} images/s"
    print(f"{out}: {len(names)} images of step {subject.step}, seed {seed}, {rate}", file=sys.stderr)
