"""How far one set of feature vectors is from another.

Lower is better of Fréchet distance and KID; precision, recall, density and coverage are shares: higher is better.
"""

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from eval.features.moments import Gaussian

SUBSETS, SUBSET = 100, 1000  # of KID, as in its paper


def frechet(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance of two Gaussians, squared (Dowson & Landau, 1982; Heusel et al., NeurIPS 2017, eq. 6).

    The trace of (C1 C2)^½ is the sum of the singular values of A1ᵀ A2, where C = A Aᵀ. This needs no square root of a
    matrix that is not symmetric and, with fewer images than features, none of a singular one.
    ValueError if the Gaussians differ in width, or are not finite.
    """
    if first.mean.shape != second.mean.shape:
        widths = f"{len(first.mean)} cannot be compared with those of width {len(second.mean)}"
        raise ValueError(f"features of width {widths}")
    root = linalg.svdvals(first.factor.T @ second.factor).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * root
    distance = float(((first.mean - second.mean) ** 2).sum() + spread)
    if not np.isfinite(distance):  # no comparison with zero may make something good of it
        raise ValueError(f"the distance is {distance}: a mean or covariance is not finite")
    return max(0.0, distance)


def kid(real: Tensor, fake: Tensor) -> float:
    """Kernel distance of features [n, d] and [m, d], n, m ≥ 2 (Bińkowski et al., ICLR 2018): MMD² with (x·y / d + 1)³.

    The mean of unbiased estimates on random subsets, always the same ones; being unbiased it can fall below zero.
    """
    size = min(SUBSET, len(real), len(fake))
    if size < 2:
        raise ValueError("KID of fewer than two images")
    random = np.random.default_rng(0)
    subsets = 1 if size == len(real) == len(fake) else SUBSETS
    found = []
    for _ in range(subsets):
        x, y = (f[torch.from_numpy(random.permutation(len(f))[:size]).to(f.device)].double() for f in (real, fake))
        within = sum(float(k.sum() - k.diagonal().sum()) for k in (_kernel(x, x), _kernel(y, y)))
        found.append(within / (size * (size - 1)) - 2 * float(_kernel(x, y).mean()))
    return float(np.mean(found))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of fake features [m, d] among the real ones [n, d], and of real among fake (Kynkäänniemi et al., 2019).

    Among: within the distance of some point to its `neighbours`-th nearest of its own kind; fewer points have fewer.
    """
    real, fake = real.double(), fake.double()
    between = torch.cdist(real, fake)
    precision = (between <= _radii(real, neighbours)[:, None]).any(0)
    recall = (between <= _radii(fake, neighbours)).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


def density_coverage(real: Tensor, fake: Tensor, neighbours: int = 5) -> tuple[float, float]:
    """How often fake features [m, d] lie in the balls around real ones [n, d], in expectation 1 if both are alike,
    and the share of these balls that hold a fake (Naeem et al., ICML 2020, with their number of neighbours)."""
    real, fake = real.double(), fake.double()
    inside = torch.cdist(real, fake) <= _radii(real, neighbours)[:, None]
    count = min(neighbours, len(real) - 1)
    return float(inside.sum(0).double().mean()) / count, float(inside.any(1).double().mean())


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of each point [n, d], n ≥ 2, to its nearest but `neighbours`-th, itself not counted."""
    return torch.cdist(points, points).kthvalue(min(neighbours, len(points) - 1) + 1, dim=1).values
