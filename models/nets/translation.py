"""Networks of Generate-To-Adapt: an embedding of images, and a GAN of 32-pixel images conditioned on it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32  # pixels of generated images; input images of another size are resized


class Embedding(nn.Module):
    """F: images [n, channels, size, size] -> embedding [n, 2 width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(resize(images))


class Generator(nn.Module):
    """G: embedding [n, 2 width], labels [n] (`classes` itself: target), noise [n, noise] -> images in [-1, 1]."""

    def __init__(self, channels: int, classes: int, noise: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        first, *_, last = widths = (8 * width, 4 * width, 2 * width, width)
        inputs = 2 * width + classes + 1 + noise
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, first, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        for a, b in pairwise(widths):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(last, channels, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, embedding: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, self.classes + 1).to(embedding.dtype)
        return self.layers(torch.cat([embedding, one_hot, noise], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """D: images -> class logits [n, classes], and logits [n] of being real."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 2 * width)
        layers: list[nn.Module] = []
        for (a, b), pool in zip(pairwise(widths), (2, 2, 2, 4), strict=True):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
            layers += [nn.MaxPool2d(pool)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.label, self.real = nn.Linear(2 * width, classes), nn.Linear(2 * width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(resize(images))
        return self.label(features), self.real(features)[:, 0]


def classifier(classes: int, width: int) -> nn.Sequential:
    """Return C: embedding [n, 2 width] -> logits [n, classes]."""
    return nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))


def resize(images: Tensor) -> Tensor:
    """Return images [n, c, h, w] resized to 32 pixels (bilinear)."""
    if images.shape[-1] == SIZE:
        return images
    return F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
