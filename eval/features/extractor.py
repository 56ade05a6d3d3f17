"""Feature extractors, and the statistics that are kept of the feature vectors of many images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eval.features.moments import Moments

KEPT = 5000  # vectors, the first ones, for the distances that compare single images


@dataclass(frozen=True)
class Extractor:
    """A network whose features represent images."""

    name: str
    sha256: str  # of its weights
    width: int  # of a vector
    batch: int  # images at a time
    resize: str  # what it does to images of another size
    function: Callable[[Tensor], Tensor]  # uint8 [n, c, h, w] → float [n, width], both on the device
    device: torch.device
    remedy: str  # if features are not finite; those of images are, unless the network is broken
    provenance: dict[str, Any] = field(default_factory=dict)  # further facts

    def features(self, images: Tensor) -> Tensor:
        """Return the features float32 [n, width], on the device, of images uint8 [n, c, h, w] on any device."""
        with torch.inference_mode():
            parts = [self.function(part.to(self.device)).float() for part in images.split(self.batch)]
        return torch.cat(parts)


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of images: moments of all vectors, and the first vectors, so memory does not grow with n."""

    moments: Moments
    features: Tensor  # float32 [≤ KEPT, width]


def collect(images: Iterable[Tensor], extractor: Extractor) -> Statistics:
    """Return the statistics of batches uint8 [n, c, h, w]; ValueError with the remedy if a feature is not finite."""
    moments, kept, count = Moments(extractor.width, extractor.device), [], 0
    for batch in images:
        vectors = extractor.features(batch)
        try:
            moments.add(vectors)
        except ValueError as error:
            raise ValueError(f"{extractor.name}, on {extractor.device}: {error}; {extractor.remedy}") from None
        if count < KEPT:  # even an empty view would keep the memory of all vectors alive
            kept.append(vectors[: KEPT - count])
        count += len(vectors)
    empty = torch.zeros(0, extractor.width, device=extractor.device)
    return Statistics(moments, torch.cat([empty, *kept]))
