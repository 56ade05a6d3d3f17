"""Mean squared error of reconstructions of test images, per value of images in [-1, 1], and a figure of ten of them.

Metrics: `reconstruction_mse` of the last weights, with the 95 % interval of a mean over images; if milestones were
exported, `best/reconstruction_mse` of the one with the lowest error on the validation split.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eval import figures
from eval.metrics import Metric
from eval.record import Result
from eval.trial import TrainedTrial
from trainer.data.pixels import to_bytes
from trainer.errors import ConfigError

METRIC = Metric(needs="reconstruct")
NAME = "reconstruction_mse"
SHOWN = 10


def evaluate(trial: TrainedTrial) -> Result:
    """Reconstruct the validation and test splits at every milestone."""
    domain, result = next(iter(trial.domains)), Result()
    for milestone in trial.milestones():
        row = result.history.setdefault(milestone.step, {})
        for split in ("validation", "test"):
            errors = image_errors(milestone, trial.arrays(domain, split).images)
            row[NAME if split == "test" else f"{split}/{NAME}"] = float(errors.mean())
    mean = result.metrics[NAME] = result.history[trial.step][NAME]
    if len(errors) > 1:  # one image has no spread
        margin = 1.96 * float(errors.std(ddof=1)) / len(errors) ** 0.5
        result.intervals[NAME] = (mean - margin, mean + margin)
    if len(result.history) > 1:
        result.choose("best", NAME, f"validation/{NAME}")
    draw_reconstructions(trial, domain, mean)
    facts = {"set": trial.domains[domain], "split": "test", "n": len(errors), "step": trial.step}
    result.provenance[NAME] = facts | {"range": "images in [-1, 1]"}
    return result


def image_errors(trial: TrainedTrial, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean squared error of each image, [n]."""
    reconstruct = trial.capability("reconstruct", "reconstruction")

    def error(x: Tensor) -> Tensor:
        reconstruction = reconstruct(x)
        if reconstruction.shape != x.shape:
            shapes = f"{tuple(reconstruction.shape)} for images {tuple(x.shape)}"
            raise ConfigError(f"{trial.run.path}: reconstruct() returned {shapes}")
        return (reconstruction.float() - x).square().flatten(1).mean(1)

    return trial.apply(error, images).astype(np.float64)


def draw_reconstructions(trial: TrainedTrial, domain: str, mean: float) -> None:
    """Draw ten test images, the same ones in every trial, above their reconstructions."""
    images = trial.arrays(domain, "test").images
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:SHOWN])
    originals, reconstruct = np.asarray(images[chosen]), trial.capability("reconstruct", "reconstruction")
    reconstructions = trial.apply(lambda x: to_bytes(reconstruct(x)), originals).astype(np.uint8)
    errors = image_errors(trial, originals)
    np.savez(trial.folder / "reconstruction.npz", images=chosen, given=originals, again=reconstructions, mse=errors)
    figure = figures.mosaic(
        np.stack([originals, reconstructions]),
        rows=("test image", "reconstruction"),
        columns=[f"{error:.4f}" for error in errors],
        title=f"{trial.domains[domain]}: MSE of each reconstruction, images in [-1, 1]; "
        f"mean over {len(images)} images: {mean:.4f} ({mean / 4:.4f} for images in [0, 1])",
    )
    figures.save(figure, trial.folder / "reconstruction.png")
