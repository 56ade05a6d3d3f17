"""Distances between two sets of feature vectors.

Fréchet distance and KID: lower is better. Precision, recall, density and coverage: higher is better.
"""

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from eval.features.moments import Gaussian, Moments

SUBSETS, SUBSET = 100, 1000  # of KID, as in its paper
DIVISIONS = 4  # of samples into halves


def frechet(first: Gaussian, second: Gaussian) -> float:
    """Return the squared Fréchet distance of two Gaussians (Dowson & Landau, 1982; Heusel et al., NeurIPS 2017, eq. 6).

    The trace of (C1 C2)^½ is the sum of the singular values of A1ᵀ A2, where C = A Aᵀ. This needs no square root of an
    asymmetric matrix, nor of a singular one if there are fewer images than features.
    ValueError if the Gaussians differ in width, or are not finite.
    """
    if first.mean.shape != second.mean.shape:
        widths = f"{len(first.mean)} cannot be compared with those of width {len(second.mean)}"
        raise ValueError(f"features of width {widths}")
    root = linalg.svdvals(first.factor.T @ second.factor).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * root
    distance = float(((first.mean - second.mean) ** 2).sum() + spread)
    if not np.isfinite(distance):  # the maximum with zero would hide a NaN
        raise ValueError(f"the distance is {distance}: a mean or covariance is not finite")
    return max(0.0, distance)


def frechet_of_halves(real: Gaussian, fake: Tensor) -> list[float]:
    """Return the Fréchet distance of each half of fake features [m, d], m ≥ 4, of DIVISIONS fixed random divisions.

    Their mean is above the distance of all samples, because there are fewer; their deviation tells how far it may be
    trusted.
    """
    random, distances = np.random.default_rng(0), []
    for _ in range(DIVISIONS):
        order = torch.from_numpy(random.permutation(len(fake))).to(fake.device)
        for half in fake[order].chunk(2):
            moments = Moments(fake.shape[1], fake.device)
            moments.add(half)
            distances.append(frechet(real, moments.gaussian()))
    return distances


def kid(real: Tensor, fake: Tensor) -> float:
    """Return the kernel distance of features [n, d] and [m, d] (Bińkowski et al., ICLR 2018): MMD² with (x·y / d + 1)³.

    It is the mean of unbiased estimates on fixed random subsets, so it can be negative. ValueError if n or m is 1.
    """
    return float(np.mean(kid_estimates(real, fake)))


def kid_estimates(real: Tensor, fake: Tensor) -> list[float]:
    """Return the estimates of `kid` on its subsets; ValueError."""
    size = min(SUBSET, len(real), len(fake))
    if size < 2:
        raise ValueError("KID of fewer than two images")
    random = np.random.default_rng(0)
    subsets = 1 if size == len(real) == len(fake) else SUBSETS
    estimates = []
    for _ in range(subsets):
        x, y = (f[torch.from_numpy(random.permutation(len(f))[:size]).to(f.device)].double() for f in (real, fake))
        within = sum(float(k.sum() - k.diagonal().sum()) for k in (_kernel(x, x), _kernel(y, y)))
        estimates.append(within / (size * (size - 1)) - 2 * float(_kernel(x, y).mean()))
    return estimates


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return precision and recall of fake features [m, d] against real ones [n, d] (Kynkäänniemi et al., 2019).

    Precision is the share of fakes within the distance of some real point to its `neighbours`-th nearest real point
    (or the last of fewer points); recall is the same with real and fake exchanged.
    """
    real, fake = real.double(), fake.double()
    between = torch.cdist(real, fake)
    precision = (between <= _radii(real, neighbours)[:, None]).any(0)
    recall = (between <= _radii(fake, neighbours)).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


def density_coverage(real: Tensor, fake: Tensor, neighbours: int = 5) -> tuple[float, float]:
    """Return density and coverage of fake features [m, d] against real ones [n, d] (Naeem et al., ICML 2020).

    Density counts the fakes in the balls around real points, in expectation 1 if both are alike; coverage is the share
    of balls with a fake. `neighbours` is the number in the paper.
    """
    real, fake = real.double(), fake.double()
    inside = torch.cdist(real, fake) <= _radii(real, neighbours)[:, None]
    count = min(neighbours, len(real) - 1)
    return float(inside.sum(0).double().mean()) / count, float(inside.any(1).double().mean())


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each point [n, d], n ≥ 2, to its `neighbours`-th nearest other point, or the last."""
    return torch.cdist(points, points).kthvalue(min(neighbours, len(points) - 1) + 1, dim=1).values
