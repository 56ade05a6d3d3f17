"""The networks of Generate-To-Adapt: an embedding of a digit, and a GAN of 32-pixel images conditioned on it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32  # pixels that the generator draws; images of another size are resized on their way in


class Embedding(nn.Module):
    """F: images [n, channels, size, size] -> [n, 2 width]."""

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
    """G: embedding [n, 2 width], class or domain [n] in 0 … classes, noise [n, noise] -> images in [-1, 1]."""

    def __init__(self, channels: int, classes: int, noise: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        first, *_, last = widths = (8 * width, 4 * width, 2 * width, width)
        inputs = 2 * width + classes + 1 + noise
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, first, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        for a, b in pairwise(widths):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(last, channels, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, embedding: Tensor, number: Tensor, noise: Tensor) -> Tensor:
        one_hot = F.one_hot(number, self.classes + 1).to(embedding.dtype)
        return self.layers(torch.cat([embedding, one_hot, noise], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """D: images -> logits of the classes [n, classes], and one of being real [n]."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 2 * width)
        layers: list[nn.Module] = []
        for (a, b), pool in zip(pairwise(widths), (2, 2, 2, 4), strict=True):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
            layers += [nn.MaxPool2d(pool)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.label, self.real = nn.Linear(2 * width, classes), nn.Linear(2 * width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.layers(resize(images))
        return self.label(vectors), self.real(vectors)[:, 0]


def classifier(classes: int, width: int) -> nn.Sequential:
    """C: embedding [n, 2 width] -> logits [n, classes]."""
    return nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))


def resize(images: Tensor) -> Tensor:
    """Images [n, c, h, w] at 32 pixels, bilinear."""
    if images.shape[-1] == SIZE:
        return images
    return F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
