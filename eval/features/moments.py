"""Mean and covariance of feature vectors from streamed float64 sums, in constant memory."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that represents a set of features."""

    mean: Array  # [d]
    covariance: Array  # [d, d]

    @cached_property
    def factor(self) -> Array:
        """A [d, rank] with A Aᵀ = covariance, by Cholesky with pivots, which ends where only rounding is left."""
        lower, pivots, rank, _ = linalg.lapack.dpstrf(self.covariance, lower=1)
        factor: Array = np.zeros((len(lower), max(rank, 1)))  # zero if all images are equal
        factor[pivots - 1, :rank] = np.tril(lower)[:, :rank]
        return factor


class Moments:
    """Count, sum and sum of outer products of vectors [d]; moments of two parts add up to those of the whole."""

    def __init__(self, width: int, device: torch.device | str = "cpu", sums: Array | None = None) -> None:
        """Start with no vectors, or with existing `sums`, float64 [1 + d + d²]; ValueError if they have another d."""
        self.width = width
        # One tensor: a single sum adds up processes, and a file holds a single array.
        self.sums = torch.zeros(1 + width + width**2, dtype=torch.float64, device=device)
        if sums is not None:
            if sums.shape != self.sums.shape:
                raise ValueError(f"sums of {sums.shape} values are not those of features of width {width}")
            self.sums += torch.from_numpy(sums).to(device)

    @property
    def count(self) -> int:
        return int(self.sums[0].item())

    def add(self, features: Tensor) -> None:
        """Add vectors [n, d]; ValueError if one is not finite or has another width."""
        if features.shape[1:] != (self.width,):
            raise ValueError(f"features of shape {tuple(features.shape)} are not vectors of width {self.width}")
        x = features.to(self.sums.device, torch.float64)
        if not x.isfinite().all():
            raise ValueError("the features are not finite")
        self.sums[0] += len(x)
        self.sums[1 : 1 + self.width] += x.sum(0)
        self.sums[1 + self.width :].view(self.width, self.width).addmm_(x.T, x)

    def gaussian(self) -> Gaussian:
        """Return mean [d] and unbiased covariance [d, d]; ValueError for fewer than two vectors."""
        count, sums = self.count, np.asarray(self.sums.cpu())
        if count < 2:
            raise ValueError(f"{count} images have no covariance; at least two are needed")
        mean = sums[1 : 1 + self.width] / count
        outer: Any = sums[1 + self.width :].reshape(self.width, self.width)
        return Gaussian(mean, (outer - count * np.outer(mean, mean)) / (count - 1))
