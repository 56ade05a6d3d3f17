"""Classifiers of small images in three parts: feature extractor, classifier, domain classifier."""

from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import nn

from models.nets import translation


class Parts(NamedTuple):
    """The three networks of domain adaptation; `features` is the number of features between them."""

    extractor: nn.Module  # images [n, channels, size, size] -> [n, features]
    classifier: nn.Module  # [n, features] -> logits [n, classes]
    domain: nn.Module  # [n, features] -> logits [n, 2] of source and target, or one logit [n, 1] of the target
    features: int


def build(net: str, channels: int, size: int, classes: int, instance_norm: bool = False) -> Parts:
    """Return one of NETS for images of that shape; ValueError if they are too small for it.

    `instance_norm` first normalises each channel of each image to mean 0 and variance 1 (Shu et al., ICLR 2018).
    """
    parts = NETS[net](channels, size, classes)
    if instance_norm:
        return parts._replace(extractor=nn.Sequential(nn.InstanceNorm2d(channels), parts.extractor))
    return parts


def lenet(channels: int, size: int, classes: int) -> Parts:
    """Return LeNet with batch norm: two convolutions, for quick runs."""
    extractor = nn.Sequential(
        nn.Conv2d(channels, 16, 5), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 5), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = count_features(extractor, channels, size)
    classifier = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, classes))
    domain = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    return Parts(extractor, classifier, domain, features)


def compact(channels: int, size: int, classes: int) -> Parts:
    """Return the two-convolution network with dropout that is common in DANN code; 800 features at 28 pixels."""
    extractor = nn.Sequential(
        nn.Conv2d(channels, 64, 5), nn.BatchNorm2d(64), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(64, 50, 5), nn.BatchNorm2d(50), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = count_features(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(100, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip
    domain = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    return Parts(extractor, classifier, domain, features)


def slim(channels: int, size: int, classes: int) -> Parts:
    """Return three convolutions and a hidden layer as extractor; 128 non-spatial features."""
    extractor = nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    extractor.extend([nn.Linear(count_features(extractor, channels, size), 128), nn.BatchNorm1d(128), nn.ReLU()])
    classifier = nn.Sequential(nn.Linear(128, classes))
    domain = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    return Parts(extractor, classifier, domain, 128)


def svhn(channels: int, size: int, classes: int) -> Parts:
    """Return three convolutions and two hidden layers, with dropout in the extractor; 3,136 features at 28 pixels."""
    extractor = nn.Sequential(
        *convolution(channels, 48, 5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(48, 64, 5), nn.Dropout(0.5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(64, 64, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = count_features(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
        nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip
    domain = nn.Sequential(nn.Linear(features, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 2))
    return Parts(extractor, classifier, domain, features)


def usps(channels: int, size: int, classes: int) -> Parts:
    """Return a network like `svhn` with dropout in the classifiers instead; 6,272 features at 28 pixels."""
    extractor = nn.Sequential(
        *convolution(channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
        *convolution(64, 128, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    features = count_features(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 1024), nn.BatchNorm1d(1024), nn.Dropout(0.2), nn.ReLU(),
        nn.Linear(1024, 128), nn.BatchNorm1d(128), nn.Dropout(0.2), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip
    domain = nn.Sequential(nn.Linear(features, 256), nn.BatchNorm1d(256), nn.Dropout(0.2), nn.ReLU(), nn.Linear(256, 2))
    return Parts(extractor, classifier, domain, features)


def deep(channels: int, size: int, classes: int) -> Parts:
    """Return five convolutions that each halve the image, with one domain logit; 512 features at 32 pixels."""
    widths = (channels, 64, 128, 256, 256, 512)
    stages = [(*convolution(a, b, 3), nn.ReLU(), nn.MaxPool2d(2)) for a, b in pairwise(widths)]
    extractor = nn.Sequential(*chain(*stages), nn.Flatten())
    features = count_features(extractor, channels, size)
    classifier = nn.Sequential(
        nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)
    )
    hidden = [(nn.Linear(a, 512), nn.BatchNorm1d(512), nn.ReLU()) for a in (features, 512, 512, 512)]
    domain = nn.Sequential(*chain(*hidden), nn.Linear(512, 1))
    return Parts(extractor, classifier, domain, features)


def gta(channels: int, size: int, classes: int) -> Parts:
    """Return the embedding and the classifier of Generate-To-Adapt, for its bounds; 128 features of any image."""
    features = 128
    extractor, classifier = (
        translation.Embedding(channels, features // 2),
        translation.classifier(classes, features // 2),
    )
    domain = nn.Sequential(nn.Linear(features, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    return Parts(extractor, classifier, domain, features)


NETS = {"lenet": lenet, "slim": slim, "compact": compact, "svhn": svhn, "usps": usps, "deep": deep, "gta": gta}


def convolution(in_channels: int, out_channels: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    """Return a convolution that keeps the size of the image, and its batch norm."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.BatchNorm2d(out_channels)


@torch.no_grad()
def count_features(extractor: nn.Module, channels: int, size: int) -> int:
    """Return the number of features of such images; ValueError if they are too small for the extractor."""
    extractor.eval()  # keeps the running statistics of batch norm unchanged
    try:
        features = extractor(torch.zeros(1, channels, size, size))
    except RuntimeError:
        raise ValueError(f"images of {size} pixels are too small for this network; set data.size") from None
    extractor.train()
    return features.shape[1]
