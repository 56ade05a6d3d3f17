"""Random scaling, shear and shift of training images, as a pure function of a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def jitter(images: Tensor, amount: float, seed: int) -> Tensor:
    """Scale, shear and shift images [n, C, H, W], each by its own random amounts; the border is extended.

    Each axis is scaled by a factor in [1 / (1 + amount), 1 + amount], log-uniform; the shear is up to `amount` pixels
    a row, the shift up to a quarter of `amount` of the side. The random numbers are those of the CPU on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(images), 5, generator=generator) * 2 - 1
    scale, shear, shift = (1 + amount) ** uniform[:, :2], amount * uniform[:, 2], amount / 2 * uniform[:, 3:]
    matrix = torch.zeros(len(images), 2, 3)  # from a pixel's position, in [-1, 1], to its source
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 1] = scale[:, 0], scale[:, 1], shear * scale[:, 0]
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
