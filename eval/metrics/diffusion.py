"""Figures of methods that sample in steps: the reverse process, the number of steps, η, and interpolation.

reverse.png: the first sample of each class at six times, or at the sampled times nearest to those of
`eval: {diffusion: {times: [500, 300, 0]}}` (the first row is the first image of samples_by_class.png);
sampling_steps.png: the same noise with different numbers of steps (`eval: {diffusion: {steps: [1, 50]}}`); eta.png:
noises against η, the share of fresh noise in each step, from 0 (DDIM: equal noise, equal image) to 1;
interpolation.png: images between two noises, along the arc (slerp) and along the straight line (lerp). No metric, only
figures. As a command, the last two from noises of files:

  python -m eval.metrics.diffusion logs/ddpm/<trial> --noise faces.npy more.pt --out figures
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import figures
from eval.metrics import Metric
from eval.record import Result
from eval.sampling_options import WATCH, can_be_watched, load_tensor, sample_options
from eval.trial import TrainedTrial, open_trial
from models.sampling import lerp, slerp
from trainer.data.pixels import to_bytes
from trainer.environment import run_program
from trainer.errors import ConfigError
from trainer.seeds import seed_torch

METRIC = Metric(needs="sample", options=("diffusion",))
SHOWN = 10  # images of a row
SHARES = (1, 0.75, 0.25, 0.15, 0.1, 0)  # of T, the times of the reverse process: of 400: 400, 300, 100, 60, 40, 0
STEPS = (10, 20, 50, 100)
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FEW = 50  # sampling steps, or T if that is fewer, in figures that do not vary them
POINTS = 11  # of an interpolation


def evaluate(trial: TrainedTrial) -> Result:
    """Draw the figures; ConfigError if the method does not sample in steps."""
    times = draw_reverse(trial)
    draw_sampling_steps(trial)
    seed_torch(trial.config.train.seed, "samples", 0)
    draw_noises(trial, torch.randn((4, *trial.image_shape)))
    facts: dict[str, Any] = {"step": trial.step, "seed": trial.config.train.seed, "timesteps": timesteps(trial)}
    if trial.config.eval.diffusion.times:
        facts["times"] = times
    return Result(provenance={"diffusion": facts})


def draw_noises(trial: TrainedTrial, noises: Tensor) -> None:
    """Draw eta.png and, from two or more noises [n, c, h, w], interpolation.png."""
    few = min(FEW, timesteps(trial))
    columns = [sample(trial, len(noises), noise=noises, steps=few, eta=eta) for eta in ETAS]
    title = f"each row from one noise, {few} steps; below: eta"
    figure = figures.mosaic(np.stack(columns, 1), columns=[f"{eta:g}" for eta in ETAS], title=title)
    figures.save(figure, trial.folder / "eta.png")
    if len(noises) < 2:
        return
    shares = [i / (POINTS - 1) for i in range(POINTS)]
    rows, names = [], []
    for pair, first in enumerate(range(0, len(noises), 2)):
        start, end = noises[min(first, len(noises) - 2) :][:2]  # the last of an odd number is paired with its neighbour
        for interpolate in (slerp, lerp):
            between = torch.stack([interpolate(start, end, share) for share in shares])
            rows.append(sample(trial, POINTS, label=pair, noise=between, steps=few, eta=0.0))
            names.append(interpolate.__name__)
    title = f"between two noises, {few} steps, eta 0; below: share of the second noise"
    figure = figures.mosaic(np.stack(rows), rows=names, columns=[f"{share:g}" for share in shares], title=title)
    figures.save(figure, trial.folder / "interpolation.png")


def draw_reverse(trial: TrainedTrial) -> list[int]:
    """Draw reverse.png, with the sampling settings of the trial; return its times, the nearest to those asked for."""
    frames: dict[int, NDArray[np.uint8]] = {}
    sample(trial, SHOWN, watch=lambda t, x: frames.update({t + 1: to_bytes(x).cpu().numpy()}))
    total = timesteps(trial)
    goals = trial.config.eval.diffusion.times
    requested: list[float] = [*goals] or [share * total for share in SHARES]
    times = [min(frames, key=lambda t, goal=goal: abs(t - goal)) for goal in requested]  # type: ignore[misc]
    names = trial.class_names
    rows = [f"class {names[i % trial.classes]}" if trial.method.conditional else str(i) for i in range(SHOWN)]
    title = f"x_t from noise to image, T = {total}; below: t"
    if goals and goals != times:
        title += f", the sampled times nearest to {', '.join(map(str, goals))}"
    images = np.stack([frames[t] for t in times], 1)
    figure = figures.mosaic(images, rows, columns=[str(t) for t in times], title=title)
    figures.save(figure, trial.folder / "reverse.png")
    return times


def draw_sampling_steps(trial: TrainedTrial) -> None:
    """Draw sampling_steps.png: DDIM, and ancestral sampling through all T."""
    total = timesteps(trial)
    counts = [steps for steps in trial.config.eval.diffusion.steps or (*STEPS, total) if steps <= total]
    settings: dict[str, dict[str, Any]] = {f"DDIM {steps}": {"steps": steps, "eta": 0.0} for steps in counts}
    settings[f"DDPM {total}"] = {"steps": total, "eta": 1.0}
    rows = [sample(trial, SHOWN, **options) for options in settings.values()]
    title = "each column: the same noise with different numbers of sampling steps"
    figure = figures.mosaic(np.stack(rows), rows=list(settings), title=title)
    figures.save(figure, trial.folder / "sampling_steps.png")


def sample(trial: TrainedTrial, n: int, label: int | None = None, **options: Any) -> NDArray[np.uint8]:
    """Return n samples uint8 [n, c, h, w] from the noise of the trial's seed, of the classes 0, 1, … or all of one."""
    function = stepwise_sampler(trial)
    if trial.method.conditional:
        labels = torch.arange(n) % trial.classes if label is None else torch.full((n,), label % trial.classes)
        options["labels"] = labels.to(trial.device)
    seed_torch(trial.config.train.seed, "samples", 0)
    try:
        with torch.inference_mode():
            return to_bytes(function(n, **options)).cpu().numpy()
    except ValueError as error:
        raise ConfigError(f"{trial.run.path}: step {trial.step}: sample(): {error}") from None


