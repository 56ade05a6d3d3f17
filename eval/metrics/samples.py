"""Figures of samples, always of the same noise: a grid, over training, by class, and next to training images.

samples.png; if milestones were exported samples_by_step.png, and in TensorBoard the samples of each at its step; of a
conditional method samples_by_class.png, whose columns have the same noise; samples_nearest.png, samples above the
training images nearest to them by pixels: if the method had memorised these, their distance would be far below that of
test images from training images. No metric, only figures. `eval: {grid: [10, 10]}` sets the rows and columns of
samples.png, whose images are also compared with training images.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import figures
from eval.metrics import Metric
from eval.record import Result
from eval.sampling import draw_samples
from eval.trial import TrainedTrial
from trainer.data.pixels import to_signed

METRIC = Metric(needs="sample", options=("grid",))
SHOWN = 10  # images of a class, of a step, and next to training images
MAX_CLASSES = 20
CHUNK = 2000  # training images compared at a time


def evaluate(trial: TrainedTrial) -> Result:
    """Draw the figures and keep samples.npz."""
    domain = next(iter(trial.domains))
    rows, columns = trial.config.eval.grid
    images = sample(trial, rows * columns)
    grid = images.reshape(rows, columns, *images.shape[1:])
    figures.save(figures.mosaic(grid, title=f"step {trial.step}"), trial.folder / "samples.png")
    steps = {m.step: sample(m, SHOWN) for m in trial.milestones()} if len(trial.weights) > 1 else {}
    if steps:
        figure = figures.mosaic(np.stack(list(steps.values())), rows=[f"step {step}" for step in steps])
        figures.save(figure, trial.folder / "samples_by_step.png")
        grids = np.stack([figures.tiled(row.reshape(2, -1, *row.shape[1:])) for row in steps.values()])
        np.savez(trial.folder / "samples_by_step.npz", steps=list(steps), pictures=grids)  # for TensorBoard
    if trial.method.conditional:
        classes = range(min(MAX_CLASSES, trial.classes))
        by_class = [sample(trial, SHOWN, torch.full((SHOWN,), label)) for label in classes]
        names = [f"class {trial.class_names[label]}" for label in classes]
        figure = figures.mosaic(np.stack(by_class), rows=names, title="each column: the same noise")
        figures.save(figure, trial.folder / "samples_by_class.png")
    train, test = (trial.arrays(domain, split).images for split in ("train", "test"))
    index, error = nearest(images, train, trial.device)
    test_median = np.median(nearest(test[: len(images)], train, trial.device)[1])
    figure = figures.mosaic(
        np.stack([images[:SHOWN], train[index[:SHOWN]]]),
        rows=("sample", "nearest"),
        columns=[f"{value:.3f}" for value in error[:SHOWN]],
        title=f"nearest training images by MSE: median {np.median(error):.3f}, of test images {test_median:.3f}",
    )
    figures.save(figure, trial.folder / "samples_nearest.png")
    # For each of n samples: image [n, c, h, w], position of its neighbour in the training split, MSE between them.
    np.savez(trial.folder / "samples.npz", images=images, nearest=index, mse=error, test_median=test_median)
    facts = {"n": len(images), "seed": trial.config.train.seed, "step": trial.step}
    return Result(provenance={"samples": facts | {"compared_with": f"{trial.domains[domain]}, train"}})


def sample(trial: TrainedTrial, n: int, labels: Tensor | None = None) -> NDArray[np.uint8]:
    """Return n samples uint8 [n, c, h, w], from the noise of the trial's seed."""
    chunks = draw_samples(trial, n, trial.config.train.seed, "samples", labels)
    return torch.cat(list(chunks)).cpu().numpy()


def nearest(
    images: NDArray[np.uint8], others: NDArray[np.uint8], device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each of n images the index of the nearest of m ≥ 1 others, and their MSE in [-1, 1]: [n] each."""
    index, least = torch.zeros(len(images), dtype=torch.int64), torch.full((len(images),), torch.inf)
    x = to_vectors(images, device)
    for start in range(0, len(others), CHUNK):
        distance, position = torch.cdist(x, to_vectors(others[start : start + CHUNK], device)).min(1)
        closer = distance.cpu() < least
        index[closer], least[closer] = position.cpu()[closer] + start, distance.cpu()[closer]
    neighbours = index.numpy()
    difference = (images.astype(np.float64) - others[neighbours]) / 127.5
    return neighbours, (difference**2).reshape(len(images), -1).mean(1)


def to_vectors(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return images uint8 [n, c, h, w] as vectors [n, c h w] in [-1, 1]."""
    return to_signed(torch.from_numpy(np.ascontiguousarray(images)).to(device).flatten(1))
