"""Differentiable augmentation of what a discriminator sees (Zhao et al., NeurIPS 2020), for GANs on small datasets."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Callable[[Tensor], Tensor]  # images [n, c, h, w] -> images of the same shape


def augmentation(policy: str) -> Augmentation:
    """Return the parts of a policy such as "color+translation+cutout", one after the other; "none" returns its input.

    Each image has its own random numbers. Gradients flow through, so that a generator learns from them as well; a
    method applies it to real and to generated images alike, wherever the discriminator sees them.
    """
    parts = [PARTS[name] for name in policy.split("+") if name != "none"]

    def augment(images: Tensor) -> Tensor:
        for part in parts:
            images = part(images)
        return images

    return augment


def change_color(images: Tensor) -> Tensor:
    """Change brightness by -0.5 … 0.5, then saturation by 0 … 2, then contrast by 0.5 … 1.5 times."""
    brightness, saturation, contrast = (torch.rand_like(images[:, :1, :1, :1]) for _ in range(3))
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def translate(images: Tensor) -> Tensor:
    """Shift by up to an eighth of the size along each axis; zeros move in."""
    for axis in (2, 3):
        size = images.shape[axis]
        most = round(size / 8)
        shift = torch.randint(-most, most + 1, (len(images), 1), device=images.device)
        source = torch.arange(size, device=images.device) + shift + 1  # 0 and size + 1 are the zeros around the image
        source = source.clamp(0, size + 1)[:, None, :, None] if axis == 2 else source.clamp(0, size + 1)[:, None, None]
        padded = F.pad(images, (0, 0, 1, 1) if axis == 2 else (1, 1))
        images = padded.gather(axis, source.expand_as(images))
    return images


def cut_out(images: Tensor) -> Tensor:
    """Set a square of half the size to zero; its centre is anywhere, so that part of it may lie outside."""
    inside = []
    for size in images.shape[2:]:
        centre = torch.randint(size + 1, (len(images), 1), device=images.device)
        distance = torch.arange(size, device=images.device) - centre + size // 4
        inside.append((distance >= 0) & (distance < size // 2))
    rows, columns = inside
    return images * ~(rows[:, None, :, None] & columns[:, None, None])


def invert(images: Tensor) -> Tensor:
    """Swap dark and bright in half of the images; their range is [-1, 1]."""
    return images * (1 - 2 * torch.randint_like(images[:, :1, :1, :1], 2))


def stretch(images: Tensor) -> Tensor:
    """Scale each axis by 2/3 to 3/2, shear and shift by up to a tenth of the size; the border is extended."""
    random = 2 * torch.rand(len(images), 2, 3, device=images.device, dtype=images.dtype) - 1
    matrix = 0.2 * random  # from a pixel's position, in [-1, 1], to its source
    for axis in (0, 1):
        matrix[:, axis, axis] = 1.5 ** random[:, axis, axis]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


PARTS: dict[str, Augmentation] = {
    "color": change_color, "translation": translate, "cutout": cut_out, "invert": invert, "stretch": stretch,
}  # fmt: skip
