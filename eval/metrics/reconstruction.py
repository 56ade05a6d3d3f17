"""Mean squared error of reconstructions of test images, per value of images in [-1, 1], and ten of them to look at.

Metrics: `reconstruction_mse` of the last weights, with the interval of a mean of so many images; where milestones were
kept, `best/reconstruction_mse` of the one with the least error on the validation split.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eval import figures
from eval.record import Result
from eval.sampling import to_bytes
from eval.trial import Subject
from trainer.errors import ConfigError

METRIC = "reconstruction_mse"
PAIRS = 10


def evaluate(subject: Subject) -> Result:
    """Reconstruct validation and test split at every milestone; ConfigError if the method cannot `reconstruct`."""
    subject.capability("reconstruct", "reconstruction")
    domain, result = next(iter(subject.domains)), Result()
    for milestone in subject.milestones():
        row = result.history.setdefault(milestone.step, {})
        for split in ("validation", "test"):
            of_each = errors(milestone, subject.arrays(domain, split).images)
            row[METRIC if split == "test" else f"{split}/{METRIC}"] = float(of_each.mean())
    mean = result.metrics[METRIC] = result.history[subject.step][METRIC]
    if len(of_each) > 1:  # one image says nothing of the spread
        margin = 1.96 * float(of_each.std(ddof=1)) / len(of_each) ** 0.5
        result.intervals[METRIC] = (mean - margin, mean + margin)
    if len(result.history) > 1:
        result.choose("best", METRIC, f"validation/{METRIC}")
    show(subject, domain, mean)
    how = {"set": subject.domains[domain], "split": "test", "n": len(of_each), "step": subject.step}
    result.provenance[METRIC] = how | {"range": "images in [-1, 1]"}
    return result


def errors(subject: Subject, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each of n images, [n]."""
    reconstruct = subject.capability("reconstruct", "reconstruction")

    def error(x: Tensor) -> Tensor:
        again = reconstruct(x)
        if again.shape != x.shape:
            made, given = tuple(again.shape), tuple(x.shape)
            raise ConfigError(f"{subject.run.path}: reconstruct() made {made} of images {given}")
        return (again.float() - x).square().flatten(1).mean(1)

    return subject.over(error, images).astype(np.float64)


def show(subject: Subject, domain: str, mean: float) -> None:
    """Draw ten test images, the same ones in every trial, over their reconstructions."""
    images = subject.arrays(domain, "test").images
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:PAIRS])
    given = np.asarray(images[chosen])
    again = subject.over(lambda x: to_bytes(subject.capability("reconstruct", "reconstruction")(x)), given).astype(
        np.uint8
    )
    of_each = errors(subject, given)
    np.savez(subject.folder / "reconstruction.npz", images=chosen, given=given, again=again, mse=of_each)
    figure = figures.mosaic(
        np.stack([given, again]),
        rows=("test image", "again"),
        columns=[f"{error:.4f}" for error in of_each],
        title=f"reconstruction of {subject.domains[domain]}, with the MSE of each; of all {len(images)}: {mean:.4f}",
    )
    figures.save(figure, subject.folder / "reconstruction.png")
