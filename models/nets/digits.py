"""Classifiers of small images, in three parts: extractor (images to vectors), classifier, domain classifier."""

from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Parts(NamedTuple):
    """The three networks of domain adaptation; `features` is the width of the vectors between them."""

    extractor: nn.Module  # images [n, channels, size, size] -> [n, features]
    classifier: nn.Module  # [n, features] -> logits [n, classes]
    domain: nn.Module  # [n, features] -> logits [n, 2], source 0 and target 1, or one logit [n, 1], of the target
    features: int


def build(net: str, channels: int, size: int, classes: int) -> Parts:
    """Build one of NETS for images of that shape; ValueError if the images are too small for it."""
    return NETS[net](channels, size, classes)


def lenet(channels: int, size: int, classes: int) -> Parts:
    """A slim two-layer net for quick runs: seconds per thousand steps on a core, batch norm in the extractor."""
    extractor = nn.Sequential(
        nn.Conv2d(channels, 16, 5), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 5), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = width(extractor, channels, size)
    classifier = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, classes))
    domain = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    return Parts(extractor, classifier, domain, features)


def compact(channels: int, size: int, classes: int) -> Parts:
    """The two-layer net with dropout that is common in DANN code; 800 features of a 28-pixel image."""
    extractor = nn.Sequential(
        nn.Conv2d(channels, 64, 5), nn.BatchNorm2d(64), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(64, 50, 5), nn.BatchNorm2d(50), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = width(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(100, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip
    domain = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    return Parts(extractor, classifier, domain, features)


def slim(channels: int, size: int, classes: int) -> Parts:
    """Three convolutions and a hidden layer, all in the extractor: the domains meet in 128 features without a place."""
    extractor = nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    extractor.extend([nn.Linear(width(extractor, channels, size), 128), nn.BatchNorm1d(128), nn.ReLU()])
    classifier = nn.Sequential(nn.Linear(128, classes))
    domain = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    return Parts(extractor, classifier, domain, 128)


def svhn(channels: int, size: int, classes: int) -> Parts:
    """Three convolutions and two hidden layers, dropout in the extractor; 3,136 features of a 28-pixel image."""
    extractor = nn.Sequential(
        *convolution(channels, 48, 5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(48, 64, 5), nn.Dropout(0.5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(64, 64, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = width(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
        nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip
    domain = nn.Sequential(nn.Linear(features, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 2))
    return Parts(extractor, classifier, domain, features)


def usps(channels: int, size: int, classes: int) -> Parts:
    """As `svhn`, with dropout in the classifiers instead; 6,272 features of a 28-pixel image."""
    extractor = nn.Sequential(
        *convolution(channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(64, 128, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = width(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 1024), nn.BatchNorm1d(1024), nn.Dropout(0.2), nn.ReLU(),
        nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.Dropout(0.2), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip
    domain = nn.Sequential(nn.Linear(features, 256), nn.BatchNorm1d(256), nn.Dropout(0.2), nn.ReLU(), nn.Linear(256, 2))
    return Parts(extractor, classifier, domain, features)


def deep(channels: int, size: int, classes: int) -> Parts:
    """Five convolutions, each halving the image: 512 features of 32 pixels. The domain is one logit."""
    widths = (channels, 64, 128, 256, 256, 512)
    stages = [(*convolution(a, b, 3), nn.ReLU(), nn.MaxPool2d(2)) for a, b in pairwise(widths)]
    extractor = nn.Sequential(*chain(*stages), nn.Flatten())
    features = width(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)
    )
    hidden = [(nn.Linear(a, 512), nn.BatchNorm1d(512), nn.ReLU()) for a in (features, 512, 512, 512)]
    domain = nn.Sequential(*chain(*hidden), nn.Linear(512, 1))
    return Parts(extractor, classifier, domain, features)


NETS = {"lenet": lenet, "slim": slim, "compact": compact, "svhn": svhn, "usps": usps, "deep": deep}


def convolution(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the size of the image, and its batch norm."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs)


@torch.no_grad()
def width(extractor: nn.Module, channels: int, size: int) -> int:
    """Length of the vectors that the extractor makes of such images; ValueError if they are too small for it."""
    extractor.eval()  # a trial image must not move the running statistics
    try:
        vectors: Tensor = extractor(torch.zeros(1, channels, size, size))
    except RuntimeError:
        raise ValueError(f"images of {size} pixels are too small for this network; set data.size") from None
    extractor.train()
    return vectors.shape[1]
