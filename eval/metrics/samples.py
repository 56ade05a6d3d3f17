"""Samples to look at, always of the same noise: a grid, over training, by class, and next to training images.

samples.png; where milestones were kept samples_by_step.png, and in TensorBoard those of each at its step; where the
method learns from labels samples_by_class.png, whose columns are of the same noise; samples_nearest.png, samples over
the training images nearest to them by pixels: had the method learned these by heart, their distance would be far below
that of test images from training images. No metric comes of it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import figures
from eval.record import Result
from eval.sampling import conditional, draw
from eval.trial import Subject

SIDE = 8  # of the grid, whose images are also those that are compared with training images
SHOWN = 10  # images of a class, of a step, and of those with their neighbours
CLASSES = 20  # classes that are shown at most
CHUNK = 2000  # training images compared at a time


def evaluate(subject: Subject) -> Result:
    """Draw the figures and keep samples.npz; ConfigError if the method has no `sample`."""
    domain = next(iter(subject.domains))
    name = subject.domains[domain]
    images = sampled(subject, SIDE**2)
    grid = images.reshape(SIDE, SIDE, *images.shape[1:])
    figures.save(figures.mosaic(grid, title=f"step {subject.step}"), subject.folder / "samples.png")
    steps = {m.step: sampled(m, SHOWN) for m in subject.milestones()} if len(subject.weights) > 1 else {}
    if steps:
        figure = figures.mosaic(np.stack(list(steps.values())), rows=[f"step {step}" for step in steps])
        figures.save(figure, subject.folder / "samples_by_step.png")
        grids = np.stack([figures.tiled(row.reshape(2, -1, *row.shape[1:])) for row in steps.values()])
        np.savez(subject.folder / "samples_by_step.npz", steps=list(steps), pictures=grids)  # for TensorBoard
    if conditional(subject):
        classes = range(min(CLASSES, subject.config.data.shape()[2]))
        rows = [sampled(subject, SHOWN, torch.full((SHOWN,), c)) for c in classes]
        figure = figures.mosaic(np.stack(rows), rows=[f"class {c}" for c in classes], title="a column: the same noise")
        figures.save(figure, subject.folder / "samples_by_class.png")
    train, test = (subject.arrays(domain, split).images for split in ("train", "test"))
    index, error = nearest(images, train, subject.device)
    usual = np.median(nearest(test[: len(images)], train, subject.device)[1])
    figure = figures.mosaic(
        np.stack([images[:SHOWN], train[index[:SHOWN]]]),
        rows=("sample", "nearest"),
        columns=[f"{value:.3f}" for value in error[:SHOWN]],
        title=f"nearest training images by MSE: median {np.median(error):.3f}, of test images {usual:.3f}",
    )
    figures.save(figure, subject.folder / "samples_nearest.png")
    # For each of n samples: itself [n, c, h, w], place in the training split of its neighbour, MSE between them.
    np.savez(subject.folder / "samples.npz", images=images, nearest=index, mse=error, test_median=usual)
    how = {"n": len(images), "seed": subject.config.train.seed, "step": subject.step, "compared_with": f"{name}, train"}
    return Result(provenance={"samples": how})


def sampled(subject: Subject, n: int, labels: Tensor | None = None) -> NDArray[np.uint8]:
    """n samples uint8 [n, c, h, w], of the noise of the run's seed."""
    parts = draw(subject, n, subject.config.train.seed, "samples", labels)
    return torch.cat(list(parts)).cpu().numpy()


def nearest(
    images: NDArray[np.uint8], among: NDArray[np.uint8], device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of n images, which of m ≥ 1 others is nearest, and the mean squared difference, in [-1, 1]: [n] each."""
    index, least = torch.zeros(len(images), dtype=torch.int64), torch.full((len(images),), torch.inf)
    x = scaled(images, device)
    for start in range(0, len(among), CHUNK):
        distance, place = torch.cdist(x, scaled(among[start : start + CHUNK], device)).min(1)
        closer = distance.cpu() < least
        index[closer], least[closer] = place.cpu()[closer] + start, distance.cpu()[closer]
    found = index.numpy()
    difference = (images.astype(np.float64) - among[found]) / 127.5
    return found, (difference**2).reshape(len(images), -1).mean(1)


def scaled(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images uint8 [n, c, h, w] as vectors [n, c h w] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).flatten(1).float() / 127.5 - 1
