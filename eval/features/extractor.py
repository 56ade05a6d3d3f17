"""What turns images into feature vectors, and what is kept of the vectors of many images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eval.features.moments import Moments

KEPT = 5000  # vectors, the first ones, for the distances that look at single images


@dataclass(frozen=True)
class Extractor:
    """A network whose features stand for images."""

    name: str
    sha256: str  # of its weights
    width: int  # of a vector
    batch: int  # images at a time
    resize: str  # what is done to an image of another size
    function: Callable[[Tensor], Tensor]  # uint8 [n, c, h, w] -> float [n, width], both on the device
    device: torch.device
    remedy: str  # where its features are not finite, which those of images are unless the network is broken
    provenance: dict[str, Any] = field(default_factory=dict)  # further facts

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, c, h, w], wherever it lies -> float32 [n, width] on the device."""
        with torch.inference_mode():
            parts = [self.function(part.to(self.device)).float() for part in images.split(self.batch)]
        return torch.cat(parts)


@dataclass(frozen=True)
class Statistics:
    """What is kept of a set of images: moments of all, and the first few vectors; no more for more images."""

    moments: Moments
    features: Tensor  # float32 [≤ KEPT, width]


def collect(images: Iterable[Tensor], extractor: Extractor) -> Statistics:
    """Statistics of batches uint8 [n, c, h, w]; ValueError if a feature is not finite, with the remedy."""
    moments, kept, count = Moments(extractor.width, extractor.device), [], 0
    for batch in images:
        vectors = extractor.features(batch)
        try:
            moments.add(vectors)
        except ValueError as error:
            raise ValueError(f"{extractor.name}, on {extractor.device}: {error}; {extractor.remedy}") from None
        if count < KEPT:  # an empty view, too, would hold the memory of all its vectors
            kept.append(vectors[: KEPT - count])
        count += len(vectors)
    empty = torch.zeros(0, extractor.width, device=extractor.device)
    return Statistics(moments, torch.cat([empty, *kept]))
