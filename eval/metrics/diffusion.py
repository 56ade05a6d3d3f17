"""What only methods that sample in steps can show: images on their way out of the noise, and what the steps do.

reverse.png: the first sample of each class at six times (the first row is the first image of samples_by_class.png);
sampling_steps.png: the same noise through fewer and fewer steps; eta.png: noises against how much fresh noise each
step adds, from 0 (DDIM: equal noise, equal image) to 1; interpolation.png: images between two noises, along the arc
(slerp) and along the straight line (lerp). No metric comes of it. As a command, the last two from noises of a file:

  python -m eval.metrics.diffusion logs/ddpm/<trial> --noise faces.npy --out figures
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import figures, record
from eval.record import Result
from eval.sampling import conditional, to_bytes
from eval.sampling_options import WATCH, accepted, read_tensor, watched
from eval.trial import Subject, read_method
from models.nets.diffusion import lerp, slerp
from trainer.config.resolve import load_config
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory
from trainer.seeds import seed_torch

SHOWN = 10  # images of a row
SHARES = (1, 0.75, 0.25, 0.15, 0.1, 0)  # of T, at which the reverse process is shown: of 400: 400, 300, 100, 60, 40, 0
STEPS = (10, 20, 50, 100)
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FEW = 50  # sampling steps, or T if that is fewer, where their number is not the question
POINTS = 11  # of an interpolation


def evaluate(subject: Subject) -> Result:
    """Draw the figures; ConfigError if the method does not sample in steps."""
    reverse(subject)
    sampling_steps(subject)
    shape = (4, *image_shape(subject))
    seed_torch(subject.config.train.seed, "samples", 0)
    of_noises(subject, torch.randn(shape))
    how = {"step": subject.step, "seed": subject.config.train.seed, "timesteps": timesteps(subject)}
    return Result(provenance={"diffusion": how})


def of_noises(subject: Subject, noises: Tensor) -> None:
    """Draw eta.png, and of two noises or more interpolation.png, of noises [n, c, h, w]."""
    few = min(FEW, timesteps(subject))
    rows = [sampled(subject, len(noises), noise=noises, steps=few, eta=eta) for eta in ETAS]
    title = f"each row from one noise, {few} steps; below: eta"
    figure = figures.mosaic(np.stack(rows, 1), columns=[f"{eta:g}" for eta in ETAS], title=title)
    figures.save(figure, subject.folder / "eta.png")
    if len(noises) < 2:
        return
    shares = [i / (POINTS - 1) for i in range(POINTS)]
    rows, names = [], []
    for pair, first in enumerate(range(0, len(noises), 2)):
        start, end = noises[min(first, len(noises) - 2) :][:2]  # of an odd number the last two, too
        for way in (slerp, lerp):
            between = torch.stack([way(start, end, share) for share in shares])
            rows.append(sampled(subject, POINTS, same=pair, noise=between, steps=few, eta=0.0))
            names.append(way.__name__)
    title = f"between two noises, {few} steps, eta 0; below: share of the second noise"
    figure = figures.mosaic(np.stack(rows), rows=names, columns=[f"{share:g}" for share in shares], title=title)
    figures.save(figure, subject.folder / "interpolation.png")


def reverse(subject: Subject) -> None:
    """Draw reverse.png, as the run samples."""
    frames: dict[int, NDArray[np.uint8]] = {}
    sampled(subject, SHOWN, watch=lambda t, x: frames.update({t + 1: to_bytes(x).cpu().numpy()}))
    whole = timesteps(subject)
    times = [min(frames, key=lambda t, share=share: abs(t - share * whole)) for share in SHARES]  # type: ignore[misc]
    title = "x_t on the way from noise, left, to image; below: t"
    figure = figures.mosaic(
        np.stack([frames[t] for t in times], 1), rows(subject), columns=[str(t) for t in times], title=title
    )
    figures.save(figure, subject.folder / "reverse.png")


def sampling_steps(subject: Subject) -> None:
    """Draw sampling_steps.png: DDIM, and ancestral sampling through all T."""
    whole = timesteps(subject)
    numbers = [steps for steps in (*STEPS, whole) if steps <= whole]
    settings: dict[str, dict[str, Any]] = {f"DDIM {steps}": {"steps": steps, "eta": 0.0} for steps in numbers}
    settings[f"DDPM {whole}"] = {"steps": whole, "eta": 1.0}
    drawn = [sampled(subject, SHOWN, **how) for how in settings.values()]
    title = "a column: the same noise through so many sampling steps"
    figures.save(
        figures.mosaic(np.stack(drawn), rows=list(settings), title=title), subject.folder / "sampling_steps.png"
    )


def sampled(subject: Subject, n: int, same: int | None = None, **options: Any) -> NDArray[np.uint8]:
    """n samples uint8 [n, c, h, w] of the noise of the run's seed, of the classes 0, 1, … or all of one."""
    function = stepping(subject)
    if conditional(subject):
        classes = subject.config.data.shape()[2]
        labels = torch.arange(n) % classes if same is None else torch.full((n,), same % classes)
        options["labels"] = labels.to(subject.device)
    seed_torch(subject.config.train.seed, "samples", 0)
    try:
        with torch.inference_mode():
            return to_bytes(function(n, **options)).cpu().numpy()
    except ValueError as error:
        raise ConfigError(f"{subject.run.path}: step {subject.step}: sample(): {error}") from None


