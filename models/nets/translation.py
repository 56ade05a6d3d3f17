"""The networks of Generate-To-Adapt: an embedding of a digit, and a GAN of 32-pixel images conditioned on it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32  # pixels that the generator draws; images of another size are resized on their way in
EMBEDDING = 128


class Embedding(nn.Module):
    """F: images [n, channels, size, size] -> [n, 128]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, EMBEDDING, 5), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.layers(resize(images))
        return vectors


class Generator(nn.Module):
    """G: embedding [n, 128], domain-or-class number [n] in 0 … classes, noise [n, noise] -> images in [-1, 1]."""

    def __init__(self, channels: int, classes: int, noise: int) -> None:
        super().__init__()
        self.classes = classes
        widths = (512, 256, 128, 64)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(EMBEDDING + classes + 1 + noise, 512, 2, bias=False), nn.BatchNorm2d(512), nn.ReLU()
        ]  # fmt: skip
        for a, b in pairwise(widths):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(64, channels, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, embedding: Tensor, number: Tensor, noise: Tensor) -> Tensor:
        one_hot = F.one_hot(number, self.classes + 1).to(embedding.dtype)
        images: Tensor = self.layers(torch.cat([embedding, one_hot, noise], 1)[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """D: images -> logits of the classes [n, classes], and one of being real [n]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 64, 128, 256, 128)
        layers: list[nn.Module] = []
        for (a, b), pool in zip(pairwise(widths), (2, 2, 2, 4), strict=True):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
            layers += [nn.MaxPool2d(pool)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.label, self.real = nn.Linear(128, classes), nn.Linear(128, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.layers(resize(images))
        return self.label(vectors), self.real(vectors)[:, 0]


def classifier(classes: int) -> nn.Sequential:
    """C: embedding [n, 128] -> logits [n, classes]."""
    return nn.Sequential(nn.Linear(EMBEDDING, 128), nn.ReLU(), nn.Linear(128, classes))


def resize(images: Tensor) -> Tensor:
    """Images [n, c, h, w] at 32 pixels, bilinear."""
    if images.shape[-1] == SIZE:
        return images
    return F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
