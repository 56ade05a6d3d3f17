"""Convert between stored images, uint8, and those that methods see, float32 in [-1, 1]."""

import torch
from torch import Tensor


def to_signed(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1], on their device."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [-1, 1], clipped and rounded, as uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