def stepping(subject: Subject) -> Callable[..., Tensor]:
    """The method's `sample`; ConfigError unless it goes by steps that can be chosen and watched."""
    function = subject.capability("sample", "diffusion")
    if not watched(function) or not {"steps", "eta", "noise"} <= set(accepted(function)):
        raise ConfigError(
            f"{subject.run.path}: eval.metrics: diffusion needs sample(steps, eta, noise, {WATCH}), which "
            f"{subject.config.method} has not; leave diffusion out"
        )
    return function


def timesteps(subject: Subject) -> int:
    """T, the number of times that the method was trained at."""
    return int(subject.config.model.timesteps)


def image_shape(subject: Subject) -> tuple[int, int, int]:
    """(channels, height, width)."""
    channels, size, _ = subject.config.data.shape()
    return channels, size, size


def rows(subject: Subject) -> list[str]:
    """Names of the first images."""
    classes = subject.config.data.shape()[2]
    return [f"class {i % classes}" if conditional(subject) else str(i) for i in range(SHOWN)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.metrics.diffusion", description="Draw eta.png and interpolation.png from noises of a file."
    )
    parser.add_argument("run", type=Path, help="a run directory: logs/<sweep>/<trial>")
    parser.add_argument("--noise", required=True, help="a .npy or .pt file: [n, channels, size, size]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the figures go")
    options = parser.parse_args(arguments)
    try:
        if not (options.run / "config.yaml").is_file():
            raise ConfigError(f"{options.run}: is no run directory: it has no config.yaml; give logs/<sweep>/<trial>")
        config, weights = (
            load_config(options.run / "config.yaml"),
            record.exported(RunDirectory(options.run)),
        )
        if not weights:
            raise ConfigError(f"{options.run}: has no exported weights yet; train it first")
        device, step = torch.device("cuda" if torch.cuda.is_available() else "cpu"), max(weights)
        method = read_method(config, weights[step], device)
        subject = Subject(RunDirectory(options.run), config, weights, step, method, device, options.out)
        noises = read_tensor(options.noise, f"--noise {options.noise}")
        if tuple(noises.shape[1:]) != image_shape(subject):
            raise ConfigError(
                f"--noise {options.noise}: has the shape {tuple(noises.shape)}; (n, %d, %d, %d) is wanted"
                % image_shape(subject)
            )
        stepping(subject)
        options.out.mkdir(parents=True, exist_ok=True)
        of_noises(replace(subject, folder=options.out), noises)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out {options.out}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
