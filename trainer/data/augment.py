"""Random changes of training images: size, slant and place, as a pure function of a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def jitter(images: Tensor, amount: float, seed: int) -> Tensor:
    """Stretch, slant and shift images [n, C, H, W], each by its own draw; what moves in continues the border.

    Each axis is scaled by a factor in [1 / (1 + amount), 1 + amount], log-uniform; the slant is up to `amount` pixels
    a row, the shift up to a quarter of `amount` of the side. Drawn on the CPU: the same for every device.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(images), 5, generator=generator) * 2 - 1
    scale, slant, shift = (1 + amount) ** drawn[:, :2], amount * drawn[:, 2], amount / 2 * drawn[:, 3:]
    matrix = torch.zeros(len(images), 2, 3)  # from a pixel's place, in [-1, 1], to where it is taken from
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 1] = scale[:, 0], scale[:, 1], slant * scale[:, 0]
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