def stepwise_sampler(trial: TrainedTrial) -> Callable[..., Tensor]:
    """Return the method's `sample`; ConfigError unless its steps can be chosen and watched."""
    function = trial.capability("sample", "diffusion")
    options = {"steps", "eta", "noise"}
    if not can_be_watched(function) or not options <= set(sample_options(function)):
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: diffusion needs sample(steps, eta, noise, {WATCH}), which "
            f"{trial.config.method} does not have; leave diffusion out"
        )
    return function


def timesteps(trial: TrainedTrial) -> int:
    """Return T, the number of times that the method was trained with."""
    stepwise_sampler(trial)
    return int(trial.method.timesteps)  # type: ignore[arg-type]


def load_noises(trial: TrainedTrial, file: str) -> Tensor:
    """Return the noises of a file [n, c, h, w]; ConfigError if they do not have the shape of the trial's images."""
    noises = load_tensor(file, f"--noise {file}")
    if tuple(noises.shape[1:]) != trial.image_shape:
        expected = ", ".join(map(str, ("n", *trial.image_shape)))
        raise ConfigError(f"--noise {file}: has the shape {tuple(noises.shape)}; expected ({expected})")
    return noises


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.metrics.diffusion", description="Draw eta.png and interpolation.png from noises of files."
    )
    parser.add_argument("run", type=Path, help="a run directory: logs/<sweep>/<trial>")
    parser.add_argument("--noise", nargs="+", required=True, help=".npy or .pt files: [n, channels, size, size]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figures")
    options = parser.parse_args(arguments)
    try:
        trial = open_trial(options.run, folder=options.out)
        noises = torch.cat([load_noises(trial, file) for file in options.noise])
        stepwise_sampler(trial)
        options.out.mkdir(parents=True, exist_ok=True)
        draw_noises(trial, noises)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out {options.out}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
